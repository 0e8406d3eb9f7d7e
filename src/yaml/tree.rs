//! A value of YAML or JSON that forgets nothing: serde's own trees drop or refuse keys that come twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::printable::printable;

/// What a value weighs beside its text, in bytes.
const WEIGHT: usize = 64;

/// Integers up to here have all their digits in JSON as Go writes it, and so are integers there, however they are
/// written.
const LARGEST_WHOLE: f64 = 1e18;

/// A value of YAML or JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tree {
    Null,
    /// A switch or a number, and how it is written.
    Scalar(Scalar, Box<str>),
    String(String),
    List(Vec<Tree>),
    /// In the order of the document; keys may come twice.
    Map(Vec<(String, Tree)>),
}

/// A value that is no text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar {
    Bool(bool),
    Int(i64),
    /// No integer, or one that is larger than any that is meant. Finite.
    Float(f64),
}

impl Scalar {
    /// A number without a fraction is an integer in JSON.
    pub(super) fn number(value: f64) -> Scalar {
        let whole = value.fract() == 0.0 && value.abs() <= LARGEST_WHOLE;
        if whole { Scalar::Int(value as i64) } else { Scalar::Float(value) }
    }
}

impl Tree {
    /// A switch or a number.
    pub(crate) fn scalar(value: Scalar) -> Tree {
        let text = match value {
            Scalar::Bool(value) => value.to_string(),
            Scalar::Int(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
        };
        Tree::Scalar(value, text.into())
    }

    /// What a section has under a key; of one that comes twice, the last.
    pub(crate) fn at(&self, key: &str) -> Option<&Tree> {
        match self {
            Tree::Map(entries) => entries.iter().rev().find(|(found, _)| found == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Takes out what a section has under a key.
    pub(crate) fn take(&mut self, key: &str) -> Option<Tree> {
        match self {
            Tree::Map(entries) => {
                let (_, value) = entries.iter_mut().rev().find(|(found, _)| found == key)?;
                Some(std::mem::replace(value, Tree::Null))
            }
            _ => None,
        }
    }

    /// What is under a key, if it is a text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.at(key) {
            Some(Tree::String(text)) => Some(text),
            _ => None,
        }
    }

    /// What is at a path such as `spec.ports[0].name`. Keys may have dots in them.
    pub(crate) fn find(&self, path: &str) -> Option<&Tree> {
        if path.is_empty() {
            return Some(self);
        }
        match self {
            Tree::Map(entries) => entries.iter().rev().find_map(|(key, value)| {
                let rest = path.strip_prefix(key.as_str())?;
                let rest =
                    rest.strip_prefix('.').or_else(|| (rest.is_empty() || rest.starts_with('[')).then_some(rest));
                value.find(rest?)
            }),
            Tree::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                items.get(index.parse::<usize>().ok()?)?.find(rest.strip_prefix('.').unwrap_or(rest))
            }
            _ => None,
        }
    }

    /// Sets what is at a path such as `conntrack.min`; what is no section on the way there is left alone, since it will
    /// be refused.
    pub(crate) fn set(&mut self, path: &str, value: Tree) {
        let (key, rest) = path.split_once('.').map_or((path, None), |(key, rest)| (key, Some(rest)));
        if *self == Tree::Null {
            *self = Tree::Map(Vec::new());
        }
        let Tree::Map(entries) = self else { return };
        let position = entries.iter().rposition(|(found, _)| found == key).unwrap_or_else(|| {
            entries.push((key.to_owned(), Tree::Null));
            entries.len() - 1
        });
        match rest {
            Some(rest) => entries[position].1.set(rest, value),
            None => entries[position].1 = value,
        }
    }

    /// How much it is, and how deep.
    pub(super) fn weight(&self) -> (usize, usize) {
        let sum = |parts: &mut dyn Iterator<Item = (usize, &Tree)>| {
            parts.fold((WEIGHT, 1), |(weight, depth), (key, value)| {
                let (more, below) = value.weight();
                (weight + key + more, depth.max(below + 1))
            })
        };
        match self {
            Tree::Null => (WEIGHT, 0),
            Tree::Scalar(_, text) => (WEIGHT + text.len(), 0),
            Tree::String(text) => (WEIGHT + text.len(), 0),
            Tree::List(items) => sum(&mut items.iter().map(|item| (0, item))),
            Tree::Map(entries) => sum(&mut entries.iter().map(|(key, value)| (key.len(), value))),
        }
    }
}

impl fmt::Display for Tree {
    /// On one line, as JSON, but for switches and numbers, which are as they are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Null => f.write_str("null"),
            Tree::Scalar(_, text) => f.write_str(text),
            Tree::String(value) => write!(f, "{value:?}"),
            Tree::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Tree::Map(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    write!(f, "{}{}: {value}", if index > 0 { ", " } else { "" }, printable(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

/// Of JSON.
struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::scalar(Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::scalar(Scalar::Int(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::scalar(i64::try_from(value).map_or(Scalar::Float(value as f64), Scalar::Int)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::scalar(Scalar::number(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Tree::Map(map))
    }
}
