//! The rule that has dropped a packet, as nft prints it; and what the kernel alone says of it, where there is no nft.

use std::collections::BTreeMap;
use std::process::Command;

use super::connections::Culprit;
use crate::netlink::{Attributes, Builder, Bus, DUMP, REQUEST, Socket, attributes, find};

/// `NFT_MSG_GETRULE`, `NFT_MSG_NEWRULE`.
const GET_RULE: u16 = 10 << 8 | 7;
const NEW_RULE: u16 = 10 << 8 | 6;
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const EXPRESSIONS: u16 = 4;
const USER_DATA: u16 = 7;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`, and `NFTA_TARGET_NAME` in that of a target of iptables.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// What refuses, instead of dropping.
const REFUSES: &[u8] = b"reject\0";
const TARGET: &[u8] = b"target\0";
const TARGET_REFUSES: &[u8] = b"REJECT\0";

/// What a rule says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Its place in its chain, from 1 on; `None` if it is not there any more.
    pub(crate) number: Option<usize>,
    /// As nft prints it, where it is installed.
    pub(crate) text: Option<String>,
    /// Its comment.
    pub(crate) comment: Option<String>,
    /// Whether it answers, with a reset or an ICMP error.
    pub(crate) rejects: bool,
}

impl Rule {
    /// It in words; it has this handle.
    pub(crate) fn words(&self, handle: u64) -> String {
        let comment = self.comment.as_ref().map(|comment| format!(" comment \"{comment}\"")).unwrap_or_default();
        match (&self.text, self.number) {
            (Some(text), _) => text.clone(),
            (None, Some(number)) => format!("rule {number} (handle {handle}){comment}"),
            (None, None) => format!("the rule with handle {handle}"),
        }
    }
}

/// Rules that were looked up, each once.
#[derive(Debug, Default)]
pub(crate) struct Rules(BTreeMap<Culprit, Rule>);

impl Rules {
    /// What has decided, if it was a rule.
    pub(crate) fn look_up(&mut self, culprit: &Culprit) -> Rule {
        let Some(handle) = culprit.handle else { return Rule::default() };
        let look = || {
            let mut rule = ask(culprit, handle).unwrap_or_default();
            let place = &culprit.place;
            let list = ["-a", "list", "chain", place.family(), &place.table, &place.chain];
            let output = Command::new("nft").args(list).output();
            let listed = output.ok().and_then(|output| of_listing(&String::from_utf8_lossy(&output.stdout), handle));
            rule.text = listed;
            rule
        };
        self.0.entry(culprit.clone()).or_insert_with(look).clone()
    }
}

/// What the kernel says of a rule.
fn ask(culprit: &Culprit, handle: u64) -> Option<Rule> {
    let place = &culprit.place;
    let mut socket = Socket::open(Bus::Netfilter).ok()?;
    let terminated = |text: &str| [text.as_bytes(), &[0]].concat();
    let request = Builder::message(GET_RULE, REQUEST | DUMP, socket.next_sequence(), &[place.family, 0, 0, 0])
        .attribute(TABLE, &terminated(&place.table))
        .attribute(CHAIN, &terminated(&place.chain));
    let (mut number, mut found) = (0, None);
    socket
        .dump(&request.finish(), |message| {
            let text = |kind| find(message.attributes_after(4), kind).and_then(|attribute| attribute.text());
            // Old kernels do not filter.
            if message.kind != NEW_RULE || text(TABLE) != Some(&place.table) || text(CHAIN) != Some(&place.chain) {
                return;
            }
            number += 1;
            let of_it = find(message.attributes_after(4), HANDLE).is_some_and(|it| it.value == handle.to_be_bytes());
            if of_it {
                found = Some(read(message.attributes_after(4), number));
            }
        })
        .ok()?;
    found
}

fn read(rule: Attributes<'_>, number: usize) -> Rule {
    let expressions = find(rule.clone(), EXPRESSIONS).map(|list| list.value).unwrap_or_default();
    let inside = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let rejects = attributes(expressions).any(|(_, expression)| match inside(expression, NAME) {
        Some(REFUSES) => true,
        Some(TARGET) => inside(inside(expression, DATA).unwrap_or_default(), NAME) == Some(TARGET_REFUSES),
        _ => false,
    });
    let user_data = find(rule, USER_DATA).map(|data| data.value).unwrap_or_default();
    Rule { number: Some(number), text: None, comment: comment(user_data).map(str::to_owned), rejects }
}

/// The comment in user data (`NFTNL_UDATA_RULE_COMMENT`, 0): a list of type, length and value.
fn comment(mut user_data: &[u8]) -> Option<&str> {
    while let [kind, length, rest @ ..] = user_data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return std::str::from_utf8(value.strip_suffix(&[0])?).ok();
        }
        user_data = &rest[value.len()..];
    }
    None
}

/// The rule with this handle in what `nft -a list chain` prints: each is a line that ends with its handle.
fn of_listing(listing: &str, handle: u64) -> Option<String> {
    listing.lines().find_map(|line| {
        let (rule, of) = line.rsplit_once(" # handle ")?;
        let is_it = !rule.ends_with('{') && of.parse() == Ok(handle);
        is_it.then(|| rule.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_network_namespace;
    use crate::testing::netns::nft;
    use crate::trace::decode::Place;

    #[test]
    fn rules_are_found_by_their_handles() {
        in_network_namespace(|| {
            nft(
                &["-f", "-"],
                "table inet netpol {\n chain forward {\n  tcp dport 80 accept\n  ip daddr 10.1.0.1 drop comment \"no way\"\n  \
                 tcp dport 81 reject\n }\n}\n",
            );
            let place = Place { family: 1, table: "netpol".to_owned(), chain: "forward".to_owned() };
            let listed = nft(&["-a", "list", "chain", "inet", "netpol", "forward"], "");
            let handle = |of: &str| {
                let line = listed.lines().find(|line| line.contains(of)).expect("the rule");
                line.rsplit_once("# handle ").expect("a handle").1.parse::<u64>().expect("a number")
            };
            let mut rules = Rules::default();
            let mut look = |handle| rules.look_up(&Culprit { place: place.clone(), handle });
            let text = "ip daddr 10.1.0.1 drop comment \"no way\"".to_owned();
            assert_eq!(
                look(Some(handle("no way"))),
                Rule { number: Some(2), text: Some(text), comment: Some("no way".to_owned()), rejects: false }
            );
            let rejecting = look(Some(handle("reject")));
            assert!(rejecting.rejects && rejecting.number == Some(3), "{rejecting:?}");
            assert_eq!(look(Some(9999)), Rule::default(), "it is not there");
            assert_eq!(look(None), Rule::default(), "a policy");
            // Where there is no nft.
            let bare = ask(&Culprit { place, handle: None }, handle("no way")).expect("a rule");
            assert_eq!(bare.words(9), "rule 2 (handle 9) comment \"no way\"");
        });
    }

    #[test]
    fn targets_of_iptables_refuse_too() {
        let rule = |name: &[u8], target: &[u8]| {
            Builder::message(0, 0, 0, &[])
                .nested(EXPRESSIONS, |list| {
                    list.nested(1, |element| {
                        element.attribute(NAME, name).nested(DATA, |data| data.attribute(NAME, target))
                    })
                })
                .finish()
        };
        for (name, target, rejects) in [
            (TARGET, TARGET_REFUSES, true),
            (TARGET, &b"LOG\0"[..], false),
            (REFUSES, b"\0", true),
            (b"match\0", TARGET_REFUSES, false),
        ] {
            let bytes = rule(name, target);
            assert_eq!(
                read(Attributes::new(&bytes[16..], 0), 1),
                Rule { number: Some(1), text: None, comment: None, rejects }
            );
        }
    }
}
