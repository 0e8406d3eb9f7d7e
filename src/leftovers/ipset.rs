//! IP sets of kube-proxy's mode `ipvs` (include/uapi/linux/netfilter/ipset/ip_set.h).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use super::Outcome;
use super::names::sets;
use super::values::terminated;
use crate::netlink::{ACK, Builder, Bus, DUMP, REQUEST, Socket, attributes};

/// `NFNL_SUBSYS_IPSET << 8`.
const SUBSYSTEM: u16 = 6 << 8;
const DESTROY: u16 = SUBSYSTEM | 3;
/// `NLM_F_EXCL`: to destroy what is not there is an error.
const EXCLUSIVE: u16 = 0x200;
const LIST: u16 = SUBSYSTEM | 7;
/// `struct nfgenmsg`: of any family.
const HEADER: [u8; 4] = [0; 4];
const PROTOCOL: u16 = 1;
/// The lowest version of ipset's protocol that kernels of today speak; all that is said here is in it.
const PROTOCOL_VERSION: u8 = 6;
const SET_NAME: u16 = 2;
const DATA: u16 = 7;
const ENTRIES: u16 = 8;
const ENTRY_PORT: u16 = 4;

/// Sets with the node ports that IPVS serves.
const NODE_PORTS: [(&str, i32); 6] = [
    ("KUBE-NODE-PORT-TCP", IPPROTO_TCP),
    ("KUBE-NODE-PORT-UDP", IPPROTO_UDP),
    ("KUBE-NODE-PORT-SCTP-HASH", IPPROTO_SCTP),
    ("KUBE-6-NODE-PORT-TCP", IPPROTO_TCP),
    ("KUBE-6-NODE-PORT-UDP", IPPROTO_UDP),
    ("KUBE-6-NODE-PORT-SCTP-HASH", IPPROTO_SCTP),
];

/// How long the kernel may take to let go of a set whose last rule has been deleted: it does so in the background.
const RELEASE: Duration = Duration::from_secs(5);
const RELEASE_STEP: Duration = Duration::from_millis(20);

/// Protocols and node ports that kube-proxy has noted for IPVS.
pub(super) fn node_ports(root: &Path) -> BTreeSet<(u16, u16)> {
    let mut found = BTreeSet::new();
    if !is_in_use(root) {
        return found;
    }
    for (set, protocol) in NODE_PORTS {
        // A set that is not there has no ports; one that cannot be read leaves virtual servers behind, which is said.
        let ports = list(set).unwrap_or_default();
        found
            .extend(u16::try_from(protocol).into_iter().flat_map(|protocol| ports.iter().map(move |p| (protocol, *p))));
    }
    found
}

/// Destroys all sets. Only after the rules that use them are gone.
pub(super) fn remove(root: &Path, outcome: &mut Outcome) {
    if !is_in_use(root) {
        return;
    }
    let mut destroyed = Vec::new();
    for set in sets() {
        match destroy(&set) {
            Ok(()) => destroyed.push(set),
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            Err(error) => {
                outcome.note(format!("IP set {set}"), Err(error), format!("when nothing uses it: ipset destroy {set}"));
            }
        }
    }
    if !destroyed.is_empty() {
        outcome.removed.push(format!("IP sets {}", destroyed.join(", ")));
    }
}

/// Whether the kernel has IP sets at all; asking it would make it load them.
fn is_in_use(root: &Path) -> bool {
    root.join("sys/module/ip_set").exists()
}

fn list(set: &str) -> io::Result<Vec<u16>> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let request = request(LIST, REQUEST | DUMP, &mut socket, set);
    let mut ports = Vec::new();
    socket.dump(&request, |message| {
        let inside = |bytes, wanted| attributes(bytes).filter(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
        let parts = message.payload.get(HEADER.len()..).unwrap_or_default();
        let entries = inside(parts, ENTRIES).flat_map(|entries| inside(entries, DATA));
        let port = |bytes: &[u8]| Some(u16::from_be_bytes(*bytes.first_chunk()?));
        ports.extend(entries.flat_map(|entry| inside(entry, ENTRY_PORT)).filter_map(port));
    })?;
    Ok(ports)
}

fn destroy(set: &str) -> io::Result<()> {
    let end = Instant::now() + RELEASE;
    loop {
        let mut socket = Socket::open(Bus::Netfilter)?;
        let request = request(DESTROY, REQUEST | ACK | EXCLUSIVE, &mut socket, set);
        match socket.execute(&request) {
            // IPSET_ERR_BUSY: rules are deleted in the background.
            Err(error) if is_busy(&error) && Instant::now() < end => sleep(RELEASE_STEP),
            result => return result,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    /// `IPSET_ERR_BUSY`, beyond the numbers of errno.
    const BUSY: i32 = 4101;
    matches!(error.raw_os_error(), Some(BUSY)) || error.raw_os_error() == Some(Errno::EBUSY as i32)
}

fn request(kind: u16, flags: u16, socket: &mut Socket, set: &str) -> Vec<u8> {
    Builder::message(kind, flags, socket.next_sequence(), &HEADER)
        .attribute(PROTOCOL, &[PROTOCOL_VERSION])
        .attribute(SET_NAME, &terminated(set))
        .finish()
}
