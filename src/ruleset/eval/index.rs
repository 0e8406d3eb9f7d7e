//! Sets, checked and indexed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{EvalError, Sets, malformed};
use crate::model::Family;
use crate::ruleset::Ruleset;
use crate::ruleset::names::SetName;
use crate::ruleset::text;
use crate::ruleset::types::{Data, DataDef, Element, Key, Selector, SetDef, Value};

/// The sets of a ruleset.
#[derive(Debug)]
pub(super) struct IndexedSets<'a>(BTreeMap<SetName, IndexedSet<'a>>);

impl<'a> IndexedSets<'a> {
    /// Checks that each is there once, and what [`IndexedSet::new`] checks.
    pub(super) fn new(ruleset: &'a Ruleset) -> Result<Self, EvalError> {
        let mut sets = BTreeMap::new();
        for (def, elements) in &ruleset.sets {
            if sets.insert(def.name, IndexedSet::new(def, elements, ruleset.family)?).is_some() {
                return Err(malformed(format_args!("set {} is there twice", def.name)));
            }
        }
        Ok(IndexedSets(sets))
    }
}

impl Sets for IndexedSets<'_> {
    fn def(&self, set: SetName) -> Result<&SetDef, &'static str> {
        self.0.get(&set).map(|set| set.def).ok_or("the set is not there")
    }

    fn find(&self, set: SetName, keys: &[Key]) -> Result<Vec<Option<Cow<'_, Element>>>, String> {
        let set = self.0.get(&set);
        Ok(keys.iter().map(|key| set.and_then(|set| set.find(key)).map(Cow::Borrowed)).collect())
    }
}

/// A set or map whose elements fit its type.
#[derive(Debug)]
struct IndexedSet<'a> {
    def: &'a SetDef,
    elements: BTreeMap<&'a [Value], &'a Element>,
}

impl<'a> IndexedSet<'a> {
    /// Checks that every element fits and is there once.
    fn new(def: &'a SetDef, elements: &'a [Element], family: Family) -> Result<Self, EvalError> {
        let mut index = BTreeMap::new();
        for element in elements {
            let key_fits = |key: &[Value]| fits(key, &def.key, family);
            let data_fits = match (&element.data, &def.data) {
                (Data::None, DataDef::None) | (Data::Verdict(_), DataDef::Verdict) => true,
                (Data::Values(values), DataDef::Values(types)) => fits(values, types, family),
                _ => false,
            };
            let end_fits = element.key_end.as_ref().is_none_or(|end| def.interval && key_fits(end));
            if !key_fits(&element.key) || !data_fits || !end_fits {
                return Err(malformed(format_args!("{} does not fit its type", text::element_of(def, element))));
            }
            if index.insert(&element.key[..], element).is_some() {
                return Err(malformed(format_args!("{} is there twice", text::element_of(def, element))));
            }
        }
        Ok(IndexedSet { def, elements: index })
    }

    /// The element with this key, or whose interval holds it.
    fn find(&self, key: &[Value]) -> Option<&'a Element> {
        if !self.def.interval {
            return self.elements.get(key).copied();
        }
        self.elements.values().find(|element| element.matches(key)).copied()
    }
}

/// What kind of value an expression gives: nft's data type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    Address,
    Protocol,
    Port,
    Slot,
    Class,
}

pub(super) fn value_type(expr: Selector) -> ValueType {
    match expr {
        Selector::SourceAddress
        | Selector::DestinationAddress
        | Selector::OriginalSource
        | Selector::OriginalDestination
        | Selector::ReplySource => ValueType::Address,
        Selector::L4Proto | Selector::HeaderProtocol => ValueType::Protocol,
        Selector::DestinationPort | Selector::OriginalPort | Selector::ReplyPort => ValueType::Port,
        Selector::RandomSlot { .. } | Selector::NextSlot { .. } | Selector::HashedSlot { .. } => ValueType::Slot,
        Selector::Priority => ValueType::Class,
    }
}

pub(super) fn fits(values: &[Value], types: &[Selector], family: Family) -> bool {
    let fits_one = |(value, expr): (&Value, &Selector)| match value {
        Value::Address(address) => value_type(*expr) == ValueType::Address && Family::of(*address) == family,
        Value::Protocol(_) => value_type(*expr) == ValueType::Protocol,
        Value::Port(_) => value_type(*expr) == ValueType::Port,
        Value::Slot(_) => value_type(*expr) == ValueType::Slot,
        Value::Class(_) => value_type(*expr) == ValueType::Class,
    };
    values.len() == types.len() && values.iter().zip(types).all(fits_one)
}
