//! What one rule does to a packet: its steps, with registers of which some bits are not known. Pure.

use super::bits::{Bits, Three};
use super::rule::{Action, Comparison, Gives, Marked, Net, Ports, Rule, Step, Test, XmarkBy};
use super::view::{Carried, Loaded, View};

/// The registers: 20 of four bytes (`NFT_REG_SIZE`, and the first for the verdict).
const REGISTERS: usize = 80;
/// Bits of `XT_CONNTRACK_STATE_*` that say how a connection is translated; the others are as `NF_CT_STATE_*`.
const XT_SNAT: u16 = 1 << 6;
const XT_DNAT: u16 = 1 << 7;
const XT_UNTRACKED: u16 = 1 << 8;
/// `NF_CT_STATE_UNTRACKED_BIT`.
const CT_UNTRACKED: u32 = 1 << 6;

/// What a rule has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Whether it matches.
    pub(super) matches: Three,
    /// The first condition that nobody can tell, if it may match.
    pub(super) why: Option<String>,
    /// What it does then; `None` if the next rule follows.
    pub(super) action: Option<Action>,
    /// Whether it has kept the packet from being tracked.
    pub(super) untracks: Three,
}

/// Where a table is, for look-ups in its sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) family: &'a str,
    pub(super) name: &'a str,
}

/// What a step comes to.
enum Goes {
    On,
    /// The condition does not hold.
    Off,
    /// Nobody can tell whether it holds.
    Perhaps(String),
    End(Action),
    /// The same, if the condition holds, which nobody can tell.
    PerhapsEnd(Action, String),
}

/// Takes a packet through a rule; what it sets is carried on as far as the rule has come.
pub(super) fn rule(rule: &Rule, view: &View<'_>, table: Table<'_>, carried: &mut Carried) -> Outcome {
    let mut run = Run { view, table, registers: Bits::unknown(REGISTERS), loose: Vec::new() };
    let mut outcome = Outcome { matches: Three::Yes, why: None, action: None, untracks: Three::No };
    for step in &rule.steps {
        let mut next = carried.clone();
        let goes = run.step(step, &mut next);
        if let Goes::Off = goes {
            outcome.matches = Three::No;
            return outcome;
        }
        // What is set behind a doubtful condition may have been set.
        *carried = if outcome.matches == Three::Yes { next } else { carried.join(&next) };
        if matches!(step, Step::NoTrack) && view.seen != Three::Yes {
            outcome.untracks = outcome.matches.and(view.seen.not());
        }
        let (why, action) = match goes {
            Goes::Perhaps(why) => (Some(why), None),
            Goes::PerhapsEnd(action, why) => (Some(why), Some(action)),
            Goes::End(action) => (None, Some(action)),
            Goes::On | Goes::Off => (None, None),
        };
        if why.is_some() {
            outcome.matches = Three::Maybe;
            outcome.why = outcome.why.or(why);
        }
        if action.is_some() {
            outcome.action = action;
            return outcome;
        }
    }
    outcome
}

struct Run<'a> {
    view: &'a View<'a>,
    table: Table<'a>,
    registers: Bits,
    /// What is in registers whose bits are not known, for words.
    loose: Vec<(usize, String)>,
}

impl Run<'_> {
    fn step(&mut self, step: &Step, carried: &mut Carried) -> Goes {
        match step {
            Step::Load { to, field } => match self.view.load(*field, carried) {
                Loaded::Value(bits) => self.put(*to, &bits),
                Loaded::Nothing => return Goes::Off,
                Loaded::Unknown { length, what } => {
                    self.put(*to, &Bits::unknown(length));
                    self.loose.push((*to, what));
                }
            },
            Step::Put { to, data } => self.put(*to, &Bits::known(data)),
            Step::Mask { from, to, mask, xor } => {
                let bits = self.registers.part(*from, mask.len()).masked(mask, xor);
                self.moved(*from, *to);
                self.put(*to, &bits);
            }
            Step::Swap { from, to, length, size } => {
                let bits = self.registers.part(*from, *length).swapped(*size);
                self.moved(*from, *to);
                self.put(*to, &bits);
            }
            Step::Forget { to, length } => self.put(*to, &Bits::unknown(*length)),
            Step::Compare { from, by, data } => {
                let bits = self.registers.part(*from, data.len());
                let holds = match by {
                    Comparison::Equal => bits.equals(data),
                    Comparison::Unequal => bits.equals(data).not(),
                    Comparison::Less => bits.is_less(data),
                    Comparison::AtMost => bits.is_at_most(data),
                    Comparison::More => bits.is_at_most(data).not(),
                    Comparison::AtLeast => bits.is_less(data).not(),
                };
                return self.if_holds(holds, *from);
            }
            Step::Range { from, inverted, low, high } => {
                let bits = self.registers.part(*from, low.len());
                let holds = bits.is_less(low).not().and(bits.is_at_most(high));
                return self.if_holds(holds.inverted(*inverted), *from);
            }
            Step::LookUp { from, set, inverted, gives } => return self.look_up(*from, set, *inverted, *gives),
            Step::Is { test, inverted } => {
                let holds = self.test(test, carried);
                // The kernel asks for no inversion of what needs a connection where there is none.
                let tracked = if needs_connection(test) { self.view.is_tracked(carried) } else { Three::Yes };
                return match holds.inverted(*inverted).and(tracked) {
                    Three::Yes => Goes::On,
                    Three::No => Goes::Off,
                    Three::Maybe => Goes::Perhaps(words(test)),
                };
            }
            Step::May(why) => return Goes::Perhaps(why.clone()),
            Step::Mark { of, from } => {
                let bits = self.registers.part(*from, 4);
                self.set(*of, bits, carried);
            }
            Step::Xmark { of, mask, by } => {
                let (mine, others) = match of {
                    Marked::Packet => (&carried.mark, &carried.connection_mark),
                    Marked::Connection => (&carried.connection_mark, &carried.mark),
                };
                let kept = (!mask).to_ne_bytes();
                let bits = match by {
                    XmarkBy::Value(value) => mine.masked(&kept, &value.to_ne_bytes()),
                    XmarkBy::Other(other) => {
                        let both = mine.number().zip(others.number());
                        let both = both.map(|(mine, others)| (mine & !mask) ^ (others & other));
                        both.map_or_else(|| Bits::unknown(4), |both| Bits::known(&both.to_ne_bytes()))
                    }
                };
                // Without a connection there is nothing to take a mark from.
                match (by, self.view.is_tracked(carried)) {
                    (XmarkBy::Value(_), _) | (_, Three::Yes) => self.set(*of, bits, carried),
                    (XmarkBy::Other(_), Three::No) => {}
                    (XmarkBy::Other(_), Three::Maybe) => self.set(*of, mine.join(&bits), carried),
                }
            }
            Step::NoTrack => {
                // What has a connection keeps it.
                carried.untracked = carried.untracked.or(self.view.seen.not());
            }
            Step::Zone { from } => {
                // What has a connection keeps its zone.
                let zone = from.map_or_else(|| Bits::unknown(2), |from| self.registers.part(from, 2));
                carried.zone = match self.view.seen {
                    Three::No => zone,
                    Three::Yes => return Goes::On,
                    Three::Maybe => carried.zone.join(&zone),
                };
            }
            Step::Mangle => carried.intact = false,
            Step::Do(action) => return Goes::End(action.clone()),
        }
        Goes::On
    }

    /// Sets a mark; that of a connection where there is one.
    fn set(&self, of: Marked, bits: Bits, carried: &mut Carried) {
        match (of, self.view.is_tracked(carried)) {
            (Marked::Packet, _) => carried.mark = bits,
            (Marked::Connection, Three::Yes) => carried.connection_mark = bits,
            (Marked::Connection, Three::Maybe) => carried.connection_mark = carried.connection_mark.join(&bits),
            (Marked::Connection, Three::No) => {}
        }
    }

    /// Puts bytes into registers, of which the last is filled with zeros.
    fn put(&mut self, to: usize, bits: &Bits) {
        self.registers.write(to, &Bits::known(&vec![0; bits.len().next_multiple_of(4)]));
        self.registers.write(to, bits);
    }

    /// What was not known is somewhere else.
    fn moved(&mut self, from: usize, to: usize) {
        let what = self.loose.iter().rev().find(|(at, _)| *at == from).map(|(_, what)| what.clone());
        self.loose.extend(what.map(|what| (to, what)));
    }

    fn if_holds(&self, holds: Three, from: usize) -> Goes {
        match holds {
            Three::Yes => Goes::On,
            Three::No => Goes::Off,
            Three::Maybe => Goes::Perhaps(self.doubt(from)),
        }
    }

    /// Why nobody knows what is in a register.
    fn doubt(&self, from: usize) -> String {
        let what = self.loose.iter().rev().find(|(at, _)| *at == from).map(|(_, what)| what.as_str());
        format!("it asks for {}", what.unwrap_or("something that is not known of the packet"))
    }

    fn look_up(&mut self, from: usize, set: &str, inverted: bool, gives: Gives) -> Goes {
        let Table { family, name } = self.table;
        let world = self.view.world;
        let unknown = |run: &mut Self, why: String| match gives {
            Gives::Nothing => Goes::Perhaps(why),
            Gives::Verdict => Goes::PerhapsEnd(Action::Unknown(why.clone()), why),
            Gives::Data { to } => {
                run.put(to, &Bits::unknown(16));
                Goes::Perhaps(why)
            }
        };
        let Some(length) = world.key_length(family, name, set) else {
            return unknown(self, format!("set {set} is not known"));
        };
        let key = self.registers.part(from, length);
        let Some(key) = key.bytes() else {
            // Of a concatenation any part may be the one.
            let loose = self.loose.iter().rev().find(|(at, _)| (from..from + length).contains(at)).map(|(at, _)| *at);
            return unknown(self, self.doubt(loose.unwrap_or(from)));
        };
        match world.element(family, name, set, key) {
            Err(error) => unknown(self, format!("set {set} cannot be asked: {error}")),
            Ok(None) if inverted => Goes::On,
            Ok(None) => Goes::Off,
            Ok(Some(element)) if element.is_limited => unknown(self, format!("an element of set {set} has a limit")),
            Ok(Some(_)) if inverted => Goes::Off,
            Ok(Some(element)) => match gives {
                Gives::Nothing => Goes::On,
                Gives::Data { to } => {
                    self.put(to, &Bits::known(&element.data));
                    Goes::On
                }
                Gives::Verdict => match element.verdict {
                    Some(action) => Goes::End(action),
                    // `continue`.
                    None => Goes::On,
                },
            },
        }
    }

    fn test(&self, test: &Test, carried: &Carried) -> Three {
        let view = self.view;
        let packet = view.packet;
        let within = |address: Option<Bits>, net: &Net| {
            address.map_or(Three::Maybe, |address| address.masked(&net.mask, &[]).equals(&net.value))
        };
        let sent = || view.tuple(false, carried);
        let original = |address: Option<std::net::IpAddr>, net: &Net| {
            let bits = match address {
                Some(std::net::IpAddr::V4(ip)) => Bits::known(&ip.octets()),
                Some(std::net::IpAddr::V6(ip)) => Bits::known(&ip.octets()),
                None => return Three::Maybe,
            };
            // Structures have room for both families.
            let length = bits.len();
            let cut = Net {
                value: net.value.iter().copied().take(length).collect(),
                mask: net.mask.iter().copied().take(length).collect(),
            };
            within(Some(bits), &cut)
        };
        match test {
            Test::Source(net) => within(view.source(carried), net),
            Test::Destination(net) => within(view.destination(carried), net),
            Test::Protocol(number) => (*number == packet.protocol).into(),
            Test::SourcePorts(ports) => self.ports(view.source_port(carried), ports),
            Test::DestinationPorts(ports) => self.ports(view.destination_port(carried), ports),
            Test::EitherPorts(ports) => {
                let (from, to) = (view.source_port(carried), view.destination_port(carried));
                self.ports(from, ports).or(self.ports(to, ports))
            }
            Test::Input(name, whole) => named(packet.input.as_deref(), name, *whole),
            Test::Output(name, whole) => named(packet.output.as_deref(), name, *whole),
            Test::States(wanted) => self.states(*wanted, carried),
            Test::OriginalSource(net) => original(sent().0.address, net),
            Test::OriginalDestination(net) => original(sent().1.address, net),
            Test::OriginalSourcePorts(ports) => self.ports(sent().0.port, ports),
            Test::OriginalDestinationPorts(ports) => self.ports(sent().1.port, ports),
            Test::ConnectionProtocol(number) => (*number == packet.protocol).into(),
            Test::IsOriginal => (!packet.turn.is_answer()).into(),
            Test::Mark(of, value, mask) => {
                let bits = match of {
                    Marked::Packet => &carried.mark,
                    Marked::Connection => &carried.connection_mark,
                };
                bits.masked(&mask.to_ne_bytes(), &[]).equals(&value.to_ne_bytes())
            }
            Test::TcpFlags(value, mask) => {
                let (flags, known) = view.flags();
                Bits::unknown(1).masked(&[!known], &[flags]).masked(&[*mask], &[]).equals(&[*value])
            }
            Test::SourceType(types) => self.type_of(view.source_address(carried), *types),
            Test::DestinationType(types) => self.type_of(view.destination_address(carried), *types),
            Test::IsFragment => Three::No,
        }
    }

    fn ports(&self, port: Option<u16>, ports: &Ports) -> Three {
        match port {
            _ if !self.view.has_ports() => Three::No,
            Some(port) => ports.iter().any(|(first, last)| (*first..=*last).contains(&port)).into(),
            None if ports.contains(&(0, u16::MAX)) => Three::Yes,
            None => Three::Maybe,
        }
    }

    fn type_of(&self, address: Option<std::net::IpAddr>, types: u16) -> Three {
        let kind = address.map(|address| self.view.world.address_type(address));
        match kind {
            Some(Ok(kind)) if kind < 16 => (types & (1 << kind) != 0).into(),
            _ => Three::Maybe,
        }
    }

    fn states(&self, wanted: u16, carried: &Carried) -> Three {
        let Some(state) = self.view.state(carried) else { return Three::Maybe };
        let state = if state == CT_UNTRACKED { XT_UNTRACKED } else { u16::try_from(state).unwrap_or_default() };
        let by_state = Three::from(wanted & state != 0);
        if self.view.is_tracked(carried) != Three::Yes {
            return by_state;
        }
        let by_dnat = match wanted & XT_DNAT {
            0 => Three::No,
            _ if carried.intact => self.view.dnat,
            _ => Three::Maybe,
        };
        let is_snat = self.view.snat.filter(|_| carried.intact).map_or(Three::Maybe, Three::from);
        let by_snat = if wanted & XT_SNAT == 0 { Three::No } else { is_snat };
        by_state.or(by_dnat).or(by_snat)
    }
}

/// Whether it does not hold, inverted or not, where there is no connection.
fn needs_connection(test: &Test) -> bool {
    use Test::{ConnectionProtocol, IsOriginal, Mark};
    use Test::{OriginalDestination, OriginalDestinationPorts, OriginalSource, OriginalSourcePorts};
    matches!(
        test,
        ConnectionProtocol(_)
            | IsOriginal
            | OriginalDestination(_)
            | OriginalDestinationPorts(_)
            | OriginalSource(_)
            | OriginalSourcePorts(_)
            | Mark(Marked::Connection, ..)
    )
}

fn named(device: Option<&str>, name: &str, whole: bool) -> Three {
    let device = device.unwrap_or_default();
    if whole { (device == name).into() } else { device.starts_with(name).into() }
}

fn words(test: &Test) -> String {
    let what = match test {
        Test::Source(_) | Test::Destination(_) => "an address that another program may have changed",
        Test::SourcePorts(_) | Test::OriginalSourcePorts(_) => "the source port",
        Test::DestinationPorts(_) | Test::EitherPorts(_) | Test::OriginalDestinationPorts(_) => "a port",
        Test::Mark(Marked::Packet, ..) => "a mark that is not known",
        Test::Mark(Marked::Connection, ..) => "the mark of the connection, which is not known",
        Test::States(_) => "the state of the connection",
        Test::TcpFlags(..) => "flags of TCP",
        Test::SourceType(_) | Test::DestinationType(_) => "what an address is to this node",
        _ => "something that is not known of the packet",
    };
    format!("it asks for {what}")
}
