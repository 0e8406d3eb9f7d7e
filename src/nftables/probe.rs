//! Can this kernel do what our tables need? Asked with a table of a private name, in a transaction that is never ended:
//! the kernel checks it, answers, and forgets it. No packet, no listing and no listener sees it (`nft -c` does the same).

use std::io;

use super::encode::{Batch, Encoder};
use super::kernel::CommitError;
use crate::diff::{Operation, Transaction};
use crate::model::{Family, Protocol};
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::{Chain, DataDef, Hashed, Hook, HookPoint, Rule, Selector, SetDef, Statement, Verdict};

/// The table's name, which never exists.
const PROBE_TABLE: &str = "nftproxyd-probe";

/// Why the proxy cannot work on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A feature is missing.
    #[error(
        "kernel {release} is too old, or lacks a module, for {family} Services: {feature} needs Linux {since} ({source})"
    )]
    TooOld {
        /// `uname -r`.
        release: String,
        /// The family whose table was tried.
        family: Family,
        /// The feature, for people.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The question could not be asked.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// One thing to try, and what it means if the kernel refuses it.
struct Question {
    operation: Operation,
    feature: &'static str,
    since: &'static str,
}

/// A map to endpoints.
fn endpoints() -> SetDef {
    SetDef {
        name: SetName::Endpoints,
        key: vec![Selector::RandomSlot { modulus: 2, offset: 0 }],
        data: DataDef::Values(vec![Selector::DestinationAddress, Selector::DestinationPort]),
        interval: false,
        dynamic: false,
        size: None,
        counter: false,
    }
}

/// What is tried, in order.
fn questions() -> Vec<Question> {
    let interval = SetDef {
        name: SetName::AllowedSources,
        key: vec![
            Selector::DestinationAddress,
            Selector::HeaderProtocol,
            Selector::DestinationPort,
            Selector::SourceAddress,
        ],
        data: DataDef::None,
        interval: true,
        dynamic: false,
        size: None,
        counter: false,
    };
    let affinity = SetDef {
        name: SetName::Affinity,
        key: vec![Selector::SourceAddress, Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort],
        data: DataDef::Values(vec![Selector::DestinationAddress, Selector::DestinationPort]),
        interval: false,
        dynamic: true,
        size: Some(1),
        counter: false,
    };
    let update = Statement::Update {
        map: SetName::Affinity,
        key: vec![Selector::OriginalSource, Selector::OriginalDestination, Selector::L4Proto, Selector::OriginalPort],
        timeout: 60,
        data: vec![Selector::DestinationAddress, Selector::DestinationPort],
    };
    let dnat = Statement::DnatMap {
        key: vec![Selector::SourceAddress, Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort],
        map: SetName::Affinity,
    };
    let rule = |statements: Vec<Statement>| Rule { statements, comment: None };
    let chain = |name, rules| Chain { name, hook: None, rules };
    let base = |name, hook| {
        let rules = vec![rule(vec![Statement::Verdict(Verdict::Jump(ChainName::RejectIt))])];
        Chain { name, hook: Some(Hook { hook, priority: 0 }), rules }
    };
    let reject = chain(
        ChainName::RejectIt,
        vec![rule(vec![Statement::L4ProtoIs(Protocol::Tcp), Statement::RejectTcp]), rule(vec![Statement::Reject])],
    );
    let random =
        Statement::DnatMap { key: vec![Selector::RandomSlot { modulus: 2, offset: 0 }], map: SetName::Endpoints };
    let kinds = SetDef {
        name: SetName::ServiceIps,
        key: vec![Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort],
        data: DataDef::Values(vec![Selector::Priority]),
        interval: false,
        dynamic: false,
        size: None,
        counter: false,
    };
    let dispatch = SetDef {
        name: SetName::Dispatch,
        key: vec![Selector::Priority],
        data: DataDef::Verdict,
        interval: false,
        dynamic: false,
        size: Some(1),
        counter: false,
    };
    let by_kind = rule(vec![
        Statement::PriorityFromMap { key: kinds.key.clone(), map: kinds.name },
        Statement::VerdictMap { key: dispatch.key.clone(), map: dispatch.name },
    ]);
    let with_rules = |feature, since, chain: Chain| {
        [Operation::AddChain(chain.clone()), Operation::AddRules(chain)].map(|operation| Question {
            operation,
            feature,
            since,
        })
    };
    let one = |feature, since, operation| [Question { operation, feature, since }];
    let nat = "NAT with nf_tables (CONFIG_NFT_NAT, CONFIG_NFT_MASQ)";
    let fib = chain(ChainName::ExternalLocal, vec![rule(vec![Statement::SourceIsLocal])]);
    let mut all = Vec::new();
    all.extend(one("nf_tables (CONFIG_NF_TABLES)", "5.10", Operation::AddTable));
    all.extend(one("intervals in concatenated keys", "5.6", Operation::AddSet(interval)));
    all.extend(one("maps that rules write", "5.10", Operation::AddSet(affinity)));
    all.extend(one("maps of concatenated data", "5.10", Operation::AddSet(endpoints())));
    all.extend(one("maps of packet priorities", "5.10", Operation::AddSet(kinds)));
    all.extend(one("maps of verdicts", "5.10", Operation::AddSet(dispatch)));
    all.extend(with_rules("maps of packet priorities", "5.10", chain(ChainName::ExternalLocalFromNode, vec![by_kind])));
    all.extend(with_rules(
        "maps that rules write",
        "5.10",
        chain(ChainName::RememberFor(60), vec![rule(vec![update])]),
    ));
    all.extend(with_rules(nat, "5.10", chain(ChainName::Services, vec![rule(vec![dnat])])));
    all.extend(with_rules(
        "random slots (CONFIG_NFT_NUMGEN)",
        "5.10",
        chain(ChainName::Unserved, vec![rule(vec![random])]),
    ));
    all.extend(with_rules("address types (CONFIG_NFT_FIB)", "5.10", fib));
    all.extend(with_rules("reject (CONFIG_NFT_REJECT)", "5.10", reject));
    all.extend(with_rules("reject in nat output", "5.10", base(ChainName::NatOutput, HookPoint::Output)));
    all.extend(with_rules("reject in nat prerouting", "5.10", base(ChainName::NatPrerouting, HookPoint::Prerouting)));
    let masquerade = chain(ChainName::MasqueradeMarked, vec![rule(vec![Statement::Masquerade { keep_port: false }])]);
    all.extend(with_rules(nat, "5.10", masquerade));
    all
}

/// The transaction of one family.
pub(super) fn batch(family: Family, first_sequence: u32) -> Result<Batch, super::encode::EncodeError> {
    let mut encoder = Encoder::new(family, PROBE_TABLE, first_sequence);
    for (position, question) in questions().iter().enumerate() {
        encoder.operation(position, &question.operation)?;
    }
    Ok(encoder.finish())
}

/// The same, to be committed.
pub(super) fn transaction(family: Family) -> Transaction {
    let mut transaction = Transaction::new(family);
    transaction.operations.extend(questions().into_iter().map(|question| question.operation));
    transaction
}

/// The transaction that asks whether tables can have an owner and outlive it.
pub(super) fn owned(family: Family, first_sequence: u32) -> Result<Batch, super::encode::EncodeError> {
    let mut encoder = Encoder::new(family, PROBE_TABLE, first_sequence);
    encoder.operation(0, &Operation::OwnTable)?;
    Ok(encoder.finish())
}

/// The transaction that asks whether a slot can be chosen by a hash.
pub(super) fn hashed(family: Family, first_sequence: u32) -> Result<Batch, super::encode::EncodeError> {
    let slot = Selector::HashedSlot { of: Hashed::Source, modulus: 2, offset: 0 };
    let dnat = Statement::DnatMap { key: vec![slot], map: SetName::Endpoints };
    let rules = vec![Rule { statements: vec![dnat], comment: None }];
    let chain = Chain { name: ChainName::Unserved, hook: None, rules };
    let mut encoder = Encoder::new(family, PROBE_TABLE, first_sequence);
    let operations = [
        Operation::AddTable,
        Operation::AddSet(endpoints()),
        Operation::AddChain(chain.clone()),
        Operation::AddRules(chain),
    ];
    for (position, operation) in operations.iter().enumerate() {
        encoder.operation(position, operation)?;
    }
    Ok(encoder.finish())
}

/// The oldest kernel that has everything. Before about 5.11 the kernel checks which expressions a hook allows only when
/// a transaction is really committed, so the version has to answer for that.
const OLDEST: (u32, u32) = (5, 10);

/// Refuses kernels that are certainly too old.
pub(super) fn check_release(family: Family, release: &str) -> Result<(), ProbeError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST => Err(ProbeError::TooOld {
            release: release.to_owned(),
            family,
            feature: "reject in nat prerouting",
            since: "5.10",
            source: io::ErrorKind::Unsupported.into(),
        }),
        // What cannot be read is left to the questions.
        _ => Ok(()),
    }
}

/// `uname -r`.
pub(super) fn release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "of unknown version".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// What a refusal of the operation at this position means.
pub(super) fn explain(family: Family, operation: usize, source: io::Error) -> ProbeError {
    let question = questions().into_iter().nth(operation);
    let (feature, since) = question.map_or(("the table as a whole", "5.10"), |q| (q.feature, q.since));
    ProbeError::TooOld { release: release(), family, feature, since, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_named() {
        let check = |release| check_release(Family::V4, release);
        for new_enough in ["5.10.0-30-amd64", "5.10", "6.18.44-fc", "10.0", "unknown", ""] {
            assert!(check(new_enough).is_ok(), "{new_enough}");
        }
        for old in ["5.9.16", "4.19.0", "5.4.0-150-generic"] {
            let error = check(old).expect_err(old).to_string();
            assert!(error.contains(old) && error.contains("needs Linux 5.10"), "{error}");
        }
    }
}
