//! Why connections to a service port lead nowhere, in words.

use super::super::{Family, Protocol, Slice};

/// Why they are dropped: [`choose`](super::choose) finds no endpoint for them, although there is one somewhere.
pub const DROPPED_BECAUSE: &str = "its traffic policy is Local, and only other nodes have endpoints";

/// Why they are refused: there is no endpoint that they could go to, anywhere. `slices` are those of the Service.
pub fn refused_because(slices: &[Slice], family: Family, port: &str, protocol: Protocol) -> String {
    let of_family = || slices.iter().filter(move |slice| slice.family == family);
    let has_port = |slice: &&Slice| slice.ports.iter().any(|it| *it.name == *port && it.protocol == protocol);
    let with_port = || of_family().filter(has_port);
    let all: usize = of_family().map(|slice| slice.endpoints.len()).sum();
    match with_port().map(|slice| slice.endpoints.len()).sum::<usize>() {
        _ if of_family().next().is_none() => format!("there is no EndpointSlice of {family}"),
        0 if all == 0 => "there are no endpoints".to_owned(),
        0 => format!("no endpoint has the port {port:?} ({protocol})"),
        number => format!("none of {number} endpoints is ready"),
    }
}
