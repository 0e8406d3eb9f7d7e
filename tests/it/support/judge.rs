//! Whether what became of a packet is what must become of it.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;

use super::outcome::{Kind, Masquerade, Outcome};
use super::scenario::{Expect, ExpectMasquerade, Forward};

/// Judges an outcome.
///
/// # Errors
/// What was expected, and what there was instead.
pub(crate) fn judge(expect: &Expect, outcome: &Outcome) -> Result<(), String> {
    let kind = match expect {
        Expect::Reject => Kind::Reject,
        Expect::Drop => Kind::Drop,
        Expect::Pass => Kind::Pass,
        Expect::Forward(forward) => return judge_forward(forward, outcome),
    };
    if outcome.kind() == Some(kind) { Ok(()) } else { Err(format!("expected {kind}, got {outcome}")) }
}

fn judge_forward(expect: &Forward, outcome: &Outcome) -> Result<(), String> {
    let wanted: BTreeSet<SocketAddr> = expect.endpoints.iter().copied().collect();
    let reached = outcome.endpoints();
    if outcome.kind() != Some(Kind::Forward) {
        return Err(format!("expected forward to {}, got {outcome}", list(&wanted)));
    }
    if expect.sticky {
        if !outcome.sticky() {
            return Err(format!("expected one endpoint for each client, got {outcome}"));
        }
        if !reached.is_subset(&wanted) {
            return Err(format!("expected forward to some of {}, got {outcome}", list(&wanted)));
        }
    } else if reached != wanted {
        return Err(format!("expected forward to {}, got {outcome}", list(&wanted)));
    }
    if let Some(masquerade) = &expect.masq {
        for endpoint in &reached {
            let wanted = match masquerade {
                ExpectMasquerade::All(all) => *all,
                ExpectMasquerade::Only(only) => only.contains(endpoint),
            };
            let fine = match outcome.masquerade(endpoint) {
                Masquerade::Yes => wanted,
                Masquerade::No => !wanted,
                Masquerade::Unknown => true,
                Masquerade::Mixed => false,
            };
            if !fine {
                let no = if wanted { "" } else { "no " };
                return Err(format!("expected {no}masquerading to {endpoint}, got {outcome}"));
            }
        }
    }
    match expect.source {
        Some(source) if outcome.sources() != BTreeSet::from([source]) => {
            Err(format!("expected the source {source}, got {} of {outcome}", list(&outcome.sources())))
        }
        _ => Ok(()),
    }
}

fn list<T: Display>(items: &BTreeSet<T>) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
