//! Tables and verdicts from the rows `figure, peer, round, name, number` that were measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The rows, separated by tabs
    rows: PathBuf,
}

/// One line of the summary, and what is to be reached.
struct Figure {
    key: &'static str,
    title: &'static str,
    /// Which of its numbers counts.
    name: &'static str,
    unit: &'static str,
    /// The unit of the CPU time, if there is one.
    cpu: &'static str,
    /// Whom the ratios are to.
    base: &'static str,
    target: Target,
}

#[derive(Clone, Copy)]
enum Target {
    None,
    /// At least, and at most, so many times the base.
    AtLeastTimes(f64),
    AtMostTimes(f64),
    /// In the figure's own unit.
    AtLeast(f64),
    AtMost(f64),
}

/// Whose verdict it is.
const OURS: &str = "mailchime";

#[rustfmt::skip]
const FIGURES: [Figure; 18] = {
    use Target::{AtLeast, AtLeastTimes, AtMost, AtMostTimes};
    const fn figure(
        key: &'static str, title: &'static str, name: &'static str, unit: &'static str,
        cpu: &'static str, base: &'static str, target: Target,
    ) -> Figure {
        Figure { key, title, name, unit, cpu, base, target }
    }
    [
        figure("fetch-1", "FETCH, 1 session", "rate", "MB/s", "s/GB", "haproxy", AtLeastTimes(1.15)),
        figure("fetch-4", "FETCH, 4 sessions", "rate", "MB/s", "s/GB", "haproxy", AtLeastTimes(1.15)),
        figure("append-1", "APPEND, 1 session", "rate", "MB/s", "s/GB", "haproxy", AtLeastTimes(1.15)),
        figure("append-4", "APPEND, 4 sessions", "rate", "MB/s", "s/GB", "haproxy", AtLeastTimes(1.15)),
        figure("compress", "FETCH, compressed, a core", "per_core", "MB/s", "s/GB", OURS, AtLeast(80.0)),
        figure("noop-1", "NOOP p50, 1 session", "p50", "µs", "µs", "nginx", AtMostTimes(1.0)),
        figure("noop-1", "NOOP p99, 1 session", "p99", "µs", "", "nginx", Target::None),
        figure("noop-50", "NOOP, 50 sessions", "rate", "/s", "µs", "nginx", AtLeastTimes(1.0)),
        figure("idle", "idle, a session", "kib", "KiB", "", "haproxy", AtMost(12.0)),
        figure("idle", "idle, a session and its share of the whole", "all", "KiB", "", "haproxy", Target::None),
        figure("login", "connect, TLS, login, logout", "rate", "/s", "ms", "haproxy", AtLeastTimes(1.2)),
        figure("resume", "the same with a TLS ticket", "rate", "/s", "ms", "haproxy", Target::None),
        figure("start", "start to listening", "ms", "ms", "", OURS, AtMost(100.0)),
        figure("start", "resident with nothing to do", "mib", "MiB", "", OURS, AtMost(30.0)),
        figure("dovecot-fetch", "Dovecot: FETCH", "rate", "MB/s", "s/GB", "dovecot", AtLeastTimes(2.0)),
        figure("dovecot-fetch", "Dovecot: CPU of a FETCH", "cpu", "s/GB", "", "dovecot", AtMostTimes(0.5)),
        figure("dovecot-login", "Dovecot: connect, TLS, login, logout", "rate", "/s", "ms", "dovecot", AtLeastTimes(2.0)),
        figure("dovecot-idle", "Dovecot: idle, a session", "kib", "KiB", "", "dovecot", AtMostTimes(0.5)),
    ]
};

/// What was measured: numbers by figure, peer and name. Peers are in the order of their first row.
struct Measured {
    numbers: BTreeMap<(String, String, String), Vec<f64>>,
    peers: Vec<String>,
}

pub(crate) fn run(options: &Options) {
    let measured =
        Measured::read(&fs::read_to_string(&options.rows).expect("the rows are readable"));
    let figures: Vec<_> = FIGURES.iter().filter(|figure| measured.has(figure.key)).collect();
    for figure in &figures {
        measured.table(figure);
    }
    measured.growth();
    measured.summary(&figures);
    measured.verdicts(&figures);
}

/// Smallest, median and largest of numbers, of which there are some.
struct Spread([f64; 3]);

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (smallest, largest) = (*numbers.first()?, *numbers.last()?);
        let [one, other] = [(numbers.len() - 1) / 2, numbers.len() / 2];
        Some(Self([smallest, f64::midpoint(numbers[one], numbers[other]), largest]))
    }
}

impl Measured {
    fn read(rows: &str) -> Self {
        let mut measured = Self { numbers: BTreeMap::new(), peers: Vec::new() };
        for row in rows.lines() {
            let fields: Vec<_> = row.split('\t').collect();
            let [figure, peer, _, name, number] = fields[..] else { continue };
            let Ok(number) = number.parse::<f64>() else { continue };
            if !measured.peers.iter().any(|known| known == peer) {
                measured.peers.push(peer.to_owned());
            }
            let mut add = |name: &str, number| {
                let key = (figure.to_owned(), peer.to_owned(), name.to_owned());
                measured.numbers.entry(key).or_default().push(number);
            };
            add(name, number);
            if name == "cpu" && number > 0.0 {
                // From seconds a GB.
                add("per_core", 1000.0 / number);
            }
        }
        measured
    }

    fn has(&self, figure: &str) -> bool {
        self.numbers.keys().any(|(key, ..)| key == figure)
    }

    fn spread(&self, figure: &str, peer: &str, name: &str) -> Option<Spread> {
        let key = (figure.to_owned(), peer.to_owned(), name.to_owned());
        Spread::of(self.numbers.get(&key)?.clone())
    }

    fn median(&self, figure: &str, peer: &str, name: &str) -> Option<f64> {
        self.spread(figure, peer, name).map(|Spread([_, median, _])| median)
    }

    fn table(&self, figure: &Figure) {
        let Figure { key, title, name, unit, cpu, base, .. } = figure;
        println!("\n{title}, in {unit}");
        let (to_base, cpu_of) = (format!("to {base}"), format!("CPU {cpu}"));
        let cpu_of = if cpu.is_empty() { "" } else { &cpu_of };
        let [smallest, median, largest] = ["smallest", "median", "largest"];
        println!("  {:<16}{smallest:>10}{median:>10}{largest:>10}{to_base:>14}{cpu_of:>14}", "");
        let base = self.median(key, base, name);
        for peer in &self.peers {
            let Some(Spread([smallest, median, largest])) = self.spread(key, peer, name) else {
                continue;
            };
            let ratio = base.map_or("-".to_owned(), |base| format!("{:.2}", median / base));
            let cpu = match self.median(key, peer, "cpu") {
                Some(seconds) if !cpu.is_empty() => short(seconds),
                _ => String::new(),
            };
            let [smallest, median, largest] = [smallest, median, largest].map(short);
            println!("  {peer:<16}{smallest:>10}{median:>10}{largest:>10}{ratio:>14}{cpu:>14}");
        }
    }

    /// Figures of the name `growth-KIND-NUMBER`: one table each kind and peer.
    fn growth(&self) {
        let mut kinds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (figure, ..) in self.numbers.keys() {
            let parts = figure.strip_prefix("growth-").and_then(|rest| rest.split_once('-'));
            let Some((kind, number)) = parts else { continue };
            let Ok(number) = number.parse() else { continue };
            kinds.entry(kind).or_default().push(number);
        }
        for (kind, mut numbers) in kinds {
            let (title, names): (_, &[_]) = match kind {
                "noop" => ("NOOP by sessions", &["rate", "p50", "p99", "cpu"]),
                "idle" => ("idle by sessions, KiB each", &["kib", "all"]),
                _ => ("FETCH by KiB of the message", &["rate", "p50", "cpu"]),
            };
            numbers.sort_unstable();
            numbers.dedup();
            println!("\n{title}");
            print!("  {:>8}", "");
            for peer in &self.peers {
                for (at, name) in names.iter().enumerate() {
                    let head = if at == 0 { format!("{peer} {name}") } else { (*name).to_owned() };
                    print!("{head:>width$}", width = if at == 0 { 20 } else { 10 });
                }
            }
            println!();
            for number in numbers {
                print!("  {number:>8}");
                for peer in &self.peers {
                    for (at, name) in names.iter().enumerate() {
                        let median = self.median(&format!("growth-{kind}-{number}"), peer, name);
                        let median = median.map_or("-".to_owned(), short);
                        print!("{median:>width$}", width = if at == 0 { 20 } else { 10 });
                    }
                }
                println!();
            }
        }
    }

    /// All medians, in a form that a README takes.
    fn summary(&self, figures: &[&Figure]) {
        if figures.is_empty() {
            return;
        }
        println!("\nMedians, and CPU for each unit\n");
        println!("| | {} |", self.peers.join(" | "));
        println!("| --- |{}", " --- |".repeat(self.peers.len()));
        for Figure { key, title, name, unit, cpu, .. } in figures {
            let cell = |peer: &String| {
                let Some(median) = self.median(key, peer, name) else { return String::new() };
                match self.median(key, peer, "cpu") {
                    Some(seconds) if !cpu.is_empty() => {
                        format!("{}; {}", short(median), short(seconds))
                    }
                    _ => short(median),
                }
            };
            let cells: Vec<_> = self.peers.iter().map(cell).collect();
            let cpu = if cpu.is_empty() { String::new() } else { format!("; CPU {cpu}") };
            println!("| {title}, {unit}{cpu} | {} |", cells.join(" | "));
        }
    }

    fn verdicts(&self, figures: &[&Figure]) {
        println!();
        for Figure { key, title, name, unit, cpu, base, target } in figures {
            let (ours, base_median) = (self.median(key, OURS, name), self.median(key, base, name));
            let (Some(ours), Some(base_median)) = (ours, base_median) else { continue };
            let times = ours / base_median;
            let (reached, is, wanted) = match *target {
                Target::None => continue,
                Target::AtLeastTimes(most) => {
                    (times >= most, format!("{times:.2} × {base}"), format!("at least {most}"))
                }
                Target::AtMostTimes(most) => {
                    (times <= most, format!("{times:.2} × {base}"), format!("at most {most}"))
                }
                Target::AtLeast(least) => {
                    (ours >= least, format!("{} {unit}", short(ours)), format!("at least {least}"))
                }
                Target::AtMost(most) => {
                    (ours <= most, format!("{} {unit}", short(ours)), format!("at most {most}"))
                }
            };
            let verdict = if reached { "reached" } else { "MISSED" };
            print!("{verdict:<8} {title}: {is} ({wanted})");
            let cpus = [OURS, base].map(|peer| self.median(key, peer, "cpu"));
            if let [Some(ours), Some(theirs)] = cpus
                && !cpu.is_empty()
                && *base != OURS
            {
                print!("; CPU {:.2} ×", ours / theirs);
            }
            println!();
        }
    }
}

/// Three digits that count.
fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
