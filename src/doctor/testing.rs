//! What several tests of the doctor need.

use super::{Finding, Grade};

pub(super) fn grades(findings: &[Finding]) -> Vec<Grade> {
    findings.iter().map(|finding| finding.grade).collect()
}
