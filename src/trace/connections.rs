//! From steps of packets to what has become of connections. Pure: time comes in as a value.
//!
//! The steps of a packet have one number, which is that of its buffer: another packet may have it later, and a packet that
//! passes a loopback device gets another. So a packet is ours once the rule that has it traced says so, and one with a new
//! number goes on with a connection whose packet was seen last with the same addresses and ports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use super::decode::{By, Place, Step, Tracking, Verdict};
use super::hook::{End as HookEnd, Hook, Watch};
use super::packet::Flow;

/// When nothing more was heard of a packet for so long, nothing will be: it takes microseconds from one hook to the next.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// The index of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

/// Whose chains mean what.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    /// The table of this trace.
    pub(crate) trace: String,
    /// The table that serves.
    pub(crate) services: String,
}

/// A rule, or a policy, that has decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Culprit {
    /// Its chain.
    pub(crate) place: Place,
    /// The rule; `None` if it is the policy of the chain.
    pub(crate) handle: Option<u64>,
}

/// The last that was seen of a connection's first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It left by the device with this index.
    Left(Option<u32>),
    /// It was delivered to the node.
    Delivered,
    /// It was dropped, or refused.
    Dropped(Culprit),
    /// Somebody else went on with it.
    Taken(Culprit),
    /// It was not seen any more behind this point, and no rule of nftables has dropped it.
    Lost(Watch),
    /// Messages were lost, so that nobody can tell.
    Unknown,
}

/// A connection, as far as its first packet shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// When it was first heard of.
    pub(crate) at: SystemTime,
    /// As it came.
    pub(crate) flow: Flow,
    /// As it was seen last.
    pub(crate) now: Flow,
    /// The index of the device that it came in by; `None` of what the node itself sends.
    pub(crate) input: Option<u32>,
    /// Whether chains of the table that serves have seen it.
    pub(crate) met_services: bool,
    /// Whether it was past their hook without having met them.
    pub(crate) missed_services: bool,
    /// Whether the table that serves took it for one to a node port.
    pub(crate) by_node_port: bool,
    /// Who has changed its destination, if it was changed by a rule that was seen.
    pub(crate) translated_by: Option<Place>,
    /// Whether its source was changed; `None` if it did not come far enough to tell.
    pub(crate) masqueraded: Option<bool>,
    /// What connection tracking knew of it, where the kernel says so.
    pub(crate) tracking: Option<Tracking>,
    /// A rule that has handed it to a program.
    pub(crate) queued_by: Option<Culprit>,
    /// Whether messages about it may have been lost: what was not heard says nothing then.
    pub(crate) incomplete: bool,
    /// The end.
    pub(crate) end: End,
}

impl Connection {
    /// Where it was sent to instead, if anywhere.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        (self.now.destination != self.flow.destination).then_some(self.now.destination)
    }
}

/// A packet on its way.
#[derive(Debug)]
struct OnTheWay {
    connection: Connection,
    heard: Instant,
    /// The point that it passed last.
    passed: Watch,
    /// Where a rule has accepted it last: one that translates does that.
    accepted: Option<Place>,
    /// Whether it has got to its end.
    over: bool,
}

/// Puts steps together.
#[derive(Debug)]
pub(crate) struct Connections {
    tables: Tables,
    /// By a number of their own, in the order of their beginning.
    open: BTreeMap<u64, OnTheWay>,
    next: u64,
    /// How many are taken in.
    most: u64,
    /// Whether no more are.
    closed: bool,
    /// By the number of the buffer.
    packets: BTreeMap<u32, u64>,
    /// Headers of packets that somebody else has traced before they came to our rule, by the number of the buffer.
    heads: BTreeMap<u32, (Flow, Option<u32>)>,
    /// Whether some of the messages that come now may be missing.
    gap: bool,
}

impl Connections {
    /// Nothing was heard yet. So many connections are taken in, and no more.
    pub(crate) fn new(tables: Tables, most: u64) -> Connections {
        Connections {
            tables,
            open: BTreeMap::new(),
            next: 0,
            most,
            closed: false,
            packets: BTreeMap::new(),
            heads: BTreeMap::new(),
            gap: false,
        }
    }

    /// Takes in no more connections.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether all that are taken in have come to their end.
    pub(crate) fn is_done(&self) -> bool {
        (self.closed || self.is_full()) && self.open.is_empty()
    }

    /// Whether there were as many as are taken in.
    pub(crate) fn is_full(&self) -> bool {
        self.next == self.most
    }

    /// Takes in a step.
    pub(crate) fn step(&mut self, step: &Step, heard: Instant, at: SystemTime) {
        let ours = step.place.table == self.tables.trace;
        let of_services = step.place.table == self.tables.services;
        if ours && step.place.chain == Watch::TRACED {
            // The rule that has it traced; those before it go back.
            if matches!(step.by, By::Rule(_)) && step.verdict == Verdict::Continue {
                self.begin(step, heard, at);
            }
            return;
        }
        let watch = Watch::parse(&step.place.chain).filter(|_| ours);
        let begins =
            |watch: Watch| watch.end == HookEnd::First && matches!(watch.hook, Hook::Prerouting | Hook::Output);
        if watch.is_some_and(begins) && self.packet(step).is_none() {
            self.note_head(step);
        }
        let Some(packet) = self.packet(step) else { return };
        packet.heard = heard;
        packet.connection.tracking = packet.connection.tracking.or(step.tracking);
        if let Some(flow) = step.flow {
            packet.moved_to(flow);
        }
        match watch {
            Some(watch) => packet.passes(watch, step),
            None => packet.meets(step, of_services),
        }
    }

    /// The connections that have come to their end: it was seen, or they were not heard of for [`QUIET`].
    pub(crate) fn ended(&mut self, now: Instant) -> Vec<Connection> {
        self.take(|packet| packet.over || now.saturating_duration_since(packet.heard) >= QUIET)
    }

    /// When [`Connections::ended`] may have more to say although nothing is heard.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.open.values().map(|packet| packet.heard + QUIET).min()
    }

    /// Some messages of those that come until [`Connections::caught_up`] are lost: the kernel says so once, and throws away what
    /// it has no room for until all that waits was read.
    pub(crate) fn gap(&mut self) {
        self.gap = true;
        self.open.values_mut().for_each(|packet| packet.connection.incomplete = true);
        self.heads.clear();
    }

    /// All that waited was read.
    pub(crate) fn caught_up(&mut self) {
        self.gap = false;
    }

    fn take(&mut self, is_over: impl Fn(&OnTheWay) -> bool) -> Vec<Connection> {
        let over: Vec<u64> = self.open.iter().filter(|(_, packet)| is_over(packet)).map(|(key, _)| *key).collect();
        self.packets.retain(|_, key| !over.contains(key));
        let mut ended: Vec<Connection> =
            over.iter().filter_map(|key| Some(self.open.remove(key)?.connection)).collect();
        let untold = ended.iter_mut().filter(|it| it.incomplete && matches!(it.end, End::Lost(_)));
        untold.for_each(|connection| connection.end = End::Unknown);
        ended
    }

    /// Headers are in the first message of a base chain only, which is ours unless somebody else traces the packet.
    fn note_head(&mut self, step: &Step) {
        match step.flow {
            Some(flow) => self.heads.insert(step.id, (flow, step.input)),
            None if step.by == By::Policy => self.heads.remove(&step.id),
            None => None,
        };
    }

    fn begin(&mut self, step: &Step, heard: Instant, at: SystemTime) {
        let head = self.heads.remove(&step.id);
        let Some((flow, input)) = step.flow.map(|flow| (flow, step.input)).or(head) else { return };
        let known = self.packets.get(&step.id).and_then(|key| self.open.get(key));
        if self.closed || self.is_full() || known.is_some_and(|packet| packet.connection.flow.is(&flow)) {
            return;
        }
        let hook = if input.is_some() { Hook::Prerouting } else { Hook::Output };
        let passed = Watch { hook, end: HookEnd::First };
        let connection = Connection {
            at,
            flow,
            now: flow,
            input,
            met_services: false,
            missed_services: false,
            by_node_port: false,
            translated_by: None,
            masqueraded: None,
            tracking: None,
            queued_by: None,
            incomplete: self.gap,
            end: End::Lost(passed),
        };
        self.open.insert(self.next, OnTheWay { connection, heard, passed, accepted: None, over: false });
        self.packets.insert(step.id, self.next);
        self.next += 1;
    }

    /// The packet of a step, if it is one of ours.
    fn packet(&mut self, step: &Step) -> Option<&mut OnTheWay> {
        let known = self.packets.get(&step.id).copied();
        let key = match (known, step.flow) {
            (Some(key), _) => key,
            (None, Some(flow)) => {
                let goes_on = |(_, packet): &(&u64, &OnTheWay)| packet.connection.now.is(&flow) && !packet.over;
                let key = self.open.iter().rev().find(goes_on).map(|(key, _)| *key)?;
                self.packets.insert(step.id, key);
                key
            }
            (None, None) => return None,
        };
        self.open.get_mut(&key).filter(|packet| !packet.over)
    }
}

impl OnTheWay {
    /// Its headers were seen. What has changed was changed since they were seen before.
    fn moved_to(&mut self, flow: Flow) {
        let connection = &mut self.connection;
        let protocol = connection.now.protocol.or(flow.protocol);
        connection.flow.protocol = connection.flow.protocol.or(protocol);
        if connection.now.destination != flow.destination {
            connection.translated_by = self.accepted.take();
        }
        if connection.now.source != flow.source {
            connection.masqueraded = Some(true);
        }
        connection.now = Flow { protocol, ..flow };
    }

    /// It is at one of the points where this trace looks.
    fn passes(&mut self, watch: Watch, step: &Step) {
        self.passed = watch;
        let connection = &mut self.connection;
        connection.end = End::Lost(watch);
        let at_end = watch.end == HookEnd::Last;
        // Chains of type nat see the first packets of tracked connections only.
        if at_end && matches!(watch.hook, Hook::Prerouting | Hook::Output) {
            connection.missed_services = !connection.met_services;
        }
        let end = match watch.hook {
            Hook::Postrouting if at_end => End::Left(step.output),
            Hook::Input if at_end => End::Delivered,
            _ => return,
        };
        // The headers come with the first message from a chain; a second one says nothing.
        if step.flow.is_none() {
            return;
        }
        connection.masqueraded = connection.masqueraded.or(Some(false));
        // What leaves by lo comes back.
        self.over = end != End::Left(Some(LOOPBACK));
        connection.end = end;
    }

    /// It is in a chain of somebody else, or in one that serves.
    fn meets(&mut self, step: &Step, of_services: bool) {
        let connection = &mut self.connection;
        if of_services {
            connection.met_services = true;
            let to = if let Verdict::To(chain) = &step.verdict { chain.as_str() } else { step.place.chain.as_str() };
            connection.by_node_port |= to.starts_with("np-") || to.starts_with("nodeport-");
        }
        let handle = match step.by {
            By::Rule(handle) => Some(handle),
            By::End | By::Policy => None,
        };
        let culprit = || Culprit { place: step.place.clone(), handle };
        let end = match step.verdict {
            Verdict::Drop => End::Dropped(culprit()),
            Verdict::Stolen => End::Taken(culprit()),
            Verdict::Queue => {
                connection.queued_by = Some(culprit());
                return;
            }
            Verdict::Accept => {
                self.accepted = handle.map(|_| step.place.clone());
                return;
            }
            _ => return,
        };
        connection.end = end;
        self.over = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::testing::{recorded, renamed};

    fn tables() -> Tables {
        Tables { trace: "trace".to_owned(), services: "nftproxyd".to_owned() }
    }

    /// What becomes of these steps, one after the other.
    struct Run {
        connections: Connections,
        now: Instant,
    }

    impl Run {
        fn new() -> Run {
            Run { connections: Connections::new(tables(), 100), now: Instant::now() }
        }

        fn steps(&mut self, steps: &[Step]) -> Vec<Connection> {
            for step in steps {
                self.connections.step(step, self.now, SystemTime::UNIX_EPOCH);
            }
            self.connections.ended(self.now)
        }

        fn later(&mut self) -> Vec<Connection> {
            self.now += QUIET;
            self.connections.ended(self.now)
        }
    }

    /// The recording of a connection that was forwarded, with the names that the chains have.
    fn forwarded() -> Vec<Step> {
        renamed(recorded("forwarded"))
    }

    fn one(mut found: Vec<Connection>) -> Connection {
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }

    /// The steps up to the first of a chain, and that one as another.
    fn until(steps: &[Step], chain: &str, changed: impl FnOnce(&mut Step)) -> Vec<Step> {
        let at = steps.iter().position(|step| step.place.chain == chain).expect("the chain");
        let mut steps = steps[..=at].to_vec();
        changed(&mut steps[at]);
        steps
    }

    fn stranger(step: &mut Step, verdict: Verdict) {
        step.place = Place { family: 1, table: "netpol".to_owned(), chain: "forward".to_owned() };
        (step.by, step.verdict) = (By::Rule(7), verdict);
    }

    fn netpol() -> Culprit {
        let place = Place { family: 1, table: "netpol".to_owned(), chain: "forward".to_owned() };
        Culprit { place, handle: Some(7) }
    }

    #[test]
    fn a_connection_is_followed_through_both_translations() {
        let found = one(Run::new().steps(&forwarded()));
        assert_eq!(found.flow.to_string(), "10.1.0.1:40348 -> 10.96.0.80:80 tcp");
        assert_eq!(found.endpoint(), Some("10.2.0.1:8080".parse().expect("an address")));
        assert_eq!(found.now.source, "10.2.0.254:46624".parse().expect("an address"));
        assert_eq!((found.masqueraded, &found.end), (Some(true), &End::Left(Some(5))));
        assert_eq!(found.translated_by.expect("it was").chain, "nat-prerouting");
        assert!(found.met_services && !found.missed_services && !found.by_node_port);
        assert_eq!((found.tracking, found.input), (Some(Tracking::New), Some(3)));
    }

    #[test]
    fn what_was_not_masqueraded_is_known_to_be_so_at_the_end_only() {
        let steps = forwarded();
        let same =
            |step: &mut Step| step.flow.as_mut().expect("headers").source = "10.1.0.1:40348".parse().expect("it");
        assert_eq!(one(Run::new().steps(&until(&steps, "postrouting-last", same))).masqueraded, Some(false));
        let dropped = until(&steps, "forward-last", |step| stranger(step, Verdict::Drop));
        let dropped = one(Run::new().steps(&dropped));
        assert_eq!((dropped.masqueraded, dropped.end), (None, End::Dropped(netpol())));
        assert_eq!(dropped.now.destination, "10.2.0.1:8080".parse().expect("an address"));
    }

    #[test]
    fn a_refusal_is_a_drop_by_the_table_that_serves() {
        let found = one(Run::new().steps(&renamed(recorded("refused"))));
        let place = Place { family: 2, table: "nftproxyd".to_owned(), chain: "rej".to_owned() };
        assert_eq!(found.end, End::Dropped(Culprit { place, handle: Some(7) }));
        assert!(found.met_services && found.endpoint().is_none());
    }

    #[test]
    fn policies_and_queues_and_thieves_are_told_apart() {
        let steps = forwarded();
        let policy = until(&steps, "forward-last", |step| {
            stranger(step, Verdict::Drop);
            step.by = By::Policy;
        });
        assert_eq!(one(Run::new().steps(&policy)).end, End::Dropped(Culprit { handle: None, ..netpol() }));
        let taken = until(&steps, "forward-last", |step| stranger(step, Verdict::Stolen));
        assert_eq!(one(Run::new().steps(&taken)).end, End::Taken(netpol()));

        let mut run = Run::new();
        assert_eq!(run.steps(&until(&steps, "forward-last", |step| stranger(step, Verdict::Queue))), []);
        let queued = one(run.later());
        assert_eq!(
            (queued.queued_by, &queued.end),
            (Some(netpol()), &End::Lost(Watch::parse("forward-first").expect("a point")))
        );
    }

    #[test]
    fn what_is_seen_no_more_is_lost_behind_the_last_point() {
        let steps = forwarded();
        for chain in ["prerouting-last", "forward-first", "forward-last"] {
            let mut run = Run::new();
            assert_eq!(run.steps(&until(&steps, chain, |_| {})), [], "it may go on");
            assert_eq!(run.connections.next_end(), Some(run.now + QUIET));
            assert_eq!(one(run.later()).end, End::Lost(Watch::parse(chain).expect("a point")));
        }
        let mut run = Run::new();
        assert_eq!(run.steps(&until(&steps, "traced", |_| {})), []);
        assert_eq!(one(run.later()).end, End::Lost(Watch::parse("prerouting-first").expect("a point")));
    }

    #[test]
    fn lost_messages_are_never_taken_for_lost_packets() {
        let steps = forwarded();
        let mut run = Run::new();
        run.steps(&until(&steps, "forward-first", |_| {}));
        run.connections.gap();
        // One that begins with what waits, and whose other steps are lost.
        let mut second = until(&steps, "traced", |_| {});
        second[0].id += 1;
        second[0].flow.as_mut().expect("headers").source.set_port(1);
        run.steps(&second);
        run.connections.caught_up();
        let ends: Vec<(End, bool)> = run.later().into_iter().map(|it| (it.end, it.incomplete)).collect();
        assert_eq!(ends, [(End::Unknown, true), (End::Unknown, true)]);
        // What was seen is as good as ever; and what begins afterwards.
        let mut run = Run::new();
        run.connections.gap();
        let found = one(run.steps(&steps));
        assert_eq!((found.end, found.incomplete), (End::Left(Some(5)), true));
        run.connections.caught_up();
        assert!(!one(run.steps(&steps)).incomplete);
    }

    #[test]
    fn what_passes_lo_goes_on_with_another_number() {
        let mut steps = forwarded();
        let at = steps.iter().position(|step| step.place.chain == "postrouting-last").expect("it leaves");
        steps[at].output = Some(LOOPBACK);
        let (mut run, flow) = (Run::new(), steps[at].flow);
        assert_eq!(run.steps(&steps), [], "it comes back");
        let again = |chain: &str, id| Step {
            id,
            place: Place { family: 2, table: "trace".to_owned(), chain: chain.to_owned() },
            flow,
            ..steps[at].clone()
        };
        let found = one(run.steps(&[again("prerouting-first", 77), again("input-last", 77)]));
        assert_eq!((found.end, found.masqueraded), (End::Delivered, Some(true)));
        // Another one that has the same number by chance.
        assert_eq!(run.steps(&[again("input-last", 77)]), []);
    }

    #[test]
    fn packets_of_others_are_no_business_of_ours() {
        let mut run = Run::new();
        let steps: Vec<Step> = forwarded().into_iter().filter(|step| step.place.chain != "traced").collect();
        assert_eq!((run.steps(&steps), run.later()), (vec![], vec![]));
        // Somebody else traces the same, in a table of another name.
        let mut steps = forwarded();
        steps.iter_mut().filter(|step| step.place.table == "trace").for_each(|step| step.place.table.push('2'));
        assert_eq!((run.steps(&steps), run.later()), (vec![], vec![]));
    }

    #[test]
    fn what_somebody_else_traces_too_is_seen_by_both() {
        let mut steps = forwarded();
        // The rule that leads there was traced already, and has the headers.
        let mut lead = steps[0].clone();
        lead.place.chain = "prerouting-first".to_owned();
        lead.verdict = Verdict::To("traced".to_owned());
        let mut back = Step { flow: None, input: None, verdict: Verdict::Return, ..steps[0].clone() };
        (steps[0].flow, steps[0].input) = (None, None);
        steps.insert(0, lead);
        let found = one(Run::new().steps(&steps));
        assert_eq!((found.input, found.end), (Some(3), End::Left(Some(5))));

        // One that our rule has not let through.
        let mut run = Run::new();
        back.by = By::Rule(3);
        let mut theirs = steps.clone();
        theirs[1] = back;
        assert_eq!((run.steps(&theirs), run.later()), (vec![], vec![]));
        assert!(run.connections.heads.is_empty(), "a head is not kept for ever");
    }

    #[test]
    fn buffers_are_used_again() {
        let mut run = Run::new();
        let mut second = forwarded();
        for flow in second.iter_mut().filter_map(|step| step.flow.as_mut()) {
            flow.source.set_port(flow.source.port() + 1);
        }
        assert_eq!(run.steps(&until(&forwarded(), "forward-first", |_| {})), []);
        assert_eq!(one(run.steps(&second)).flow.source.port(), 40349);
        assert_eq!(one(run.later()).flow.source.port(), 40348);
    }

    #[test]
    fn no_more_are_taken_in_than_were_asked_for() {
        let mut run = Run { connections: Connections::new(tables(), 1), now: Instant::now() };
        assert!(!run.connections.is_done());
        run.steps(&until(&forwarded(), "forward-first", |_| {}));
        let mut second = forwarded();
        second.iter_mut().for_each(|step| step.id += 1);
        second.iter_mut().filter_map(|step| step.flow.as_mut()).for_each(|flow| flow.source.set_port(1));
        assert_eq!(run.steps(&second), []);
        assert!(!run.connections.is_done());
        one(run.steps(&forwarded()));
        assert!(run.connections.is_done());
        let mut closed = Connections::new(tables(), 100);
        closed.close();
        assert!(closed.is_done());
    }

    #[test]
    fn who_translates_is_the_last_that_has_accepted() {
        let mut steps = forwarded();
        let of_kube_proxy = Place { family: 2, table: "nat".to_owned(), chain: "KUBE-SEP".to_owned() };
        let at = steps.iter().position(|step| step.place.chain == "nat-prerouting").expect("it is translated");
        steps[at].place = of_kube_proxy.clone();
        let found = one(Run::new().steps(&steps));
        assert_eq!(found.translated_by, Some(of_kube_proxy));
        assert!(found.missed_services);
    }
}
