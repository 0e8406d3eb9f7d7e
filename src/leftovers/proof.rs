//! Rules of others as their own programs print them, and what takes them out.

use std::process::Command;

use super::advice::Place;

/// Where a rule is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule<'a> {
    pub(crate) place: &'a Place<'a>,
    pub(crate) chain: &'a str,
    /// Its number in the chain, from 0.
    pub(crate) nth: usize,
    /// What the program of legacy iptables has printed of the table.
    pub(crate) saved: Option<&'a str>,
}

impl Rule<'_> {
    /// Its text, with its place. Of nftables, nft is asked, where it is installed.
    pub(crate) fn text(&self) -> String {
        let text = match (self.place, self.saved) {
            (Place::Nft(..), _) => self.listed().map(|(text, _)| text),
            (Place::Legacy(..), Some(saved)) => of_saved(saved, self.chain, self.nth),
            (Place::Legacy(..), None) => None,
        };
        let (place, number) = (self.place.chain_name(self.chain), self.nth + 1);
        match text {
            Some(text) => format!("{place}, rule {number}: {text}"),
            None => format!("{place}, rule {number}"),
        }
    }

    /// A command that takes it out.
    pub(crate) fn deletion(&self, is_of_iptables: bool) -> String {
        let (chain, number) = (self.chain, self.nth + 1);
        match self.place {
            Place::Nft(family, table) if is_of_iptables => {
                let program = if *family == "ip6" { "ip6tables" } else { "iptables" };
                format!("{program} -t {table} -D {chain} {number}")
            }
            Place::Nft(family, table) => match self.listed() {
                Some((_, handle)) => format!("nft delete rule {family} {table} {chain} handle {handle}"),
                None => format!(
                    "nft delete rule {family} {table} {chain} handle N, which nft -a list chain {family} {table} {chain} says"
                ),
            },
            Place::Legacy(program, table) => format!("{program} -t {table} -D {chain} {number}"),
        }
    }

    fn listed(&self) -> Option<(String, String)> {
        let Place::Nft(family, table) = self.place else { return None };
        let output = Command::new("nft").args(["-a", "list", "chain", family, table, self.chain]).output().ok()?;
        of_listing(&String::from_utf8_lossy(&output.stdout), self.nth)
    }
}

/// The policy of a base chain.
pub(crate) fn policy(place: &Place<'_>, chain: &str) -> String {
    format!("{}: policy drop", place.chain_name(chain))
}

/// The text and the handle of a rule. In what `nft -a list chain` prints, each rule is a line that ends with its handle.
fn of_listing(listing: &str, nth: usize) -> Option<(String, String)> {
    let mut rules = listing.lines().filter_map(|line| {
        let (rule, handle) = line.rsplit_once(" # handle ")?;
        let is_rule = !rule.ends_with('{') && handle.bytes().all(|byte| byte.is_ascii_digit());
        is_rule.then(|| (rule.trim().to_owned(), handle.to_owned()))
    });
    rules.nth(nth)
}

fn of_saved(saved: &str, chain: &str, nth: usize) -> Option<String> {
    let begins = format!("-A {chain} ");
    saved.lines().filter(|line| line.starts_with(&begins)).nth(nth).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_in_what_is_printed() {
        let listing = "table ip filter { # handle 1\n\tchain FORWARD { # handle 2\n\t\ttype filter hook forward priority \
                       filter; policy accept;\n\t\tip saddr 192.0.2.1 comment \"a # handle 9\" counter packets 0 bytes 0 # \
                       handle 7\n\t\tdrop # handle 8\n\t}\n}\n";
        let of = |nth| of_listing(listing, nth);
        let first = "ip saddr 192.0.2.1 comment \"a # handle 9\" counter packets 0 bytes 0";
        assert_eq!(of(0), Some((first.to_owned(), "7".to_owned())));
        assert_eq!((of(1), of(2)), (Some(("drop".to_owned(), "8".to_owned())), None));
        let saved =
            "*filter\n:FORWARD ACCEPT [0:0]\n-A INPUT -j DROP\n-A FORWARD -i a -j ACCEPT\n-A FORWARD -j REJECT\n";
        let place = Place::Legacy("iptables-legacy", "filter");
        let text = "chain FORWARD of table filter of iptables-legacy, rule 2";
        let rule = Rule { place: &place, chain: "FORWARD", nth: 1, saved: Some(saved) };
        assert_eq!(rule.text(), format!("{text}: -A FORWARD -j REJECT"));
        assert_eq!(Rule { saved: None, ..rule }.text(), text);
        assert_eq!(rule.deletion(true), "iptables-legacy -t filter -D FORWARD 2");
        let nowhere = Place::Nft("ip", "nowhere");
        assert_eq!(Rule { place: &nowhere, chain: "c", nth: 0, saved: None }.text(), "chain ip nowhere c, rule 1");
    }
}
