//! What the system knows of this process, under the names that Prometheus's own clients use.

use std::fmt;

use procfs::process::{LimitValue, Process};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Reads `/proc/self` at each scrape. What cannot be read is left out.
#[derive(Debug)]
pub(super) struct ProcessMetrics;

/// A gauge: its name without the unit, what it says, its unit, and its value.
type Reading = (&'static str, &'static str, Option<Unit>, f64);

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(process) = Process::myself() else { return Ok(()) };
        let mut gauges: Vec<Reading> = Vec::new();
        if let Ok(stat) = process.stat() {
            let ticks = procfs::ticks_per_second() as f64;
            let time = ConstCounter::new((stat.utime + stat.stime) as f64 / ticks);
            let help = "Time of processors that this process has used";
            let kind = time.metric_type();
            let counter =
                encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), kind)?;
            time.encode(counter)?;
            let memory = stat.rss.saturating_mul(procfs::page_size()) as f64;
            gauges.extend([
                ("process_resident_memory", "Memory in use", Some(Unit::Bytes), memory),
                (
                    "process_virtual_memory",
                    "Addresses in use",
                    Some(Unit::Bytes),
                    stat.vsize as f64,
                ),
                ("process_threads", "Threads", None, stat.num_threads as f64),
            ]);
            if let Ok(boot) = procfs::boot_time_secs() {
                let start = boot as f64 + stat.starttime as f64 / ticks;
                let help = "When this process started, since 1970";
                gauges.push(("process_start_time", help, Some(Unit::Seconds), start));
            }
        }
        if let Ok(open) = process.fd_count() {
            gauges.push(("process_open_fds", "Open files and sockets", None, open as f64));
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            let help = "Files and sockets that may be open";
            gauges.push(("process_max_fds", help, None, most as f64));
        }
        for (name, help, unit, value) in gauges {
            let gauge = ConstGauge::new(value);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
        }
        Ok(())
    }
}
