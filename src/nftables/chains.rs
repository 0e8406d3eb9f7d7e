//! The chains of a table as they are, and not as they should be: read back as values. Pure, and total.

use std::collections::BTreeMap;

use super::decode;
use super::expressions::expressions;
use super::kernel::{KernelError, Unread};
use super::raise::raise;
use super::request::NftablesMessage as _;
use super::uapi::{self, msg};
use crate::model::Family;
use crate::netlink::{Attribute, Message, find};
use crate::printable::printable;
use crate::ruleset::names::ChainName;
use crate::ruleset::types::{Chain, Hook, HookPoint, Rule};

/// What was heard of a table's chains. Chains come before rules, and both of them in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    chains: BTreeMap<String, Result<Chain, Unread>>,
}

impl Found {
    /// Asks for them. `dump` gives every object of a kind of message, and `None` before it begins anew.
    pub(super) fn read(
        family: Family,
        mut dump: impl FnMut((u16, u16), &'static str, &mut dyn FnMut(Option<&Message<'_>>)) -> Result<(), KernelError>,
    ) -> Result<Found, KernelError> {
        let mut found = Found::default();
        dump((msg::GETCHAIN, msg::NEWCHAIN), "list chains", &mut |message| match message {
            Some(message) => found.chain(message),
            None => found = Found::default(),
        })?;
        let attached = found.clone();
        dump((msg::GETRULE, msg::NEWRULE), "list rules", &mut |message| match message {
            Some(message) => found.rule(family, message),
            None => found.clone_from(&attached),
        })?;
        Ok(found)
    }

    /// Takes in a message of type `NEWCHAIN`.
    pub(super) fn chain(&mut self, message: &Message<'_>) {
        let name = decode::text(message, uapi::NFTA_CHAIN_NAME).unwrap_or_default().to_owned();
        let chain = match ChainName::parse(&name) {
            None => Err(Unread::Foreign(name.clone())),
            Some(ours) => match hook(message) {
                Ok(hook) => Ok(Chain { name: ours, hook, rules: Vec::new() }),
                Err(what) => Err(Unread::Attached { chain: name.clone(), what }),
            },
        };
        self.chains.insert(name, chain);
    }

    /// Takes in a message of type `NEWRULE`. Comments are not read.
    pub(super) fn rule(&mut self, family: Family, message: &Message<'_>) {
        let name = decode::text(message, uapi::NFTA_NAME).unwrap_or_default();
        let Some(found) = self.chains.get_mut(name) else { return };
        let Ok(chain) = found else { return };
        let expressions = expressions(message.attributes());
        let read: Vec<_> = expressions.iter().map_while(|(_, expression)| expression.clone()).collect();
        let raised = match (raise(family, &read), expressions.get(read.len())) {
            (Err(at), _) => Err(at),
            (Ok(_), Some(_)) => Err(read.len()),
            (Ok(statements), None) => Ok(statements),
        };
        match raised {
            Ok(statements) => chain.rules.push(Rule { statements, comment: None }),
            Err(at) => {
                let kind = expressions.get(at).map_or("", |(kind, _)| kind);
                let what = format!("expression {} ({kind})", at + 1);
                *found = Err(Unread::Rule { chain: name.to_owned(), rule: chain.rules.len() + 1, what });
            }
        }
    }

    /// All of them, in the order of their names.
    pub(super) fn into_chains(self) -> Vec<Result<Chain, Unread>> {
        self.chains.into_values().collect()
    }
}

/// Where a chain is attached.
///
/// # Errors
/// What is otherwise than with our base chains, in words.
fn hook(message: &Message<'_>) -> Result<Option<Hook>, String> {
    let Some(attached) = find(message.attributes(), uapi::NFTA_CHAIN_HOOK) else { return Ok(None) };
    let of_hook = |kind| find(attached.attributes(), kind).and_then(|number: Attribute<'_>| number.number());
    let kind = decode::text(message, uapi::NFTA_CHAIN_TYPE).unwrap_or_default();
    if kind != "nat" {
        return Err(format!("its type is {}, not nat", printable(kind)));
    }
    if decode::number_in(message.attributes(), uapi::NFTA_CHAIN_POLICY) != Some(uapi::NF_ACCEPT) {
        return Err("its policy is not accept".to_owned());
    }
    let hook = match of_hook(uapi::NFTA_HOOK_HOOKNUM) {
        Some(0) => HookPoint::Prerouting,
        Some(1) => HookPoint::Input,
        Some(3) => HookPoint::Output,
        Some(4) => HookPoint::Postrouting,
        _ => return Err("its hook is none of type nat".to_owned()),
    };
    let priority = of_hook(uapi::NFTA_HOOK_PRIORITY).ok_or("it has no priority")?;
    Ok(Some(Hook { hook, priority: priority.cast_signed() }))
}

#[cfg(test)]
mod tests;
