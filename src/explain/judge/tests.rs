use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::facts::{DaemonFacts, Does, Followed, Silent, Table, Which};
use super::super::question::Asked;
use super::super::report::Reason;
use super::*;
use crate::ruleset::eval::{EvalError, Step};
use crate::ruleset::names::{ChainName, TableName};
use crate::status::{EndpointStatus, FrontendStatus, Policy};

const CLIENT: &str = "203.0.113.7";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// What our table does, by these endpoints.
fn forwards(endpoints: &[&str]) -> Outcome {
    let reached = |endpoint: &&str| Reached { endpoint: socket(endpoint), masqueraded: false };
    Outcome::Forward(endpoints.iter().map(reached).collect::<BTreeSet<_>>())
}

fn traced(outcome: Outcome, steps: Vec<Step>) -> Option<Result<Trace, EvalError>> {
    Some(Ok(Trace { outcome, steps }))
}

/// A packet from outside to `172.30.1.1:80`, a cluster IP with two endpoints, on a node on which nothing is wrong.
fn well() -> Facts {
    let (to, endpoints) = (socket("172.30.1.1:80"), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    let by = ToEndpoint { way: Some(Way::By("eth0".to_owned(), None)), ..ToEndpoint::default() };
    let to_endpoints = endpoints.iter().map(|endpoint| (socket(endpoint), by.clone())).collect();
    let endpoint = |address: &&str| EndpointStatus {
        address: socket(address),
        slots: 1,
        of: 2,
        connections: 0,
        unanswered: 0,
        removed: false,
        pod: None,
        node: None,
        weight: None,
        state: None,
        new_connections: None,
        totals: None,
    };
    let arrives_by = Some("eth0".to_owned());
    Facts {
        asked: Asked { from: ip(CLIENT), from_this_node: false, arrives_by, to, protocol: "tcp" },
        own: TableName::NODE,
        table: Table::There(Vec::new()),
        trace: traced(forwards(&endpoints), Vec::new()),
        is_cluster_ip: true,
        frontend: Some(FrontendStatus {
            service: "shop/web:http".to_owned(),
            address: Some(to.ip()),
            port: 80,
            protocol: "tcp",
            family: "IPv4".to_owned(),
            policy: Policy::Cluster,
            source_ranges: false,
            scheduler: Some("random"),
            affinity_seconds: None,
            endpoints: endpoints.iter().map(endpoint).collect(),
            damaged: false,
            counted: None,
            new_connections: None,
            allowed_sources: None,
            configured_scheduler: None,
            unserved: None,
        }),
        neighbours: Vec::new(),
        node_port: None,
        accepting: Vec::new(),
        in_service_cidr: None,
        local_at: None,
        remembered: None,
        service: None,
        daemon: Ok(DaemonFacts::default()),
        is_pod: None,
        node: Some(NodeFacts { to_endpoints, ..NodeFacts::default() }),
    }
}

/// The same where our table ends the packet.
fn ended(outcome: Outcome, policy: Policy) -> Facts {
    let mut facts = well();
    facts.trace = traced(outcome, Vec::new());
    facts.frontend.as_mut().expect("it has one").policy = policy;
    facts.node = Some(NodeFacts::default());
    facts
}

fn node(facts: &mut Facts) -> &mut NodeFacts {
    facts.node.as_mut().expect("it has one")
}

/// The one cause, and what becomes of the packet.
#[track_caller]
fn one(facts: &Facts) -> (Cause, Verdict) {
    let Explanation { causes, verdict, .. } = judge(facts);
    let [cause] = &causes[..] else { panic!("{causes:#?}") };
    (cause.clone(), verdict)
}

#[test]
fn nothing_is_said_of_a_packet_that_is_well() {
    let explanation = judge(&well());
    assert_eq!((explanation.causes, explanation.verdict), (Vec::new(), Verdict::Reached));
    assert_eq!(explanation.endpoints.iter().map(|it| it.share).collect::<Vec<_>>(), [Some(0.5); 2]);
}

/// Its limit is that of the whole machine, so that no packet test can have it.
#[test]
fn a_full_table_of_connections_drops_what_would_be_one_more() {
    let mut facts = well();
    node(&mut facts).connections = Some((262_144, 262_144));
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.reason, verdict), (Reason::ConnectionsFull, Verdict::Dropped));
    assert_eq!(cause.what, "the table of connections is full (262144 of 262144): new ones are dropped");
    assert_eq!(cause.fix.as_deref(), Some("sysctl -w net.netfilter.nf_conntrack_max=524288"));
    // What is refused anyway is no connection.
    let mut facts = ended(Outcome::Reject, Policy::Refused);
    node(&mut facts).connections = Some((262_144, 262_144));
    assert_eq!(one(&facts).0.reason, Reason::NoEndpoints);
}

#[test]
fn what_cannot_be_read_is_not_said_to_be_well() {
    let mut facts = well();
    node(&mut facts).unread.push(("the tables of others cannot be read: EPERM".to_owned(), true));
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.reason, verdict), (Reason::Unread, Verdict::Unsure));
    let mut facts = well();
    node(&mut facts).unread.push(("who listens there cannot be read: EACCES".to_owned(), false));
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.effect, verdict), (Effect::Note, Verdict::Reached));

    // A table that is as it has to be may ask for the interface.
    let mut facts = well();
    facts.trace = Some(Err(EvalError::Interface(ChainName::NatPrerouting, "iifname \"cni0\"".to_owned())));
    facts.asked.arrives_by = None;
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.reason, verdict), (Reason::InterfaceUnknown, Verdict::Unsure));
    assert!(cause.fix.is_some_and(|fix| fix.contains("--arriving-by")));
    facts.trace = Some(Err(EvalError::Malformed("it loops".to_owned())));
    facts.asked.arrives_by = Some("eth0".to_owned());
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.reason, verdict), (Reason::DamagedTable, Verdict::Unsure));
    assert!(cause.what.contains("table ip nftproxyd") && cause.what.contains("it loops"), "{}", cause.what);
}

/// Without a daemon that knows the Service, the table is all there is.
#[test]
fn the_table_alone_tells_why_a_packet_ends() {
    let reason = |facts: &Facts| {
        let (cause, verdict) = one(facts);
        assert_eq!(cause.effect, Effect::Decides(verdict));
        (cause.reason, verdict)
    };
    let refused = ended(Outcome::Reject, Policy::Refused);
    assert_eq!(reason(&refused), (Reason::NoEndpoints, Verdict::Refused));
    let inside = ended(Outcome::Drop, Policy::Dropped);
    assert_eq!(reason(&inside), (Reason::InternalTrafficPolicy, Verdict::Dropped));
    let external = Facts { is_cluster_ip: false, ..ended(Outcome::Drop, Policy::DroppedOutside) };
    assert_eq!(reason(&external), (Reason::ExternalTrafficPolicy, Verdict::Dropped));
    let mut node_port = ended(Outcome::Drop, Policy::DroppedOutside);
    node_port.frontend.as_mut().expect("it has one").address = None;
    assert_eq!(reason(&node_port), (Reason::ExternalTrafficPolicy, Verdict::Dropped));
    let mut ranges = Facts { is_cluster_ip: false, ..ended(Outcome::Drop, Policy::Cluster) };
    let drop = Step {
        hook: HookPoint::Prerouting,
        chain: ChainName::SourceRanges,
        rule: "drop".to_owned(),
        found: String::new(),
    };
    ranges.trace = traced(Outcome::Drop, vec![drop]);
    let frontend = ranges.frontend.as_mut().expect("it has one");
    frontend.allowed_sources = Some(vec!["198.51.100.0/24".to_owned()]);
    assert_eq!(reason(&ranges), (Reason::SourceRanges, Verdict::Dropped));
    assert!(one(&ranges).0.what.ends_with("(198.51.100.0/24)"));
    // What the frontend does not have is damage, whatever comes of it.
    for outcome in [Outcome::Reject, Outcome::Drop, Outcome::Pass] {
        assert_eq!(reason(&ended(outcome, Policy::Cluster)).0, Reason::DamagedTable);
    }
    let free = Facts { frontend: None, ..ended(Outcome::Drop, Policy::Unknown) };
    assert_eq!(reason(&free), (Reason::FreeClusterIp, Verdict::Dropped));
    let mut port = Facts { frontend: None, ..ended(Outcome::Reject, Policy::Unknown) };
    port.neighbours = vec![(443, "tcp", "shop/web:https".to_owned())];
    assert_eq!(reason(&port), (Reason::NoSuchPort, Verdict::Refused));
    assert!(one(&port).0.what.ends_with("172.30.1.1: 443 tcp (shop/web:https)"));
}

/// A packet that follows the first, past one chain.
fn followed(which: Which, does: Does) -> Followed {
    let met = vec![Met { hook: "forward", chain: "inet fw c".to_owned(), does }];
    Followed { which, way: Way::Local, met, other_zone: false }
}

#[test]
fn what_loses_an_answer_or_a_later_packet_decides() {
    let drops = || Does::Drops("rule 2: drop".to_owned());
    let may = || Does::MayDrop("rule 1: limit".to_owned(), "it has a limit".to_owned());
    let lost = |way| Followed { way, ..followed(Which::Answer, Does::Passes) };
    let why = || ("net.ipv4.conf.a.rp_filter = 1".to_owned(), "sysctl".to_owned());
    let zone = Followed { other_zone: true, ..followed(Which::Later, Does::Passes) };
    let cases = [
        (
            followed(Which::Answer, drops()),
            Reason::AnswerLost,
            Verdict::NotServed,
            "inet fw c (forward) drops the answer: ",
        ),
        (
            followed(Which::LaterAnswer, drops()),
            Reason::AnswerLost,
            Verdict::NotServed,
            "after its first answer: rule 2",
        ),
        (followed(Which::Later, drops()), Reason::LaterPacketLost, Verdict::Dropped, "what the client sends after"),
        (
            followed(Which::Answer, Does::Rejects("policy".to_owned())),
            Reason::AnswerLost,
            Verdict::NotServed,
            "refuses",
        ),
        (followed(Which::Answer, may()), Reason::ForeignRuleUnclear, Verdict::Unsure, "may drop the answer"),
        (
            followed(Which::Later, Does::NotTracked("rule 3".to_owned())),
            Reason::LaterPacketLost,
            Verdict::Dropped,
            "not tracked",
        ),
        (
            followed(Which::Answer, Does::Takes("rule 4".to_owned(), "its queue".to_owned())),
            Reason::ForeignRuleUnclear,
            Verdict::Unsure,
            "gives the answer to its queue",
        ),
        (
            followed(Which::Answer, Does::Drops("KUBE-FORWARD, rule 1".to_owned())),
            Reason::KubeProxyLeftover,
            Verdict::NotServed,
            "drops the answer",
        ),
        (lost(Way::Nowhere("no route".to_owned())), Reason::AnswerLost, Verdict::NotServed, "no route to 203.0.113.7"),
        (
            lost(Way::ReversePath(why().0, why().1)),
            Reason::AnswerLost,
            Verdict::NotServed,
            "drops the answer for its source",
        ),
        (lost(Way::NotForwarded(why().0, why().1)), Reason::AnswerLost, Verdict::NotServed, "is not forwarded"),
        (zone, Reason::LaterPacketLost, Verdict::Dropped, "another zone"),
    ];
    for (followed, reason, verdict, words) in cases {
        let mut facts = well();
        let to = node(&mut facts).to_endpoints.get_mut(&socket("10.1.0.2:8080")).expect("it is");
        to.followed.push(followed);
        let (cause, worst) = one(&facts);
        assert_eq!((cause.reason, worst, cause.endpoint), (reason, verdict, Some(socket("10.1.0.2:8080"))), "{words}");
        assert!(cause.what.contains(words), "{words}: {}", cause.what);
        let Explanation { endpoints, way, .. } = judge(&facts);
        assert_eq!(endpoints.iter().map(|it| it.verdict).collect::<Vec<_>>(), [Verdict::Reached, verdict], "{words}");
        assert!(way.last().is_some_and(|stage| ["answer", "later"].contains(&stage.place)), "{words}: {way:?}");
    }
    // What all may be dropped by is said once, and passing is not said at all.
    let mut facts = well();
    let to = node(&mut facts).to_endpoints.get_mut(&socket("10.1.0.2:8080")).expect("it is");
    to.met = followed(Which::Answer, may()).met;
    to.followed = [Which::Answer, Which::Later].map(|which| followed(which, may())).to_vec();
    assert!(one(&facts).0.what.contains("may drop it"));
    let to = node(&mut facts).to_endpoints.get_mut(&socket("10.1.0.2:8080")).expect("it is");
    to.met.clear();
    to.followed = [Which::Answer, Which::Later].map(|which| followed(which, Does::Passes)).to_vec();
    let Explanation { causes, way, verdict, .. } = judge(&facts);
    assert_eq!((causes, verdict), (Vec::new(), Verdict::Reached));
    assert!(!way.iter().any(|stage| ["answer", "later"].contains(&stage.place)));
}

#[test]
fn the_gravest_decides_and_comes_first() {
    let met = |does| vec![Met { hook: "forward", chain: "inet fw c".to_owned(), does }];
    let mut facts = well();
    let ends = &mut node(&mut facts).to_endpoints;
    ends.get_mut(&socket("10.1.0.1:8080")).expect("it is").met =
        met(Does::MayDrop("rule 1: limit".to_owned(), "it has a limit".to_owned()));
    ends.get_mut(&socket("10.1.0.2:8080")).expect("it is").met = met(Does::Drops("policy drop".to_owned()));
    facts.daemon = Err("not reached".to_owned());
    let explanation = judge(&facts);
    let reasons: Vec<Reason> = explanation.causes.iter().map(|cause| cause.reason).collect();
    assert_eq!(reasons, [Reason::ForeignRule, Reason::ForeignRuleUnclear, Reason::DaemonDown]);
    assert_eq!(explanation.verdict, Verdict::Dropped);
    let verdicts: Vec<Verdict> = explanation.endpoints.iter().map(|endpoint| endpoint.verdict).collect();
    assert_eq!(verdicts, [Verdict::Unsure, Verdict::Dropped]);
    // Of what manifests would come to, nobody expects a daemon.
    let manifests = Facts { table: Table::OfManifests, node: None, daemon: Err("not asked".to_owned()), ..well() };
    assert_eq!(judge(&manifests).causes, []);
}

#[test]
fn a_next_hop_that_does_not_answer_is_a_hint_at_the_cause_and_no_loss() {
    let mut facts = well();
    let silent = |address: &str| Some(Silent { address: ip(address), device: "cni0".to_owned(), state: "FAILED" });
    let ends = &mut node(&mut facts).to_endpoints;
    ends.get_mut(&socket("10.1.0.1:8080")).expect("it is").silent = silent("10.1.0.1");
    let (cause, verdict) = one(&facts);
    assert_eq!((cause.reason, verdict), (Reason::NeighbourDoesNotAnswer, Verdict::NotServed));
    assert_eq!(cause.endpoint, Some(socket("10.1.0.1:8080")));
    assert_eq!(cause.what, "nobody answers ARP for 10.1.0.1 on cni0 (FAILED)");
    let ends = &mut node(&mut facts).to_endpoints;
    ends.get_mut(&socket("10.1.0.1:8080")).expect("it is").silent = silent("fe80::1");
    assert_eq!(one(&facts).0.what, "nobody answers ND for fe80::1 on cni0 (FAILED), the router on the way");
}

#[test]
fn what_cannot_be_probed_is_said_not_to_be() {
    let mut facts = well();
    node(&mut facts).not_probed = true;
    for (protocol, why) in [("udp", "any other datagram may do harm"), ("sctp", "it takes an implementation")] {
        facts.asked.protocol = protocol;
        let Explanation { facts: said, verdict, .. } = judge(&facts);
        let [("answers", answers)] = &said[1..] else { panic!("{said:?}") };
        assert!(answers.starts_with(&format!("not asked for, as {protocol} cannot be probed: ")), "{answers}");
        assert!(answers.contains(why), "{answers}");
        assert_eq!(verdict, Verdict::Reached);
    }
}
