//! All kinds followed at a clock that is moved by hand, on servers that are made up. What is counted is what a server
//! would see.

use std::ops::Range;

use kube::core::Status;
use proptest::prelude::*;

use super::*;
use crate::testing::log;

/// How long an answer takes.
const TRIP: Duration = Duration::from_millis(2);

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    /// It is as it should be.
    Well,
    /// Nobody listens.
    Refused,
    /// Nothing comes back; given up after so many seconds.
    Dropped(u64),
    /// This status, to everything.
    Status(u16),
    /// The same, with the wish to be left alone for so many seconds.
    Busy(u16, u64),
    /// Lists are right, and watches are so.
    Watches(Watches),
    /// Lists of ServiceCIDRs are answered with this status; everything else is right.
    NoCidrs(u16),
    /// Each list of Services is unreadable; everything else is right.
    OddLists,
    /// Each list of Services breaks off.
    ListsBreak,
    /// The first page of each list is right, the second is answered so; 0: breaks off.
    SecondPage(u16),
    /// Lists come without a version.
    NoVersions,
    /// Services are refused with this status; connections for watches of other kinds are reset before the answer.
    Mixed(u16),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Watches {
    /// Properly, with nothing.
    End,
    /// With the connection.
    Cut,
    /// After a bookmark.
    Bookmark,
    /// After a change of its own.
    Change,
    /// After one that was there before.
    Replay,
    /// The version is too old, says the stream.
    Gone,
    /// The same, says the status.
    GoneAsStatus,
    /// There is no answer to them, though there is one to lists.
    Reset,
    /// The same, for those of EndpointSlices only.
    ResetSlices,
    /// Properly, after a second and a bit.
    Short,
    /// With the connection, after the same.
    ShortCut,
    Unreadable,
    Status(u16),
}

/// What a request has come to, on its way back.
enum Answer {
    Failed(Failure),
    Page,
    FirstPage,
    Version,
    Watch(Duration),
}

enum Does {
    Waits(Instant),
    Asks(Instant, Answer),
    /// And how it ends, if it does.
    Watches(Option<(Instant, Option<Failure>)>),
}

struct Cluster {
    start: Instant,
    now: Instant,
    server: Server,
    version: u64,
    turns: Turns,
    kinds: Vec<(Follower, Does)>,
    /// When each request was made, and for what kind.
    requests: Vec<(Duration, Kind, Ask)>,
    /// When each kind was last told something right: a page, or by a watch that goes on.
    right: Vec<Option<Duration>>,
    none: Vec<Kind>,
}

fn refused(code: u16, retry_after: Option<u64>) -> Failure {
    let status = Box::new(Status { code, ..Status::failure("no", "No") });
    Failure::Refused { status, retry_after: retry_after.map(Duration::from_secs) }
}

fn no_answer() -> Failure {
    Failure::NoAnswer(kube::Error::Service("refused".into()))
}

fn broken() -> Failure {
    Failure::Broken(kube::Error::Service("reset".into()))
}

impl Cluster {
    fn new(server: Server) -> Cluster {
        let start = Instant::now();
        let kinds = Kind::ALL.iter().map(|kind| (Follower::new(*kind, start), Does::Waits(start))).collect();
        let (now, turns) = (start, Turns::unknown(start));
        let right = vec![None; Kind::ALL.len()];
        let (requests, none) = (Vec::new(), Vec::new());
        Cluster { start, now, server, version: 1000, turns, kinds, requests, right, none }
    }

    /// One that has been well for five minutes.
    fn well() -> Cluster {
        let mut cluster = Cluster::new(Server::Well);
        cluster.run(300.0);
        assert!(cluster.follows_all());
        cluster.requests.clear();
        cluster
    }

    fn at(&self) -> Duration {
        self.now.duration_since(self.start)
    }

    /// What the server does from now on; the watches that are open break if it does something else.
    fn becomes(&mut self, server: Server) -> Duration {
        if self.server != server && server != Server::Well {
            for (_, does) in &mut self.kinds {
                if let Does::Watches(end) = does {
                    *end = Some((self.now, Some(broken())));
                }
            }
        }
        self.server = server;
        self.at()
    }

    fn run(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some((at, index)) = self.next()
            && at <= end
        {
            self.now = at.max(self.now);
            self.act(index);
        }
        self.now = end;
    }

    /// Who has something to do next, and when.
    fn next(&self) -> Option<(Instant, usize)> {
        let when = |(follower, does): &(Follower, Does)| match does {
            Does::Waits(at) => Some(follower.overdue_at().map_or(*at, |overdue| overdue.min(*at))),
            Does::Asks(at, _) => Some(follower.overdue_at().map_or(*at, |overdue| overdue.min(*at))),
            Does::Watches(end) => [follower.lives_at(), end.as_ref().map(|(at, _)| *at)].into_iter().flatten().min(),
        };
        self.kinds.iter().enumerate().filter_map(|(index, kind)| Some((when(kind)?, index))).min()
    }

    fn act(&mut self, index: usize) {
        let before = self.turns.recoveries();
        let (now, at, version) = (self.now, self.at(), self.version.to_string());
        let (follower, does) = &mut self.kinds[index];
        let is_overdue = follower.overdue_at().is_some_and(|overdue| overdue <= now);
        match std::mem::replace(does, Does::Waits(now)) {
            Does::Waits(until) if is_overdue && until > now => {
                follower.overdue(now);
                *does = Does::Waits(until);
            }
            Does::Asks(until, answer) if is_overdue && until > now => {
                follower.overdue(now);
                *does = Does::Asks(until, answer);
            }
            Does::Waits(_) => {
                let kind = follower.kind;
                match follower.todo(now, &mut self.turns) {
                    Todo::Wait(until) => {
                        assert!(until > now, "{kind}: no time passes");
                        *does = Does::Waits(until);
                    }
                    Todo::Ask(ask) => {
                        self.requests.push((at, kind, ask.clone()));
                        *does = asked(now, self.server, kind, ask);
                    }
                }
            }
            Does::Asks(_, Answer::Failed(failure)) => {
                if follower.failed(now, &mut self.turns, &failure) {
                    self.none.push(follower.kind);
                }
            }
            Does::Asks(_, Answer::FirstPage) => {
                assert!(follower.page(now, &mut self.turns, None, Some("more"), 3).is_ok_and(|place| !place.is_last));
            }
            Does::Asks(_, Answer::Page) => {
                let page = follower.page(now, &mut self.turns, Some(&version), None, 3);
                assert!(page.is_ok_and(|place| place.is_last));
                self.right[index] = Some(at);
            }
            Does::Asks(_, Answer::Version) => follower.looked(now, &mut self.turns, &version, &Found::Nothing),
            Does::Asks(_, Answer::Watch(length)) => {
                follower.watch_began(now, &mut self.turns, length);
                self.right[index] = Some(at);
                let mut heard = |version: &str, is_change| follower.heard(now, &mut self.turns, version, is_change);
                let end = match self.server {
                    Server::Watches(Watches::End) => Some((now, None)),
                    Server::Watches(Watches::Bookmark) => Some((now, heard(&version, false).err())),
                    Server::Watches(Watches::Change) => {
                        self.version += 1;
                        Some((now, heard(&self.version.to_string(), true).err()))
                    }
                    Server::Watches(Watches::Replay) => Some((now, heard("7", true).err())),
                    Server::Watches(Watches::Cut) => Some((now, Some(broken()))),
                    Server::Watches(Watches::Gone) => Some((now, Some(refused(410, None)))),
                    Server::Watches(Watches::Short) => Some((now + Duration::from_millis(1150), None)),
                    Server::Watches(Watches::ShortCut) => Some((now + Duration::from_millis(1150), Some(broken()))),
                    Server::Watches(Watches::Unreadable) => Some((now, Some(Failure::Unreadable("odd".into())))),
                    _ => {
                        heard(&version, false).expect("nothing is wrong");
                        Some((now + length, None))
                    }
                };
                *does = Does::Watches(end);
            }
            Does::Watches(Some((end, failure))) if end <= now => follower.ended(now, &mut self.turns, failure),
            Does::Watches(_) if follower.doubts_at().is_some_and(|at| at <= now) => follower.doubted(now),
            watches @ Does::Watches(_) => {
                assert!(follower.lived(now, &mut self.turns).is_ok());
                *does = watches;
            }
        }
        if self.turns.recoveries() != before {
            for (_, does) in &mut self.kinds {
                if let Does::Waits(until) = does {
                    *until = now;
                }
            }
        }
    }

    fn follows_all(&self) -> bool {
        self.kinds.iter().all(|(follower, _)| follower.followed().state == State::Follows)
    }

    fn follows_none(&self) -> bool {
        self.kinds.iter().all(|(follower, _)| follower.followed().state == State::Lost)
    }

    /// Requests in these seconds after `from`.
    fn requests(&self, from: Duration, seconds: Range<f64>) -> usize {
        let range = from + Duration::from_secs_f64(seconds.start)..from + Duration::from_secs_f64(seconds.end);
        self.requests.iter().filter(|(at, ..)| range.contains(at)).count()
    }

    /// Runs until every kind is told something right, and returns after how many seconds.
    fn until_right(&mut self) -> f64 {
        let from = self.at();
        while !self.right.iter().all(|right| right.is_some_and(|at| at >= from)) {
            self.run(0.05);
            assert!(self.at() - from < Duration::from_secs(120), "it never is");
        }
        (self.right.iter().flatten().max().expect("all are").saturating_sub(from)).as_secs_f64()
    }
}

fn asked(now: Instant, server: Server, kind: Kind, ask: Ask) -> Does {
    let soon = now + TRIP;
    let right = match &ask {
        Ask::Page(_) => Answer::Page,
        Ask::Look(_) => Answer::Version,
        Ask::Watch(_, length) => Answer::Watch(*length),
    };
    let answer = match (server, &ask) {
        (Server::Refused, _) => Answer::Failed(no_answer()),
        (Server::Dropped(seconds), _) => {
            return Does::Asks(now + Duration::from_secs(seconds), Answer::Failed(no_answer()));
        }
        (Server::Status(code), _) => Answer::Failed(refused(code, None)),
        (Server::Busy(code, seconds), _) => Answer::Failed(refused(code, Some(seconds))),
        (Server::Watches(Watches::GoneAsStatus), Ask::Watch(..)) => Answer::Failed(refused(410, None)),
        (Server::Watches(Watches::Reset) | Server::Mixed(_), Ask::Watch(..)) => Answer::Failed(no_answer()),
        (Server::Watches(Watches::ResetSlices), Ask::Watch(..)) if kind == Kind::EndpointSlice => {
            Answer::Failed(no_answer())
        }
        (Server::Mixed(code), _) if kind == Kind::Service => Answer::Failed(refused(code, None)),
        (Server::SecondPage(_), Ask::Page(None)) => Answer::FirstPage,
        (Server::SecondPage(0), Ask::Page(Some(_))) => Answer::Failed(broken()),
        (Server::SecondPage(code), Ask::Page(Some(_))) => Answer::Failed(refused(code, None)),
        (Server::NoVersions, Ask::Page(_)) => Answer::Failed(Failure::NoVersion),
        (Server::Watches(Watches::Status(code)), Ask::Watch(..)) => Answer::Failed(refused(code, None)),
        (Server::NoCidrs(code), Ask::Page(_)) if kind == Kind::ServiceCidr => Answer::Failed(refused(code, None)),
        (Server::OddLists, Ask::Page(_)) if kind == Kind::Service => Answer::Failed(Failure::Unreadable("odd".into())),
        (Server::ListsBreak, Ask::Page(_)) if kind == Kind::Service => Answer::Failed(broken()),
        _ => right,
    };
    Does::Asks(soon, answer)
}

/// For which lists are of no use, so that all kinds have to be listed for the test to be about them.
const USELESS_LISTS: [Server; 5] = [
    Server::SecondPage(500),
    Server::SecondPage(410),
    Server::SecondPage(504),
    Server::SecondPage(0),
    Server::NoVersions,
];

const USELESS: [Server; 19] = [
    Server::Watches(Watches::Reset),
    Server::Watches(Watches::ResetSlices),
    Server::Mixed(500),
    Server::Mixed(429),
    Server::Watches(Watches::End),
    Server::Watches(Watches::Cut),
    Server::Watches(Watches::Bookmark),
    Server::Watches(Watches::Replay),
    Server::Watches(Watches::Gone),
    Server::Watches(Watches::GoneAsStatus),
    Server::Watches(Watches::Unreadable),
    Server::Watches(Watches::Status(302)),
    Server::Watches(Watches::Status(403)),
    Server::Watches(Watches::Status(500)),
    Server::Watches(Watches::Status(502)),
    Server::Status(403),
    Server::Status(404),
    Server::Status(500),
    Server::Status(503),
];

#[test]
fn servers_that_answer_nothing_of_use_are_asked_four_times_a_second_and_then_once() {
    for server in USELESS {
        let mut cluster = Cluster::well();
        let from = cluster.becomes(server);
        cluster.run(600.0);
        let first = cluster.requests(from, 0.0..1.0);
        // All watches break in the same moment; before each is resumed, there is a look, and for once a list.
        assert!(first <= 16, "{server:?}: {first} in the first second");
        for second in 0..30 {
            let window = f64::from(second)..f64::from(second + 5);
            let count = cluster.requests(from, window.clone());
            // The pauses are jittered: a few more than four a second.
            assert!(count <= 24, "{server:?}: {count} in {window:?}");
        }
        for second in 30..580 {
            let window = f64::from(second)..f64::from(second + 20);
            let count = cluster.requests(from, window.clone());
            // Where connections fail by turns, it may be that there is nobody.
            let is_mixed = matches!(server, Server::Watches(Watches::Reset | Watches::ResetSlices) | Server::Mixed(_));
            assert!(count <= if is_mixed { 44 } else { 24 }, "{server:?}: {count} in {window:?}");
        }
        let late = cluster.requests(from, 300.0..600.0);
        assert!((20..=350).contains(&late), "{server:?}: it is tried for ever: {late}");
    }
}

#[test]
fn servers_whose_lists_are_of_no_use_are_asked_gently() {
    for server in USELESS_LISTS {
        for late in [false, true] {
            let mut cluster = if late { Cluster::new(server) } else { Cluster::well() };
            if !late {
                // No version is known any more.
                cluster.becomes(Server::Watches(Watches::Gone));
                cluster.run(0.3);
            }
            let from = cluster.becomes(server);
            cluster.run(300.0);
            let count = cluster.requests(from, 0.0..5.0);
            assert!(count <= 24, "{server:?} {late}: {count}");
            let count = cluster.requests(from, 30.0..300.0);
            assert!((10..=270).contains(&count), "{server:?} {late}: {count}");
        }
    }
}

#[test]
fn watches_that_are_cut_short_are_resumed_gently() {
    for watches in [Watches::Short, Watches::ShortCut] {
        let mut cluster = Cluster::well();
        let from = cluster.becomes(Server::Watches(watches));
        cluster.run(300.0);
        let count = cluster.requests(from, 30.0..300.0);
        assert!((100..=540).contains(&count), "{watches:?}: {count}");
    }
}

#[test]
fn a_server_that_is_of_use_again_is_followed_soon() {
    // With one of these, all kinds but one go on with the watches that they have.
    for server in USELESS.into_iter().filter(|server| *server != Server::Watches(Watches::ResetSlices)) {
        for seconds in [0.1, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0] {
            let mut cluster = Cluster::well();
            cluster.becomes(server);
            cluster.run(seconds);
            cluster.becomes(Server::Well);
            let took = cluster.until_right();
            // A kind that gets through says so when its watch has lived. Lists that were of no use are dear.
            let dear = matches!(
                server,
                Server::Watches(Watches::Gone | Watches::GoneAsStatus | Watches::Unreadable | Watches::Replay)
            );
            let at_most = match server {
                Server::Status(500 | 503) => 1.2,
                _ if dear => 31.0,
                _ => 10.0,
            };
            assert!(took <= at_most, "{server:?} {seconds}: {took}");
        }
    }
}

#[test]
fn a_server_that_was_away_is_met_within_a_second_by_all_kinds() {
    for server in [Server::Refused, Server::Status(503), Server::Status(502), Server::Status(429)] {
        for seconds in [0.1, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0] {
            for late in [false, true] {
                let mut cluster = if late { Cluster::new(server) } else { Cluster::well() };
                let from = cluster.becomes(server);
                cluster.run(seconds);
                let attempts = cluster.requests(from, 0.5..seconds);
                assert!(attempts as f64 <= 2.0 * seconds, "{server:?} {seconds}: {attempts}");
                cluster.becomes(Server::Well);
                let took = cluster.until_right();
                let at_most = if server == Server::Refused { 0.9 } else { 1.15 };
                assert!(took <= at_most, "{server:?} {seconds} {late}: {took}");
                cluster.run(1.5);
                assert!(cluster.follows_all());
            }
        }
    }
}

#[test]
fn a_server_that_is_starting_refuses_at_first() {
    let mut cluster = Cluster::well();
    for server in [Server::Refused, Server::Status(503), Server::Status(403), Server::Status(429)] {
        cluster.becomes(server);
        cluster.run(60.0);
    }
    cluster.becomes(Server::Well);
    cluster.until_right();
    assert!(!cluster.requests.iter().any(|(.., ask)| matches!(ask, Ask::Page(_))), "resumed, not listed again");

    // Until its roles are there.
    let mut cluster = Cluster::new(Server::Refused);
    cluster.run(20.0);
    cluster.becomes(Server::Status(403));
    cluster.run(1.0);
    cluster.becomes(Server::Well);
    let took = cluster.until_right();
    assert!(took <= 2.0, "{took}");
}

#[test]
fn a_server_whose_packets_are_lost_is_met_when_an_attempt_gets_through() {
    let mut cluster = Cluster::well();
    let from = cluster.becomes(Server::Dropped(3));
    cluster.run(60.0);
    let attempts = cluster.requests(from, 1.0..60.0);
    assert!((50..=120).contains(&attempts), "{attempts}");
    assert!(cluster.follows_none());
    cluster.becomes(Server::Well);
    // Those on their way are lost.
    let took = cluster.until_right();
    assert!(took <= 3.9, "{took}");
}

#[test]
fn what_a_server_wants_is_done_within_bounds() {
    for (code, seconds) in [(429, 5), (503, 5), (503, 60)] {
        let mut cluster = Cluster::well();
        let from = cluster.becomes(Server::Busy(code, seconds));
        cluster.run(seconds as f64 * 10.0);
        let count = cluster.requests(from, 0.0..seconds as f64 * 10.0);
        assert!(count <= 4 * 11, "{code} {seconds}: {count}");
        cluster.becomes(Server::Well);
        assert!(cluster.until_right() <= seconds as f64 + 1.0);
    }
}

#[test]
fn what_is_said_of_a_kind_is_so() {
    for server in USELESS.into_iter().chain([Server::Refused, Server::Dropped(10), Server::Busy(503, 30)]) {
        for late in [false, true] {
            let mut cluster = if late { Cluster::new(server) } else { Cluster::well() };
            let since = cluster.becomes(server);
            // There are none, or the others are well.
            if let Server::Status(404) | Server::Watches(Watches::ResetSlices) = server {
                continue;
            }
            cluster.run(5.0);
            assert!(cluster.follows_none(), "{server:?}: within 5 s");
            for (follower, _) in &cluster.kinds {
                let Followed { since: lost, reason, .. } = follower.followed();
                assert!(reason.is_some(), "{server:?}");
                assert!(lost.duration_since(cluster.start.into_std()) >= since);
            }
            for _ in 0..100 {
                cluster.run(1.0);
                assert!(cluster.follows_none(), "{server:?} at {:?}", cluster.at());
            }
            cluster.becomes(Server::Well);
            cluster.until_right();
            // Lists were right all the time with these.
            let lists = matches!(server, Server::Watches(Watches::Reset) | Server::Mixed(_));
            cluster.run(if lists { 6.5 } else { 1.1 });
            assert!(cluster.follows_all(), "{server:?}");
            assert!(cluster.kinds.iter().all(|(follower, _)| follower.followed().reason.is_none()));
        }
    }
}

#[test]
fn watches_that_end_in_time_are_no_news() {
    let mut cluster = Cluster::well();
    let text = log::captured(|| {
        for _ in 0..3600 {
            cluster.run(1.0);
            assert!(cluster.follows_all());
        }
    });
    assert!(!text.contains("WARN") && !text.contains("INFO"), "{text}");
    let count = cluster.requests.len();
    assert!((4 * 11..=4 * 19).contains(&count), "one watch in 200 to 290 s for each kind: {count}");
    assert!(cluster.requests.iter().all(|(.., ask)| matches!(ask, Ask::Watch(..))));
}

#[test]
fn an_outage_is_a_line_for_each_kind_at_its_beginning_its_end_and_every_five_minutes() {
    let mut cluster = Cluster::well();
    let text = log::captured(|| {
        cluster.becomes(Server::Refused);
        cluster.run(700.0);
        cluster.becomes(Server::Well);
        cluster.run(10.0);
    });
    let count = |text: &str, words: &str| text.lines().filter(|line| line.contains(words)).count();
    assert_eq!(count(&text, "WARN"), 4 * 3, "{text}");
    assert_eq!(count(&text, "the API server answers again"), 4, "{text}");
    assert!(text.contains("what is known stays in force") && text.contains("since="), "{text}");
}

#[test]
fn changes_that_come_one_by_one_are_no_failure_and_no_storm() {
    let mut cluster = Cluster::well();
    let from = cluster.becomes(Server::Watches(Watches::Change));
    cluster.run(60.0);
    let count = cluster.requests(from, 10.0..60.0);
    assert!((4 * 50..=4 * 50 * 4).contains(&count), "{count}");
    assert!(cluster.follows_all());
}

#[test]
fn lists_take_the_place_of_watches_that_come_to_nothing() {
    for watches in [Watches::End, Watches::Cut, Watches::Status(302), Watches::Status(403)] {
        let mut cluster = Cluster::well();
        let from = cluster.becomes(Server::Watches(watches));
        cluster.run(600.0);
        let lists = cluster
            .requests
            .iter()
            .filter(|(at, kind, ask)| *at >= from && *kind == Kind::Service && matches!(ask, Ask::Page(_)));
        let count = lists.count();
        assert!((8..=25).contains(&count), "{watches:?}: {count}");
    }
}

#[test]
fn a_kind_in_trouble_does_not_disturb_the_others() {
    for server in [Server::NoCidrs(403), Server::OddLists, Server::ListsBreak] {
        let mut cluster = Cluster::new(server);
        cluster.run(3600.0);
        let trouble = if server == Server::NoCidrs(403) { Kind::ServiceCidr } else { Kind::Service };
        for (follower, _) in &cluster.kinds {
            let state = follower.followed().state;
            let expected = if follower.kind == trouble { State::Lost } else { State::Follows };
            assert_eq!(state, expected, "{server:?} {}", follower.kind);
        }
        let count = cluster.requests.iter().filter(|(_, kind, _)| *kind == trouble).count();
        assert!((100..=250).contains(&count), "{server:?}: {count}");
        let others = cluster.requests.len() - count;
        assert!(others <= 3 * 20, "{server:?}: {others}");
    }
}

#[test]
fn service_cidrs_that_a_server_does_not_have_are_looked_for_now_and_then() {
    let mut cluster = Cluster::new(Server::NoCidrs(404));
    cluster.run(3600.0);
    let looks = cluster.requests.iter().filter(|(_, kind, _)| *kind == Kind::ServiceCidr).count();
    assert!((11..=18).contains(&looks), "{looks}");
    let cidrs = cluster.kinds.iter().find(|(follower, _)| follower.kind == Kind::ServiceCidr);
    assert_eq!(cidrs.expect("one of them").0.followed().state, State::Absent);
    assert!(!cluster.none.is_empty() && cluster.none.iter().all(|kind| *kind == Kind::ServiceCidr));
    cluster.becomes(Server::Well);
    cluster.run(302.0);
    assert!(cluster.follows_all());
}

/// What a kind does with a server of which it sees nothing else.
struct Alone {
    now: Instant,
    turns: Turns,
    follower: Follower,
}

impl Alone {
    fn new() -> Alone {
        let now = Instant::now();
        Alone { now, turns: Turns::default(), follower: Follower::new(Kind::Service, now) }
    }

    /// One that was followed up to version 100, where shop/web changed last, with version 90, and whose connection has broken:
    /// it looks for that object.
    fn cut_off() -> Alone {
        let mut kind = Alone::new();
        kind.ask();
        kind.follower.saw("shop", "web", "90", false);
        assert!(kind.page("100", None, 3).is_ok());
        kind.watch();
        kind.passes(20);
        kind.ends(Some(broken()));
        assert!(matches!(kind.ask(), Ask::Look(Some(_))));
        kind
    }

    /// What is asked next, whenever that is.
    fn ask(&mut self) -> Ask {
        loop {
            match self.follower.todo(self.now, &mut self.turns) {
                Todo::Wait(until) => self.now = until,
                Todo::Ask(ask) => return ask,
            }
        }
    }

    fn page(&mut self, version: &str, rest: Option<&str>, objects: usize) -> Result<Place, Failure> {
        let version = Some(version).filter(|version| !version.is_empty());
        self.follower.page(self.now, &mut self.turns, version, rest, objects)
    }

    fn watch(&mut self) {
        let Ask::Watch(_, length) = self.ask() else { panic!("a watch") };
        self.follower.watch_began(self.now, &mut self.turns, length);
    }

    fn passes(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn ends(&mut self, failure: Option<Failure>) {
        self.follower.ended(self.now, &mut self.turns, failure);
    }
}

#[test]
fn a_list_is_read_page_by_page_and_watched_from_its_version() {
    let mut kind = Alone::new();
    assert_eq!(kind.ask(), Ask::Page(None));
    assert_eq!(kind.page("", Some("a"), 500).ok(), Some(Place { is_last: false }));
    assert_eq!(kind.ask(), Ask::Page(Some("a".to_owned())));
    assert_eq!(kind.page("40", Some("b"), 0).ok(), Some(Place { is_last: false }));
    assert_eq!(kind.ask(), Ask::Page(Some("b".to_owned())));
    assert_eq!(kind.page("40", None, 3).ok(), Some(Place { is_last: true }));
    assert!(matches!(kind.ask(), Ask::Watch(from, _) if from == "40"));
}

#[test]
fn lists_without_an_end_or_a_version_are_given_up() {
    let mut kind = Alone::new();
    kind.ask();
    assert!(matches!(kind.page("", None, 3), Err(Failure::NoVersion)));
    assert!(kind.page("7", Some("a"), 3).is_ok());
    assert!(matches!(kind.page("7", Some("a"), 3), Err(Failure::Unreadable(_))), "the same page again");
    for page in 0..MAX_EMPTY_PAGES {
        assert!(kind.page("7", Some(&format!("{page}")), 0).is_ok());
    }
    assert!(matches!(kind.page("7", Some("z"), 0), Err(Failure::Unreadable(_))), "nothing but empty pages");
}

#[test]
fn a_server_that_went_back_is_listed_again_where_it_can_be_seen() {
    fn well() -> Alone {
        let mut kind = Alone::new();
        kind.ask();
        assert!(kind.page("100", None, 3).is_ok());
        kind.watch();
        kind.passes(20);
        kind
    }
    type Heard = fn(&mut Alone);
    let cases: [Heard; 3] = [
        |kind| {
            let failure = kind.follower.heard(kind.now, &mut kind.turns, "60", false).expect_err("a bookmark");
            kind.ends(Some(failure));
        },
        |kind| {
            let failure = kind.follower.heard(kind.now, &mut kind.turns, "60", true).expect_err("a change");
            kind.ends(Some(failure));
        },
        |kind| {
            kind.ends(Some(broken()));
            assert_eq!(kind.ask(), Ask::Look(None));
            kind.follower.looked(kind.now, &mut kind.turns, "60", &Found::Nothing);
        },
    ];
    for heard in cases {
        let mut kind = well();
        let before = kind.now;
        let text = log::captured(|| {
            heard(&mut kind);
            assert_eq!(kind.ask(), Ask::Page(None));
        });
        assert!(text.contains("the API server went back"), "{text}");
        assert!(kind.now - before < Duration::from_secs(1));
        assert!(kind.page("60", None, 3).is_ok());
        assert!(matches!(kind.ask(), Ask::Watch(from, _) if from == "60"));
    }
    let mut kind = well();
    kind.ends(Some(broken()));
    assert_eq!(kind.ask(), Ask::Look(None));
    kind.follower.looked(kind.now, &mut kind.turns, "101", &Found::Nothing);
    assert!(matches!(kind.ask(), Ask::Watch(from, _) if from == "100"), "and no look but one");
    let mut kind = well();
    let too_large = Status { code: 504, ..Status::failure("Too large resource version: 100, current: 60", "Timeout") };
    kind.ends(Some(broken()));
    kind.ask();
    kind.follower.looked(kind.now, &mut kind.turns, "not a number", &Found::Nothing);
    kind.ask();
    let failure = Failure::Refused { status: Box::new(too_large), retry_after: None };
    kind.follower.failed(kind.now, &mut kind.turns, &failure);
    assert_eq!(kind.ask(), Ask::Page(None));
}

#[test]
fn a_look_comes_before_a_watch_that_did_not_end_as_it_should() {
    let mut kind = Alone::new();
    kind.ask();
    assert!(kind.page("100", None, 3).is_ok());
    kind.watch();
    assert!(kind.follower.heard(kind.now, &mut kind.turns, "100", false).is_ok());
    kind.passes(290);
    assert!(kind.follower.lived(kind.now, &mut kind.turns).is_ok());
    kind.ends(None);
    kind.watch();
    kind.passes(290);
    kind.ends(None);
    assert_eq!(kind.ask(), Ask::Look(None), "not a word in that time");
    kind.follower.looked(kind.now, &mut kind.turns, "100", &Found::Nothing);
    kind.watch();
    assert!(kind.follower.heard(kind.now, &mut kind.turns, "100", false).is_ok());
    kind.passes(30);
    kind.ends(None);
    assert_eq!(kind.ask(), Ask::Look(None), "too early");
}

#[test]
fn a_store_that_has_come_past_the_version_is_seen_by_the_object_that_changed_last() {
    let there = |version: &str| Found::There(version.to_owned());
    // As it was last heard of: with version 90, or gone with version 95; everything is known up to 100.
    let cases = [
        (false, there("90"), true),
        (false, there("101"), true),
        (false, there("100"), false),
        (false, there("40"), false),
        (false, there("95"), false),
        (false, Found::Nothing, true),
        (true, Found::Gone, true),
        (true, there("101"), true),
        (true, there("40"), false),
        (true, Found::Nothing, true),
    ];
    for (is_gone, found, is_same) in cases {
        let mut kind = Alone::new();
        kind.ask();
        kind.follower.list_begins();
        for (name, version) in [("a", "30"), ("web", "90"), ("b", "50"), ("odd", "x")] {
            kind.follower.saw("shop", name, version, false);
        }
        assert!(kind.page("100", None, 3).is_ok());
        kind.watch();
        if is_gone {
            kind.follower.saw("shop", "web", "95", true);
        }
        kind.passes(20);
        kind.ends(Some(broken()));
        let object = Named { namespace: "shop".to_owned(), name: "web".to_owned() };
        assert_eq!(kind.ask(), Ask::Look(Some(object)));
        kind.follower.looked(kind.now, &mut kind.turns, "500", &found);
        assert_eq!(matches!(kind.ask(), Ask::Watch(..)), is_same, "{is_gone} {found:?}");
    }
}

#[test]
fn an_object_that_is_gone_has_to_be_said_to_be() {
    for is_said in [false, true] {
        let mut kind = Alone::cut_off();
        kind.follower.looked(kind.now, &mut kind.turns, "500", &Found::Gone);
        kind.watch();
        // Another one, which may be of any store.
        assert!(kind.follower.heard(kind.now, &mut kind.turns, "498", true).is_ok());
        kind.follower.saw("shop", "other", "498", false);
        if is_said {
            assert!(kind.follower.heard(kind.now, &mut kind.turns, "499", true).is_ok());
            kind.follower.saw("shop", "web", "499", true);
        }
        kind.now += LIVED;
        let lived = kind.follower.lived(kind.now, &mut kind.turns);
        assert_eq!(lived.is_ok(), is_said);
        let Err(failure) = lived else { continue };
        kind.ends(Some(failure));
        assert_eq!(kind.ask(), Ask::Page(None));
        let text = log::captured(|| {
            kind.follower.list_begins();
            kind.follower.saw("shop", "other", "498", false);
            assert!(kind.page("500", None, 1).is_ok());
        });
        assert!(text.contains("the API server went back") && text.contains("shop/web is not there"), "{text}");
        assert_eq!(kind.turns.stores(), 1);
    }
}

#[test]
fn a_server_that_does_not_find_what_it_has_is_not_said_to_have_gone_back() {
    let mut kind = Alone::new();
    kind.ask();
    kind.follower.saw("shop", "web", "90", false);
    assert!(kind.page("100", None, 1).is_ok());
    kind.watch();
    let text = log::captured(|| {
        kind.passes(20);
        kind.ends(Some(broken()));
        assert!(matches!(kind.ask(), Ask::Look(Some(_))));
        kind.follower.looked(kind.now, &mut kind.turns, "100", &Found::Gone);
        kind.watch();
        kind.now += LIVED;
        let failure = kind.follower.lived(kind.now, &mut kind.turns).expect_err("nobody has said so");
        kind.ends(Some(failure));
        assert_eq!(kind.ask(), Ask::Page(None));
        kind.follower.list_begins();
        kind.follower.saw("shop", "web", "90", false);
        assert!(kind.page("100", None, 1).is_ok());
        kind.watch();
        kind.passes(20);
        kind.ends(Some(broken()));
        assert_eq!(kind.ask(), Ask::Look(None), "it is not tried again");
    });
    assert!(!text.contains("went back"), "{text}");
}

#[test]
fn where_objects_cannot_be_looked_for_by_name_any_will_do() {
    let mut kind = Alone::cut_off();
    kind.follower.failed(kind.now, &mut kind.turns, &refused(404, None));
    let before = kind.now;
    assert_eq!((kind.ask(), kind.now), (Ask::Look(None), before));
    kind.follower.looked(kind.now, &mut kind.turns, "60", &Found::Nothing);
    assert_eq!(kind.ask(), Ask::Page(None), "its version is behind");
}

#[test]
fn what_one_kind_has_seen_of_the_store_holds_for_all() {
    let mut one = Alone::new();
    let mut other = Follower::new(Kind::EndpointSlice, one.now);
    one.ask();
    assert!(one.page("100", None, 3).is_ok());
    assert_eq!(other.todo(one.now, &mut one.turns), Todo::Ask(Ask::Page(None)));
    assert!(other.page(one.now, &mut one.turns, Some("100"), None, 3).is_ok());
    one.watch();
    other.watch_began(one.now, &mut one.turns, WATCH[0]);
    one.passes(20);
    assert!(!other.is_of_another_store(&one.turns));
    one.ends(Some(broken()));
    one.ask();
    one.follower.looked(one.now, &mut one.turns, "60", &Found::Nothing);
    assert!(other.is_of_another_store(&one.turns));
    other.ended(one.now, &mut one.turns, Some(Failure::OtherKind));
    one.passes(1);
    assert_eq!(other.todo(one.now, &mut one.turns), Todo::Ask(Ask::Page(None)));
    // Once for each: what the lists show is known.
    assert!(other.page(one.now, &mut one.turns, Some("60"), None, 3).is_ok());
    assert_eq!(one.ask(), Ask::Page(None));
    assert!(one.page("60", None, 3).is_ok());
    assert!(!other.is_of_another_store(&one.turns) && !one.follower.is_of_another_store(&one.turns));
    assert_eq!(one.turns.stores(), 1);
}

#[test]
fn a_server_that_was_away_is_listed_soon_where_the_last_change_is_no_longer_the_last() {
    // Whether a request has failed meanwhile, and how many seconds it took until there was an answer.
    for (fails, seconds) in [(false, 0), (true, 1), (false, 10)] {
        for (found, is_last) in [("90", true), ("499", false)] {
            let mut kind = Alone::cut_off();
            if fails {
                kind.follower.failed(kind.now, &mut kind.turns, &no_answer());
                assert!(matches!(kind.ask(), Ask::Look(Some(_))));
            }
            kind.passes(seconds);
            kind.follower.looked(kind.now, &mut kind.turns, "500", &Found::There(found.to_owned()));
            kind.watch();
            let doubts = kind.follower.doubts_at().map(|at| at - kind.now);
            match (fails || seconds > 3, is_last) {
                (false, _) => assert_eq!(doubts, None),
                (true, true) => assert!(doubts.is_some_and(|after| after >= TO_BE_SURE[0]), "{doubts:?}"),
                (true, false) => assert!(doubts.is_some_and(|after| after <= SOON[1]), "{doubts:?}"),
            }
            if let Some(after) = doubts {
                kind.now += after;
                kind.follower.doubted(kind.now);
                assert_eq!(kind.ask(), Ask::Page(None));
                assert!(kind.page("600", None, 3).is_ok());
                kind.watch();
                assert_eq!(kind.follower.doubts_at(), None);
            }
        }
    }
}

#[test]
fn all_is_listed_some_time_after_a_server_was_away() {
    let mut cluster = Cluster::well();
    cluster.becomes(Server::Refused);
    cluster.run(20.0);
    cluster.becomes(Server::Well);
    let from = cluster.at();
    cluster.run(2200.0);
    let lists = |kind: Kind| {
        let lists = cluster.requests.iter().filter(move |(_, of, ask)| *of == kind && matches!(ask, Ask::Page(_)));
        lists.map(|(at, ..)| (*at - from).as_secs()).collect::<Vec<_>>()
    };
    for kind in Kind::ALL {
        let lists = lists(kind);
        assert!(matches!(lists[..], [at] if (300..2100).contains(&at)), "{kind}: {lists:?}");
    }
    let mut cluster = Cluster::well();
    for _ in 0..20 {
        // It answers at once each time.
        for (_, does) in &mut cluster.kinds {
            if let Does::Watches(end) = does {
                *end = Some((cluster.now, Some(broken())));
            }
        }
        cluster.run(180.0);
    }
    assert!(!cluster.requests.iter().any(|(.., ask)| matches!(ask, Ask::Page(_))));
}

fn servers() -> impl Strategy<Value = Server> {
    prop_oneof![
        Just(Server::Well),
        Just(Server::Refused),
        Just(Server::OddLists),
        Just(Server::ListsBreak),
        (1_u64..10).prop_map(Server::Dropped),
        (1_u64..70).prop_map(|seconds| Server::Busy(503, seconds)),
        prop::sample::select(USELESS.to_vec()),
    ]
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(300), file!()))]

    #[test]
    fn whatever_a_server_does_it_is_asked_gently_and_followed_once_it_is_well(
        faults in prop::collection::vec((servers(), 0.01_f64..90.0), 1..12),
    ) {
        let mut cluster = Cluster::new(Server::Well);
        for (server, seconds) in faults {
            let from = cluster.becomes(server);
            cluster.run(seconds);
            // Each time it gets better, all kinds may list, look and watch at once.
            let count = cluster.requests(from, 0.0..seconds);
            prop_assert!(count as f64 <= 24.0 + 4.0 * seconds, "{server:?} {seconds}: {count}");
        }
        cluster.becomes(Server::Well);
        cluster.run(75.0);
        prop_assert!(cluster.follows_all(), "{:?}", cluster.kinds.iter().map(|kind| kind.0.followed()).collect::<Vec<_>>());
    }
}
