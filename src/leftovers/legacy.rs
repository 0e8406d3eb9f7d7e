//! Chains in legacy iptables, which only its own programs can change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::names::IPTABLES;
use super::plan::{Jump, Plan};
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

/// Seconds to wait for somebody else who changes iptables.
const WAIT: &str = "10";

/// Removes them.
pub(super) fn remove(root: &Path, outcome: &mut Outcome) {
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
            tool.clean(table, outcome);
        }
    }
}

impl Tool {
    fn clean(&self, table: &str, outcome: &mut Outcome) {
        let saved = match run(self.save, &["-t", table], "") {
            Ok(saved) => saved,
            Err(error) => {
                let Tool { save, restore, .. } = self;
                let what = format!("what kube-proxy may have in table {table} of legacy iptables: {save}: {error}");
                let fix = format!("as root, with {save} and {restore} installed: nftproxyd cleanup --kube-proxy");
                return outcome.remains.push(Remaining { what, fix });
            }
        };
        let Saved { chains, jumps } = Saved::read(&saved);
        let plan = Plan::of(&chains, &jumps);
        for (chain, by) in &plan.kept {
            let what =
                format!("chain {chain} of table {table} in {} (chain {by} of somebody else leads to it)", self.save);
            outcome.remains.push(Remaining { what, fix: "leave it, or have its owner use another chain".to_owned() });
        }
        if plan.is_empty() {
            return;
        }
        let (jumps, chains) = (plan.jumps.len(), plan.chains.len());
        let program = self.save.trim_end_matches("-save");
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
struct Saved {
    /// Whether each chain is at a hook.
    chains: BTreeMap<String, bool>,
    /// By all that follows `-A` in a rule.
    jumps: Vec<Jump<String>>,
}

impl Saved {
    fn read(text: &str) -> Saved {
        let mut saved = Saved { chains: BTreeMap::new(), jumps: Vec::new() };
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                // A chain of somebody's making has no policy.
                if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                    saved.chains.insert(name.to_owned(), policy != "-");
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let words = words(rule);
                let to = words.windows(2).find(|pair| ["-j", "-g"].contains(&pair[0])).map(|pair| pair[1]);
                if let (Some(from), Some(to)) = (words.first(), to) {
                    let (from, to) = ((*from).to_owned(), to.to_owned());
                    saved.jumps.push(Jump { from, to, rule: rule.to_owned() });
                }
            }
        }
        saved
    }
}

/// The words of a rule; what is quoted is one, with its quotes.
fn words(rule: &str) -> Vec<&str> {
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
        let Saved { chains, jumps } = Saved::read(saved);
        let expected = r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-MARK-MASQ
-X KUBE-SERVICES
COMMIT
"#;
        assert_eq!(script("nat", &Plan::of(&chains, &jumps)), expected);
    }
}
