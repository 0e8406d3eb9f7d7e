//! A transaction in nft's words, for logs.

use std::fmt;

use super::{Operation, Transaction};
use crate::ruleset::names::{SetName, TABLE_COMMENT, TableName};
use crate::ruleset::text;

impl Transaction {
    /// One nft command on each line, but for elements, which have a line each.
    pub fn text(&self, table: TableName) -> String {
        let mut out = String::new();
        // A text takes all.
        let _ = self.write(&mut out, table);
        out
    }

    fn write(&self, f: &mut impl fmt::Write, table: TableName) -> fmt::Result {
        let table = text::table(table, self.family);
        for operation in &self.operations {
            match operation {
                Operation::AddTable => writeln!(f, "add table {table} {{ comment \"{TABLE_COMMENT}\"; }}")?,
                Operation::OwnTable => {
                    writeln!(f, "add table {table} {{ comment \"{TABLE_COMMENT}\"; flags owner, persist; }}")?;
                }
                Operation::DeleteTable => writeln!(f, "delete table {table}")?,
                Operation::AddSet(def) => {
                    let lines = text::set_lines(self.family, def).join("; ");
                    writeln!(f, "add {} {table} {} {{ {lines}; }}", text::set_kind(def), def.name)?;
                }
                Operation::AddChain(chain) => match chain.hook {
                    Some(hook) => writeln!(f, "add chain {table} {} {{ {} }}", chain.name, text::hook(hook))?,
                    None => writeln!(f, "add chain {table} {}", chain.name)?,
                },
                Operation::AddRules(chain) => {
                    for rule in &chain.rules {
                        writeln!(f, "add rule {table} {} {}", chain.name, text::rule(self.family, rule))?;
                    }
                }
                Operation::FlushChain(chain) => writeln!(f, "flush chain {table} {chain}")?,
                Operation::DeleteChain(chain) => writeln!(f, "delete chain {table} {chain}")?,
                Operation::DeleteForeignChain(chain) => writeln!(f, "delete chain {table} {chain}")?,
                Operation::DeleteForeignSet(set) => writeln!(f, "delete set {table} {set}")?,
                Operation::AddElements(set, elements) => {
                    for element in elements {
                        writeln!(f, "add element {table} {set} {{ {} }}", text::element(element))?;
                    }
                }
                Operation::Remember(clients) => {
                    for kept in clients {
                        let (element, set) = (kept.element(), SetName::Affinity);
                        let (key, data) = (text::element_key(&element), text::element(&element));
                        let data = data.strip_prefix(&key).unwrap_or_default();
                        let [timeout, expires] = [kept.timeout, kept.expires].map(|time| time.as_millis());
                        let times = format!("timeout {timeout}ms expires {expires}ms");
                        writeln!(f, "add element {table} {set} {{ {key} {times}{data} }}")?;
                    }
                }
                Operation::DeleteElements(set, elements) => {
                    for element in elements {
                        writeln!(f, "delete element {table} {set} {{ {} }}", text::element_key(element))?;
                    }
                }
            }
        }
        Ok(())
    }
}
