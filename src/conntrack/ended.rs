//! Connections that have ended, and whose they were.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arcstr::ArcStr;

use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol};

/// A connection that the kernel has forgotten, with what it counted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The transport protocol's number.
    pub protocol: u8,
    /// Where its first packet was sent to.
    pub to: SocketAddr,
    /// Who answered, or would have: where it was translated to.
    pub endpoint: SocketAddr,
    /// What came from the client.
    pub original: Traffic,
    /// What came back.
    pub reply: Traffic,
}

/// Packets and their bytes with the IP header; 0 where the kernel does not count (`nf_conntrack_acct`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How long a frontend that is gone is remembered: what is left of its connections ends in that time, and is accounted for.
///
/// With the kernel's own time-outs (net/netfilter/nf_conntrack_proto_tcp.c) a connection of TCP that has been closed is
/// kept for two minutes at most (`TIME_WAIT`, `FIN_WAIT`), one whose packets nobody answers for five (`max_retrans`), and
/// a flow of UDP for two after its last packet. The rest is for endpoints that take their time to end: Kubernetes gives a
/// pod 30 seconds for that if nobody sets it otherwise. A connection that goes on longer, or that both sides forget without a word
/// (the kernel waits five days then), ends when nobody knows any more whose it was.
pub const KEPT: Duration = Duration::from_secs(15 * 60);

/// How many frontends that are gone are remembered, at some 200 bytes each; of more, those that went first are forgotten.
pub const MOST_KEPT: usize = 10_000;

/// Whose a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The Service.
    pub service: ObjectName,
    /// The name of its port; may be empty.
    pub port: ArcStr,
}

/// Frontends that were gone, and now are forgotten: of connections to them that end later, nobody knows whose they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// After [`KEPT`].
    pub in_time: u64,
    /// Earlier, as there were more than [`MOST_KEPT`].
    pub for_room: u64,
}

/// The frontends whose connections are accounted for, and to whom; also those that are gone, whose connections may go on.
///
/// A frontend is the one's who has it now, or had it last. Nothing tells when a connection began (the kernel notes it with
/// `nf_conntrack_timestamp` only, which is off): one that goes on while its frontend becomes another Service's ends as the
/// other's. Each step costs the logarithm of what there is, for each frontend that changes.
#[derive(Debug, Default)]
pub struct Accounts {
    open: BTreeMap<FrontendKey, Account>,
    /// Those that are gone, and since when. None of them is open.
    closed: BTreeMap<FrontendKey, (Account, Instant)>,
    /// The same, those first that went first.
    by_age: BTreeSet<(Instant, FrontendKey)>,
    /// Both by Service, without Services that have neither.
    services: BTreeMap<ObjectName, Keys>,
    /// How many of those that are gone had to make room since the last time that was asked for.
    for_room: u64,
}

#[derive(Debug, Default)]
struct Keys {
    open: BTreeSet<FrontendKey>,
    closed: BTreeSet<FrontendKey>,
}

impl Accounts {
    /// These are the frontends of a Service that is accounted for, with the names of their ports. Of those that it had, the
    /// others are gone now.
    pub fn account(
        &mut self,
        service: &ObjectName,
        frontends: impl IntoIterator<Item = (FrontendKey, ArcStr)>,
        now: Instant,
    ) {
        let mut gone = self.services.get_mut(service).map(|keys| std::mem::take(&mut keys.open)).unwrap_or_default();
        for (key, port) in frontends {
            if !gone.remove(&key) {
                self.forget_frontend(&key);
            }
            self.open.insert(key, Account { service: service.clone(), port });
            self.services.entry(service.clone()).or_default().open.insert(key);
        }
        for key in gone {
            if let Some(account) = self.open.remove(&key) {
                self.closed.insert(key, (account, now));
                self.by_age.insert((now, key));
                self.services.entry(service.clone()).or_default().closed.insert(key);
            }
        }
        self.tidy(service);
        while self.closed.len() > MOST_KEPT
            && let Some((_, oldest)) = self.by_age.first().copied()
        {
            self.forget_frontend(&oldest);
            self.for_room += 1;
        }
    }

    /// A Service that has these frontends is not accounted for, and what it had is forgotten.
    pub fn forget(&mut self, service: &ObjectName, frontends: impl IntoIterator<Item = FrontendKey>) {
        let keys = self.services.get(service);
        let had: Vec<FrontendKey> =
            keys.into_iter().flat_map(|keys| keys.open.iter().chain(&keys.closed)).copied().collect();
        // Some of what it has may have been another's, which was accounted for.
        for key in had.into_iter().chain(frontends) {
            self.forget_frontend(&key);
        }
    }

    /// Forgets frontends that have been gone for long, and says how many have been forgotten since the last time.
    pub fn forget_old(&mut self, now: Instant) -> Forgotten {
        let mut forgotten = Forgotten { in_time: 0, for_room: std::mem::take(&mut self.for_room) };
        while let Some((since, oldest)) = self.by_age.first().copied()
            && is_over(since, now)
        {
            self.forget_frontend(&oldest);
            forgotten.in_time += 1;
        }
        forgotten
    }

    /// When the next one has been gone for long; `None` where none is gone.
    pub fn next_to_forget(&self) -> Option<Instant> {
        self.by_age.first().map(|(since, _)| *since + KEPT)
    }

    /// Whether a Service has anything that is accounted for, or had lately.
    pub fn has(&self, service: &ObjectName) -> bool {
        self.services.contains_key(service)
    }

    /// Whether no connection can be anybody's.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closed.is_empty()
    }

    /// Whose a connection was that ends now. A Service's address goes before a node port, as in the rules; a connection that
    /// was sent to the same port of another machine was not translated.
    pub fn of(&self, ended: &Ended, now: Instant) -> Option<&Account> {
        if ended.to == ended.endpoint {
            return None;
        }
        let (protocol, port) = (Protocol::from_number(ended.protocol)?, ended.to.port().try_into().ok()?);
        let ip = ended.to.ip();
        let places = [FrontendAt::Address(ip), FrontendAt::NodePort(Family::of(ip))];
        places.into_iter().find_map(|at| {
            let key = FrontendKey { at, protocol, port };
            let closed =
                || self.closed.get(&key).filter(|(_, since)| !is_over(*since, now)).map(|(account, _)| account);
            self.open.get(&key).or_else(closed)
        })
    }

    /// It is nobody's.
    fn forget_frontend(&mut self, key: &FrontendKey) {
        if let Some(account) = self.open.remove(key) {
            if let Some(keys) = self.services.get_mut(&account.service) {
                keys.open.remove(key);
            }
            self.tidy(&account.service);
        }
        if let Some((account, since)) = self.closed.remove(key) {
            self.by_age.remove(&(since, *key));
            if let Some(keys) = self.services.get_mut(&account.service) {
                keys.closed.remove(key);
            }
            self.tidy(&account.service);
        }
    }

    /// Keeps no Service that has nothing.
    fn tidy(&mut self, service: &ObjectName) {
        if self.services.get(service).is_some_and(|keys| keys.open.is_empty() && keys.closed.is_empty()) {
            self.services.remove(service);
        }
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= KEPT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ended(protocol: u8, to: &str, endpoint: &str) -> Ended {
        let [to, endpoint] = [to, endpoint].map(|text| text.parse().expect("a socket address"));
        Ended { protocol, to, endpoint, original: Traffic::default(), reply: Traffic::default() }
    }

    fn key(at: FrontendAt, port: u16) -> FrontendKey {
        FrontendKey { at, protocol: Protocol::Tcp, port: port.try_into().expect("not 0") }
    }

    fn address(last: u8) -> FrontendKey {
        key(FrontendAt::Address([10, 96, 0, last].into()), 30_080)
    }

    fn node_port() -> FrontendKey {
        key(FrontendAt::NodePort(Family::V4), 30_080)
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name).expect("a name")
    }

    fn account(accounts: &mut Accounts, service: &str, frontends: &[FrontendKey], now: Instant) {
        accounts.account(&name(service), frontends.iter().map(|key| (*key, "http".into())), now);
        accounts.check();
    }

    fn forget(accounts: &mut Accounts, service: &str, frontends: &[FrontendKey]) {
        accounts.forget(&name(service), frontends.iter().copied());
        accounts.check();
    }

    /// Whose a connection to port 30080 of an address is.
    fn of(accounts: &Accounts, ip: &str, now: Instant) -> Option<String> {
        let account = accounts.of(&ended(6, &format!("{ip}:30080"), "10.1.0.1:8080"), now)?;
        Some(account.service.name().to_owned())
    }

    impl Accounts {
        /// The parts say the same.
        fn check(&self) {
            let mut services: BTreeMap<&ObjectName, [BTreeSet<FrontendKey>; 2]> = BTreeMap::new();
            for (key, account) in &self.open {
                assert!(!self.closed.contains_key(key), "{key:?}");
                services.entry(&account.service).or_default()[0].insert(*key);
            }
            for (key, (account, _)) in &self.closed {
                services.entry(&account.service).or_default()[1].insert(*key);
            }
            let listed = self.services.iter().map(|(name, keys)| (name, [keys.open.clone(), keys.closed.clone()]));
            assert_eq!(listed.collect::<BTreeMap<_, _>>(), services);
            let by_age: BTreeSet<_> = self.closed.iter().map(|(key, (_, since))| (*since, *key)).collect();
            assert_eq!(self.by_age, by_age);
            assert!(self.closed.len() <= MOST_KEPT);
        }
    }

    #[test]
    fn a_connection_is_of_the_frontend_that_it_was_sent_to() {
        let (mut accounts, now) = (Accounts::default(), Instant::now());
        account(&mut accounts, "address", &[address(1)], now);
        account(&mut accounts, "node-port", &[node_port()], now);
        let of = |protocol, to, endpoint| {
            accounts.of(&ended(protocol, to, endpoint), now).map(|account| account.service.name().to_owned())
        };
        let endpoint = "10.1.0.1:8080";
        assert_eq!(of(6, "10.96.0.1:30080", endpoint).as_deref(), Some("address"));
        assert_eq!(of(6, "192.0.2.10:30080", endpoint).as_deref(), Some("node-port"));
        assert_eq!(of(6, "192.0.2.10:30081", endpoint), None);
        assert_eq!(of(17, "10.96.0.1:30080", endpoint), None, "of another protocol");
        assert_eq!(of(1, "10.96.0.1:30080", endpoint), None);
        assert_eq!(of(6, "[fd00::1]:30080", "[fd00::2]:8080"), None, "of another family");
        assert_eq!(of(6, "198.51.100.1:30080", "198.51.100.1:30080"), None, "it was not translated");
    }

    #[test]
    fn a_frontend_that_is_gone_is_remembered_for_a_while() {
        let (mut accounts, start) = (Accounts::default(), Instant::now());
        account(&mut accounts, "a", &[address(1), address(2)], start);
        account(&mut accounts, "b", &[node_port()], start);
        assert_eq!(accounts.next_to_forget(), None);

        // A port goes, and the Service stays.
        account(&mut accounts, "a", &[address(1)], start);
        assert_eq!(accounts.next_to_forget(), Some(start + KEPT));
        let late = start + KEPT - Duration::from_millis(1);
        assert_eq!(of(&accounts, "10.96.0.2", late).as_deref(), Some("a"), "it is nearer than the node port");
        assert_eq!(of(&accounts, "10.96.0.2", start + KEPT).as_deref(), Some("b"));

        // The Services go later.
        account(&mut accounts, "a", &[], late);
        account(&mut accounts, "b", &[], late);
        assert_eq!(accounts.forget_old(late), Forgotten::default());
        assert_eq!(accounts.forget_old(start + KEPT), Forgotten { in_time: 1, for_room: 0 });
        accounts.check();
        assert_eq!(of(&accounts, "10.96.0.1", start + KEPT).as_deref(), Some("a"));
        assert_eq!(of(&accounts, "192.0.2.10", start + KEPT).as_deref(), Some("b"));
        assert_eq!(accounts.next_to_forget(), Some(late + KEPT));
        assert!(!accounts.is_empty(), "it may be needed");
        assert_eq!(accounts.forget_old(late + KEPT), Forgotten { in_time: 2, for_room: 0 });
        accounts.check();
        assert!(accounts.is_empty() && accounts.services.is_empty());
    }

    #[test]
    fn what_is_there_again_is_not_gone() {
        let (mut accounts, start) = (Accounts::default(), Instant::now());
        account(&mut accounts, "a", &[address(1)], start);
        // The same once more.
        account(&mut accounts, "a", &[address(1)], start);
        assert_eq!(accounts.next_to_forget(), None);
        account(&mut accounts, "a", &[], start);
        account(&mut accounts, "a", &[address(1)], start);
        assert_eq!((accounts.next_to_forget(), accounts.closed.len()), (None, 0));
        // It goes anew, and the time begins anew.
        let later = start + KEPT / 2;
        account(&mut accounts, "a", &[], later);
        assert_eq!(accounts.forget_old(start + KEPT), Forgotten::default());
        assert_eq!(of(&accounts, "10.96.0.1", start + KEPT).as_deref(), Some("a"));
    }

    #[test]
    fn a_frontend_that_another_service_gets_is_the_others_in_whatever_order_that_is_heard() {
        let start = Instant::now();
        // Each is told of one sync, or of two.
        for order in [["a", "b"], ["b", "a"]] {
            let mut accounts = Accounts::default();
            account(&mut accounts, "a", &[address(1)], start);
            for service in order {
                account(&mut accounts, service, &[address(1)][..usize::from(service == "b")], start);
            }
            assert_eq!(of(&accounts, "10.96.0.1", start).as_deref(), Some("b"), "{order:?}");
            account(&mut accounts, "b", &[], start);
            assert_eq!(of(&accounts, "10.96.0.1", start).as_deref(), Some("b"), "{order:?}: it had it last");

            // The other is not accounted for.
            let mut accounts = Accounts::default();
            account(&mut accounts, "a", &[address(1)], start);
            for service in order {
                match service {
                    "a" => account(&mut accounts, "a", &[], start),
                    _ => forget(&mut accounts, "b", &[address(1)]),
                }
            }
            assert_eq!(of(&accounts, "10.96.0.1", start), None, "{order:?}");
            assert!(accounts.is_empty(), "{order:?}");
        }
    }

    #[test]
    fn what_is_not_accounted_for_any_more_is_forgotten_at_once() {
        let (mut accounts, start) = (Accounts::default(), Instant::now());
        account(&mut accounts, "a", &[address(1), address(2)], start);
        account(&mut accounts, "b", &[node_port()], start);
        account(&mut accounts, "a", &[address(1)], start);
        forget(&mut accounts, "a", &[address(1)]);
        let owners = ["10.96.0.1", "10.96.0.2"].map(|ip| of(&accounts, ip, start));
        assert_eq!(owners, [Some("b".to_owned()), Some("b".to_owned())], "only the node port is left");
        forget(&mut accounts, "b", &[node_port()]);
        assert!(accounts.is_empty());
        assert_eq!(accounts.forget_old(start + KEPT), Forgotten::default(), "somebody wanted that");
    }

    #[test]
    fn of_too_many_those_that_went_first_are_forgotten() {
        let (mut accounts, start) = (Accounts::default(), Instant::now());
        let all = |first: u32, number: u32| -> Vec<FrontendKey> {
            (first..first + number)
                .map(|ip| key(FrontendAt::Address(std::net::Ipv4Addr::from(ip).into()), 80))
                .collect()
        };
        let most = u32::try_from(MOST_KEPT).expect("it is a small number");
        let frontends = all(1, most);
        account(&mut accounts, "a", &frontends, start);
        account(&mut accounts, "a", &[], start);
        assert_eq!((accounts.closed.len(), accounts.forget_old(start)), (MOST_KEPT, Forgotten::default()));
        let later = start + Duration::from_secs(1);
        account(&mut accounts, "b", &all(most + 1, 3), later);
        account(&mut accounts, "b", &[], later);
        assert_eq!(accounts.closed.len(), MOST_KEPT);
        assert_eq!(accounts.forget_old(later), Forgotten { in_time: 0, for_room: 3 });
        assert_eq!(accounts.forget_old(later), Forgotten::default(), "it is said once");
        assert!(!accounts.closed.contains_key(&frontends[0]) && accounts.closed.contains_key(&frontends[3]));
        assert_eq!(accounts.services[&name("b")].closed.len(), 3);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Account(u8, BTreeSet<u8>),
        Forget(u8, BTreeSet<u8>),
        Wait(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let frontends = || prop::collection::btree_set(0_u8..4, 0..4);
        prop_oneof![
            4 => (0_u8..3, frontends()).prop_map(|(service, keys)| Step::Account(service, keys)),
            1 => (0_u8..3, frontends()).prop_map(|(service, keys)| Step::Forget(service, keys)),
            1 => (0_u8..20).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        /// The same as a list that notes for each frontend who has it, or had it last, and since when it is gone.
        #[test]
        fn each_frontend_is_the_ones_who_had_it_last(steps in prop::collection::vec(step(), 0..30)) {
            let (mut accounts, mut now) = (Accounts::default(), Instant::now());
            let mut plain: BTreeMap<u8, (String, Option<Instant>)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Account(service, keys) => {
                        let service = service.to_string();
                        for (key, (owner, gone)) in &mut plain {
                            if *owner == service && !keys.contains(key) {
                                gone.get_or_insert(now);
                            }
                        }
                        plain.extend(keys.iter().map(|key| (*key, (service.clone(), None))));
                        account(&mut accounts, &service, &keys.into_iter().map(address).collect::<Vec<_>>(), now);
                    }
                    Step::Forget(service, keys) => {
                        let service = service.to_string();
                        plain.retain(|key, (owner, _)| *owner != service && !keys.contains(key));
                        forget(&mut accounts, &service, &keys.into_iter().map(address).collect::<Vec<_>>());
                    }
                    Step::Wait(minutes) => now += Duration::from_secs(60) * u32::from(minutes),
                }
                plain.retain(|_, (_, gone)| gone.is_none_or(|gone| now < gone + KEPT));
                for key in 0..4 {
                    let expected = plain.get(&key).map(|(owner, _)| owner.clone());
                    prop_assert_eq!(of(&accounts, &format!("10.96.0.{key}"), now), expected);
                }
                let open = plain.values().filter(|(_, gone)| gone.is_none()).count();
                prop_assert_eq!(accounts.open.len(), open);
            }
            accounts.forget_old(now);
            accounts.check();
            prop_assert_eq!(accounts.is_empty(), plain.is_empty());
        }
    }
}
