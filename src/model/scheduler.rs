//! How a Service's connections are spread over its endpoints.

use std::fmt;

use super::parse::shown;

/// How the endpoint of a new connection is chosen. The names are those of IPVS (ipvsadm(8)), where it has the same.
///
/// A weight of 0 always means: no new connections. Other weights count where it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Scheduler {
    /// `random`, by weights.
    #[default]
    Random,
    /// `rr`: in turns.
    RoundRobin,
    /// `wrr`: in turns, by weights.
    WeightedRoundRobin,
    /// `sh`: by the client's address; shares of addresses by weights.
    SourceHash,
    /// `sh` with the flag `sh-port`: by the client's address and port.
    SourceHashWithPort,
    /// `dh`: by the address that the client connects to.
    DestinationHash,
    /// `mh`: as `sh`, and few clients change their endpoint where one comes or goes.
    Maglev,
    /// `mh` with the flag `mh-port`: by the client's address and port.
    MaglevWithPort,
    /// `lc`: to the endpoint with the fewest open connections.
    LeastConnections,
    /// `wlc`: to the endpoint with the fewest open connections for its weight.
    WeightedLeastConnections,
    /// `sed`: to the endpoint where it would be served soonest, (connections + 1) / weight.
    ShortestExpectedDelay,
    /// `nq`: to an idle endpoint if there is one, else as `sed`.
    NeverQueue,
}

/// How many slots a Maglev table can have: primes, as the scheme asks for, and not more than fit into a frontend. They are
/// those of Cilium (`--bpf-lb-maglev-table-size`).
pub const MAGLEV_SIZES: [u16; 9] = [251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521];

/// What IPVS has besides, and what comes closest to it.
const OTHERS: [(&str, &str); 4] = [("lblc", "lc"), ("lblcr", "lc"), ("ovf", "wlc"), ("fo", "wrr")];

impl Scheduler {
    /// All of them, with their names.
    pub const ALL: [(Scheduler, &'static str); 12] = [
        (Scheduler::Random, "random"),
        (Scheduler::RoundRobin, "rr"),
        (Scheduler::WeightedRoundRobin, "wrr"),
        (Scheduler::SourceHash, "sh"),
        (Scheduler::SourceHashWithPort, "sh-port"),
        (Scheduler::DestinationHash, "dh"),
        (Scheduler::Maglev, "mh"),
        (Scheduler::MaglevWithPort, "mh-port"),
        (Scheduler::LeastConnections, "lc"),
        (Scheduler::WeightedLeastConnections, "wlc"),
        (Scheduler::ShortestExpectedDelay, "sed"),
        (Scheduler::NeverQueue, "nq"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Scheduler::ALL.into_iter().find(|(scheduler, _)| *scheduler == self).map_or("", |(_, name)| name)
    }

    /// The scheduler of this name.
    ///
    /// # Errors
    /// There is none; what there is instead.
    pub fn parse(name: &str) -> Result<Scheduler, UnknownScheduler> {
        let found = Scheduler::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(scheduler, _)| scheduler).ok_or_else(|| UnknownScheduler(name.to_owned()))
    }

    /// The same by the client's address and port, for the two that know both.
    pub fn with_port(self) -> Scheduler {
        match self {
            Scheduler::SourceHash => Scheduler::SourceHashWithPort,
            Scheduler::Maglev => Scheduler::MaglevWithPort,
            other => other,
        }
    }

    /// Whether the open connections to its endpoints have to be counted.
    pub fn counts(self) -> bool {
        matches!(
            self,
            Scheduler::LeastConnections
                | Scheduler::WeightedLeastConnections
                | Scheduler::ShortestExpectedDelay
                | Scheduler::NeverQueue
        )
    }

    /// Whether the endpoint is chosen by a hash of the packet.
    pub fn hashes(self) -> bool {
        self.is_by_client() || self == Scheduler::DestinationHash
    }

    /// Whether the endpoint depends on the client alone.
    pub fn is_by_client(self) -> bool {
        matches!(
            self,
            Scheduler::SourceHash | Scheduler::SourceHashWithPort | Scheduler::Maglev | Scheduler::MaglevWithPort
        )
    }

    /// Whether weights count, apart from 0.
    pub fn weighs(self) -> bool {
        !matches!(self, Scheduler::RoundRobin | Scheduler::LeastConnections)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// There is no scheduler of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownScheduler(String);

impl fmt::Display for UnknownScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Scheduler::ALL.into_iter().map(|(_, name)| name).collect();
        write!(f, "{} is not a scheduler; there are {}", shown(&self.0), names.join(", "))?;
        match OTHERS.into_iter().find(|(name, _)| *name == self.0) {
            Some((_, nearest)) => write!(f, " ({nearest} comes closest)"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for (scheduler, name) in Scheduler::ALL {
            assert_eq!(Scheduler::parse(name), Ok(scheduler));
            assert_eq!(scheduler.to_string(), name);
        }
    }

    #[test]
    fn what_there_is_not_is_told_with_what_there_is() {
        let told = |name| Scheduler::parse(name).expect_err("none").to_string();
        let list = "there are random, rr, wrr, sh, sh-port, dh, mh, mh-port, lc, wlc, sed, nq";
        assert_eq!(told("RR"), format!("\"RR\" is not a scheduler; {list}"));
        assert_eq!(told("lblc"), format!("\"lblc\" is not a scheduler; {list} (lc comes closest)"));
        assert_eq!(told("fo"), format!("\"fo\" is not a scheduler; {list} (wrr comes closest)"));
    }
}
