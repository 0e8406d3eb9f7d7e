//! Settings of the kernel below `/proc` and `/sys`: how many connections it tracks and for how long, and how readily it
//! kills this process. What is wanted is worked out by pure functions; writing is thin, and below any root.

use std::fs;
use std::io;
use std::path::Path;

use tracing::{info, warn};

use crate::config::Conntrack;

/// Where the settings of connection tracking are, below the root.
const NETFILTER: &str = "proc/sys/net/netfilter";
/// Buckets of the table of connections, below the root: a sysctl, for which CAP_NET_ADMIN is enough, and a parameter of
/// the module, which is root's alone. Either may be on a read-only file system.
const BUCKETS: &str = "proc/sys/net/netfilter/nf_conntrack_buckets";
const HASH_SIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const OOM_SCORE: &str = "proc/self/oom_score_adj";
const CPUS_ONLINE: &str = "sys/devices/system/cpu/online";

const DEFAULT_MAX_PER_CORE: u32 = 32_768;
const DEFAULT_MIN: u32 = 131_072;
/// Nothing that is counted for each core asks for more, as in kube-proxy.
const SCALED_MOST: u32 = 1 << 20;
/// Connections for each bucket.
const PER_BUCKET: u64 = 4;

/// The wanted limit of tracked connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `nf_conntrack_max`.
    pub connections: u32,
    /// Whether a higher limit of the kernel is to be lowered to this one: only if somebody has asked for it.
    pub may_lower: bool,
}

/// The limit for a machine with so many CPUs; `None` leaves it alone. kube-proxy's formula (1.36, `getConntrackMax`):
/// what is counted for each core, at most 1048576, but at least `min`.
pub fn limit(wanted: &Conntrack, cpus: u32) -> Option<Limit> {
    let per_core = wanted.max_per_core.unwrap_or(DEFAULT_MAX_PER_CORE);
    if per_core == 0 {
        return None;
    }
    let scaled = per_core.saturating_mul(cpus);
    let connections = if scaled > SCALED_MOST { SCALED_MOST } else { scaled.max(wanted.min.unwrap_or(DEFAULT_MIN)) };
    let may_lower = wanted.max_per_core.is_some() || wanted.min.is_some();
    (connections > 0).then_some(Limit { connections, may_lower })
}

/// The same limit on this machine; 0 leaves it alone.
pub fn wanted_connections(root: &Path, wanted: &Conntrack) -> u64 {
    limit(wanted, cpus(root)).map_or(0, |limit| limit.connections.into())
}

/// Whether this host has IPv6 and has not switched it off.
pub fn has_v6(root: &Path) -> bool {
    let switched_off = read_number(&root.join("proc/sys/net/ipv6/conf/all/disable_ipv6")).is_ok_and(|value| value == 1);
    root.join("proc/thread-self/net/if_inet6").exists() && !switched_off
}

/// Names below `net.netfilter` and the wanted values, in seconds; without the limit.
pub fn sysctls(wanted: &Conntrack) -> Vec<(&'static str, u64)> {
    let seconds = |duration: std::time::Duration| duration.as_secs();
    let all = [
        ("nf_conntrack_tcp_timeout_established", seconds(wanted.tcp_established_timeout)),
        ("nf_conntrack_tcp_timeout_close_wait", seconds(wanted.tcp_close_wait_timeout)),
        ("nf_conntrack_tcp_be_liberal", u64::from(wanted.tcp_be_liberal)),
        ("nf_conntrack_udp_timeout", seconds(wanted.udp_timeout)),
        ("nf_conntrack_udp_timeout_stream", seconds(wanted.udp_stream_timeout)),
    ];
    all.into_iter().filter(|(_, value)| *value > 0).collect()
}

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{name} = {wanted} ({source})")]
pub struct Unset {
    /// The setting, as `sysctl` writes it, or the path of a file.
    pub name: String,
    /// The wanted value.
    pub wanted: u64,
    /// Why it is not set.
    #[source]
    pub source: io::Error,
}

/// Sets up connection tracking and says in the log what was changed, and in one warning what could not be: where `/proc/sys`
/// is read-only, an administrator or a container that runs before has to do it.
///
/// Returns what could not be set.
pub fn tune(root: &Path, wanted: &Conntrack) -> Vec<Unset> {
    let mut failures = Vec::new();
    let mut set = |name: &str, result: io::Result<Option<u64>>, value: u64| match result {
        Ok(Some(old)) => info!("{name} = {value} (was {old})"),
        Ok(None) => {}
        Err(source) => failures.push(Unset { name: name.to_owned(), wanted: value, source }),
    };
    if let Some(limit) = limit(wanted, cpus(root)) {
        let max = u64::from(limit.connections);
        let path = root.join(NETFILTER).join("nf_conntrack_max");
        let keep = |old| old > max && !limit.may_lower;
        set("net.netfilter.nf_conntrack_max", change(&path, max, keep), max);
        // Where the limit is not ours to set, in a network namespace, the buckets are not either.
        let limit_is_ours = fs::metadata(&path).is_ok_and(|file| !file.permissions().readonly());
        if limit_is_ours {
            let buckets = read_number(&path).unwrap_or(max) / PER_BUCKET;
            let enough = |old| old >= buckets;
            let result = change(&root.join(BUCKETS), buckets, enough);
            let result = result.or_else(|error| change(&root.join(HASH_SIZE), buckets, enough).map_err(|_| error));
            set("net.netfilter.nf_conntrack_buckets", result, buckets);
        }
    }
    for (name, value) in sysctls(wanted) {
        let result = change(&root.join(NETFILTER).join(name), value, |_| false);
        set(&format!("net.netfilter.{name}"), result, value);
    }
    if !failures.is_empty() {
        warn!("connection tracking is not set up as configured; set these otherwise: {}", list(&failures));
    }
    failures
}

/// What could not be set, in one line.
pub fn list(failures: &[Unset]) -> String {
    failures.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Has the kernel count the packets and bytes of each connection that begins from now on. What cannot be set, or keeps the
/// kernel from telling of connections that end, is one warning.
pub fn account(root: &Path) {
    let folder = root.join(NETFILTER);
    match change(&folder.join("nf_conntrack_acct"), 1, |_| false) {
        Ok(Some(old)) => info!("net.netfilter.nf_conntrack_acct = 1 (was {old})"),
        Ok(None) => {}
        Err(error) => warn!("packets and bytes are not counted: net.netfilter.nf_conntrack_acct = 1 ({error})"),
    }
    // It is others' too, what they hear of it depends on its value. 1 and 2, the default since Linux 5.19, both do.
    if read_number(&folder.join("nf_conntrack_events")).is_ok_and(|events| events == 0) {
        warn!("no connection is accounted for: net.netfilter.nf_conntrack_events is 0, so the kernel tells of none");
    }
}

/// Whether the kernel takes a packet in the middle of a TCP connection that it does not know for its first one. So it does by
/// itself, and where it does not say.
pub fn picks_up(root: &Path) -> bool {
    read_number(&root.join(NETFILTER).join("nf_conntrack_tcp_loose")).unwrap_or(1) != 0
}

/// Writes a number to a file that holds another one, unless that may stay, and returns what was there if it has changed.
fn change(path: &Path, value: u64, may_stay: impl Fn(u64) -> bool) -> io::Result<Option<u64>> {
    let old = read_number(path)?;
    if old == value || may_stay(old) {
        return Ok(None);
    }
    fs::write(path, value.to_string())?;
    Ok(Some(old))
}

/// Tells the kernel how readily it may kill this process when memory runs out. Not being allowed to is only logged.
pub fn set_oom_score(root: &Path, score: i32) {
    let path = root.join(OOM_SCORE);
    if read_text(&path).is_ok_and(|old| old == score.to_string()) {
        return;
    }
    if let Err(error) = fs::write(&path, score.to_string()) {
        warn!("cannot set oom_score_adj to {score}: {error}");
    }
}

/// The CPUs that are online; what the runtime counts where `/sys` does not say.
pub fn cpus(root: &Path) -> u32 {
    let online = read_text(&root.join(CPUS_ONLINE)).ok().and_then(|list| count_of_list(&list));
    online.unwrap_or_else(|| {
        std::thread::available_parallelism().ok().and_then(|count| u32::try_from(count.get()).ok()).unwrap_or(1)
    })
}

/// How many numbers a list such as `0-3,8` has.
fn count_of_list(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// How many connections are tracked, and how many may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// `nf_conntrack_count`, of this network namespace.
    pub count: u64,
    /// `nf_conntrack_max`.
    pub max: u64,
}

impl Tracked {
    /// Whether packets of new connections are dropped, unless another is given up for them.
    pub fn is_full(self) -> bool {
        self.count >= self.max
    }
}

/// How many connections are tracked.
///
/// # Errors
/// The kernel does not say: connection tracking is not loaded.
pub fn tracked(root: &Path) -> io::Result<Tracked> {
    let read = |name: &str| read_number(&root.join(NETFILTER).join(name));
    Ok(Tracked { count: read("nf_conntrack_count")?, max: read("nf_conntrack_max")? })
}

/// The text of a file of one line, without white space around it.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// The number in a file.
pub(crate) fn read_number(path: &Path) -> io::Result<u64> {
    read_text(path)?.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::in_network_namespace;
    use crate::testing::log::captured;
    use crate::testing::netns::skip;
    use crate::testing::root;

    #[test]
    fn a_full_table_is_seen() {
        for (count, max, is_full) in [("9", "10", false), ("10", "10", true), ("11", "10", true)] {
            let (of_count, of_max) =
                (format!("{NETFILTER}/nf_conntrack_count"), format!("{NETFILTER}/nf_conntrack_max"));
            let root = root(&[(&of_count, count), (&of_max, max)]);
            assert_eq!(tracked(root.path()).expect("it is there").is_full(), is_full, "{count} of {max}");
        }
        assert!(tracked(root(&[]).path()).is_err());
    }

    fn asked(max_per_core: Option<u32>, min: Option<u32>) -> Conntrack {
        Conntrack { max_per_core, min, ..Conntrack::default() }
    }

    #[test]
    fn the_limit_is_that_of_kube_proxy() {
        let cases = [
            // maxPerCore, min, CPUs, limit, may lower
            (None, None, 1, Some((131_072, false))),
            (None, None, 4, Some((131_072, false))),
            (None, None, 8, Some((262_144, false))),
            (None, None, 32, Some((1_048_576, false))),
            (None, None, 4096, Some((1_048_576, false))),
            (Some(0), Some(5), 8, None),
            (Some(100), Some(0), 8, Some((800, true))),
            (Some(100), Some(801), 8, Some((801, true))),
            (None, Some(2_000_000), 8, Some((2_000_000, true))),
            (None, Some(2_000_000), 64, Some((1_048_576, true))),
            (Some(u32::MAX), None, 2, Some((1_048_576, true))),
            (Some(5), Some(0), 0, None),
        ];
        for (max_per_core, min, cpus, expected) in cases {
            let expected = expected.map(|(connections, may_lower)| Limit { connections, may_lower });
            assert_eq!(limit(&asked(max_per_core, min), cpus), expected, "{max_per_core:?} {min:?} {cpus}");
        }
    }

    #[test]
    fn packets_and_bytes_are_counted_where_that_is_asked_for() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join(NETFILTER);
        let said = |acct: &str, events: &str| {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("nf_conntrack_acct"), acct).expect("a file");
            fs::write(folder.join("nf_conntrack_events"), events).expect("a file");
            let said = captured(|| account(root.path()));
            assert_eq!(fs::read_to_string(folder.join("nf_conntrack_acct")).expect("a file").trim(), "1");
            said
        };
        assert!(said("0\n", "2\n").contains("nf_conntrack_acct = 1 (was 0)"));
        assert_eq!(said("1\n", "1\n"), "");
        assert!(said("1\n", "0\n").contains("no connection is accounted for"));
        let said = captured(|| account(&root.path().join("nowhere")));
        assert!(said.contains("packets and bytes are not counted"), "{said}");
    }

    #[test]
    fn connections_are_picked_up_unless_the_kernel_says_otherwise() {
        for (loose, expected) in [("0\n", false), ("1\n", true)] {
            let root = root(&[("proc/sys/net/netfilter/nf_conntrack_tcp_loose", loose)]);
            assert_eq!(picks_up(root.path()), expected, "{loose}");
        }
        assert!(picks_up(Path::new("/nowhere")));
    }

    #[test]
    fn cpus_are_counted() {
        for (list, expected) in
            [("0", Some(1)), ("0-3", Some(4)), ("0-3,8,10-11", Some(7)), ("", None), ("3-0", None), ("x", None)]
        {
            assert_eq!(count_of_list(list), expected, "{list:?}");
        }
    }

    const KERNEL: [(&str, &str); 8] = [
        (CPUS_ONLINE, "0-7\n"),
        (BUCKETS, "16384\n"),
        (HASH_SIZE, "16384\n"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", "432000\n"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0\n"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", "30\n"),
        (OOM_SCORE, "0\n"),
    ];

    fn value(root: &tempfile::TempDir, path: &str) -> String {
        read_text(&root.path().join(path)).expect("it can be read")
    }

    #[test]
    fn what_differs_is_written() {
        let root = root(&KERNEL);
        let wanted = Conntrack {
            tcp_established_timeout: Duration::from_millis(86_400_999),
            tcp_be_liberal: true,
            ..Conntrack::default()
        };
        assert!(tune(root.path(), &wanted).is_empty());
        let of = |name: &str| value(&root, &format!("{NETFILTER}/{name}"));
        assert_eq!(of("nf_conntrack_max"), "262144");
        assert_eq!(value(&root, BUCKETS), "65536");
        assert_eq!(value(&root, HASH_SIZE), "16384", "one of the two is enough");
        assert_eq!(of("nf_conntrack_tcp_timeout_established"), "86400");
        assert_eq!(of("nf_conntrack_tcp_be_liberal"), "1");
        assert_eq!(of("nf_conntrack_udp_timeout"), "30", "zero leaves it alone");
        set_oom_score(root.path(), -999);
        assert_eq!(value(&root, OOM_SCORE), "-999");
    }

    #[test]
    fn the_limit_is_lowered_only_on_request() {
        let root = root(&KERNEL);
        let max = root.path().join(NETFILTER).join("nf_conntrack_max");
        for (wanted, expected) in
            [(asked(None, None), 4_000_000), (asked(Some(0), None), 4_000_000), (asked(Some(50_000), None), 400_000)]
        {
            fs::write(&max, "4000000").expect("a file");
            fs::write(root.path().join(BUCKETS), "4000000").expect("a file");
            assert!(tune(root.path(), &wanted).is_empty());
            assert_eq!(read_number(&max).expect("a number"), expected, "{wanted:?}");
            assert_eq!(value(&root, BUCKETS), "4000000", "buckets are never taken away");
        }
    }

    #[test]
    fn buckets_are_set_in_either_place() {
        let root = root(&KERNEL);
        fs::remove_file(root.path().join(BUCKETS)).expect("it is there");
        assert!(tune(root.path(), &Conntrack::default()).is_empty());
        assert_eq!(value(&root, HASH_SIZE), "65536");
    }

    #[test]
    fn what_cannot_be_set_is_named_and_the_rest_is_set() {
        let root = root(&KERNEL);
        fs::remove_file(root.path().join(BUCKETS)).expect("it is there");
        fs::remove_file(root.path().join(HASH_SIZE)).expect("it is there");
        let wanted = Conntrack {
            udp_timeout: Duration::from_secs(9),
            udp_stream_timeout: Duration::from_secs(9),
            ..Conntrack::default()
        };
        let failures = tune(root.path(), &wanted);
        let names: Vec<_> = failures.iter().map(|failure| failure.name.as_str()).collect();
        let expected = ["net.netfilter.nf_conntrack_buckets", "net.netfilter.nf_conntrack_udp_timeout_stream"];
        assert_eq!(names, expected);
        assert!(
            list(&failures).starts_with("net.netfilter.nf_conntrack_buckets = 65536 (No such file"),
            "{failures:?}"
        );
        assert_eq!(value(&root, "proc/sys/net/netfilter/nf_conntrack_udp_timeout"), "9");
    }

    #[test]
    fn the_kernel_takes_the_timeouts_of_a_network_namespace() {
        in_network_namespace(|| {
            let wanted = Conntrack {
                max_per_core: Some(0),
                tcp_established_timeout: Duration::from_secs(4321),
                tcp_close_wait_timeout: Duration::from_secs(432),
                tcp_be_liberal: true,
                udp_timeout: Duration::from_secs(43),
                udp_stream_timeout: Duration::from_secs(44),
                ..Conntrack::default()
            };
            let failures = tune(Path::new("/"), &wanted);
            assert!(failures.is_empty(), "{failures:?}");
            for (name, value) in sysctls(&wanted) {
                let found = read_number(&Path::new("/").join(NETFILTER).join(name)).expect("it can be read");
                assert_eq!(found, value, "{name}");
            }
        });
    }

    #[test]
    fn a_limit_that_only_the_host_may_set_is_not_fatal() {
        in_network_namespace(|| {
            // Read-only outside of the first network namespace; nothing that this could change is the host's.
            let path = Path::new("/").join(NETFILTER).join("nf_conntrack_max");
            let read_only = fs::metadata(&path).is_ok_and(|file| file.permissions().readonly());
            if !read_only {
                return skip("a limit that only the host may set", path.display());
            }
            let failures = tune(Path::new("/"), &asked(Some(1), Some(7)));
            assert!(failures.iter().any(|failure| failure.name == "net.netfilter.nf_conntrack_max"), "{failures:?}");
        });
    }
}
