//! A packet on its way from rule to rule.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::index::{fits, value_type};
use super::{EvalError, Origin, Packet, Reached, Step, Tracer, malformed};
use crate::model::Protocol;
use crate::ruleset::hash;
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::text;
use crate::ruleset::types::{
    Data, DataDef, Element, HookPoint, Key, Rule, Selector, SetDef, Statement, Value, Verdict,
};

/// Deeper than any chain of ours calls another, and a bound for rules that would never end.
const MAX_DEPTH: usize = 16;

/// What changes about a packet on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct State {
    pub(super) destination: SocketAddr,
    pub(super) mark: u32,
    pub(super) priority: u32,
}

/// How a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// Its last rule did not decide.
    Open,
    Translated(SocketAddr),
    Masqueraded,
    Reject,
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Reached(Reached),
    Reject,
    Drop,
    Pass,
}

/// How a chain ends, once for each way through it.
pub(super) type Endings = BTreeSet<(Ending, State)>;

/// One packet on its way.
pub(super) struct Walk<'a> {
    pub(super) tracer: &'a Tracer<'a>,
    pub(super) packet: &'a Packet,
    /// Whether it is an echo request: of no protocol that a Service has.
    pub(super) is_ping: bool,
    pub(super) hook: HookPoint,
    pub(super) steps: Vec<Step>,
}

impl Walk<'_> {
    /// All base chains of a hook, one after the other; the first that decides ends it.
    pub(super) fn on_hook(&mut self, hook: HookPoint, start: State) -> Result<Endings, EvalError> {
        self.hook = hook;
        if let Some(why) = self.tracer.unread.get(&base_chain(hook)) {
            return Err(EvalError::Unread(why.clone()));
        }
        let mut open = BTreeSet::from([start]);
        let mut endings = Endings::new();
        for chain in &self.tracer.base_chains {
            if chain.hook.is_none_or(|it| it.hook != hook) {
                continue;
            }
            let mut still_open = BTreeSet::new();
            for state in open {
                for (ending, state) in self.chain(chain.name, state, 0)? {
                    if ending == Ending::Open {
                        still_open.insert(state);
                    } else {
                        endings.insert((ending, state));
                    }
                }
            }
            open = still_open;
        }
        endings.extend(open.into_iter().map(|state| (Ending::Open, state)));
        Ok(endings)
    }

    fn chain(&mut self, name: ChainName, start: State, depth: usize) -> Result<Endings, EvalError> {
        let Some(chain) = self.tracer.chains.get(&name) else {
            let unread = self.tracer.unread.get(&name).map(|why| EvalError::Unread(why.clone()));
            return Err(unread.unwrap_or_else(|| malformed(format_args!("chain {name} is not there"))));
        };
        if depth > MAX_DEPTH {
            return Err(malformed(format_args!("chain {name} is reached by more than {MAX_DEPTH} jumps")));
        }
        let mut open = BTreeSet::from([start]);
        let mut endings = Endings::new();
        for rule in &chain.rules {
            let mut still_open = BTreeSet::new();
            for state in open {
                let mut at = At { chain: name, rule, state, depth, found: Vec::new(), ended: Endings::new() };
                let continues = self.rule(&mut at)?;
                endings.extend(at.ended);
                if continues {
                    still_open.insert(at.state);
                }
            }
            open = still_open;
        }
        endings.extend(open.into_iter().map(|state| (Ending::Open, state)));
        Ok(endings)
    }

    /// Whether the next rule is looked at, with the state that is left in `at`.
    fn rule(&mut self, at: &mut At<'_>) -> Result<bool, EvalError> {
        for (position, statement) in at.rule.statements.iter().enumerate() {
            let is_last = position + 1 == at.rule.statements.len();
            let matches = match statement {
                Statement::SourceIn { net, negated } => net.contains(&self.packet.source) != *negated,
                Statement::DestinationIn { net, negated } => net.contains(&at.state.destination.ip()) != *negated,
                Statement::InputInterface { name, prefix, negated } => self.arrived_by(at, name, *prefix)? != *negated,
                Statement::L4ProtoIs(protocol) => !self.is_ping && self.packet.protocol == *protocol,
                Statement::EchoRequest => self.is_ping,
                Statement::SourceIsLocal => self.tracer.is_local(self.packet.source),
                Statement::DestinationIsLocal { negated } => {
                    self.tracer.is_local(at.state.destination.ip()) != *negated
                }
                Statement::StatusDnat => self.is_translated(at.state),
                Statement::Priority { value, negated } => (at.state.priority == *value) != *negated,
                Statement::SetPriority(value) => {
                    at.state.priority = *value;
                    true
                }
                // What is traced is a first packet.
                Statement::DirectionOriginal => true,
                Statement::PriorityFromMap { key, map } => match self.priority_from(at, key, *map)? {
                    None => false,
                    Some((priority, element)) => {
                        at.found.push(element);
                        at.state.priority = priority;
                        true
                    }
                },
                Statement::MarkHas(bits) => at.state.mark & bits != 0,
                Statement::SetMark(bits) => {
                    at.state.mark |= bits;
                    true
                }
                Statement::ClearMark(bits) => {
                    at.state.mark &= !bits;
                    true
                }
                Statement::InSet { key, set, negated } => {
                    self.set(at, *set, key, |data| *data == DataDef::None)?;
                    self.look_up(at, *set, key)?.is_some() != *negated
                }
                Statement::Update { map, key, data, .. } => {
                    self.check_update(at, *map, key, data)?;
                    true
                }
                _ if !is_last => return Err(self.malformed_rule(at, "a statement follows one that ends the rule")),
                ending => return self.last_statement(at, ending),
            };
            if !matches {
                return Ok(true);
            }
        }
        self.step(at, String::new());
        Ok(true)
    }

    /// A statement that can end the chain.
    fn last_statement(&mut self, at: &mut At<'_>, statement: &Statement) -> Result<bool, EvalError> {
        let ending = match statement {
            Statement::Verdict(verdict) => {
                self.step(at, String::new());
                return self.verdict(at, *verdict);
            }
            Statement::VerdictMap { key, map } => {
                self.set(at, *map, key, |data| *data == DataDef::Verdict)?;
                let Some(element) = self.look_up(at, *map, key)? else { return Ok(true) };
                let Data::Verdict(verdict) = element.data else {
                    return Err(self.malformed_rule(at, "the map holds no verdicts"));
                };
                at.found.push(text::element(&element));
                self.step(at, at.found.join(", "));
                return self.verdict(at, verdict);
            }
            Statement::DnatMap { key, map } => return self.translate(at, key, *map),
            Statement::DnatTo(address) if self.translates() => {
                Ending::Translated(SocketAddr::new(*address, at.state.destination.port()))
            }
            Statement::Masquerade { .. } if self.hook == HookPoint::Postrouting => Ending::Masqueraded,
            Statement::RejectTcp if self.packet.protocol == Protocol::Tcp && !self.is_ping => Ending::Reject,
            Statement::Reject => Ending::Reject,
            _ => return Err(self.malformed_rule(at, "the statement cannot be used here")),
        };
        self.step(at, String::new());
        at.ended.insert((ending, at.state));
        Ok(false)
    }

    fn verdict(&mut self, at: &mut At<'_>, verdict: Verdict) -> Result<bool, EvalError> {
        match verdict {
            Verdict::Drop => {
                at.ended.insert((Ending::Drop, at.state));
                Ok(false)
            }
            // Whatever ends the other chain, even its last rule, ends this one.
            Verdict::Goto(chain) => {
                at.ended.extend(self.chain(chain, at.state, at.depth + 1)?);
                Ok(false)
            }
            Verdict::Jump(chain) => {
                let mut returned = BTreeSet::new();
                for (ending, state) in self.chain(chain, at.state, at.depth + 1)? {
                    if ending == Ending::Open {
                        returned.insert(state);
                    } else {
                        at.ended.insert((ending, state));
                    }
                }
                match (returned.pop_first(), returned.is_empty()) {
                    (None, _) => Ok(false),
                    (Some(state), true) => {
                        at.state = state;
                        Ok(true)
                    }
                    (Some(_), false) => Err(self.malformed_rule(at, "the chain returns in different states")),
                }
            }
        }
    }

    fn translate(&mut self, at: &mut At<'_>, key: &[Selector], map: SetName) -> Result<bool, EvalError> {
        if !self.translates() {
            return Err(self.malformed_rule(at, "destinations are translated in prerouting and output only"));
        }
        self.set(at, map, key, |data| matches!(data, DataDef::Values(_)))?;
        let mut found = BTreeSet::new();
        let mut missed = false;
        for element in self.find_all(map, &self.keys(at, key)?)? {
            match element.as_ref().map(|element| &element.data) {
                None => missed = true,
                Some(Data::Values(values)) => match values[..] {
                    [Value::Address(address), Value::Port(port)] => {
                        found.insert(SocketAddr::new(address, port));
                    }
                    _ => return Err(self.malformed_rule(at, "the map holds no endpoints")),
                },
                Some(_) => return Err(self.malformed_rule(at, "the map holds no endpoints")),
            }
        }
        if !found.is_empty() {
            self.step(at, found.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", "));
        }
        at.ended.extend(found.into_iter().map(|endpoint| (Ending::Translated(endpoint), at.state)));
        Ok(missed)
    }

    /// Whether destinations are translated here.
    fn translates(&self) -> bool {
        matches!(self.hook, HookPoint::Prerouting | HookPoint::Output)
    }

    /// What a map to priorities holds, and the element as text.
    fn priority_from(&self, at: &At<'_>, key: &[Selector], map: SetName) -> Result<Option<(u32, String)>, EvalError> {
        self.set(at, map, key, |data| matches!(data, DataDef::Values(_)))?;
        let Some(element) = self.look_up(at, map, key)? else { return Ok(None) };
        match &element.data {
            Data::Values(values) => match values[..] {
                [Value::Class(class)] => Ok(Some((class, text::element(&element)))),
                _ => Err(self.malformed_rule(at, "the map holds no priorities")),
            },
            _ => Err(self.malformed_rule(at, "the map holds no priorities")),
        }
    }

    fn check_update(&self, at: &At<'_>, map: SetName, key: &[Selector], data: &[Selector]) -> Result<(), EvalError> {
        let set = self.set(at, map, key, |types| matches!(types, DataDef::Values(_)))?;
        self.single_key(at, key)?;
        let values = self.single_key(at, data)?;
        match &set.data {
            DataDef::Values(types) if set.dynamic && fits(&values, types, self.tracer.family) => Ok(()),
            _ => Err(self.malformed_rule(at, "the map cannot take such an element")),
        }
    }

    /// A set that a rule looks into, if key and data are of the types that the rule takes them for.
    fn set(
        &self,
        at: &At<'_>,
        name: SetName,
        key: &[Selector],
        data: impl Fn(&DataDef) -> bool,
    ) -> Result<&SetDef, EvalError> {
        let set = self.tracer.sets.def(name).map_err(|why| self.malformed_rule(at, why))?;
        let same_types = key.len() == set.key.len()
            && key.iter().zip(&set.key).all(|(ours, theirs)| value_type(*ours) == value_type(*theirs));
        if !same_types || !data(&set.data) {
            return Err(self.malformed_rule(at, "the set is of another type"));
        }
        Ok(set)
    }

    /// The element for what the packet is looked up by. No set has one for a protocol that no Service has.
    fn look_up(&self, at: &At<'_>, set: SetName, key: &[Selector]) -> Result<Option<Cow<'_, Element>>, EvalError> {
        let by_protocol = key.iter().any(|expr| matches!(expr, Selector::L4Proto | Selector::HeaderProtocol));
        let key = self.single_key(at, key)?;
        if self.is_ping && by_protocol {
            return Ok(None);
        }
        Ok(self.find_all(set, &[key])?.pop().flatten())
    }

    fn find_all(&self, set: SetName, keys: &[Key]) -> Result<Vec<Option<Cow<'_, Element>>>, EvalError> {
        self.tracer.sets.find(set, keys).map_err(|why| EvalError::Set(set, why))
    }

    fn single_key(&self, at: &At<'_>, exprs: &[Selector]) -> Result<Key, EvalError> {
        let mut keys = self.keys(at, exprs)?;
        match (keys.pop(), keys.is_empty()) {
            (Some(key), true) => Ok(key),
            _ => Err(self.malformed_rule(at, "a random slot is of use for translation only")),
        }
    }

    /// The values of the expressions, once for each slot that can be drawn.
    fn keys(&self, at: &At<'_>, exprs: &[Selector]) -> Result<Vec<Key>, EvalError> {
        let mut keys = vec![Key::new()];
        for expr in exprs {
            let value = match *expr {
                Selector::SourceAddress | Selector::OriginalSource => Value::Address(self.packet.source),
                Selector::DestinationAddress | Selector::ReplySource => Value::Address(at.state.destination.ip()),
                Selector::OriginalDestination => Value::Address(self.packet.destination),
                Selector::L4Proto | Selector::HeaderProtocol => Value::Protocol(self.packet.protocol),
                Selector::DestinationPort | Selector::ReplyPort => Value::Port(at.state.destination.port()),
                Selector::OriginalPort => Value::Port(self.packet.port),
                Selector::Priority => Value::Class(at.state.priority),
                Selector::HashedSlot { of, modulus, offset }
                    if modulus > 0
                        && let Some(slot) =
                            hash::slot_of(of, self.packet.source, at.state.destination.ip(), modulus) =>
                {
                    Value::Slot(offset.saturating_add(slot))
                }
                Selector::RandomSlot { modulus, offset }
                | Selector::NextSlot { modulus, offset }
                | Selector::HashedSlot { modulus, offset, .. } => {
                    let Some(end) = offset.checked_add(modulus).filter(|_| modulus > 0) else {
                        return Err(self.malformed_rule(at, "there are no such slots"));
                    };
                    let with_slot = |key: &Key, slot| {
                        let mut key = key.clone();
                        key.push(Value::Slot(slot));
                        key
                    };
                    keys = keys.iter().flat_map(|key| (offset..end).map(move |slot| with_slot(key, slot))).collect();
                    continue;
                }
            };
            for key in &mut keys {
                key.push(value);
            }
        }
        Ok(keys)
    }

    fn arrived_by(&self, at: &At<'_>, name: &str, prefix: bool) -> Result<bool, EvalError> {
        match &self.packet.origin {
            // The name is then empty, which no other equals and which `!=` matches (Linux >= 5.4).
            Origin::Node | Origin::Proxy => Ok(false),
            Origin::Arrives(Some(interface)) if prefix => Ok(interface.starts_with(name)),
            Origin::Arrives(Some(interface)) => Ok(**interface == *name),
            Origin::Arrives(None) => Err(EvalError::Interface(at.chain, text::rule(self.tracer.family, at.rule))),
        }
    }

    fn is_translated(&self, state: State) -> bool {
        state.destination != SocketAddr::new(self.packet.destination, self.packet.port)
    }

    pub(super) fn fate(&self, ending: Ending, state: State) -> Result<Fate, EvalError> {
        let goes_on = !matches!(ending, Ending::Reject | Ending::Drop);
        if goes_on && Kind::of_class(state.priority).is_some() {
            return Err(malformed(format_args!("the packet leaves with the priority {:#x}", state.priority)));
        }
        match ending {
            Ending::Reject => Ok(Fate::Reject),
            Ending::Drop => Ok(Fate::Drop),
            Ending::Open | Ending::Masqueraded if self.is_translated(state) => {
                Ok(Fate::Reached(Reached { endpoint: state.destination, masqueraded: ending == Ending::Masqueraded }))
            }
            Ending::Open | Ending::Masqueraded => Ok(Fate::Pass),
            Ending::Translated(endpoint) => {
                Err(malformed(format_args!("the destination is translated twice, at last to {endpoint}")))
            }
        }
    }

    fn step(&mut self, at: &At<'_>, found: String) {
        let step = Step { hook: self.hook, chain: at.chain, rule: text::rule(self.tracer.family, at.rule), found };
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    fn malformed_rule(&self, at: &At<'_>, why: &str) -> EvalError {
        let rule = text::rule(self.tracer.family, at.rule);
        malformed(format_args!("chain {}, rule \"{rule}\": {why}", at.chain))
    }
}

/// The base chain that ours have on a hook.
fn base_chain(hook: HookPoint) -> ChainName {
    match hook {
        HookPoint::Prerouting => ChainName::NatPrerouting,
        HookPoint::Input => ChainName::NatInput,
        HookPoint::Output => ChainName::NatOutput,
        HookPoint::Postrouting => ChainName::NatPostrouting,
    }
}

/// A rule that is being evaluated.
struct At<'a> {
    chain: ChainName,
    rule: &'a Rule,
    state: State,
    depth: usize,
    /// What its look-ups have found so far.
    found: Vec<String>,
    /// Endings of the chain that the rule brought about.
    ended: Endings,
}
