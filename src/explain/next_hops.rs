//! Whether the next hops on the way to endpoints are known not to answer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::facts::{Silent, ToEndpoint};
use crate::routing::Neighbour;

/// Somebody who is there has answered by then. Who is not is asked three times, a second each
/// (`mcast_solicit`, `retrans_time_ms`).
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Says of each endpoint whether its next hop is one that the kernel has asked for in vain, or still asks for after a pause.
/// Each next hop is asked about once, and those that are being asked for once more. What the kernel holds is from the last packet
/// that was sent there: the next one has it ask again.
///
/// # Errors
/// The kernel does not say.
pub(super) fn find(
    endpoints: &mut BTreeMap<SocketAddr, ToEndpoint>,
    neighbour: &mut dyn FnMut(IpAddr, u32) -> io::Result<Neighbour>,
    name: &dyn Fn(u32) -> String,
    pause: impl FnOnce(),
) -> io::Result<()> {
    let mut known: BTreeMap<(IpAddr, u32), Neighbour> = BTreeMap::new();
    for hop in endpoints.values().filter_map(|to| to.next_hop) {
        if let Entry::Vacant(new) = known.entry(hop) {
            new.insert(neighbour(hop.0, hop.1)?);
        }
    }
    let is_waiting = |state: &Neighbour| *state == Neighbour::Waiting;
    if known.values().any(is_waiting) {
        pause();
        for ((address, device), state) in known.iter_mut().filter(|(_, state)| is_waiting(state)) {
            *state = neighbour(*address, *device)?;
        }
    }
    for to in endpoints.values_mut() {
        let Some(hop @ (address, device)) = to.next_hop else { continue };
        let state = match known.get(&hop) {
            Some(Neighbour::Failed) => "FAILED",
            Some(Neighbour::Waiting) => "INCOMPLETE",
            Some(Neighbour::Known | Neighbour::NotAsked) | None => continue,
        };
        to.silent = Some(Silent { address, device: name(device), state });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_being_asked_for_is_given_time_to_answer() {
        let socket = |text: &str| -> SocketAddr { text.parse().expect("an address and a port") };
        let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let by = |hop| ToEndpoint { next_hop: hop, ..ToEndpoint::default() };
        let mut endpoints: BTreeMap<SocketAddr, ToEndpoint> = [
            ("10.1.0.1:80", by(Some((ip("10.1.0.1"), 2)))),
            ("10.1.0.2:80", by(Some((ip("10.1.0.2"), 2)))),
            ("10.1.0.3:80", by(Some((ip("10.1.0.3"), 2)))),
            ("10.1.0.4:80", by(Some((ip("10.1.0.4"), 2)))),
            ("10.2.0.1:80", by(Some((ip("192.0.2.1"), 3)))),
            ("10.2.0.2:80", by(Some((ip("192.0.2.1"), 3)))),
            ("10.3.0.1:80", by(None)),
        ]
        .into_iter()
        .map(|(endpoint, to)| (socket(endpoint), to))
        .collect();
        let (mut asked, paused) = (Vec::new(), std::cell::Cell::new(0));
        let mut neighbour = |address: IpAddr, device| {
            asked.push((address, device));
            Ok(match (address.to_string().as_str(), paused.get()) {
                ("10.1.0.1", _) => Neighbour::Known,
                ("10.1.0.2", 0) | ("10.1.0.3", _) => Neighbour::Waiting,
                ("10.1.0.2", _) => Neighbour::Known,
                ("10.1.0.4", _) => Neighbour::NotAsked,
                _ => Neighbour::Failed,
            })
        };
        let pause = || paused.set(paused.get() + 1);
        find(&mut endpoints, &mut neighbour, &|device| format!("eth{device}"), pause).expect("an answer");
        let silent = |(endpoint, to): (&SocketAddr, &ToEndpoint)| {
            to.silent.as_ref().map(|it| format!("{endpoint} {} {} {}", it.address, it.device, it.state))
        };
        let silent: Vec<String> = endpoints.iter().filter_map(silent).collect();
        let expected = [
            "10.1.0.3:80 10.1.0.3 eth2 INCOMPLETE",
            "10.2.0.1:80 192.0.2.1 eth3 FAILED",
            "10.2.0.2:80 192.0.2.1 eth3 FAILED",
        ];
        assert_eq!(silent, expected);
        // Five next hops, and the two that are being asked for once more.
        assert_eq!((asked.len(), paused.get()), (7, 1));
        let mut refused = |_: IpAddr, _: u32| Err(io::Error::other("no"));
        find(&mut endpoints, &mut refused, &|_| String::new(), || {}).expect_err("nobody says");
    }
}
