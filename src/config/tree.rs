//! A document as a tree that forgets nothing: serde's own trees drop or refuse keys that come twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value of YAML or JSON.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Null,
    Bool(bool),
    Int(i64),
    /// Also integers that are larger than any that is meant.
    Float(f64),
    String(String),
    List(Vec<Tree>),
    /// In the order of the document; keys may come twice.
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// Reads one document of YAML or JSON.
    pub(super) fn parse(text: &str) -> Result<Tree, String> {
        if text.trim_start().starts_with('{')
            && let Ok(tree) = serde_json::from_str(text)
        {
            return Ok(tree);
        }
        serde_yaml::from_str(text).map_err(|err| err.to_string())
    }

    /// What a section has under a key; of one that comes twice, the last.
    pub(super) fn at(&self, key: &str) -> Option<&Tree> {
        match self {
            Tree::Map(entries) => entries.iter().rev().find(|(found, _)| found == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Sets what is at a path such as `conntrack.min`; what is no section on the way there is left alone, since it will
    /// be refused.
    pub(super) fn set(&mut self, path: &str, value: Tree) {
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
}

impl fmt::Display for Tree {
    /// On one line, as JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Null => f.write_str("null"),
            Tree::Bool(value) => write!(f, "{value}"),
            Tree::Int(value) => write!(f, "{value}"),
            Tree::Float(value) => write!(f, "{value}"),
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
                    write!(f, "{}{key}: {value}", if index > 0 { ", " } else { "" })?;
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

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(i64::try_from(value).map_or(Tree::Float(value as f64), Tree::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::String(value.to_owned()))
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
        while let Some((key, value)) = entries.next_entry::<Tree, Tree>()? {
            let key = match key {
                Tree::String(key) => key,
                key => key.to_string(),
            };
            map.push((key, value));
        }
        Ok(Tree::Map(map))
    }
}
