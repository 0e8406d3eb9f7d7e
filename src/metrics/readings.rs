//! Metrics that are read from procfs when somebody asks: the process and connection tracking.

use std::fs;

use procfs::process::{LimitValue, Process};
use prometheus::proto::{Counter, Gauge, Metric, MetricFamily, MetricType};

use super::table::{self, Definition, Type};

/// The process's metrics as Go's client library has them, and the fill of connection tracking. What cannot be read is
/// left out.
pub(super) fn read() -> Vec<MetricFamily> {
    let values = [process().unwrap_or_default(), network(), conntrack()].concat();
    values.into_iter().map(|(definition, value)| family(&definition, value)).collect()
}

/// When the process started, in seconds since 1970.
pub(super) fn start_time() -> Option<f64> {
    let ticks = Process::myself().and_then(|myself| myself.stat()).ok()?.starttime;
    Some(procfs::boot_time_secs().ok()? as f64 + ticks as f64 / procfs::ticks_per_second() as f64)
}

fn process() -> procfs::ProcResult<Vec<(Definition, f64)>> {
    let myself = Process::myself()?;
    let stat = myself.stat()?;
    let limits = myself.limits()?;
    let limit = |limit| match limit {
        // As Go's client has it: the kernel's word for it.
        LimitValue::Unlimited => u64::MAX as f64,
        LimitValue::Value(value) => value as f64,
    };
    let mut values = vec![
        (table::PROCESS_CPU, (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64),
        (table::PROCESS_RESIDENT, (stat.rss * procfs::page_size()) as f64),
        (table::PROCESS_VIRTUAL, stat.vsize as f64),
        (table::PROCESS_VIRTUAL_MAX, limit(limits.max_address_space.soft_limit)),
        (table::PROCESS_OPEN_FDS, myself.fd_count()? as f64),
        (table::PROCESS_MAX_FDS, limit(limits.max_open_files.soft_limit)),
    ];
    values.extend(start_time().map(|time| (table::PROCESS_START, time)));
    Ok(values)
}

/// What the network namespace has received and sent, which is what Go's client calls the process's.
fn network() -> Vec<(Definition, f64)> {
    let Ok(text) = fs::read_to_string("/proc/self/net/netstat") else { return Vec::new() };
    let values = [(table::PROCESS_RECEIVED, "InOctets"), (table::PROCESS_SENT, "OutOctets")];
    values
        .into_iter()
        .filter_map(|(definition, field)| Some((definition, netstat_field(&text, "IpExt:", field)? as f64)))
        .collect()
}

/// A number of `/proc/net/netstat`, which has a line of names and a line of values for each group.
fn netstat_field(text: &str, group: &str, field: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let (_, value) = names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == field)?;
    value.parse().ok()
}

/// Nothing where the kernel does not track connections (yet).
fn conntrack() -> Vec<(Definition, f64)> {
    let read = |file: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{file}")).ok()?;
        text.trim().parse::<f64>().ok()
    };
    let values = [(table::CONNTRACK_ENTRIES, "nf_conntrack_count"), (table::CONNTRACK_LIMIT, "nf_conntrack_max")];
    values.into_iter().filter_map(|(definition, file)| Some((definition, read(file)?))).collect()
}

/// A metric with one value and no labels.
pub(super) fn family(definition: &Definition, value: f64) -> MetricFamily {
    let mut metric = Metric::default();
    let mut family = MetricFamily::default();
    if definition.metric_type == Type::Counter {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
        family.set_field_type(MetricType::COUNTER);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
        family.set_field_type(MetricType::GAUGE);
    }
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help());
    family.set_metric(vec![metric]);
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_netstat_are_found_by_name() {
        let text = "TcpExt: A InOctets\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 70 5\n";
        assert_eq!(netstat_field(text, "IpExt:", "InOctets"), Some(70));
        assert_eq!(netstat_field(text, "IpExt:", "OutOctets"), Some(5));
        assert_eq!(netstat_field(text, "IpExt:", "Nothing"), None);
        assert_eq!(netstat_field("", "IpExt:", "InOctets"), None);
    }

    #[test]
    fn the_process_has_its_metrics() {
        let read = read();
        let names: Vec<&str> = read.iter().map(MetricFamily::name).collect();
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"] {
            assert!(names.contains(&name), "{names:?}");
        }
        let value = |name: &str| {
            let family = read.iter().find(|family| family.name() == name).expect("it is there");
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-5.0..3600.0 * 24.0).contains(&age), "{age}");
    }
}
