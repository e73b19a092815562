//! What processes and their children take, from /proc.

use std::collections::HashMap;
use std::fs;

/// Of the clock in which /proc counts CPU time; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU that these processes have taken, with their children, past ones included.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let ticks = |pid: u32| -> Option<u64> {
        // utime, stime, cutime, cstime: the fields 14 to 17 of proc_pid_stat(5).
        let stat = stat(pid)?;
        stat.split(' ').skip(11).take(4).map(|ticks| ticks.parse::<u64>().ok()).sum()
    };
    tree(roots).into_iter().filter_map(ticks).sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// KiB of memory of these processes and their children; what several share is divided among them.
pub(crate) fn pss(roots: &[u32]) -> u64 {
    let pss = |pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
    tree(roots).into_iter().filter_map(pss).sum()
}

/// KiB of memory that are resident for one process.
pub(crate) fn rss(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:").unwrap_or_default()
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What follows the name in /proc/PID/stat; a process that has ended has none.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

fn tree(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let parent = stat(pid).and_then(|stat| stat.split(' ').nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut tree = roots.to_vec();
    let mut next = 0;
    while let Some(pid) = tree.get(next) {
        tree.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    tree
}
