//! Tables and verdicts from the rows `figure, peer, round, name, number` that were measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::plot;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The rows, separated by tabs
    rows: PathBuf,
    /// Where to put a plot of each growth table, as SVG
    #[arg(long)]
    plots: Option<PathBuf>,
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
    /// Whose verdict it is.
    whose: &'static str,
    /// Whom the ratios are to.
    base: Base,
    target: Target,
}

/// What ratios are to.
#[derive(Clone, Copy)]
enum Base {
    Peer(&'static str),
    /// To the better of some, of a figure that is better where it is larger.
    Better(&'static [&'static str]),
    /// To another figure of the same peer.
    Figure(&'static str),
}

#[derive(Clone, Copy)]
enum Target {
    None,
    /// At least, and at most, so many times the base.
    AtLeastTimes(f64),
    AtMostTimes(f64),
    /// At least so many times the base in each round, and at most so many times this peer's CPU.
    EachRound(f64, f64, &'static str),
    /// In the figure's own unit.
    AtLeast(f64),
    AtMost(f64),
}

/// The program without TLS behind it.
const OURS: &str = "mailchime";

#[rustfmt::skip]
const FIGURES: [Figure; 31] = {
    use Base::{Better, Figure as Other, Peer};
    use Target::{AtLeast, AtLeastTimes, AtMost, AtMostTimes, EachRound};
    const fn figure(
        key: &'static str, title: &'static str, name: &'static str, unit: &'static str,
        cpu: &'static str, base: Base, target: Target,
    ) -> Figure {
        Figure { key, title, name, unit, cpu, whose: OURS, base, target }
    }
    const HAPROXY: Base = Peer("haproxy");
    const OTHERS: Base = Better(&["haproxy", "nginx"]);
    const DOVECOT: Base = Peer("dovecot");
    [
        figure("fetch-1", "FETCH, 1 session", "rate", "MB/s", "s/GB", HAPROXY, AtLeastTimes(1.15)),
        figure("fetch-4", "FETCH, 4 sessions", "rate", "MB/s", "s/GB", HAPROXY, AtLeastTimes(1.15)),
        figure("message-1", "FETCH of 1 KiB", "rate", "MB/s", "s/GB", OTHERS, AtLeastTimes(1.15)),
        figure("message-4", "FETCH of 4 KiB", "rate", "MB/s", "s/GB", OTHERS, AtLeastTimes(1.15)),
        figure("message-4096", "FETCH of 4 MiB", "rate", "MB/s", "s/GB", HAPROXY, Target::None),
        figure("message-16384", "FETCH of 16 MiB", "rate", "MB/s", "s/GB", Other("message-4096"), AtLeastTimes(1.0)),
        figure("message-65536", "FETCH of 64 MiB", "rate", "MB/s", "s/GB", Other("message-4096"), AtLeastTimes(1.0)),
        figure("phones", "many slow phones, CPU of a FETCH", "cpu", "µs", "", HAPROXY, AtMostTimes(0.8)),
        figure("phones", "many slow phones, a session", "kib", "KiB", "", HAPROXY, Target::None),
        figure("append-1", "APPEND, 1 session", "rate", "MB/s", "s/GB", HAPROXY, AtLeastTimes(1.15)),
        figure("append-4", "APPEND, 4 sessions", "rate", "MB/s", "s/GB", HAPROXY, AtLeastTimes(1.15)),
        figure("compress", "FETCH, compressed, a core", "per_core", "MB/s", "s/GB", Peer(OURS), AtLeast(80.0)),
        figure("noop-1", "NOOP p50, 1 session", "p50", "µs", "µs", Peer("nginx"), AtMostTimes(1.0)),
        figure("noop-1", "NOOP p99, 1 session", "p99", "µs", "", Peer("nginx"), Target::None),
        figure("noop-50", "NOOP, 50 sessions", "rate", "/s", "µs", Peer("nginx"), EachRound(1.0, 1.05, "relay")),
        figure("idle", "idle, a session", "kib", "KiB", "", HAPROXY, AtMost(7.0)),
        Figure { whose: "mailchime-tls", ..figure("idle", "idle, a session, TLS behind as well", "kib", "KiB", "", HAPROXY, AtMost(13.0)) },
        figure("idle", "idle, a session and its share of the whole", "all", "KiB", "", HAPROXY, Target::None),
        figure("login", "connect, TLS, login, logout", "rate", "/s", "ms", HAPROXY, AtLeastTimes(1.6)),
        figure("resume", "the same with a TLS ticket", "rate", "/s", "ms", HAPROXY, AtLeastTimes(1.8)),
        figure("login-1", "one login after the other, p50", "p50", "µs", "ms", HAPROXY, AtMostTimes(1.0)),
        figure("start", "start to listening", "ms", "ms", "", Peer(OURS), AtMost(100.0)),
        figure("start", "resident with nothing to do", "mib", "MiB", "", Peer(OURS), AtMost(30.0)),
        figure("dovecot-fetch", "Dovecot: FETCH", "rate", "MB/s", "s/GB", DOVECOT, AtLeastTimes(2.0)),
        figure("dovecot-fetch", "Dovecot: CPU of a FETCH", "cpu", "s/GB", "", DOVECOT, AtMostTimes(0.5)),
        figure("dovecot-login", "Dovecot: connect, TLS, login, logout", "rate", "/s", "ms", DOVECOT, AtLeastTimes(2.0)),
        figure("dovecot-idle", "Dovecot: idle, a session", "kib", "KiB", "", DOVECOT, AtMostTimes(0.5)),
        figure("watched", "start to listening with 100,000 accounts", "ms", "ms", "", Peer(OURS), AtMost(100.0)),
        figure("watched", "start to ready with 100,000 accounts", "ready", "ms", "", Peer(OURS), AtMost(5000.0)),
        figure("held", "a watched account with a connection", "kb", "KB", "", Peer(OURS), AtMost(4.5)),
        figure("held-tls", "a watched account with a connection by TLS", "kb", "KB", "", Peer(OURS), AtMost(9.0)),
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
    // A figure has one row, whosever the verdict is.
    let rows: Vec<_> = figures.iter().copied().filter(|figure| figure.whose == OURS).collect();
    for figure in &rows {
        measured.table(figure);
    }
    measured.growth(options.plots.as_deref());
    measured.summary(&rows);
    measured.spreads(&rows);
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

    /// What the ratios of a figure are to, and its name.
    fn base(&self, figure: &Figure) -> (String, Option<f64>) {
        let Figure { key, name, whose, .. } = figure;
        match figure.base {
            Base::Peer(peer) => (peer.to_owned(), self.median(key, peer, name)),
            Base::Better(peers) => {
                let medians = peers.iter().filter_map(|peer| self.median(key, peer, name));
                (peers.join("/"), medians.max_by(f64::total_cmp))
            }
            Base::Figure(other) => {
                (format!("its {}", title_of(other)), self.median(other, whose, name))
            }
        }
    }

    fn table(&self, figure: &Figure) {
        let Figure { key, title, name, unit, cpu, .. } = figure;
        println!("\n{title}, in {unit}");
        let (base_name, base) = self.base(figure);
        let (to_base, cpu_of) = (format!("to {base_name}"), format!("CPU {cpu}"));
        let cpu_of = if cpu.is_empty() { "" } else { &cpu_of };
        let [smallest, median, largest] = ["smallest", "median", "largest"];
        println!("  {:<16}{smallest:>10}{median:>10}{largest:>10}{to_base:>24}{cpu_of:>14}", "");
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
            println!("  {peer:<16}{smallest:>10}{median:>10}{largest:>10}{ratio:>24}{cpu:>14}");
        }
    }

    /// Figures of the name `growth-KIND-NUMBER`: one table each kind, and a plot of the first name in it.
    fn growth(&self, plots: Option<&Path>) {
        let mut kinds: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (figure, ..) in self.numbers.keys() {
            let parts = figure.strip_prefix("growth-").and_then(|rest| rest.split_once('-'));
            let Some((kind, number)) = parts else { continue };
            let Ok(number) = number.parse() else { continue };
            kinds.entry(kind).or_default().push(number);
        }
        for (kind, mut numbers) in kinds {
            let (title, names): (_, &[_]) = match kind {
                "noop" => ("NOOP a second, by sessions", &["rate", "p50", "p99", "cpu"]),
                "idle" => ("KiB of an idle session, by sessions", &["kib", "all"]),
                "disk" => ("Bytes of an account on disk, by accounts", &["bytes"]),
                "memory" => ("Bytes of an account in memory, by accounts", &["bytes"]),
                _ => ("FETCH in MB a second, by KiB of the message", &["rate", "p50", "cpu"]),
            };
            numbers.sort_unstable();
            numbers.dedup();
            let takes_part = |peer: &&String| {
                let figure = |number| format!("growth-{kind}-{number}");
                numbers.iter().any(|number| self.median(&figure(number), peer, names[0]).is_some())
            };
            let peers: Vec<_> = self.peers.iter().filter(takes_part).collect();
            println!("\n{title}");
            print!("  {:>8}", "");
            for peer in &peers {
                for (at, name) in names.iter().enumerate() {
                    let head = if at == 0 { format!("{peer} {name}") } else { (*name).to_owned() };
                    print!("{head:>width$}", width = if at == 0 { 20 } else { 10 });
                }
            }
            println!();
            let of = |number: &u32, peer: &str, name: &str| {
                self.median(&format!("growth-{kind}-{number}"), peer, name)
            };
            for number in &numbers {
                print!("  {number:>8}");
                for peer in &peers {
                    for (at, name) in names.iter().enumerate() {
                        let median = of(number, peer, name).map_or("-".to_owned(), short);
                        print!("{median:>width$}", width = if at == 0 { 20 } else { 10 });
                    }
                }
                println!();
            }
            let Some(folder) = plots else { continue };
            let line = |peer: &&String| {
                let points = numbers
                    .iter()
                    .filter_map(|number| Some((f64::from(*number), of(number, peer, names[0])?)));
                ((*peer).clone(), points.collect::<Vec<_>>())
            };
            let lines: Vec<_> = peers.iter().map(line).collect();
            let file = folder.join(format!("growth-{kind}.svg"));
            fs::write(&file, plot::svg(title, &lines)).expect("the plot can be written");
            println!("  plotted in {}", file.display());
        }
    }

    /// All medians, in a form that a README takes.
    fn summary(&self, figures: &[&Figure]) {
        self.markdown("Medians, and CPU for each unit", figures, |figure, peer| {
            let Figure { key, name, cpu, .. } = figure;
            let median = short(self.median(key, peer, name)?);
            match self.median(key, peer, "cpu") {
                Some(seconds) if !cpu.is_empty() => Some(format!("{median}; {}", short(seconds))),
                _ => Some(median),
            }
        });
    }

    /// How steady the figures were: from the smallest to the largest round, in percent of the median.
    fn spreads(&self, figures: &[&Figure]) {
        let heading = "From the smallest to the largest round, in % of the median";
        self.markdown(heading, figures, |Figure { key, name, .. }, peer| {
            let Spread([smallest, median, largest]) = self.spread(key, peer, name)?;
            (largest > smallest).then(|| format!("{:.0}", (largest - smallest) * 100.0 / median))
        });
    }

    /// A table with a row for each figure and a column for each peer.
    fn markdown(
        &self,
        heading: &str,
        figures: &[&Figure],
        cell: impl Fn(&Figure, &str) -> Option<String>,
    ) {
        if figures.is_empty() {
            return;
        }
        println!("\n{heading}\n");
        println!("| | {} |", self.peers.join(" | "));
        println!("| --- |{}", " --- |".repeat(self.peers.len()));
        for figure in figures {
            let Figure { title, unit, cpu, .. } = figure;
            let cells = self.peers.iter().map(|peer| cell(figure, peer).unwrap_or_default());
            let cpu = if cpu.is_empty() { String::new() } else { format!("; CPU {cpu}") };
            println!("| {title}, {unit}{cpu} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }

    /// The smallest ratio of a round, to this peer in the same one.
    fn worst_round(&self, key: &str, whose: &str, base: &str, name: &str) -> Option<f64> {
        let of = |peer: &str| {
            self.numbers.get(&(key.to_owned(), peer.to_owned(), name.to_owned())).map(Vec::as_slice)
        };
        let (ours, theirs) = (of(whose)?, of(base)?);
        // Where one failed in a round, rounds are no pairs.
        if ours.len() != theirs.len() {
            return None;
        }
        ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).min_by(f64::total_cmp)
    }

    fn verdicts(&self, figures: &[&Figure]) {
        println!();
        for figure in figures {
            let Figure { key, title, name, unit, cpu, whose, target, .. } = figure;
            let (base, base_median) = self.base(figure);
            let ours = self.median(key, whose, name);
            let (Some(ours), Some(base_median)) = (ours, base_median) else { continue };
            let times = ours / base_median;
            let cpu_times =
                |to: &str| Some(self.median(key, whose, "cpu")? / self.median(key, to, "cpu")?);
            let (reached, is, wanted) = match *target {
                Target::None => continue,
                Target::AtLeastTimes(most) => {
                    (times >= most, format!("{times:.2} × {base}"), format!("at least {most}"))
                }
                Target::AtMostTimes(most) => {
                    (times <= most, format!("{times:.2} × {base}"), format!("at most {most}"))
                }
                Target::EachRound(least, most, to) => {
                    let worst = self.worst_round(key, whose, &base, name);
                    let cpu = cpu_times(to);
                    let [worst, cpu] = [worst, cpu].map(|ratio| ratio.unwrap_or(f64::NAN));
                    (
                        worst >= least && cpu <= most,
                        format!("{worst:.2} × {base} in its worst round, CPU {cpu:.2} × {to}"),
                        format!("at least {least} in each, CPU at most {most}"),
                    )
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
            if let (Base::Peer(peer), false) = (figure.base, cpu.is_empty())
                && peer != *whose
                && let Some(times) = cpu_times(peer)
            {
                print!("; CPU {times:.2} × {peer}");
            }
            println!();
        }
    }
}

fn title_of(figure: &str) -> &str {
    FIGURES.iter().find(|it| it.key == figure).map_or(figure, |it| it.title)
}

/// Three digits that count.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
