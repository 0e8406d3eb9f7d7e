//! One thing that was looked at, and what all of them come to: as text, as JSON, and as an exit status.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::printable::printable;

/// How much a finding matters; the gravest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Good to know, and mostly meant so.
    Note,
    /// It could not be read: nobody can tell.
    Unread,
    /// Some traffic is lost or goes elsewhere, or will be.
    Check,
    /// Services do not work with this, or do not follow the cluster.
    Wrong,
}

impl Grade {
    /// Every grade.
    pub const ALL: [Grade; 5] = [Grade::Ok, Grade::Note, Grade::Unread, Grade::Check, Grade::Wrong];

    /// The exit status of a report whose gravest finding has this grade. A part of the interface.
    pub fn exit_status(self) -> u8 {
        match self {
            Grade::Ok | Grade::Note => 0,
            Grade::Wrong => 1,
            // 2 is a wrong command line.
            Grade::Check => 3,
            Grade::Unread => 4,
        }
    }

    /// How a line of the report begins.
    pub fn word(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Note => "note",
            Grade::Unread => "unread",
            Grade::Check => "check",
            Grade::Wrong => "WRONG",
        }
    }
}

/// What a finding is about. The names in JSON are a part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Whether a daemon is there, healthy and ready.
    Daemon,
    /// Whether the API server is followed.
    ApiServer,
    /// Whether our tables are there and as they should be.
    Tables,
    /// Who can change our tables.
    Owner,
    /// Whether the kernel can hold the tables.
    Kernel,
    /// Whether packets for others are passed on.
    Forwarding,
    /// Whether packets are dropped because of where they come from.
    ReversePath,
    /// Whether packets between ports of a bridge meet connection tracking.
    Bridges,
    /// Tracked connections.
    Connections,
    /// Remembered clients.
    Affinity,
    /// Whether the node has a route to cluster IPs.
    Route,
    /// The ranges of pods, of the Node and of the configuration.
    PodRange,
    /// Who else listens on node ports.
    NodePorts,
    /// The health checks of Services.
    HealthChecks,
    /// Addresses of Services that are somebody else's.
    ServiceAddresses,
    /// Whether loopback addresses can be reached from outside.
    RouteLocalnet,
    /// Rules and chains of others that drop.
    Firewall,
    /// Rules that see packets before they are tracked or translated.
    Raw,
    /// What kube-proxy has left.
    KubeProxy,
    /// Whether Calico sees that nftables serve.
    Calico,
    /// What the nft of the host makes of the tables.
    Nft,
}

impl Subject {
    /// What a report begins with, in this order.
    const FIRST: [Subject; 3] = [Subject::Daemon, Subject::ApiServer, Subject::Tables];
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub subject: Subject,
    /// How much it matters.
    pub grade: Grade,
    /// What was found, and what comes of it.
    pub what: String,
    /// What shows it: rules, values and files, as they stand.
    #[serde(default)]
    pub proof: Vec<String>,
    /// What an administrator can type or do about it; empty where nothing is to be done.
    #[serde(default)]
    pub fix: String,
}

impl Finding {
    fn new(subject: Subject, grade: Grade, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { subject, grade, what: what.into(), proof: Vec::new(), fix: fix.into() }
    }

    pub(super) fn ok(subject: Subject, what: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Ok, what, "")
    }

    pub(super) fn note(subject: Subject, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Note, what, fix)
    }

    pub(super) fn unread(subject: Subject, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Unread, what, fix)
    }

    pub(super) fn check(subject: Subject, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Check, what, fix)
    }

    pub(super) fn wrong(subject: Subject, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::new(subject, Grade::Wrong, what, fix)
    }

    /// The same with something that shows it.
    pub(super) fn proof(mut self, proof: impl Into<String>) -> Finding {
        self.proof.push(proof.into());
        self
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The grade of the gravest finding.
    pub grade: Grade,
    /// The exit status that goes with it.
    pub exit_status: u8,
    /// The findings: first whether the daemon is there, what it follows, and its tables; then the gravest last, where a
    /// reader's eye is.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(mut findings: Vec<Finding>) -> Report {
        let first = |finding: &Finding| {
            let place = Subject::FIRST.iter().position(|subject| *subject == finding.subject);
            place.unwrap_or(Subject::FIRST.len())
        };
        findings.sort_by_key(|finding| {
            let place = first(finding);
            (place, if place < Subject::FIRST.len() { Grade::Ok } else { finding.grade })
        });
        let grade = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
        Report { grade, exit_status: grade.exit_status(), findings }
    }

    /// How many findings have a grade, in words: `1 wrong, 2 to check`; `None` if nothing is to be done.
    pub fn summary(&self) -> Option<String> {
        let count = |grade| self.findings.iter().filter(|finding| finding.grade == grade).count();
        let counts = [(Grade::Wrong, "wrong"), (Grade::Check, "to check"), (Grade::Unread, "unread")];
        let counts = counts.map(|(grade, word)| (count(grade), word));
        let words: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// For people: a line for each, then what shows it and what to do; a word about all at the end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { grade, what, proof, fix, .. } in &self.findings {
            let _ = writeln!(text, "{:<7}{}", grade.word(), printable(what));
            for proof in proof {
                let _ = writeln!(text, "       seen: {}", printable(proof));
            }
            if !fix.is_empty() {
                let _ = writeln!(text, "       fix: {}", printable(fix));
            }
        }
        let summary = self.summary().unwrap_or_else(|| "nothing is wrong".to_owned());
        let _ = writeln!(text, "=> {summary} (exit status {})", self.exit_status);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_begins_with_the_daemon_and_names_the_gravest_last() {
        let findings = vec![
            Finding::wrong(Subject::Forwarding, "a", "do b").proof("p = 0").proof("q"),
            Finding::ok(Subject::Kernel, "c"),
            Finding::check(Subject::Tables, "t", "do u"),
            Finding::unread(Subject::Firewall, "x", "do y"),
            Finding::note(Subject::Nft, "n", ""),
            Finding::check(Subject::Firewall, "d\nfix: f", "do e"),
            Finding::ok(Subject::ApiServer, "s"),
            Finding::wrong(Subject::Daemon, "f", "do g"),
        ];
        let report = Report::new(findings);
        let expected = "WRONG  f\n       fix: do g\nok     s\ncheck  t\n       fix: do u\nok     c\nnote   n\nunread x\n       \
                        fix: do y\ncheck  d\\nfix: f\n       fix: do e\nWRONG  a\n       seen: p = 0\n       seen: q\n       \
                        fix: do b\n=> 2 wrong, 2 to check, 1 unread (exit status 1)\n";
        assert_eq!(report.text(), expected);
    }

    #[test]
    fn the_gravest_finding_decides_the_exit_status() {
        let cases = [
            (&[][..], Grade::Ok, 0, "=> nothing is wrong (exit status 0)\n"),
            (&[Grade::Ok], Grade::Ok, 0, "=> nothing is wrong (exit status 0)\n"),
            (&[Grade::Note, Grade::Ok], Grade::Note, 0, "=> nothing is wrong (exit status 0)\n"),
            (&[Grade::Unread, Grade::Note], Grade::Unread, 4, "=> 1 unread (exit status 4)\n"),
            (&[Grade::Unread, Grade::Check], Grade::Check, 3, "=> 1 to check, 1 unread (exit status 3)\n"),
            (&Grade::ALL, Grade::Wrong, 1, "=> 1 wrong, 1 to check, 1 unread (exit status 1)\n"),
        ];
        for (grades, grade, status, last) in cases {
            let of = |grade: &Grade| Finding::new(Subject::Kernel, *grade, "x", "");
            let report = Report::new(grades.iter().map(of).collect());
            assert_eq!((report.grade, report.exit_status), (grade, status), "{grades:?}");
            assert!(report.text().ends_with(last), "{grades:?}: {}", report.text());
        }
    }

    #[test]
    fn json_is_read_back() {
        let finding = Finding::check(Subject::NodePorts, "w", "f").proof("p");
        let report = Report::new(vec![finding, Finding::ok(Subject::ApiServer, "s")]);
        let json = serde_json::to_value(&report).expect("JSON");
        let expected = serde_json::json!({"grade": "check", "exitStatus": 3, "findings": [
            {"subject": "api-server", "grade": "ok", "what": "s", "proof": [], "fix": ""},
            {"subject": "node-ports", "grade": "check", "what": "w", "proof": ["p"], "fix": "f"}
        ]});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Report>(json).expect("a report"), report);
    }
}
