//! What a trace has found, in words and as JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::connections::{Connection, Culprit, End};
use super::decode::Tracking;
use super::hook::{End as HookEnd, Hook, Watch};
use super::rules::Rule;
use super::table::RATE;
use crate::model::Protocol;
use crate::printable::printable;
use crate::ruleset::names::ChainName;

/// What is known of a connection besides its steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    /// Whose it is.
    pub(crate) service: Option<String>,
    /// What the table that serves is called; `None` where there is none.
    pub(crate) services: Option<&'static str>,
    /// The device that it came in by.
    pub(crate) input: Option<String>,
    /// The device that it left by.
    pub(crate) output: Option<String>,
    /// The rule that has decided.
    pub(crate) rule: Rule,
}

/// What became of a connection. The names in JSON are a part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It left the node.
    Left,
    /// It was delivered to the node.
    Delivered,
    /// It was dropped.
    Dropped,
    /// It was answered with a reset or an ICMP error.
    Rejected,
    /// It was taken out of the way, and may go on.
    Taken,
    /// It was seen no more.
    Lost,
    /// Nobody can tell.
    Unknown,
}

/// A rule, or a policy, that has decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct By {
    family: &'static str,
    table: String,
    chain: String,
    /// `None` for the policy of the chain.
    handle: Option<u64>,
    /// The rule as nft prints it, or `policy drop`. Without nft what the kernel alone says: its number and its comment.
    rule: String,
}

/// A connection in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// In UTC.
    time: String,
    /// `None` where the packet does not show it.
    protocol: Option<&'static str>,
    client: SocketAddr,
    destination: SocketAddr,
    /// The device that it came in by; `None` of what the node sends.
    input: Option<String>,
    /// `namespace/name:port`.
    service: Option<String>,
    /// Where it was sent instead of its destination.
    endpoint: Option<SocketAddr>,
    /// Who has changed the destination, if it was not nftproxyd.
    endpoint_by: Option<String>,
    /// `None` where it did not come far enough to tell.
    masqueraded: Option<bool>,
    /// Its source from then on.
    masqueraded_as: Option<SocketAddr>,
    outcome: Outcome,
    /// The device that it left by.
    output: Option<String>,
    /// Who has decided.
    by: Option<By>,
    /// Behind which point it was lost: a hook, and `first` or `last`.
    behind: Option<String>,
    /// More about it, in words.
    notes: Vec<String>,
}

impl Report {
    /// What there is to say of a connection.
    pub(crate) fn new(connection: &Connection, about: About) -> Report {
        let ours = |table: &str| about.services == Some(table);
        let by = |culprit: &Culprit| By {
            family: culprit.place.family(),
            table: culprit.place.table.clone(),
            chain: culprit.place.chain.clone(),
            handle: culprit.handle,
            rule: culprit.handle.map_or_else(|| "policy drop".to_owned(), |handle| about.rule.words(handle)),
        };
        let mut notes = Vec::new();
        if connection.incomplete {
            notes.push("some messages of the kernel about it may be lost".to_owned());
        } else if connection.missed_services && about.services.is_some() && connection.translated_by.is_none() {
            notes.push(missed(connection.tracking).to_owned());
        }
        let (outcome, by) = match &connection.end {
            End::Left(_) => (Outcome::Left, None),
            End::Delivered => (Outcome::Delivered, None),
            End::Dropped(culprit) => {
                if ours(&culprit.place.table) {
                    notes.extend(
                        reason(&culprit.place.chain, about.service.is_some(), about.rule.number).map(str::to_owned),
                    );
                }
                (if about.rule.rejects { Outcome::Rejected } else { Outcome::Dropped }, Some(by(culprit)))
            }
            End::Taken(culprit) => (Outcome::Taken, Some(by(culprit))),
            End::Lost(watch) => {
                match &connection.queued_by {
                    Some(culprit) => {
                        let place = &culprit.place;
                        let (family, table, chain) = (place.family(), &place.table, &place.chain);
                        notes.push(format!(
                            "chain {family} {table} {chain} has queued it for a program, which has not let it go on yet"
                        ));
                    }
                    None => notes.push(lost(*watch).to_owned()),
                }
                (Outcome::Lost, None)
            }
            End::Unknown => (Outcome::Unknown, None),
        };
        let behind = if let End::Lost(watch) = connection.end { Some(watch.to_string()) } else { None };
        let stranger = connection.translated_by.as_ref().filter(|place| !ours(&place.table));
        let time = Timestamp::try_from(connection.at).unwrap_or_default();
        Report {
            time: format!("{time:.3}"),
            protocol: connection.flow.protocol.map(Protocol::name),
            client: connection.flow.source,
            destination: connection.flow.destination,
            input: about.input,
            service: about.service,
            endpoint: connection.endpoint(),
            endpoint_by: stranger.map(|place| format!("{} {} {}", place.family(), place.table, place.chain)),
            masqueraded: connection.masqueraded,
            masqueraded_as: (connection.masqueraded == Some(true)).then_some(connection.now.source),
            outcome,
            output: about.output,
            by,
            behind,
            notes,
        }
    }

    /// For people: what it is on one line, what became of it on the next.
    pub(crate) fn text(&self) -> String {
        let clock = self.time.split_once('T').map_or(self.time.as_str(), |(_, clock)| clock).trim_end_matches('Z');
        let (protocol, client, to) = (self.protocol.unwrap_or("?"), self.client, self.destination);
        let mut text = format!("{clock} {client} -> {to} {protocol}   ");
        text.push_str(&self.service.as_deref().map_or("no Service".into(), printable));
        if let Some(endpoint) = self.endpoint {
            let _ = write!(text, " -> {endpoint}");
        }
        if let Some(by) = &self.endpoint_by {
            let _ = write!(text, " by {}", printable(by));
        }
        match (self.masqueraded, self.masqueraded_as) {
            (_, Some(source)) => {
                let _ = write!(text, ", masqueraded as {source}");
            }
            (Some(false), _) => text.push_str(", not masqueraded"),
            _ => {}
        }
        let what = match (self.outcome, &self.by) {
            (Outcome::Left, _) => self.output.as_ref().map_or("left".to_owned(), |device| format!("left by {device}")),
            (Outcome::Delivered, _) => "delivered to this node".to_owned(),
            (outcome, Some(by)) => format!("{} by {}", outcome.word(), by.text()),
            (outcome, None) => outcome.word().to_owned(),
        };
        let _ = write!(text, "\n    {}", printable(&what));
        self.notes.iter().for_each(|note| {
            let _ = write!(text, "\n    {}", printable(note));
        });
        text.push('\n');
        text
    }

    /// As one line.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

impl By {
    fn text(&self) -> String {
        let By { family, table, chain, rule, .. } = self;
        format!("{family} {table} {chain}: {rule}")
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Left => "left",
            Outcome::Delivered => "delivered",
            Outcome::Dropped => "dropped",
            Outcome::Rejected => "rejected",
            Outcome::Taken => "taken",
            Outcome::Lost => "lost",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Why chains of type nat, and so those that serve, have not seen a packet.
fn missed(tracking: Option<Tracking>) -> &'static str {
    match tracking {
        Some(Tracking::Open) => "it belongs to a connection that was open before, and goes where that goes",
        Some(Tracking::Untracked) => "a rule has said notrack: nothing is translated that is not tracked",
        Some(Tracking::New) => {
            "it belongs to a connection that was open before and never answered, and goes where that goes"
        }
        None => "the chains of nftproxyd have not seen it: its connection was open before, or it is not tracked",
    }
}

/// Why our own table has dropped or refused.
fn reason(chain: &str, is_service: bool, rule: Option<usize>) -> Option<&'static str> {
    Some(match (ChainName::parse(chain)?, is_service) {
        (ChainName::RejectIt, true) => "the Service has no endpoint",
        (ChainName::RejectIt, false) => "the Service of this address has no such port",
        (
            ChainName::SourceRanges
            | ChainName::SourceRangesLocal
            | ChainName::NodeportSourceRanges
            | ChainName::NodeportSourceRangesLocal,
            _,
        ) if rule == Some(1) => "the client is in none of loadBalancerSourceRanges",
        (ChainName::Unserved, _) => "a cluster IP that no Service has",
        (ChainName::Pick(_) | ChainName::NatPostrouting | ChainName::MasqueradeMarked, _) => {
            "the kernel could not translate it"
        }
        (_, true) => "the traffic policy is Local, and the Service has no endpoint on this node",
        (_, false) => return None,
    })
}

/// What may have become of a packet that no rule of nftables has dropped.
fn lost(behind: Watch) -> &'static str {
    match (behind.hook, behind.end) {
        (Hook::Prerouting, HookEnd::Last) => {
            "it was not routed: no route, forwarding is off, reverse-path filter, or a source that cannot be"
        }
        (Hook::Output, HookEnd::Last) => "it was not sent: no route from here to where it is sent now",
        (Hook::Forward, HookEnd::Last) => "it was not sent on: too big for the way, or no neighbour",
        (Hook::Postrouting | Hook::Input, HookEnd::Last) => "it went round by lo, and did not come back",
        (Hook::Prerouting, HookEnd::First) => {
            "no rule of nftables has dropped it in prerouting: connection tracking (is its table full?) or legacy iptables may have"
        }
        (Hook::Input, HookEnd::First) => "no rule of nftables has dropped it in input: legacy iptables may have",
        (Hook::Forward, HookEnd::First) => "no rule of nftables has dropped it in forward: legacy iptables may have",
        (Hook::Output, HookEnd::First) => {
            "no rule of nftables has dropped it in output: connection tracking (is its table full?) or legacy iptables may have"
        }
        (Hook::Postrouting, HookEnd::First) => {
            "no rule of nftables has dropped it in postrouting: legacy iptables may have"
        }
    }
}

/// All connections of a trace, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// How many there were.
    connections: usize,
    /// How many had which outcome.
    outcomes: BTreeMap<Outcome, usize>,
    /// How many were dropped or rejected by which chain.
    by: BTreeMap<String, usize>,
    /// Whether messages of the kernel were lost.
    messages_lost: bool,
    /// How many packets that open connections were not traced, because there were more of them than are.
    over_limit: u64,
    /// Whether as many connections as were asked for were traced, so that nobody has asked for those.
    #[serde(skip)]
    is_full: bool,
}

impl Summary {
    /// Exit status where nothing came, or nobody can tell what became of some of it, and nothing is worse.
    const UNKNOWN: u8 = 4;
    /// Exit status where a connection was dropped, rejected or lost.
    const FAILED: u8 = 3;

    /// Counts a connection.
    pub(crate) fn add(&mut self, report: &Report) {
        self.connections += 1;
        *self.outcomes.entry(report.outcome).or_default() += 1;
        if let Some(By { family, table, chain, .. }) = &report.by {
            *self.by.entry(format!("{family} {table} {chain}")).or_default() += 1;
        }
    }

    /// Notes that messages were lost.
    pub(crate) fn lost_messages(&mut self) {
        self.messages_lost = true;
    }

    /// Notes how many packets the limit has not let pass, and whether there were as many connections as were asked for.
    pub(crate) fn over_limit(&mut self, packets: u64, is_full: bool) {
        (self.over_limit, self.is_full) = (packets, is_full);
    }

    fn count(&self, outcomes: &[Outcome]) -> usize {
        outcomes.iter().filter_map(|outcome| self.outcomes.get(outcome)).sum()
    }

    /// The exit status of the command. A part of the interface.
    pub(crate) fn exit_status(&self) -> u8 {
        if self.count(&[Outcome::Dropped, Outcome::Rejected, Outcome::Lost]) > 0 {
            Summary::FAILED
        } else if self.connections > 0
            && self.count(&[Outcome::Left, Outcome::Delivered]) == self.connections
            && (self.over_limit == 0 || self.is_full)
        {
            0
        } else {
            Summary::UNKNOWN
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = match self.connections {
            0 => "=> no connection came".to_owned(),
            1 => "=> 1 connection".to_owned(),
            n => format!("=> {n} connections"),
        };
        for (nth, (outcome, count)) in self.outcomes.iter().enumerate() {
            let _ = write!(text, "{} {count} {}", if nth == 0 { ":" } else { "," }, outcome.word());
        }
        for (nth, (by, count)) in self.by.iter().enumerate() {
            let _ = write!(text, "{} {count} by {}", if nth == 0 { ";" } else { "," }, printable(by));
        }
        let _ = writeln!(text, " (exit status {})", self.exit_status());
        if self.messages_lost {
            text.push_str("   some messages of the kernel were lost: too many packets for this machine are traced\n");
        }
        if self.over_limit > 0 {
            let packets = if self.over_limit == 1 {
                "packet that opens a connection was"
            } else {
                "packets that open connections were"
            };
            let _ = writeln!(text, "   {} more {packets} not looked at: the limit is {RATE} a second", self.over_limit);
        }
        text
    }

    /// As one line.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let summary = serde_json::json!({ "summary": self, "exitStatus": self.exit_status() });
        Ok(serde_json::to_string(&summary)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::trace::decode::Place;
    use crate::trace::packet::Flow;

    fn place(family: u8, table: &str, chain: &str) -> Place {
        Place { family, table: table.to_owned(), chain: chain.to_owned() }
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn connection(end: End) -> Connection {
        let flow = Flow {
            protocol: Some(Protocol::Tcp),
            source: socket("10.125.0.100:41234"),
            destination: socket("10.96.0.80:80"),
        };
        Connection {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(43_384_123),
            flow,
            now: Flow { destination: socket("10.244.0.12:8080"), ..flow },
            input: Some(3),
            met_services: true,
            missed_services: false,
            by_node_port: false,
            translated_by: Some(place(2, "nftproxyd", "pick-1")),
            masqueraded: None,
            tracking: Some(Tracking::New),
            queued_by: None,
            incomplete: false,
            end,
        }
    }

    fn about() -> About {
        About { service: Some("shop/web:http".to_owned()), services: Some("nftproxyd"), ..About::default() }
    }

    fn dropped(family: u8, table: &str, chain: &str, handle: Option<u64>) -> End {
        End::Dropped(Culprit { place: place(family, table, chain), handle })
    }

    #[test]
    fn a_connection_has_a_line_and_its_end_another() {
        let mut left = connection(End::Left(Some(5)));
        left.masqueraded = Some(true);
        left.now.source = socket("10.125.0.1:2345");
        let about_it = About { output: Some("cni0".to_owned()), ..about() };
        assert_eq!(
            Report::new(&left, about_it).text(),
            "12:03:04.123 10.125.0.100:41234 -> 10.96.0.80:80 tcp   shop/web:http -> 10.244.0.12:8080, masqueraded as \
             10.125.0.1:2345\n    left by cni0\n"
        );
        let rule = |text: &str, rejects| Rule { number: Some(2), text: Some(text.to_owned()), rejects, comment: None };
        let last = |connection: &Connection, about| {
            let text = Report::new(connection, about).text();
            text.lines().skip(1).map(|line| line.trim_start().to_owned()).collect::<Vec<_>>().join("; ")
        };
        let stranger = connection(dropped(1, "netpol", "forward", Some(7)));
        let with = |rule| About { rule, ..about() };
        assert_eq!(
            last(&stranger, with(rule("tcp dport 8080 drop", false))),
            "dropped by inet netpol forward: tcp dport 8080 drop"
        );
        assert_eq!(last(&stranger, with(rule("reject", true))), "rejected by inet netpol forward: reject");
        assert_eq!(last(&stranger, about()), "dropped by inet netpol forward: the rule with handle 7");
        assert_eq!(
            last(&connection(dropped(10, "filter", "FORWARD", None)), about()),
            "dropped by ip6 filter FORWARD: policy drop"
        );
        assert_eq!(last(&connection(End::Delivered), about()), "delivered to this node");
        let mut unknown = connection(End::Unknown);
        (unknown.incomplete, unknown.missed_services) = (true, true);
        assert_eq!(last(&unknown, about()), "unknown; some messages of the kernel about it may be lost");
        let watch = Watch { hook: Hook::Forward, end: HookEnd::First };
        let mut lost = connection(End::Lost(watch));
        assert!(last(&lost, about()).starts_with("lost; no rule of nftables has dropped it in forward"));
        lost.queued_by = Some(Culprit { place: place(2, "fw", "in"), handle: Some(1) });
        assert!(last(&lost, about()).starts_with("lost; chain ip fw in has queued it for a program"));
        // What others have named speaks to no terminal.
        let evil = connection(dropped(1, "a\u{1b}[2J", "b", Some(7)));
        assert!(!last(&evil, with(rule("\u{1b}[31m", false))).contains('\u{1b}'));
    }

    #[test]
    fn whoever_translates_is_named_unless_it_is_nftproxyd() {
        let mut connection = connection(End::Delivered);
        assert!(Report::new(&connection, about()).text().contains("shop/web:http -> 10.244.0.12:8080\n"));
        connection.translated_by = Some(place(2, "nat", "KUBE-SEP-X"));
        let text = Report::new(&connection, about()).text();
        assert!(text.contains("-> 10.244.0.12:8080 by ip nat KUBE-SEP-X"), "{text}");
        assert!(Report::new(&connection, About::default()).text().contains("no Service -> 10.244.0.12:8080 by ip"));
    }

    #[test]
    fn what_rules_for_new_connections_have_not_seen_has_a_reason() {
        let mut connection = connection(End::Delivered);
        (connection.missed_services, connection.translated_by) = (true, None);
        for (tracking, words) in [
            (Some(Tracking::Open), "open before"),
            (Some(Tracking::New), "never answered"),
            (Some(Tracking::Untracked), "notrack"),
            (None, "or it is not tracked"),
        ] {
            connection.tracking = tracking;
            let report = Report::new(&connection, about());
            assert!(report.notes.len() == 1 && report.notes[0].contains(words), "{report:?}");
        }
        // Where nothing serves there are no such rules.
        assert_eq!(Report::new(&connection, About::default()).notes, [""; 0]);
    }

    #[test]
    fn our_own_table_drops_for_reasons() {
        let reasons = |chain, is_service, rule| reason(chain, is_service, Some(rule)).unwrap_or_default();
        assert!(reasons("reject-it", true, 1).contains("no endpoint"));
        assert!(reasons("reject-it", false, 1).contains("no such port"));
        for chain in ["source-ranges", "source-ranges-local", "nodeport-source-ranges", "nodeport-source-ranges-local"]
        {
            assert!(reasons(chain, true, 1).contains("loadBalancerSourceRanges"));
        }
        assert!(reasons("source-ranges", true, 2).contains("on this node"));
        assert!(reasons("unserved", false, 2).contains("no Service has"));
        assert!(reasons("services", true, 1).contains("on this node"));
        assert!(reasons("pick-2", true, 1).contains("could not translate"));
        assert_eq!(reasons("services", false, 1), "");
        assert_eq!(reasons("of-others", true, 1), "");
    }

    #[test]
    fn the_exit_status_is_that_of_the_worst() {
        let report = |end| Report::new(&connection(end), about());
        let summary = |ends: &[End]| {
            let mut summary = Summary::default();
            ends.iter().for_each(|end| summary.add(&report(end.clone())));
            summary
        };
        let watch = Watch { hook: Hook::Forward, end: HookEnd::First };
        let fw = || dropped(1, "fw", "in", None);
        for (ends, status) in [
            (&[][..], 4),
            (&[End::Unknown], 4),
            (&[End::Left(None), End::Unknown], 4),
            (&[End::Delivered], 0),
            (&[End::Left(None), fw()], 3),
            (&[End::Lost(watch)], 3),
        ] {
            assert_eq!(summary(ends).exit_status(), status, "{ends:?}");
        }
        let mut of_three = summary(&[End::Left(None), fw(), fw()]);
        assert_eq!(of_three.text(), "=> 3 connections: 1 left, 2 dropped; 2 by inet fw in (exit status 3)\n");
        of_three.lost_messages();
        assert!(of_three.text().contains("messages of the kernel were lost"));
        let json: serde_json::Value = serde_json::from_str(&of_three.json().expect("JSON")).expect("JSON");
        let wanted = serde_json::json!({"exitStatus": 3, "summary": {
            "connections": 3, "outcomes": {"left": 1, "dropped": 2}, "by": {"inet fw in": 2}, "messagesLost": true, "overLimit": 0
        }});
        assert_eq!(json, wanted);
        assert_eq!(Summary::default().text(), "=> no connection came (exit status 4)\n");
    }

    #[test]
    fn what_was_not_looked_at_is_said_and_is_no_success() {
        let summary = |end, packets, is_full| {
            let mut summary = Summary::default();
            summary.add(&Report::new(&connection(end), about()));
            summary.over_limit(packets, is_full);
            summary
        };
        let more = "   870 more packets that open connections were not looked at: the limit is 25 a second\n";
        let over = summary(End::Left(None), 870, false);
        assert_eq!(over.text(), format!("=> 1 connection: 1 left (exit status 4)\n{more}"));
        let json: serde_json::Value = serde_json::from_str(&over.json().expect("JSON")).expect("JSON");
        assert_eq!((&json["summary"]["overLimit"], &json["exitStatus"]), (&870.into(), &4.into()));
        // As many as were asked for: nobody has asked for the others, which are said all the same.
        let full = summary(End::Left(None), 870, true);
        assert_eq!(full.text(), format!("=> 1 connection: 1 left (exit status 0)\n{more}"));
        assert_eq!(summary(dropped(1, "fw", "in", None), 870, false).exit_status(), 3);
        assert_eq!(summary(End::Left(None), 0, false).text(), "=> 1 connection: 1 left (exit status 0)\n");
        assert!(summary(End::Left(None), 1, false).text().contains("1 more packet that opens a connection was not"));
    }
}
