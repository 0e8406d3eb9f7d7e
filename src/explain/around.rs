//! Everything about a packet but what our own table does to it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::connections::Connections;
use super::error::ExplainError;
use super::facts::{Met, NodeFacts, ToEndpoint, Way};
use super::follow::{CHANGED, Opening, first, to_endpoint};
use super::next_hops;
use super::node::{LOOPBACK, Node, is_changed, told};
use super::question::Asked;
use crate::firewall::{self, Hook};
use crate::model::{Family, Protocol};
use crate::routing::{self, Question, Route};
use crate::ruleset::base::DESTINATION_PRIORITY;
use crate::ruleset::eval::{Outcome, Trace};
use crate::{listening, sysctl, threads};

/// How long an attempt to connect may take.
const PROBE: Duration = Duration::from_secs(1);
/// For so long endpoints are looked at: each is taken past all rules of others.
const LONGEST: Duration = Duration::from_secs(10);
/// So many endpoints are connected to at the same time.
const PROBES_AT_ONCE: usize = 32;

impl Node {
    /// Everything about a packet but what our table does to it, which `trace` says. `mark` is the bit that asks for
    /// masquerading.
    pub(super) fn look(
        &self,
        asked: &Asked,
        protocol: Protocol,
        trace: Option<&Trace>,
        mark: Option<u32>,
        connections: &mut Connections<'_>,
        probe: bool,
    ) -> Result<NodeFacts, ExplainError> {
        let tracked = sysctl::tracked(&self.root).ok().filter(|tracked| tracked.is_full());
        let full = tracked.map(|tracked| (tracked.count, tracked.max));
        let mut facts = NodeFacts { connections: full, ..NodeFacts::default() };
        if self.is_local(asked.to.ip()) {
            self.listener(asked, protocol, &mut facts);
        }
        match &self.others {
            Err(why) => facts.unread.push((format!("the tables of others cannot be read: {why}"), true)),
            Ok(tables) => {
                facts.unread.extend(tables.unread().iter().map(|what| (format!("not read: {what}"), true)));
                facts.unread.extend(self.not_followed(tables, Family::of(asked.to.ip())));
            }
        }
        if asked.from_this_node {
            let route = self.first_route(asked, protocol)?;
            let ends = matches!(route, Way::Nowhere(_));
            facts.device = self.usual_device(Family::of(asked.to.ip()));
            facts.first_route = Some(route);
            if ends {
                return Ok(facts);
            }
        }
        let mut untouched = first(asked, protocol, None);
        // The kernel routes what it sends before any chain sees it.
        untouched.output = match &facts.first_route {
            Some(Way::By(device, _)) => Some(device.clone()),
            Some(Way::Local) => Some(LOOPBACK.to_owned()),
            _ => None,
        };
        let first_device = untouched.output.clone();
        let ours = if trace.is_some() { Some(DESTINATION_PRIORITY) } else { None };
        if !asked.from_this_node {
            let ingress = firewall::Packet { hook: Hook::Ingress, ..untouched.clone() };
            facts.before.extend(self.meet(&ingress).met.into_iter().map(|met| told(Hook::Ingress, met)));
        }
        let passage = self.meet(&untouched);
        if is_changed(&passage) {
            facts.unread.push((CHANGED.to_owned(), true));
        }
        let first = passage.met.into_iter();
        let is_before = |met: &firewall::Met| ours.is_none_or(|ours| met.priority < ours);
        facts.before.extend(first.filter(is_before).map(|met| told(untouched.hook, met)));
        if facts.before.iter().any(Met::ends) {
            return Ok(facts);
        }
        if let Some(Trace { outcome: Outcome::Forward(reached), .. }) = trace {
            let counts = connections.to(protocol, asked.to)?;
            let until = Instant::now() + LONGEST;
            for (nth, it) in reached.iter().enumerate() {
                if Instant::now() > until {
                    let left =
                        format!("the way to {} of {} endpoints: it takes too long", reached.len() - nth, reached.len());
                    facts.unread.push((left, true));
                    break;
                }
                let mut to = counts.get(&it.endpoint).cloned().unwrap_or_default();
                let opening = Opening { asked, protocol, first_device: first_device.as_deref() };
                let doubt = to_endpoint(self, opening, (it.endpoint, it.masqueraded), mark, &mut to)?;
                if let Some(doubt) = doubt
                    && !facts.unread.iter().any(|(what, _)| *what == doubt)
                {
                    facts.unread.push((doubt.to_owned(), true));
                }
                if !it.masqueraded {
                    facts.bridge = facts.bridge.or_else(|| self.bridge(asked, it.endpoint.ip()));
                }
                facts.to_endpoints.insert(it.endpoint, to);
            }
            if probe && protocol == Protocol::Tcp {
                connect(&mut facts.to_endpoints);
            }
            facts.not_probed = probe && protocol != Protocol::Tcp;
            // Attempts to connect have had them asked for.
            let name = |device| self.name(device).unwrap_or_else(|| format!("interface {device}"));
            let pause = || thread::sleep(next_hops::PAUSE);
            if let Err(error) = next_hops::find(&mut facts.to_endpoints, &mut routing::neighbour, &name, pause) {
                facts.unread.push((format!("whether next hops answer cannot be read: {error}"), false));
            }
        }
        Ok(facts)
    }

    fn first_route(&self, asked: &Asked, protocol: Protocol) -> Result<Way, ExplainError> {
        let transport = Some((protocol.number(), 0, asked.to.port()));
        let source = Some(asked.from).filter(|from| self.is_local(*from) && !from.is_unspecified());
        let question = Question { transport, source, ..Question::to(asked.to.ip()) };
        Ok(match routing::route(&question).map_err(|error| ExplainError::Node("a route", error))? {
            Route::By(hop) => self.by(hop),
            Route::Local => Way::Local,
            Route::Nowhere(why) => Way::Nowhere(why.to_string()),
        })
    }

    /// Who listens where the packet is sent to.
    fn listener(&self, asked: &Asked, protocol: Protocol, facts: &mut NodeFacts) {
        match listening::who_listens(&self.root, protocol, asked.to.ip(), asked.to.port()) {
            Ok(found) => {
                facts.listener = found.map(|it| it.process.unwrap_or_else(|| "a process".to_owned()));
            }
            Err(error) => facts.unread.push((format!("who listens there cannot be read: {error}"), false)),
        }
    }

    /// Why what is answered may not be translated back: source and endpoint are ports of one bridge.
    fn bridge(&self, asked: &Asked, endpoint: IpAddr) -> Option<String> {
        let device = asked.arrives_by.as_deref()?;
        let (_, link) = self.links.iter().find(|(_, link)| link.name == device && link.kind == "bridge")?;
        let Ok(Route::By(hop)) = routing::route(&Question::to(endpoint)) else { return None };
        if self.name(hop.device).as_deref() != Some(device) || hop.gateway.is_some() {
            return None;
        }
        let is_shown = routing::shows_to_filters(&self.root, link, Family::of(endpoint)).unwrap_or(true);
        (!is_shown).then(|| {
            format!("client and endpoint are behind bridge {device}, whose answers pass connection tracking by")
        })
    }
}

/// Connects to each endpoint, and says who does not answer.
fn connect(endpoints: &mut BTreeMap<SocketAddr, ToEndpoint>) {
    let addresses: Vec<SocketAddr> = endpoints.keys().copied().collect();
    for some in addresses.chunks(PROBES_AT_ONCE) {
        let results: Vec<(SocketAddr, io::Result<()>)> = thread::scope(|scope| {
            let attempt = |address: SocketAddr| {
                threads::spawn_scoped(scope, "probe", move || TcpStream::connect_timeout(&address, PROBE).map(drop))
            };
            let attempts: Vec<_> = some.iter().map(|address| (*address, attempt(*address))).collect();
            let ended = |thread: io::Result<thread::ScopedJoinHandle<'_, io::Result<()>>>| {
                thread?.join().unwrap_or_else(|_| Err(io::Error::other("the attempt has failed")))
            };
            attempts.into_iter().map(|(address, thread)| (address, ended(thread))).collect()
        });
        for (address, result) in results {
            if let Some(to) = endpoints.get_mut(&address) {
                to.probe = Some(result.map_err(|error| error.to_string()));
            }
        }
    }
}
