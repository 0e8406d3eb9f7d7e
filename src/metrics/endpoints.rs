//! What connections to each endpoint had, once they have ended.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arcstr::ArcStr;
use prometheus::proto::MetricFamily;
use serde::{Deserialize, Serialize};

use super::bounded::{Bounded, MOST_SERIES};
use super::table;
use crate::model::ObjectName;

/// An endpoint of a port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointOf {
    /// The Service.
    pub service: ObjectName,
    /// The name of its port; may be empty.
    pub port: ArcStr,
    /// The endpoint.
    pub endpoint: SocketAddr,
}

/// What a connection had, from the client and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Had {
    /// Packets.
    pub packets: [u64; 2],
    /// Bytes with the IP header.
    pub bytes: [u64; 2],
}

/// Where [`EndpointTotals`] are served on the metrics port, as a list of those that have series of their own.
pub const PATH: &str = "/nftproxyd/accounting";

/// What all connections to an endpoint had that have ended since the process began to account for them, or, where none had
/// ended for 15 minutes in between, since then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointTotals {
    /// `namespace/name`.
    pub service: String,
    /// The name of its port; may be empty.
    pub port: String,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// What there was.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Sums of connections that have ended; *in* is from clients, *out* back to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// How many.
    pub ended: u64,
    /// Their packets.
    pub packets_in: u64,
    /// Those back.
    pub packets_out: u64,
    /// Their bytes, with IP headers.
    pub bytes_in: u64,
    /// Those back.
    pub bytes_out: u64,
}

/// The values of the label `direction`.
const DIRECTIONS: [&str; 2] = ["original", "reply"];

/// The sums of all connections that have ended.
#[derive(Debug)]
pub struct Endpoints(Mutex<Bounded<EndpointOf, 5>>);

impl Endpoints {
    pub(super) fn new() -> Endpoints {
        // Each has five series.
        Endpoints(Mutex::new(Bounded::new(MOST_SERIES / 5)))
    }

    /// A connection to an endpoint has ended.
    pub fn ended(&self, endpoint: EndpointOf, had: Had, now: Instant) {
        let ([packets, packets_back], [bytes, bytes_back]) = (had.packets, had.bytes);
        self.sums().add(endpoint, [1, packets, packets_back, bytes, bytes_back], now);
    }

    /// The totals of each endpoint that has series of its own, sorted.
    pub(super) fn totals(&self, now: Instant) -> Vec<EndpointTotals> {
        let mut sums = self.sums();
        sums.forget(now);
        let totals = |(of, counts): (&EndpointOf, &[u64; 5])| {
            let &[ended, packets_in, packets_out, bytes_in, bytes_out] = counts;
            EndpointTotals {
                service: of.service.to_string(),
                port: of.port.to_string(),
                endpoint: of.endpoint,
                totals: Totals { ended, packets_in, packets_out, bytes_in, bytes_out },
            }
        };
        sums.own().map(totals).collect()
    }

    pub(super) fn families(&self, now: Instant) -> Vec<MetricFamily> {
        let labels = |EndpointOf { service, port, endpoint }: &EndpointOf| {
            vec![service.namespace().to_owned(), service.name().to_owned(), port.to_string(), endpoint.to_string()]
        };
        let both = |at: usize| {
            move |counts: &[u64; 5]| {
                DIRECTIONS.iter().zip(&counts[at..]).map(|(it, count)| (vec![*it], *count)).collect()
            }
        };
        let mut sums = self.sums();
        sums.forget(now);
        let families = [
            sums.families(&table::ENDPOINT_CONNECTIONS, labels, |counts| vec![(Vec::new(), counts[0])]),
            sums.families(&table::ENDPOINT_PACKETS, labels, both(1)),
            sums.families(&table::ENDPOINT_BYTES, labels, both(3)),
        ];
        families.into_iter().flatten().collect()
    }

    fn sums(&self) -> MutexGuard<'_, Bounded<EndpointOf, 5>> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::bounded::FORGOTTEN;
    use super::*;

    #[test]
    fn connections_are_added_up_by_endpoint_and_those_beyond_the_limit_together() {
        let (all, now) = (Endpoints(Mutex::new(Bounded::new(1))), Instant::now());
        let endpoint = |text: &str| EndpointOf {
            service: ObjectName::new("shop", "web").expect("a name"),
            port: "http".into(),
            endpoint: text.parse().expect("a socket address"),
        };
        assert!(all.families(now).is_empty());
        let had = Had { packets: [3, 2], bytes: [300, 5_000] };
        all.ended(endpoint("10.1.0.1:80"), had, now);
        all.ended(endpoint("10.1.0.1:80"), had, now);
        all.ended(endpoint("[fd00::1]:80"), had, now);
        let text = super::super::encode(&all.families(now));
        let series: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("nftproxyd_endpoint_")).collect();
        let of = r#"{namespace="shop",service="web",port="http",endpoint="10.1.0.1:80""#;
        let expected = [
            format!("connections_total{of}}} 2"),
            r#"connections_total{endpoint="other"} 1"#.to_owned(),
            format!(r#"packets_total{of},direction="original"}} 6"#),
            format!(r#"packets_total{of},direction="reply"}} 4"#),
            r#"packets_total{endpoint="other",direction="original"} 3"#.to_owned(),
            r#"packets_total{endpoint="other",direction="reply"} 2"#.to_owned(),
            format!(r#"bytes_total{of},direction="original"}} 600"#),
            format!(r#"bytes_total{of},direction="reply"}} 10000"#),
            r#"bytes_total{endpoint="other",direction="original"} 300"#.to_owned(),
            r#"bytes_total{endpoint="other",direction="reply"} 5000"#.to_owned(),
        ];
        assert_eq!(series, expected);
        let totals = serde_json::to_value(all.totals(now)).expect("it can be written");
        let expected = serde_json::json!([{"service": "shop/web", "port": "http", "endpoint": "10.1.0.1:80",
            "ended": 2, "packetsIn": 6, "packetsOut": 4, "bytesIn": 600, "bytesOut": 10_000}]);
        assert_eq!(totals, expected, "those of others are nobody's");
    }

    #[test]
    fn what_ends_late_is_seen_for_as_long_as_all_that_ends() {
        let (all, start) = (Endpoints::new(), Instant::now());
        let endpoint = EndpointOf {
            service: ObjectName::new("shop", "web").expect("a name"),
            port: "http".into(),
            endpoint: ([10, 1, 0, 1], 80).into(),
        };
        let ended = |at| all.totals(at).first().map(|totals| totals.totals.ended);
        let end = |at| all.ended(endpoint.clone(), Had::default(), at);
        end(start);
        let late = start + FORGOTTEN - Duration::from_millis(1);
        assert_eq!(ended(late), Some(1));
        end(late);
        assert_eq!(ended(start + FORGOTTEN), Some(2), "the time begins anew");
        assert_eq!(ended(late + FORGOTTEN), None, "its count goes along");
        end(late + FORGOTTEN);
        assert_eq!(ended(late + FORGOTTEN), Some(1));
    }
}
