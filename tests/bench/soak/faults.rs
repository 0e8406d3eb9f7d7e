//! What is done to the node, and how long it takes until all is whole again.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use socket2::{Domain, Socket, Type};

use crate::api::Api;
use crate::cluster::{self, CANARY, Cluster};
use crate::daemon::Lives;
use crate::netns::fed;
use crate::network::Network;
use crate::numbers::Random;
use crate::tally::Tally;
use crate::truth::Truth;

/// Between two looks at the canary.
const PAUSE: Duration = Duration::from_millis(2);
/// For whatever has to become whole.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Flush,
    Flushes,
    DeleteTable,
    DeleteElements,
    Dormant,
    OtherShape,
    Kill,
    Restart,
    HandOver,
    HandOverByKill,
    ApiCut,
    WatchesEnd,
    Expired,
}

const ALL: [Fault; 13] = [
    Fault::Flush,
    Fault::Flushes,
    Fault::DeleteTable,
    Fault::DeleteElements,
    Fault::Dormant,
    Fault::OtherShape,
    Fault::Kill,
    Fault::Restart,
    Fault::HandOver,
    Fault::HandOverByKill,
    Fault::ApiCut,
    Fault::WatchesEnd,
    Fault::Expired,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Flush => "nft flush ruleset",
            Fault::Flushes => "10 flushes in 1 s",
            Fault::DeleteTable => "nft delete table",
            Fault::DeleteElements => "nft flush map",
            Fault::Dormant => "nft: flags dormant",
            Fault::OtherShape => "a table of another shape",
            Fault::Kill => "kill -9, start",
            Fault::Restart => "stop, start",
            Fault::HandOver => "a second one, stop",
            Fault::HandOverByKill => "a second one, kill -9",
            Fault::ApiCut => "API server away 3 s",
            Fault::WatchesEnd => "watches end",
            Fault::Expired => "versions expire",
        }
    }

    /// Whether somebody else changes the tables.
    fn is_foreign(self) -> bool {
        match self {
            Fault::Flush
            | Fault::Flushes
            | Fault::DeleteTable
            | Fault::DeleteElements
            | Fault::Dormant
            | Fault::OtherShape => true,
            Fault::Kill
            | Fault::Restart
            | Fault::HandOver
            | Fault::HandOverByKill
            | Fault::ApiCut
            | Fault::WatchesEnd
            | Fault::Expired => false,
        }
    }
}

/// One transaction: a set of ours with another key.
const OTHER_SHAPE: &str = "delete table ip nftproxyd; add table ip nftproxyd; \
    add set ip nftproxyd cluster-ips { type inet_service; }";

/// Where it is done.
pub(crate) struct Site {
    pub(crate) network: Arc<Network>,
    pub(crate) api: Arc<Api>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) truth: Arc<Truth>,
}

impl Site {
    /// Waits until a change that comes now is what packets find. Returns how long it took since then.
    pub(crate) fn wait_whole(&self, since: Instant) -> Result<Duration> {
        let pods = self.cluster.new_pods(1);
        self.cluster.set(CANARY, &pods);
        let whole = self.network.client.run(|| {
            loop {
                let answer = ask(CANARY, Duration::from_millis(25));
                if answer.as_ref().is_ok_and(|pod| *pod == pods[0]) {
                    return Ok(since.elapsed());
                } else if since.elapsed() > PATIENCE {
                    bail!("not whole after {PATIENCE:?}: {answer:?}");
                }
                thread::sleep(PAUSE);
            }
        })?;
        self.truth.is_settled();
        Ok(whole)
    }

    /// Services of those that change all the time that do not do what they should.
    pub(crate) fn wrong_at_the_end(&self) -> Vec<String> {
        let samples = self.cluster.samples();
        self.network.client.run(|| {
            let looks = samples.iter().filter_map(|(service, pods)| {
                let patience = if pods.is_empty() { Duration::from_millis(100) } else { Duration::from_secs(2) };
                let answer = ask(*service, patience);
                let right = answer.as_ref().map_or(pods.is_empty(), |pod| pods.contains(pod));
                (!right).then(|| format!("service-{service}: {answer:?} instead of one of {pods:?}"))
            });
            looks.take(10).collect()
        })
    }
}

/// Connects once, from this thread's namespace. Returns the pod.
fn ask(service: usize, patience: Duration) -> io::Result<Ipv4Addr> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    let to = SocketAddr::from((cluster::cluster_ip(service), cluster::PORT));
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_read_timeout(Some(patience))?;
    let mut octets = [0; 4];
    (&socket).read_exact(&mut octets)?;
    Ok(Ipv4Addr::from(octets))
}

/// One fault after the other.
pub(crate) struct Faults {
    random: Random,
    tally: Arc<Tally>,
    left: Vec<Fault>,
}

impl Faults {
    pub(crate) fn new(seed: u64, tally: Arc<Tally>) -> Faults {
        Faults { random: Random(seed), tally, left: Vec::new() }
    }

    /// Each of them before any comes again, at random, with pauses in which nothing is done.
    pub(crate) fn next(&mut self, site: &Site, lives: &mut Lives) -> Result<()> {
        if self.left.is_empty() {
            self.left = ALL.to_vec();
        }
        let fault = self.left.swap_remove(self.random.index(self.left.len()));
        // What nobody else can change, nobody can lose by it.
        let may_lose = fault.is_foreign() && !is_owned();
        self.tally.fault_begins(fault.name(), may_lose);
        site.truth.is_disturbed();
        let began = Instant::now();
        match fault {
            Fault::Flush => drop(nft("flush ruleset")),
            Fault::Flushes => {
                for _ in 0..10 {
                    let _ = nft("flush ruleset");
                    thread::sleep(Duration::from_millis(100));
                }
            }
            Fault::DeleteTable => drop(nft("delete table ip nftproxyd")),
            Fault::DeleteElements => drop(nft("flush map ip nftproxyd endpoints")),
            Fault::Dormant => drop(nft("add table ip nftproxyd { flags dormant; }")),
            Fault::OtherShape => drop(nft(OTHER_SHAPE)),
            Fault::Kill => lives.kill()?,
            Fault::Restart => lives.restart()?,
            Fault::HandOver => lives.hand_over(Lives::stop)?,
            Fault::HandOverByKill => lives.hand_over(Lives::end_by_force)?,
            Fault::ApiCut => {
                site.api.set_status(Some(503));
                site.api.disconnect_all();
                thread::sleep(Duration::from_secs(3));
                site.api.set_status(None);
            }
            Fault::WatchesEnd => site.api.end_watches(),
            Fault::Expired => {
                site.api.expire();
                site.api.end_watches();
            }
        }
        site.wait_whole(began)?;
        self.tally.fault_ends();
        thread::sleep(Duration::from_millis(1500 + self.random.below(2000)));
        lives.look()
    }
}

/// Whether the daemon's table has an owner: nobody else may do anything to it then, be it what changes nothing.
fn is_owned() -> bool {
    nft("add table ip nftproxyd").is_err()
}

/// Runs nft, but not for ever: while the ruleset changes, `nft list` begins again and again.
fn nft(command: &str) -> io::Result<String> {
    fed(Command::new("timeout").args(["10", "nft", command]), "")
}
