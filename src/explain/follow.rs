//! Takes the packets of a connection past the chains of others: the first to an endpoint, then its answer, and what follows.

use std::net::{IpAddr, SocketAddr};

use super::error::ExplainError;
use super::facts::{Followed, Met, ToEndpoint, Way, Which};
use super::node::{LOOPBACK, Node, carry, is_changed, told};
use super::question::Asked;
use crate::firewall::{End, Hook, Packet, State, Turn};
use crate::model::{Family, Protocol};
use crate::routing::{self, Question, Refusal, Route};
use crate::ruleset::base::{DESTINATION_PRIORITY, SOURCE_PRIORITY};

pub(super) const CHANGED: &str = "a rule of others may change the packet's addresses or ports on its way";
const UNKNOWN_MARK: &str = "the packet's mark, which routes may depend on: a rule of others may set it";
const UNKNOWN_ZONE: &str =
    "the zone of connection tracking that answers or later packets are looked up in: a rule of others sets it";

/// A connection that would begin now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening<'a> {
    pub(super) asked: &'a Asked,
    pub(super) protocol: Protocol,
    /// The device that the node would send its first packet by, as it is before it is translated.
    pub(super) first_device: Option<&'a str>,
}

/// What is known of it when its first packet has come to the endpoint.
#[derive(Debug, Clone, Copy)]
struct Connection {
    endpoint: SocketAddr,
    /// Whom the endpoint sees.
    client: End,
    /// Whether that is somebody else than who has sent it.
    snat: Option<bool>,
    mark: Option<u32>,
    zone: Option<u16>,
}

/// A packet on its way.
struct Walk<'a> {
    node: &'a Node,
    packet: Packet,
    met: Vec<Met>,
    /// Whether somebody behind our chain would translate the source.
    translated_behind: Option<bool>,
    zone: Option<u16>,
    /// Whom it is handed to.
    hop: Option<routing::Hop>,
    doubt: Option<&'static str>,
}

impl<'a> Walk<'a> {
    fn new(node: &'a Node, packet: Packet) -> Walk<'a> {
        Walk { node, packet, met: Vec::new(), translated_behind: Some(false), zone: Some(0), hop: None, doubt: None }
    }

    /// Past the chains of a hook, if it comes there; those with a lower priority than `from` have been told of already.
    fn past(&mut self, hook: Hook, from: Option<i32>) {
        if self.met.iter().any(Met::ends) {
            return;
        }
        self.packet.hook = hook;
        let passage = self.node.meet(&self.packet);
        carry(&mut self.packet, &passage);
        if is_changed(&passage) {
            self.doubt = self.doubt.or(Some(CHANGED));
        }
        if matches!(hook, Hook::Prerouting | Hook::Output) && self.packet.input.as_deref() != Some(LOOPBACK) {
            self.zone = passage.zone;
        }
        if passage.translated_behind != Some(false) {
            self.translated_behind = passage.translated_behind;
        }
        let met = passage.met.into_iter().filter(|met| from.is_none_or(|from| met.priority >= from));
        self.met.extend(met.map(|met| told(hook, met)));
    }

    fn is_over(&self) -> bool {
        self.met.iter().any(Met::ends) || self.packet.state == State::Untracked
    }

    /// The mark by which it is routed.
    fn routing_mark(&mut self) -> u32 {
        if self.packet.mark.is_none() {
            self.doubt = self.doubt.or(Some(UNKNOWN_MARK));
        }
        self.packet.mark.unwrap_or(0)
    }
}

/// The way to an endpoint, and the chains of others on it: of the first packet, and of those that follow. `mark` is the bit
/// that asks for masquerading, of what is masqueraded. Returns what cannot be told.
pub(super) fn to_endpoint(
    node: &Node,
    opening: Opening<'_>,
    (endpoint, masqueraded): (SocketAddr, bool),
    mark: Option<u32>,
    to: &mut ToEndpoint,
) -> Result<Option<&'static str>, ExplainError> {
    let asked = opening.asked;
    let client = End { address: Some(asked.from), port: None };
    let begun = Connection { endpoint, client, snat: None, mark: Some(0), zone: Some(0) };
    let (walk, way) = forth(node, opening, begun, Turn::First, mark.filter(|_| masqueraded))?;
    let mut doubt = walk.doubt;
    let arrives = matches!(way, Way::By(..) | Way::Local) && !walk.is_over();
    // It is masqueraded where it leaves.
    let masqueraded = masqueraded && (asked.from_this_node || way != Way::Local);
    let (client, snat) = match (&way, walk.translated_behind) {
        (Way::By(_, address), _) if masqueraded => (End { address: *address, port: None }, Some(true)),
        _ if masqueraded => (End::default(), Some(true)),
        (_, Some(false)) => (client, Some(false)),
        (_, translated) => (End::default(), translated),
    };
    let mut connection = Connection { client, snat, mark: walk.packet.connection_mark, zone: walk.zone, ..begun };
    to.next_hop = walk.hop.map(|hop| (hop.gateway.unwrap_or(endpoint.ip()), hop.device));
    to.met.extend(walk.met);
    // Of a client to which nobody knows a way back, that is said of the first packet.
    let is_known = !asked.from.is_unspecified() && (asked.from_this_node || asked.arrives_by.is_some());
    let following: &[(Turn, Which)] = match opening.protocol {
        _ if !arrives || !is_known => &[],
        Protocol::Tcp => {
            &[(Turn::Answer, Which::Answer), (Turn::Later, Which::Later), (Turn::LaterAnswer, Which::LaterAnswer)]
        }
        // Of one that does not open, all answers are alike.
        Protocol::Udp | Protocol::Sctp => &[(Turn::Answer, Which::Answer), (Turn::Later, Which::Later)],
    };
    for (turn, which) in following {
        let (walk, its_way) = match turn.is_answer() {
            true => back(node, opening, connection, &way, *turn)?,
            false => forth(node, opening, connection, *turn, None)?,
        };
        doubt = doubt.or(walk.doubt);
        let other_zone = walk.zone != connection.zone;
        if other_zone && (walk.zone.is_none() || connection.zone.is_none()) {
            doubt = doubt.or(Some(UNKNOWN_ZONE));
            break;
        }
        connection.mark = walk.packet.connection_mark;
        let is_over = walk.is_over() || other_zone || !matches!(its_way, Way::By(..) | Way::Local);
        // In another zone, what was met was met by what is no part of the connection.
        let met = if other_zone { Vec::new() } else { walk.met };
        to.followed.push(Followed { which: *which, way: its_way, met, other_zone });
        if is_over {
            break;
        }
    }
    to.way = Some(way);
    Ok(doubt)
}

/// The way of what the client sends.
fn forth<'a>(
    node: &'a Node,
    opening: Opening<'_>,
    connection: Connection,
    turn: Turn,
    mark: Option<u32>,
) -> Result<(Walk<'a>, Way), ExplainError> {
    let Opening { asked, protocol, first_device } = opening;
    let endpoint = connection.endpoint;
    let is_first = turn == Turn::First;
    let mut packet = first(asked, protocol, Some(endpoint));
    (packet.turn, packet.snat, packet.connection_mark) = (turn, connection.snat, connection.mark);
    packet.source_behind = connection.client;
    packet.output = first_device.map(str::to_owned);
    let begins_at = packet.hook;
    let mut walk = Walk::new(node, packet);
    if is_first {
        walk.past(begins_at, Some(DESTINATION_PRIORITY));
    } else {
        walk.packet.state = State::Established;
        if !asked.from_this_node {
            walk.past(Hook::Ingress, None);
        }
        walk.past(begins_at, None);
    }
    // What comes behind our chain on the same hook does not meet what it masquerades with its mark unless it looks.
    walk.packet.mark = walk.packet.mark.map(|found| found | mark.unwrap_or(0));
    walk.packet.output = None;
    let input = asked.arrives_by.as_deref().and_then(|name| node.index(name));
    let question = Question {
        source: Some(asked.from).filter(|from| !asked.from_this_node || node.is_local(*from)),
        mark: walk.routing_mark(),
        input,
        transport: Some((protocol.number(), 0, endpoint.port())),
        ..Question::to(endpoint.ip())
    };
    let no_way_back = !asked.from_this_node && input.is_none();
    // The kernel takes a source of others for nothing but what has come in.
    let question = if no_way_back { Question { source: None, ..question } } else { question };
    let mut way = way(node, &question, asked.arrives_by.as_deref(), &mut walk.hop)?;
    if let Some(hop) = walk.hop.filter(|_| is_first && mark.is_some()) {
        way = node.by(routing::Hop { source: own_source(endpoint.ip(), hop), ..hop });
    }
    let mut hooks = Vec::new();
    match &way {
        Way::By(device, address) => {
            walk.packet.output = Some(device.clone());
            if is_first && mark.is_some() {
                walk.packet.source_behind = End { address: *address, port: None };
            }
            if !asked.from_this_node {
                hooks.push(Hook::Forward);
            }
            hooks.extend([Hook::Postrouting, Hook::Egress]);
        }
        Way::Local => {
            if asked.from_this_node {
                // It leaves by loopback, and comes in again.
                hooks.extend([Hook::Postrouting, Hook::Egress, Hook::Ingress, Hook::Prerouting]);
                walk.packet.output = Some(LOOPBACK.to_owned());
                if is_first && mark.is_some() {
                    walk.packet.source_behind = End::default();
                }
            }
            hooks.push(Hook::Input);
        }
        _ => {}
    }
    for hook in hooks {
        if hook == Hook::Postrouting {
            walk.packet.translated_by = Some(SOURCE_PRIORITY);
        }
        if hook == Hook::Ingress {
            (walk.packet.input, walk.packet.output) = (walk.packet.output.take(), None);
        }
        walk.past(hook, None);
        if hook == Hook::Postrouting {
            // It is masqueraded, and no longer asks for it.
            walk.packet.mark = walk.packet.mark.map(|found| found & !mark.unwrap_or(0));
            if is_first && mark.is_none() && walk.translated_behind != Some(false) {
                walk.packet.source_behind = End::default();
            }
        }
    }
    Ok((walk, way))
}

/// The way of what comes back from the endpoint, by the device that leads there.
fn back<'a>(
    node: &'a Node,
    opening: Opening<'_>,
    connection: Connection,
    there: &Way,
    turn: Turn,
) -> Result<(Walk<'a>, Way), ExplainError> {
    let Opening { asked, protocol, .. } = opening;
    let endpoint = connection.endpoint;
    let by = match there {
        Way::By(device, _) => Some(device.clone()),
        _ => None,
    };
    let is_loop = by.is_none() && asked.from_this_node;
    let mut walk = Walk::new(
        node,
        Packet {
            hook: if by.is_some() { Hook::Ingress } else { Hook::Output },
            turn,
            source: endpoint.ip(),
            source_port: Some(endpoint.port()),
            source_behind: End { address: Some(asked.to.ip()), port: Some(asked.to.port()) },
            destination_ahead: connection.client,
            destination: asked.from,
            destination_port: None,
            protocol: protocol.number(),
            input: by.clone(),
            output: None,
            mark: Some(0),
            connection_mark: connection.mark,
            state: State::Established,
            dnat: true,
            snat: connection.snat,
            translated_by: None,
        },
    );
    let mut question = Question {
        source: Some(endpoint.ip()),
        input: by.as_deref().and_then(|device| node.index(device)),
        transport: Some((protocol.number(), endpoint.port(), 0)),
        ..Question::to(asked.from)
    };
    if by.is_some() {
        walk.past(Hook::Ingress, None);
        walk.past(Hook::Prerouting, None);
    } else {
        // What the node sends is routed before any chain sees it, and as it is before it is translated.
        let to = connection.client.address.unwrap_or(asked.from);
        walk.packet.output = match way(node, &Question { destination: to, ..question }, None, &mut None)? {
            Way::By(device, _) => Some(device),
            Way::Local => Some(LOOPBACK.to_owned()),
            nowhere => return Ok((walk, nowhere)),
        };
        walk.past(Hook::Output, None);
    }
    question.mark = walk.routing_mark();
    let way = way(node, &question, by.as_deref(), &mut walk.hop)?;
    match &way {
        Way::By(device, _) => {
            walk.packet.output = Some(device.clone());
            if by.is_some() {
                walk.past(Hook::Forward, None);
            }
            walk.past(Hook::Postrouting, None);
            walk.past(Hook::Egress, None);
        }
        Way::Local => {
            if is_loop {
                walk.packet.output = Some(LOOPBACK.to_owned());
                walk.past(Hook::Postrouting, None);
                walk.past(Hook::Egress, None);
                (walk.packet.input, walk.packet.output) = (walk.packet.output.take(), None);
                walk.past(Hook::Ingress, None);
                walk.past(Hook::Prerouting, None);
            }
            walk.past(Hook::Input, None);
        }
        _ => {}
    }
    Ok((walk, way))
}

/// What routes say; `input` is the interface that it has come in by. `to` is whom it is handed to, if it leaves.
fn way(
    node: &Node,
    question: &Question,
    input: Option<&str>,
    to: &mut Option<routing::Hop>,
) -> Result<Way, ExplainError> {
    let family = Family::of(question.destination);
    let not_forwarded = || input.and_then(|device| node.not_forwarded(device, family));
    Ok(match routing::route(question).map_err(|error| ExplainError::Node("a route", error))? {
        Route::By(hop) => match not_forwarded() {
            Some(refused) => refused,
            None => {
                *to = Some(hop);
                node.by(hop)
            }
        },
        Route::Local => Way::Local,
        Route::Nowhere(Refusal::Source) => node.reverse_path(input.unwrap_or_default(), question.source),
        Route::Nowhere(why) => not_forwarded().unwrap_or_else(|| Way::Nowhere(why.to_string())),
    })
}

/// The source that masquerading gives to what leaves by this hop.
fn own_source(to: IpAddr, hop: routing::Hop) -> Option<IpAddr> {
    let question = Question { output: Some(hop.device), ..Question::to(to) };
    match routing::route(&question) {
        Ok(Route::By(hop)) => hop.source,
        _ => None,
    }
}

/// The first packet where it begins; what it is to the endpoint that it is translated to, if there is one.
pub(super) fn first(asked: &Asked, protocol: Protocol, endpoint: Option<SocketAddr>) -> Packet {
    let to = endpoint.unwrap_or(asked.to);
    Packet {
        hook: if asked.from_this_node { Hook::Output } else { Hook::Prerouting },
        turn: Turn::First,
        source: asked.from,
        source_port: None,
        source_behind: End { address: Some(asked.from), port: None },
        destination_ahead: End { address: Some(asked.to.ip()), port: Some(asked.to.port()) },
        destination: to.ip(),
        destination_port: Some(to.port()),
        protocol: protocol.number(),
        input: asked.arrives_by.clone(),
        output: None,
        mark: Some(0),
        connection_mark: Some(0),
        state: State::New,
        dnat: endpoint.is_some(),
        snat: None,
        translated_by: endpoint.map(|_| DESTINATION_PRIORITY),
    }
}
