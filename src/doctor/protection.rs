//! Whether our tables are protected from others, or at least the connections through them.

use super::{Finding, Subject};
use crate::model::{Family, PerFamily};
use crate::nftables::{Guard, KernelError, LinuxKernel, Protection};
use crate::ruleset::names::TableName;
use crate::ruleset::text;

/// Asks the kernel about the tables that are there.
pub(super) fn ask() -> Result<Vec<Finding>, KernelError> {
    let mut kernel = LinuxKernel::open()?;
    let mut found = PerFamily::default();
    for family in Family::ALL {
        found[family] = kernel.protection(family)?;
    }
    let mut findings = judge(&found);
    findings.extend(judge_guard(&Guard::protection(TableName::NODE)?));
    Ok(findings)
}

fn judge_guard(found: &PerFamily<Option<Protection>>) -> Vec<Finding> {
    let of =
        |family| Some((format!("table {} {}", text::family(family), TableName::NODE.guard()), found[family].as_ref()?));
    let each = Family::ALL.into_iter().filter_map(of).map(|(table, protection)| match protection {
        Protection::Owner(owner) => Finding::ok(
            Subject::Owner,
            format!("{table} is owned by {owner}: open connections stay translated when others flush the tables"),
        ),
        Protection::None | Protection::Orphan => Finding::check(
            Subject::Owner,
            format!("{table} has no owner: it is of no use"),
            format!("nft delete {table}"),
        ),
    });
    each.collect()
}

fn judge(found: &PerFamily<Option<Protection>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut orphans = Vec::new();
    for family in Family::ALL {
        let table = format!("table {}", text::table(TableName::NODE, family));
        match &found[family] {
            Some(Protection::Owner(owner)) => {
                findings.push(Finding::ok(
                    Subject::Owner,
                    format!("{table} is owned by {owner}: nobody else can change it"),
                ));
            }
            Some(Protection::Orphan) => orphans.push(table),
            Some(Protection::None) | None => {}
        }
    }
    if !orphans.is_empty() {
        findings.push(Finding::check(
            Subject::Owner,
            format!(
                "{} lost the daemon that owned it: nft before 1.1.0 lists it with an empty line of flags, and cannot read \
                 a ruleset that is saved now",
                orphans.join(", ")
            ),
            "start nftproxyd, or run nftproxyd cleanup; then save the ruleset again (nft list ruleset)",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;
    use crate::nftables::Owner;

    #[test]
    fn orphans_are_to_be_looked_at() {
        let owner = Owner { port: 17, process: Some((17, "nftproxyd".to_owned())) };
        let found = PerFamily { v4: Some(Protection::Owner(owner)), v6: Some(Protection::Orphan) };
        let said: Vec<_> = judge(&found).into_iter().map(|finding| (finding.grade, finding.what)).collect();
        assert_eq!(said.len(), 2);
        assert_eq!(said[0].0, Grade::Ok);
        assert!(
            said[0].1.contains("table ip nftproxyd is owned by netlink port 17 (process 17, nftproxyd)"),
            "{said:?}"
        );
        assert_eq!(said[1].0, Grade::Check);
        assert!(said[1].1.starts_with("table ip6 nftproxyd lost the daemon that owned it"), "{said:?}");
        assert_eq!(judge(&PerFamily { v4: Some(Protection::None), v6: None }), []);
    }

    #[test]
    fn a_guard_has_an_owner() {
        let owner = Owner { port: 17, process: Some((17, "nftproxyd".to_owned())) };
        let found = PerFamily { v4: Some(Protection::Owner(owner)), v6: Some(Protection::None) };
        let said: Vec<_> = judge_guard(&found).into_iter().map(|finding| (finding.grade, finding.what)).collect();
        let expected = [
            (Grade::Ok, "table ip nftproxyd-guard is owned by netlink port 17 (process 17, nftproxyd): "),
            (Grade::Check, "table ip6 nftproxyd-guard has no owner"),
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for ((grade, what), (wanted, words)) in said.iter().zip(expected) {
            assert!(*grade == wanted && what.starts_with(words), "{what}");
        }
        assert_eq!(judge_guard(&PerFamily::default()), []);
    }
}
