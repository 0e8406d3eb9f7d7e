//! Bridges: whether what stays within one is shown to the filters, and so to connection tracking.

use std::io;
use std::path::Path;

use super::links::Link;
use crate::model::Family;
use crate::sysctl::read_number;

/// There while the module `br_netfilter` is loaded, below the root.
pub const BRIDGE_SETTINGS: &str = "proc/sys/net/bridge";

/// The setting of a family there.
pub fn bridge_setting(family: Family) -> &'static str {
    match family {
        Family::V4 => "bridge-nf-call-iptables",
        Family::V6 => "bridge-nf-call-ip6tables",
    }
}

/// Whether packets of a family between two ports of a bridge meet the filters.
///
/// # Errors
/// The setting cannot be read, and the bridge does not ask for it itself.
pub fn shows_to_filters(root: &Path, bridge: &Link, family: Family) -> io::Result<bool> {
    let settings = root.join(BRIDGE_SETTINGS);
    if !settings.exists() {
        return Ok(false);
    }
    if bridge.calls[usize::from(family == Family::V6)] {
        return Ok(true);
    }
    Ok(read_number(&settings.join(bridge_setting(family)))? == 1)
}
