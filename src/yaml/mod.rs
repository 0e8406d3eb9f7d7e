//! YAML and JSON as Kubernetes' own programs read them: by the rules of YAML 1.1 of their library (go.yaml.in/yaml/v2,
//! `resolve.go`), where `yes` and `off` are switches, `0755` is octal and `1e5` or `131072.0` an integer.
//!
//! A [`Tree`] forgets nothing: keys that come twice, and how a number or a switch is written. Reading costs what the text
//! costs, however it is nested: deeper than [`DEEPEST`] it is refused.

mod resolve;
mod tree;
mod write;

use std::collections::{HashMap, HashSet};
use std::fmt;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag, options};
pub(crate) use tree::{Scalar, Tree};
pub(crate) use write::text;

use crate::printable::printable;

/// Lists and sections within each other. No object has as many; serde_json's limit is the same.
pub(crate) const DEEPEST: usize = 128;

/// Bytes that aliases (`*name`) may make of a document in all: what they stand for counts as often as they do.
const COPIED: usize = 10 << 20;

/// A document of a text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) tree: Tree,
    /// The line that it begins in, from 1.
    pub(crate) line: usize,
    /// Keys that come again in the same section, in the order of the text.
    pub(crate) duplicates: Vec<Duplicate>,
}

/// A key that a section had already.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Duplicate {
    /// Where it is: `spec.ports[0].port`.
    pub(crate) path: String,
    /// The lines of both, from 1, where they are known.
    pub(crate) lines: Option<(usize, usize)>,
}

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = printable(&self.path);
        match self.lines {
            Some((first, second)) if first == second => write!(f, "{path} (line {first})"),
            Some((first, second)) => write!(f, "{path} (lines {first} and {second})"),
            None => f.write_str(&path),
        }
    }
}

/// Why a text is not YAML, or more than is read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at line {line} column {column}")]
pub(crate) struct Error {
    reason: String,
    line: usize,
    column: usize,
}

impl Error {
    fn new(at: &Marker, reason: impl Into<String>) -> Error {
        Error { reason: reason.into(), line: at.line(), column: at.col() + 1 }
    }
}

/// Reads one document of JSON.
pub(crate) fn json(text: &str) -> Result<Document, serde_json::Error> {
    let tree: Tree = serde_json::from_str(text)?;
    let mut duplicates = Vec::new();
    find_duplicates(&tree, &mut String::new(), &mut duplicates);
    Ok(Document { tree, line: 1, duplicates })
}

fn find_duplicates(tree: &Tree, path: &mut String, found: &mut Vec<Duplicate>) {
    let length = path.len();
    match tree {
        Tree::List(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                find_duplicates(item, path, found);
                path.truncate(length);
            }
        }
        Tree::Map(entries) => {
            for (key, _) in repeated(entries) {
                found.push(Duplicate { path: join(path, &entries[key].0), lines: None });
            }
            for (key, value) in entries {
                *path = join(path, key);
                find_duplicates(value, path, found);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Indexes of the entries whose keys came before, with the index of that before.
fn repeated(entries: &[(String, Tree)]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&index| &entries[index].0);
    let pairs = order.windows(2).filter(|pair| entries[pair[0]].0 == entries[pair[1]].0);
    let mut repeated: Vec<_> = pairs.map(|pair| (pair[1], pair[0])).collect();
    repeated.sort_unstable();
    repeated
}

/// Reads all documents of a text of YAML. Empty ones are [`Tree::Null`].
pub(crate) fn documents(text: &str) -> Result<Vec<Document>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = options! { flow_nesting_limit: DEEPEST, block_nesting_limit: DEEPEST };
    options.set_emit_comments(false);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|err| match err.kind() {
            granit_parser::ErrorKind::RecursionLimitExceeded => Error::new(err.marker(), too_deep()),
            _ => Error::new(err.marker(), err.info()),
        })?;
        match event {
            Event::DocumentStart(..) => builder = Builder { line: span.start.line(), ..Builder::default() },
            Event::DocumentEnd => {
                let Builder { root, line, duplicates, .. } = std::mem::take(&mut builder);
                documents.push(Document { tree: root.unwrap_or(Tree::Null), line, duplicates });
            }
            event => builder.take(event, &span)?,
        }
    }
    Ok(documents)
}

fn too_deep() -> String {
    format!("nested deeper than {DEEPEST} levels")
}

/// Makes a document of what the parser says.
#[derive(Default)]
struct Builder {
    line: usize,
    /// What has begun and has not ended.
    open: Vec<Open>,
    root: Option<Tree>,
    anchors: HashMap<usize, Tree>,
    /// How much has come by aliases.
    copied: usize,
    duplicates: Vec<Duplicate>,
}

/// A list or a section that has not ended.
struct Open {
    anchor: usize,
    at: Marker,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Tree>),
    Map {
        entries: Vec<(String, Tree)>,
        /// Of the keys.
        lines: Vec<usize>,
        /// One that has no value yet.
        key: Option<Key>,
        /// Of merge keys (`<<`): what they add where the section itself says nothing.
        merged: Vec<(String, Tree)>,
    },
}

enum Key {
    Named(String, usize),
    Merge,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Error> {
        let open = |anchor, kind| Open { anchor, at: span.start, kind };
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain);
                let is_merge = plain && tag.is_none() && text == "<<";
                if is_merge && let Some(Open { kind: OpenKind::Map { key: key @ None, .. }, .. }) = self.open.last_mut()
                {
                    *key = Some(Key::Merge);
                    return Ok(());
                }
                let tree = value(text.into_owned(), plain, tag.as_deref()).map_err(|it| Error::new(&span.start, it))?;
                self.node(tree, anchor, &span.start)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(open(anchor, OpenKind::List(Vec::new()))),
            Event::MappingStart(_, anchor, _) => {
                let (entries, lines, merged) = (Vec::new(), Vec::new(), Vec::new());
                self.begin(open(anchor, OpenKind::Map { entries, lines, key: None, merged }))
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => {
                let Some(tree) = self.anchors.get(&anchor) else {
                    return Err(Error::new(&span.start, "an alias within what it stands for"));
                };
                let (weight, depth) = tree.weight();
                self.copied += weight;
                if self.copied > COPIED {
                    return Err(Error::new(&span.start, "its aliases stand for too much"));
                }
                if self.open.len() + depth > DEEPEST {
                    return Err(Error::new(&span.start, too_deep()));
                }
                let tree = tree.clone();
                self.node(tree, 0, &span.start)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), Error> {
        if self.open.len() >= DEEPEST {
            return Err(Error::new(&open.at, too_deep()));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(Open { anchor, at, kind }) = self.open.pop() else { return Ok(()) };
        let tree = match kind {
            OpenKind::List(items) => Tree::List(items),
            OpenKind::Map { mut entries, lines, merged, .. } => {
                for (index, before) in repeated(&entries) {
                    let path = join(&self.path(), &entries[index].0);
                    self.duplicates.push(Duplicate { path, lines: Some((lines[before], lines[index])) });
                }
                if !merged.is_empty() {
                    let mut known: HashSet<String> = entries.iter().map(|(key, _)| key.clone()).collect();
                    entries.extend(merged.into_iter().filter(|(key, _)| known.insert(key.clone())));
                }
                Tree::Map(entries)
            }
        };
        self.node(tree, anchor, &at)
    }

    /// Where what comes next stands.
    fn path(&self) -> String {
        self.open.iter().fold(String::new(), |path, open| match &open.kind {
            OpenKind::List(items) => format!("{path}[{}]", items.len()),
            OpenKind::Map { key: Some(Key::Named(key, _)), .. } => join(&path, key),
            OpenKind::Map { .. } => join(&path, "<<"),
        })
    }

    /// A whole value: a key, or what is under one, or an entry of a list, or all of the document.
    fn node(&mut self, tree: Tree, anchor: usize, at: &Marker) -> Result<(), Error> {
        if anchor != 0 {
            self.anchors.insert(anchor, tree.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(tree),
            Some(OpenKind::List(items)) => items.push(tree),
            Some(OpenKind::Map { entries, lines, key, merged }) => match key.take() {
                None => *key = Some(Key::Named(key_of(tree).map_err(|it| Error::new(at, it))?, at.line())),
                Some(Key::Named(name, line)) => {
                    entries.push((name, tree));
                    lines.push(line);
                }
                Some(Key::Merge) => merge(tree, merged).map_err(|it| Error::new(at, it))?,
            },
        }
        Ok(())
    }
}

/// The value of a scalar that may have a tag.
fn value(text: String, plain: bool, tag: Option<&Tag>) -> Result<Tree, String> {
    let Some(wanted) = tag.and_then(Tag::core_suffix) else {
        return Ok(if plain && tag.is_none() { resolve::plain(text) } else { Tree::String(text) });
    };
    let wrong = format!("{text:?} is not of the type !!{wanted}");
    match (wanted, resolve::plain(text)) {
        ("str", Tree::Null) => Ok(Tree::String(String::new())),
        ("str", Tree::Scalar(_, text)) => Ok(Tree::String(text.into())),
        ("bool", tree @ Tree::Scalar(Scalar::Bool(_), _))
        | ("int", tree @ Tree::Scalar(Scalar::Int(_), _))
        | ("float", tree @ Tree::Scalar(Scalar::Int(_) | Scalar::Float(_), _))
        | ("null", tree @ Tree::Null)
        | ("str", tree @ Tree::String(_)) => Ok(tree),
        _ => Err(wrong),
    }
}

/// Keys are texts in JSON: what else they are in YAML is written as JSON has it.
fn key_of(tree: Tree) -> Result<String, &'static str> {
    match tree {
        Tree::String(text) => Ok(text),
        Tree::Scalar(Scalar::Bool(value), _) => Ok(value.to_string()),
        Tree::Scalar(Scalar::Int(value), _) => Ok(value.to_string()),
        Tree::Scalar(Scalar::Float(value), _) => Ok(value.to_string()),
        Tree::Null => Err("a key that is null"),
        Tree::List(_) | Tree::Map(_) => Err("a key that is a list or a section"),
    }
}

/// What a merge key adds: of what several sections say the first counts.
fn merge(tree: Tree, merged: &mut Vec<(String, Tree)>) -> Result<(), &'static str> {
    match tree {
        Tree::Map(entries) => {
            merged.extend(entries);
            Ok(())
        }
        Tree::List(items) if items.iter().all(|item| matches!(item, Tree::Map(_))) => {
            items.into_iter().try_for_each(|item| merge(item, merged))
        }
        _ => Err("a merge key (<<) takes a section, or a list of sections"),
    }
}

#[cfg(test)]
mod tests;
