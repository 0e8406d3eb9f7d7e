//! Chains in legacy iptables, which only its own programs can change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::advice::{self, Place};
use super::names::IPTABLES;
use super::plan::{Jump, Plan};
use super::walk::{Chain, Does, Match, Rule, needed, state};
use super::{NET, Outcome, Remaining};

/// The programs of a family, and the file of the kernel that names the tables in use.
struct Tool {
    tables: &'static str,
    save: &'static str,
    restore: &'static str,
}

const TOOLS: [Tool; 2] = [
    Tool { tables: "ip_tables_names", save: "iptables-legacy-save", restore: "iptables-legacy-restore" },
    Tool { tables: "ip6_tables_names", save: "ip6tables-legacy-save", restore: "ip6tables-legacy-restore" },
];

/// The tables that rules of packets are in.
const TABLES: [&str; 5] = ["nat", "filter", "mangle", "raw", "security"];

/// Seconds to wait for somebody else who changes iptables.
const WAIT: &str = "10";

/// A table of legacy iptables that is in use.
#[derive(Debug)]
pub(crate) struct Table {
    /// `iptables-legacy` or `ip6tables-legacy`.
    pub(crate) program: &'static str,
    /// `filter` and the like.
    pub(crate) name: String,
    /// What the program prints of it.
    pub(crate) saved: io::Result<String>,
}

impl Table {
    /// The chains in what was printed, as far as they matter; `mark` is the bit that we mark packets with.
    pub(crate) fn chains(saved: &str, table: &str, mark: u32) -> Vec<Chain> {
        Saved::read(saved, table, mark).chains
    }
}

/// Lists the tables that are in use, in this network namespace.
///
/// # Errors
/// It cannot be told which are.
pub(crate) fn list(root: &Path) -> io::Result<Vec<Table>> {
    let mut found = Vec::new();
    for tool in &TOOLS {
        let file = root.join(NET).join(tool.tables);
        let names = match fs::read_to_string(&file) {
            Ok(names) => names,
            // The module is not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
        };
        found.extend(names.lines().filter(|table| TABLES.contains(table)).map(|table| Table {
            program: tool.save.trim_end_matches("-save"),
            name: table.to_owned(),
            saved: run(tool.save, &["-t", table], ""),
        }));
    }
    Ok(found)
}

/// Removes them.
pub(super) fn remove(root: &Path, mark: u32, outcome: &mut Outcome) {
    for tool in &TOOLS {
        let file = root.join(NET).join(tool.tables);
        let tables = match fs::read_to_string(&file) {
            Ok(tables) => tables,
            // Only root may read it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let what = format!("what kube-proxy may have in legacy iptables: {}: {error}", file.display());
                let fix = "as root: nftproxyd cleanup --kube-proxy".to_owned();
                outcome.remains.push(Remaining { what, fix });
                continue;
            }
            Err(_) => continue,
        };
        for table in tables.lines().filter(|table| IPTABLES.contains(table)) {
            tool.clean(table, mark, outcome);
        }
    }
}

/// The tables `nat` of both families, as they are saved, as far as they can be read.
pub(super) fn saved_nat(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for tool in &TOOLS {
        let tables = fs::read_to_string(root.join(NET).join(tool.tables)).unwrap_or_default();
        if tables.lines().any(|table| table == "nat")
            && let Ok(saved) = run(tool.save, &["-t", "nat"], "")
        {
            found.push(saved);
        }
    }
    found
}

impl Tool {
    fn clean(&self, table: &str, mark: u32, outcome: &mut Outcome) {
        let saved = match run(self.save, &["-t", table], "") {
            Ok(saved) => saved,
            Err(error) => {
                let Tool { save, restore, .. } = self;
                let what = format!("what kube-proxy may have in table {table} of legacy iptables: {save}: {error}");
                let fix = format!("as root, with {save} and {restore} installed: nftproxyd cleanup --kube-proxy");
                return outcome.remains.push(Remaining { what, fix });
            }
        };
        let Saved { chains, jumps } = Saved::read(&saved, table, mark);
        let program = self.save.trim_end_matches("-save");
        let place = Place::Legacy(program, table);
        let at_hook = chains.iter().map(|chain| (chain.name.clone(), chain.hook.is_some())).collect();
        let plan = Plan::of(&at_hook, &jumps, needed(&chains));
        plan.needed.iter().for_each(|(from, chain)| outcome.keep(&place, &chains, from, chain));
        outcome.dropping.extend(advice::dropping(&place, &chains, &plan.needed));
        for (chain, by) in &plan.kept {
            let what =
                format!("chain {chain} of table {table} in {} (chain {by} of somebody else leads to it)", self.save);
            outcome.remains.push(Remaining { what, fix: "leave it, or have its owner use another chain".to_owned() });
        }
        if plan.is_empty() {
            return;
        }
        let (jumps, chains) = (plan.jumps.len(), plan.chains.len());
        let what =
            format!("{chains} chains of kube-proxy in table {table} of {program}, with {jumps} rules that led there");
        let result = run(self.restore, &["--noflush", "-w", WAIT], &script(table, &plan)).map(drop);
        outcome.note(
            what,
            result,
            format!("as root, when kube-proxy is stopped: nftproxyd cleanup --kube-proxy ({program})"),
        );
    }
}

/// What one table's part of the output of `iptables-save` says.
pub(super) struct Saved {
    pub(super) chains: Vec<Chain>,
    /// By all that follows `-A` in a rule.
    jumps: Vec<Jump<String>>,
}

impl Saved {
    pub(super) fn read(text: &str, table: &str, mark: u32) -> Saved {
        let mut saved = Saved { chains: Vec::new(), jumps: Vec::new() };
        let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                    // A chain of somebody's making has no policy.
                    let hook = HOOKS.iter().find(|(chain, _)| *chain == name && policy != "-").map(|(_, hook)| *hook);
                    let (name, drops, filters) = (name.to_owned(), policy == "DROP", table != "nat" && hook.is_some());
                    saved.chains.push(Chain { name, hook, drops, filters, rules: Vec::new() });
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let words = words(rule);
                let Some(from) = words.first().copied() else { continue };
                let to = words.windows(2).find(|pair| ["-j", "-g"].contains(&pair[0])).map(|pair| pair[1]);
                rules.entry(from.to_owned()).or_default().push(read_rule(&words[1..], mark));
                if let Some(to) = to {
                    saved.jumps.push(Jump { from: from.to_owned(), to: to.to_owned(), rule: rule.to_owned() });
                }
            }
        }
        let names: BTreeSet<String> = saved.chains.iter().map(|chain| chain.name.clone()).collect();
        for chain in &mut saved.chains {
            chain.rules = rules.remove(&chain.name).unwrap_or_default();
            // A target that is no chain, such as LOG, does something on the way.
            let leads_nowhere = |rule: &&mut Rule| matches!(&rule.does, Does::Lead { to, .. } if !names.contains(to));
            chain.rules.iter_mut().filter(leads_nowhere).for_each(|rule| rule.does = Does::Other);
        }
        saved
    }
}

/// The chains of iptables that are at hooks.
const HOOKS: [(&str, &str); 5] = [
    ("PREROUTING", "prerouting"),
    ("INPUT", "input"),
    ("FORWARD", "forward"),
    ("OUTPUT", "output"),
    ("POSTROUTING", "postrouting"),
];

/// Targets that end a packet's way.
const REFUSING: [&str; 5] = ["DROP", "REJECT", "TARPIT", "DELUDE", "CHAOS"];

/// What the words after the name of its chain say of a rule, as far as it matters.
fn read_rule(words: &[&str], mark: u32) -> Rule {
    let mut rule = Rule { matches: Match::ALL, does: Does::Other };
    let (mut words, mut inverted) = (words.iter(), false);
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().unwrap_or_default();
        let condition = match *word {
            "!" => {
                inverted = true;
                continue;
            }
            "-m" | "--comment" => {
                value();
                continue;
            }
            target @ ("-j" | "-g") => {
                rule.does = match value() {
                    "ACCEPT" => Does::Accept,
                    "RETURN" => Does::Return,
                    refusing if REFUSING.contains(&refusing) => Does::Drop,
                    to => Does::Lead { to: to.to_owned(), goes: target == "-g" },
                };
                // What follows says how.
                break;
            }
            "--ctstate" | "--state" => states(value()).map(|states| Match::states(states, inverted)),
            "--mark" => {
                let (value, mask) = value().split_once('/').unwrap_or_default();
                let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
                Option::zip(number(value), number(mask)).map(|(value, mask)| Match::mark(value, mask, inverted, mark))
            }
            _ => None,
        };
        rule.matches = rule.matches.and(condition.unwrap_or(Match::UNKNOWN));
        inverted = false;
    }
    rule
}

/// The states of a list.
pub(crate) fn states(list: &str) -> Option<u16> {
    let bit = |name| {
        Some(match name {
            "INVALID" => state::INVALID,
            "ESTABLISHED" => state::ESTABLISHED,
            "RELATED" => state::RELATED,
            "NEW" => state::NEW,
            "SNAT" => state::SNAT,
            "DNAT" => state::DNAT,
            "UNTRACKED" => state::UNTRACKED,
            _ => return None,
        })
    };
    list.split(',').try_fold(0, |all, name| Some(all | bit(name)?))
}

/// The words of a rule; what is quoted is one, with its quotes.
pub(crate) fn words(rule: &str) -> Vec<&str> {
    let (mut words, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, sign) in rule.char_indices() {
        match sign {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                words.push(&rule[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    words.push(&rule[start..]);
    words
}

/// Input for `iptables-restore --noflush`, which does all of it at once: to name a chain is to empty it.
fn script(table: &str, plan: &Plan<String>) -> String {
    let mut script = format!("*{table}\n");
    for chain in &plan.chains {
        let _ = writeln!(script, ":{chain} - [0:0]");
    }
    for jump in &plan.jumps {
        let _ = writeln!(script, "-D {}", jump.rule);
    }
    for chain in &plan.chains {
        let _ = writeln!(script, "-X {chain}");
    }
    script + "COMMIT\n"
}

/// Runs a program and returns what it prints.
fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(error.kind(), "is not installed"),
            _ => error,
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", output.status, said.lines().next().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_table_becomes_a_script_that_removes_kube_proxys_part() {
        let saved = r#"# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [1:2]
:CNI-X - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "say \"-j KUBE-SERVICES" -j CNI-X
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-MARK-MASQ
COMMIT
"#;
        let Saved { chains, jumps } = Saved::read(saved, "nat", 0x4000);
        let chains = chains.into_iter().map(|chain| (chain.name, chain.hook.is_some())).collect();
        let expected = r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-MARK-MASQ
-X KUBE-SERVICES
COMMIT
"#;
        assert_eq!(script("nat", &Plan::of(&chains, &jumps, Vec::new())), expected);
    }
}
