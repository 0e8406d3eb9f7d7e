//! A ruleset as a script for `nft -f`, and its parts in nft's words for logs and error messages.
//!
//! Equal rulesets give equal text. Loaded, it makes the same kernel objects as the daemon makes over netlink, but for
//! what only nft itself reads in a set's definition: the daemon writes that so that nft before 1.0.3 can read it, too.
//! `nft list table` prints both alike. Lines are written as nft 1.0.6 prints them, except that `meta l4proto tcp` is
//! kept before `reject with tcp reset`, and that each element has its own line.
//!
//! Limit of a tool, not of the kernel: nft before 1.1.0 (but for 1.0.6.1) aborts when it *reads* an update of a map
//! whose key or data is longer than 16 bytes (it reserves too few registers). So it lists the IPv6 `remember-` chains
//! but cannot load them.

use std::fmt::{self, Display, Write};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Ruleset;
use super::hash::HASH_SEED;
use super::names::{TABLE_COMMENT, TableName};
use super::types::{
    Chain, Data, DataDef, Element, Hashed, Hook, HookPoint, Rule, Selector, SetDef, Statement, Value, Verdict,
};
use crate::model::Family;

/// nft's word for a family: `ip`, `ip6`.
pub const fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A table's family and name, as nft has them in every command.
pub fn table(name: TableName, of: Family) -> Title {
    Title { name, family: of }
}

/// See [`table`]. It costs nothing until it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Title {
    name: TableName,
    family: Family,
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family(self.family), self.name)
    }
}

/// The whole table as a script for `nft -f`. It adds to what is there: delete the table before loading it again.
pub fn ruleset(ruleset: &Ruleset) -> String {
    let mut out = format!("table {} {{\n\tcomment \"{TABLE_COMMENT}\"\n", table(ruleset.table, ruleset.family));
    for (def, elements) in &ruleset.sets {
        push(&mut out, format_args!("\n\t{} {} {{\n", set_kind(def), def.name));
        for line in set_lines(ruleset.family, def) {
            push(&mut out, format_args!("\t\t{line}\n"));
        }
        let mut elements: Vec<&Element> = elements.iter().collect();
        elements.sort();
        if !elements.is_empty() {
            let elements: Vec<String> = elements.into_iter().map(|it| listed(def, it)).collect();
            push(&mut out, format_args!("\t\telements = {{\n\t\t\t{}\n\t\t}}\n", elements.join(",\n\t\t\t")));
        }
        out.push_str("\t}\n");
    }
    for chain in &ruleset.chains {
        push(&mut out, format_args!("\n\tchain {} {{\n", chain.name));
        for line in chain_lines(ruleset.family, chain) {
            push(&mut out, format_args!("\t\t{line}\n"));
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}

/// `map` or `set`.
pub fn set_kind(def: &SetDef) -> &'static str {
    if def.data == DataDef::None { "set" } else { "map" }
}

/// The lines of a set's definition: its type, size and flags. The type is always a `typeof`: for one by name, nft 1.1.2 and
/// later leave something in the kernel that older ones crash over. Those that crash over a `typeof` with a verdict, 0.9.4 to
/// 0.9.8, cannot load this text anyway.
pub fn set_lines(family: Family, def: &SetDef) -> Vec<String> {
    let type_line = match &def.data {
        DataDef::None => format!("typeof {}", exprs(family, &def.key)),
        DataDef::Values(data) => format!("typeof {} : {}", exprs(family, &def.key), exprs(family, data)),
        DataDef::Verdict => format!("typeof {} : verdict", exprs(family, &def.key)),
    };
    let mut lines = vec![type_line];
    lines.extend(def.size.map(|size| format!("size {size}")));
    lines.extend(def.counter.then(|| "counter".to_owned()));
    if def.dynamic {
        lines.push("flags dynamic,timeout".to_owned());
    }
    if def.interval {
        lines.push("flags interval".to_owned());
    }
    lines
}

/// The lines of a chain: its hook, then its rules.
pub fn chain_lines(family: Family, chain: &Chain) -> Vec<String> {
    let hook = chain.hook.map(hook);
    hook.into_iter().chain(chain.rules.iter().map(|it| rule(family, it))).collect()
}

/// `type nat hook prerouting priority dstnat; policy accept;`
pub fn hook(hook: Hook) -> String {
    format!("type nat hook {} priority {}; policy accept;", hook.hook, priority(hook))
}

/// nft names the usual priorities and counts from them up to 10 in both directions; it knows `dstnat` (-100) in
/// prerouting and `srcnat` (100) in postrouting only.
fn priority(hook: Hook) -> String {
    let (name, value) = match hook.hook {
        HookPoint::Prerouting => ("dstnat", -100),
        HookPoint::Postrouting => ("srcnat", 100),
        HookPoint::Input | HookPoint::Output => return hook.priority.to_string(),
    };
    match hook.priority.checked_sub(value) {
        Some(0) => name.to_owned(),
        Some(offset @ 1..=10) => format!("{name} + {offset}"),
        Some(offset @ -10..=-1) => format!("{name} - {}", -offset),
        _ => hook.priority.to_string(),
    }
}

/// A rule on one line, with its comment.
pub fn rule(family: Family, rule: &Rule) -> String {
    let mut parts: Vec<String> = rule.statements.iter().map(|it| statement(family, it)).collect();
    parts.extend(rule.comment.map(|comment| format!("comment \"{comment}\"")));
    parts.join(" ")
}

/// One statement of a rule.
pub fn statement(table: Family, statement: &Statement) -> String {
    let ip = family(table);
    let not = |negated: bool| if negated { "!= " } else { "" };
    let exprs = |key: &[Selector]| exprs(table, key);
    match statement {
        Statement::SourceIn { net, negated } => format!("{ip} saddr {}{}", not(*negated), self::net(net)),
        Statement::DestinationIn { net, negated } => format!("{ip} daddr {}{}", not(*negated), self::net(net)),
        Statement::InputInterface { name, prefix, negated } => {
            format!("iifname {}\"{name}{}\"", not(*negated), if *prefix { "*" } else { "" })
        }
        Statement::L4ProtoIs(protocol) => format!("meta l4proto {protocol}"),
        Statement::EchoRequest => match table {
            Family::V4 => "icmp type echo-request".to_owned(),
            Family::V6 => "icmpv6 type echo-request".to_owned(),
        },
        Statement::SourceIsLocal => "fib saddr type local".to_owned(),
        Statement::DestinationIsLocal { negated } => format!("fib daddr type {}local", not(*negated)),
        Statement::StatusDnat => "ct status dnat".to_owned(),
        Statement::DirectionOriginal => "ct direction original".to_owned(),
        Statement::Priority { value, negated } => {
            format!("meta priority {}{}", not(*negated), Class(*value))
        }
        Statement::SetPriority(value) => format!("meta priority set {}", Class(*value)),
        Statement::PriorityFromMap { key, map } => format!("meta priority set {} map @{map}", exprs(key)),
        Statement::MarkHas(bits) => format!("meta mark & {bits:#010x} != 0x00000000"),
        Statement::SetMark(bits) => format!("meta mark set meta mark | {bits:#010x}"),
        Statement::ClearMark(bits) => format!("meta mark set meta mark & {:#010x}", !bits),
        Statement::InSet { key, set, negated } => format!("{} {}@{set}", exprs(key), not(*negated)),
        Statement::VerdictMap { key, map } => format!("{} vmap @{map}", exprs(key)),
        Statement::DnatMap { key, map } => format!("dnat {ip} to {} map @{map}", exprs(key)),
        Statement::DnatTo(address) => format!("dnat to {address}"),
        Statement::Update { map, key, timeout, data } => {
            format!("update @{map} {{ {} timeout {} : {} }}", exprs(key), duration(*timeout), exprs(data))
        }
        Statement::Masquerade { keep_port: false } => "masquerade fully-random".to_owned(),
        Statement::Masquerade { keep_port: true } => "masquerade".to_owned(),
        Statement::RejectTcp => "reject with tcp reset".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Verdict(verdict) => verdict.to_string(),
    }
}

/// Expressions, concatenated: `ip daddr . meta l4proto . th dport`.
pub fn exprs(family: Family, exprs: &[Selector]) -> String {
    exprs.iter().map(|it| expr(family, *it)).collect::<Vec<_>>().join(" . ")
}

fn expr(table: Family, expr: Selector) -> String {
    let ip = family(table);
    let after = |offset| if offset == 0 { String::new() } else { format!(" offset {offset}") };
    match expr {
        Selector::SourceAddress => format!("{ip} saddr"),
        Selector::DestinationAddress => format!("{ip} daddr"),
        Selector::L4Proto => "meta l4proto".to_owned(),
        Selector::HeaderProtocol => match table {
            Family::V4 => "ip protocol".to_owned(),
            Family::V6 => "ip6 nexthdr".to_owned(),
        },
        Selector::DestinationPort => "th dport".to_owned(),
        Selector::Priority => "meta priority".to_owned(),
        Selector::RandomSlot { modulus, offset } => format!("numgen random mod {modulus}{}", after(offset)),
        Selector::NextSlot { modulus, offset } => format!("numgen inc mod {modulus}{}", after(offset)),
        Selector::HashedSlot { of, modulus, offset } => {
            let of = match of {
                Hashed::Source => format!("{ip} saddr"),
                Hashed::SourceAndPort => format!("{ip} saddr . th sport"),
                Hashed::Destination => format!("{ip} daddr"),
            };
            format!("jhash {of} mod {modulus} seed {HASH_SEED:#x}{}", after(offset))
        }
        Selector::OriginalSource => format!("ct original {ip} saddr"),
        Selector::OriginalDestination => format!("ct original {ip} daddr"),
        Selector::OriginalPort => "ct original proto-dst".to_owned(),
        Selector::ReplySource => format!("ct reply {ip} saddr"),
        Selector::ReplyPort => "ct reply proto-src".to_owned(),
    }
}

/// An element as it stands between the braces of a set.
pub fn element(element: &Element) -> String {
    with_data(element_key(element), element)
}

/// The same as nft lists it in a set with this definition: one that counts begins at zero.
fn listed(def: &SetDef, element: &Element) -> String {
    let mut text = element_key(element);
    if def.counter {
        text.push_str(" counter packets 0 bytes 0");
    }
    with_data(text, element)
}

fn with_data(mut text: String, element: &Element) -> String {
    if let Some(comment) = &element.comment {
        push(&mut text, format_args!(" comment \"{comment}\""));
    }
    match &element.data {
        Data::None => {}
        Data::Values(values) => push(&mut text, format_args!(" : {}", key(values))),
        Data::Verdict(verdict) => push(&mut text, format_args!(" : {verdict}")),
    }
    text
}

/// The key of an element alone, or its interval: enough to find or delete it.
pub fn element_key(element: &Element) -> String {
    match &element.key_end {
        None => key(&element.key),
        Some(end) => {
            element.key.iter().zip(end).map(|(first, last)| range(*first, *last)).collect::<Vec<_>>().join(" . ")
        }
    }
}

/// Values, concatenated: `10.96.0.1 . tcp . 80`.
pub fn key(values: &[Value]) -> String {
    values.iter().map(Value::to_string).collect::<Vec<_>>().join(" . ")
}

fn range(first: Value, last: Value) -> String {
    if first == last {
        return first.to_string();
    }
    if let (Value::Address(first), Value::Address(last)) = (first, last)
        && let Some(net) = net_between(first, last)
    {
        return net.to_string();
    }
    format!("{first}-{last}")
}

/// The network that begins and ends with these addresses, if there is one.
fn net_between(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (common, bits) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => ((first.to_bits() ^ last.to_bits()).leading_zeros(), 32),
        (IpAddr::V6(first), IpAddr::V6(last)) => ((first.to_bits() ^ last.to_bits()).leading_zeros(), 128),
        _ => return None,
    };
    let net = IpNet::new(first, u8::try_from(common.min(bits)).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

fn net(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// nft's way to write seconds: `3h`, `1d1h1m1s`.
fn duration(seconds: u32) -> String {
    let parts = [(seconds / 86_400, 'd'), (seconds / 3_600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let text: String = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn push(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Address(address) => address.fmt(f),
            Value::Protocol(protocol) => protocol.fmt(f),
            Value::Port(port) => port.fmt(f),
            Value::Slot(slot) => slot.fmt(f),
            Value::Class(class) => Class(*class).fmt(f),
        }
    }
}

/// A packet's priority as nft prints it. (It calls 0xffffffff `root`, which nobody has.)
struct Class(u32);

impl Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("none"),
            class => write!(f, "{:x}:{:x}", class >> 16, class & 0xffff),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Drop => f.write_str("drop"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
        }
    }
}

impl Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        })
    }
}

/// Names an element of a set for an error message: `map service-ips, element 10.96.0.1 . tcp . 80`.
pub fn element_of(def: &SetDef, element: &Element) -> String {
    format!("{} {}, element {}", set_kind(def), def.name, element_key(element))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_nft_prints_them() {
        let cases = [(1, "1s"), (60, "1m"), (3_661, "1h1m1s"), (10_800, "3h"), (86_400, "1d"), (90_061, "1d1h1m1s")];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn priorities_as_nft_prints_them() {
        let cases = [
            (HookPoint::Prerouting, -100, "dstnat"),
            (HookPoint::Prerouting, -110, "dstnat - 10"),
            (HookPoint::Prerouting, -111, "-111"),
            (HookPoint::Postrouting, 99, "srcnat - 1"),
            (HookPoint::Postrouting, 105, "srcnat + 5"),
            (HookPoint::Output, -100, "-100"),
            (HookPoint::Input, 99, "99"),
        ];
        for (hook, value, text) in cases {
            assert_eq!(priority(Hook { hook, priority: value }), text);
        }
    }

    #[test]
    fn intervals_are_networks_where_they_can_be() {
        let cases = [
            ("10.0.0.0", "10.0.0.255", "10.0.0.0/24"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
            ("0.0.0.0", "255.255.255.254", "0.0.0.0-255.255.255.254"),
            ("fd00::", "fd00::ffff", "fd00::/112"),
            ("fd00::1", "fd00::ffff", "fd00::1-fd00::ffff"),
        ];
        for (first, last, text) in cases {
            let value = |address: &str| Value::Address(address.parse().expect("an address"));
            assert_eq!(range(value(first), value(last)), text);
        }
    }
}
