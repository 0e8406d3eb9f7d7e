//! What became of packets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::packet::Refusal;

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its destination was changed. `masqueraded` is `None` where that would not show.
    Forward { endpoint: SocketAddr, source: IpAddr, masqueraded: Option<bool> },
    /// Somebody refused it on the way.
    Reject(Refusal),
    /// Nothing came out anywhere.
    Drop,
    /// It went on to where it was going.
    Pass(Passed),
}

/// Where a packet that was left alone came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Passed {
    /// To the world outside the node.
    Out,
    /// To the node itself.
    Delivered,
    /// Either, but from another source.
    SourceChanged,
}

/// The kinds of fates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Forward,
    Reject,
    Drop,
    Pass,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Forward => "forward",
            Kind::Reject => "reject",
            Kind::Drop => "drop",
            Kind::Pass => "pass",
        })
    }
}

/// Whether an endpoint sees another source than the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masquerade {
    Yes,
    No,
    /// It would not show.
    Unknown,
    /// Some packets were masqueraded, others were not.
    Mixed,
}

/// What became of many packets that differ in their source ports only (and clients in turn).
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    endpoints: BTreeMap<SocketAddr, Reached>,
    others: BTreeMap<Kind, BTreeSet<String>>,
    endpoints_of_client: BTreeMap<IpAddr, BTreeSet<SocketAddr>>,
    packets: usize,
}

#[derive(Debug, Default)]
struct Reached {
    masqueraded: usize,
    not_masqueraded: usize,
    unknown: usize,
    sources: BTreeSet<IpAddr>,
}

impl Outcome {
    /// Counts a packet of `client`.
    pub(crate) fn add(&mut self, client: IpAddr, fate: Fate) {
        self.packets += 1;
        let (kind, how) = match fate {
            Fate::Forward { endpoint, source, masqueraded } => {
                let reached = self.endpoints.entry(endpoint).or_default();
                *match masqueraded {
                    Some(true) => &mut reached.masqueraded,
                    Some(false) => &mut reached.not_masqueraded,
                    None => &mut reached.unknown,
                } += 1;
                reached.sources.insert(source);
                self.endpoints_of_client.entry(client).or_default().insert(endpoint);
                return;
            }
            Fate::Reject(refusal) => (Kind::Reject, refusal.to_string()),
            Fate::Drop => (Kind::Drop, String::new()),
            Fate::Pass(Passed::Out) => (Kind::Pass, "out".to_owned()),
            Fate::Pass(Passed::Delivered) => (Kind::Pass, "delivered".to_owned()),
            Fate::Pass(Passed::SourceChanged) => (Kind::Pass, "with another source".to_owned()),
        };
        self.others.entry(kind).or_default().insert(how);
    }

    /// The fate that all packets shared; `None` when they did not.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let mut kinds = self.others.keys().copied().chain((!self.endpoints.is_empty()).then_some(Kind::Forward));
        kinds.next().filter(|_| kinds.next().is_none())
    }

    /// The endpoints that packets reached.
    pub(crate) fn endpoints(&self) -> BTreeSet<SocketAddr> {
        self.endpoints.keys().copied().collect()
    }

    /// The sources that endpoints saw.
    pub(crate) fn sources(&self) -> BTreeSet<IpAddr> {
        self.endpoints.values().flat_map(|reached| &reached.sources).copied().collect()
    }

    /// What `endpoint` saw of masquerading.
    pub(crate) fn masquerade(&self, endpoint: &SocketAddr) -> Masquerade {
        let Some(reached) = self.endpoints.get(endpoint) else { return Masquerade::Unknown };
        match (reached.masqueraded, reached.not_masqueraded) {
            (0, 0) => Masquerade::Unknown,
            (0, _) if reached.unknown == 0 => Masquerade::No,
            // Where the source has the masquerading address already, only the port tells. Masquerading may choose the
            // same port by chance, and without it the kernel changes a port that an earlier connection was given by
            // masquerading. Both are rare, so it is as it is for most packets.
            (masqueraded, 0) if masqueraded > reached.unknown => Masquerade::Yes,
            (_, 0) => Masquerade::Unknown,
            _ => Masquerade::Mixed,
        }
    }

    /// Whether all packets of a client reached one endpoint, for each client.
    pub(crate) fn sticky(&self) -> bool {
        self.endpoints_of_client.values().all(|endpoints| endpoints.len() == 1)
    }

    /// How many packets it tells of.
    pub(crate) fn packets(&self) -> usize {
        self.packets
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (kind, how) in &self.others {
            write!(f, "{between}{kind}")?;
            let how: Vec<&str> = how.iter().map(String::as_str).filter(|how| !how.is_empty()).collect();
            if !how.is_empty() {
                write!(f, " ({})", how.join(", "))?;
            }
            between = " and ";
        }
        if !self.endpoints.is_empty() {
            write!(f, "{between}forward")?;
        }
        let mut between = " to ";
        for (endpoint, reached) in &self.endpoints {
            write!(f, "{between}{endpoint}")?;
            let sources: Vec<String> = reached.sources.iter().map(IpAddr::to_string).collect();
            match self.masquerade(endpoint) {
                Masquerade::Yes => write!(f, " masqueraded as {}", sources.join(", "))?,
                Masquerade::Mixed => write!(f, " masqueraded at times")?,
                Masquerade::No | Masquerade::Unknown => {}
            }
            between = ", ";
        }
        Ok(())
    }
}
