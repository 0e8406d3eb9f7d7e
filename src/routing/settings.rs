//! Settings of interfaces below `proc/sys/net`: whether what comes in by one is passed on, and from whom it is taken.

use std::fs;
use std::io;
use std::path::Path;

use crate::model::Family;
use crate::sysctl::read_number;

/// Where the settings of a family's interfaces are, below the root.
const CONF: [&str; 2] = ["proc/sys/net/ipv4/conf", "proc/sys/net/ipv6/conf"];

/// Whether the kernel asks for the way back of what comes in (Documentation/networking/ip-sysctl.rst, `rp_filter`). Of
/// IPv4 alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReversePath {
    /// It does not.
    Off,
    /// It has to be the same interface.
    Strict,
    /// Any interface will do.
    Loose,
}

/// Whether what comes in by an interface is passed on. With IPv6 the setting of all decides, and that of an interface is
/// about router advertisements; since Linux 6.17 one of its own may switch it on (`force_forwarding`).
///
/// # Errors
/// There is no such interface, or none of the family.
pub fn forwards(root: &Path, family: Family, device: &str) -> io::Result<bool> {
    let [v4, v6] = CONF.map(|conf| root.join(conf));
    match family {
        Family::V4 => Ok(read_number(&v4.join(device).join("forwarding"))? != 0),
        Family::V6 => {
            let all = read_number(&v6.join("all/forwarding"))? != 0;
            Ok(all || read_number(&v6.join(device).join("force_forwarding")).is_ok_and(|forced| forced != 0))
        }
    }
}

/// How an interface filters by reverse path: of its setting and that of all, the higher is in force.
///
/// # Errors
/// There is no such interface.
pub fn reverse_path(root: &Path, device: &str) -> io::Result<ReversePath> {
    let of = |device: &str| read_number(&root.join(CONF[0]).join(device).join("rp_filter"));
    Ok(match of(device)?.max(of("all")?) {
        0 => ReversePath::Off,
        1 => ReversePath::Strict,
        _ => ReversePath::Loose,
    })
}

/// A setting of IPv4 of an interface, or of `all`; `None` where there is none.
pub fn of_device(root: &Path, device: &str, name: &str) -> Option<u64> {
    read_number(&root.join(CONF[0]).join(device).join(name)).ok()
}

/// The interfaces whose setting of IPv4, beside that of all, is so, by name; loopback is none.
pub fn devices_with(root: &Path, name: &str, is: impl Fn(u64, u64) -> bool) -> Vec<(String, u64)> {
    let all = of_device(root, "all", name).unwrap_or(0);
    let devices = fs::read_dir(root.join(CONF[0])).into_iter().flatten().flatten();
    let devices = devices.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let devices = devices.filter(|device| !["all", "default", "lo"].contains(&device.as_str()));
    let mut found: Vec<_> = devices
        .filter_map(|device| of_device(root, &device, name).map(|value| (device, value)))
        .filter(|(_, value)| is(*value, all))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;

    #[test]
    fn the_setting_in_force_is_found() {
        let conf = |family: usize, path: &str| format!("{}/{path}", CONF[family]);
        let cases = [("0", "0", ReversePath::Off), ("0", "1", ReversePath::Strict), ("1", "0", ReversePath::Strict)];
        for (all, own, expected) in
            cases.into_iter().chain([("1", "2", ReversePath::Loose), ("2", "1", ReversePath::Loose)])
        {
            let root = root(&[(&conf(0, "all/rp_filter"), all), (&conf(0, "eth0.7/rp_filter"), own)]);
            assert_eq!(reverse_path(root.path(), "eth0.7").expect("it is there"), expected, "{all} {own}");
            assert!(reverse_path(root.path(), "eth1").is_err());
        }
        for (v4, v6, forced, expected) in
            [("1", "0", "0", [true, false]), ("0", "1", "0", [false, true]), ("0", "0", "1", [false, true])]
        {
            let root = root(&[
                (&conf(0, "eth0/forwarding"), v4),
                (&conf(1, "all/forwarding"), v6),
                (&conf(1, "eth0/force_forwarding"), forced),
            ]);
            let found = Family::ALL.map(|family| forwards(root.path(), family, "eth0").expect("it is there"));
            assert_eq!(found, expected, "{v4} {v6} {forced}");
            // An interface without the newer setting.
            assert_eq!(forwards(root.path(), Family::V6, "eth1").expect("all decide"), v6 == "1");
            assert!(forwards(root.path(), Family::V4, "eth1").is_err());
        }
    }
}
