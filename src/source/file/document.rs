//! The text of a manifest becomes documents, and a document becomes objects. Pure: no files here.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::IgnoredAny;

use crate::model::{Event, Kind, Reject};
use crate::source::Key;
use crate::source::convert::Converter;
use crate::source::object::{self, Object};
use crate::source::shape::Shape;
use crate::yaml::{self, Document, Scalar, Tree};

/// At most this many keys of a document that come twice are named.
const NAMED: usize = 3;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A document of a file that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    /// May be no UTF-8: then only this document cannot be used.
    text: &'a [u8],
    /// Line of the file that it begins in, from 0.
    line: usize,
}

impl Chunk<'_> {
    /// Equal for equal text, in this process.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        hasher.finish()
    }
}

/// Splits a file into its documents. A document that is wrong hides another only where it cannot be told where it ends.
pub(super) fn split(text: &[u8], format: Format) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    match format {
        Format::Yaml => split_yaml(text),
        Format::Json => split_json(text),
    }
}

/// A line that begins with `---` or `...` and a blank is a marker wherever it stands, even inside of a quoted scalar
/// (YAML 1.2.2, 9.1.2), so documents can be told apart without reading them.
fn split_yaml(text: &[u8]) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut start = (0, 0);
    let mut offset = 0;
    let mut push = |start: (usize, usize), end: usize| {
        let chunk = Chunk { text: &text[start.0..end], line: start.1 };
        if chunk.text.split(|byte| *byte == b'\n').any(has_content) {
            chunks.push(chunk);
        }
    };
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let next = offset + line.len();
        let is_marker = |marker: &[u8]| {
            line.strip_prefix(marker)
                .is_some_and(|rest| matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')))
        };
        if is_marker(b"---") {
            push(start, offset);
            start = (offset, number);
        } else if is_marker(b"...") {
            push(start, offset);
            start = (next, number + 1);
        }
        offset = next;
    }
    push(start, offset);
    chunks
}

/// Whether a line is more than blank, a comment, a directive or a mere marker.
fn has_content(line: &[u8]) -> bool {
    let line = line.strip_prefix(b"---").unwrap_or(line).trim_ascii();
    !matches!(line.first(), None | Some(b'#' | b'%'))
}

fn split_json(text: &[u8]) -> Vec<Chunk<'_>> {
    let mut documents = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    let (mut chunks, mut start, mut line) = (Vec::new(), 0, 0);
    loop {
        let document = documents.next();
        // Of a document that cannot be read, nobody knows where it ends: it is all the rest.
        let end = if matches!(document, Some(Ok(_))) { documents.byte_offset() } else { text.len() };
        let chunk = &text[start..end];
        if !chunk.trim_ascii().is_empty() {
            chunks.push(Chunk { text: chunk, line });
        }
        if end == text.len() {
            return chunks;
        }
        line += lines(chunk);
        start = end;
    }
}

/// How many lines end in a text.
fn lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// What a document says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Its objects, with what there is to say about each; `None` where the object is faulty.
    pub(super) objects: BTreeMap<Key, Option<Vec<Event>>>,
    /// What is wrong with it.
    pub(super) rejects: Vec<Reject>,
    /// Whether there is something in it of which not even the name can be told.
    pub(super) unclear: bool,
    /// Objects of kinds that the proxy does not read, as `apps/v1 Deployment`.
    pub(super) other_kinds: Vec<String>,
}

/// Reads documents.
pub(super) struct Reader<'a> {
    pub(super) node_name: &'a str,
    pub(super) convert: &'a Converter,
}

impl Reader<'_> {
    /// Reads one document.
    pub(super) fn read(&self, chunk: Chunk<'_>, format: Format) -> Contents {
        let mut contents = Contents::default();
        match parse(chunk, format) {
            Ok(Document { tree, duplicates, .. }) => {
                self.object(tree, "", None, &mut contents);
                if !duplicates.is_empty() && !contents.objects.is_empty() {
                    contents = Contents { other_kinds: contents.other_kinds, ..Contents::default() };
                    contents.unclear("the document", twice(&duplicates, chunk.line));
                }
            }
            Err(reason) => contents.unclear("the document", reason),
        }
        contents
    }

    /// Reads an object or a list of objects. `path` is where it stands in the document, with a dot at its end;
    /// `of_list` what kind of list it stands in, as `apiVersion` and `kind`.
    fn object(&self, mut tree: Tree, path: &str, of_list: Option<(&str, &str)>, contents: &mut Contents) {
        if tree == Tree::Null {
            return;
        }
        if !matches!(tree, Tree::Map(_)) {
            return contents.unclear(path, "is not an object; it is not used".to_owned());
        }
        let text = |field: &str, default: Option<&str>| tree.text(field).or(default).unwrap_or_default().to_owned();
        let api_version = text("apiVersion", of_list.map(|list| list.0));
        let kind = text("kind", of_list.map(|list| list.1));
        for (field, found) in [("apiVersion", &api_version), ("kind", &kind)] {
            if found.is_empty() {
                let reason = format!("{}; the object is not used", no_text(tree.at(field)));
                return contents.unclear(&format!("{path}{field}"), reason);
            }
        }

        if let Some(of_items) = kind.strip_suffix("List")
            && let Some(items) = tree.take("items")
        {
            let of_items = (!of_items.is_empty()).then_some((api_version.as_str(), of_items));
            match items {
                Tree::Null => {}
                Tree::List(items) => {
                    for (index, item) in items.into_iter().enumerate() {
                        self.object(item, &format!("{path}items[{index}]."), of_items, contents);
                    }
                }
                _ => contents.unclear(&format!("{path}items"), "is not a list; it is not used".to_owned()),
            }
            return;
        }

        match (group(&api_version), kind.as_str()) {
            ("", "Service") => self.typed::<Service>(&tree, path, &api_version, "v1", contents),
            ("", "Node") => self.typed::<Node>(&tree, path, &api_version, "v1", contents),
            ("discovery.k8s.io", "EndpointSlice") => {
                self.typed::<EndpointSlice>(&tree, path, &api_version, "discovery.k8s.io/v1", contents);
            }
            ("networking.k8s.io", "ServiceCIDR") => {
                self.typed::<ServiceCIDR>(&tree, path, &api_version, "networking.k8s.io/v1", contents);
            }
            _ => contents.other_kinds.push(format!("{api_version} {kind}")),
        }
    }

    fn typed<T: Object>(&self, tree: &Tree, path: &str, found: &str, wanted: &str, contents: &mut Contents) {
        let field = |field: &str| tree.at("metadata").and_then(|metadata| metadata.at(field));
        let text = |name: &str| match field(name) {
            Some(Tree::String(text)) => text.clone(),
            _ => String::new(),
        };
        let (mut namespace, name) = (text("namespace"), text("name"));
        if !matches!(field("namespace"), None | Some(Tree::Null | Tree::String(_))) {
            let reason = format!("{}; the {} is not used", no_text(field("namespace")), T::KIND);
            return contents.unclear(&format!("{path}metadata.namespace"), reason);
        }
        if namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        if T::KIND == Kind::Node && name != self.node_name && !name.is_empty() {
            return;
        }
        let Some(key) = Key::new(T::KIND, &namespace, &name) else {
            let reason = if name.is_empty() { no_text(field("name")) } else { format!("{name:?} is not a name") };
            return contents.unclear(&format!("{path}metadata.name"), format!("{reason}; the {} is not used", T::KIND));
        };
        if found != wanted {
            let reason = format!("{found} is not read; write {wanted}");
            return contents.faulty(key, path, Reject::new("apiVersion", reason));
        }
        match object::parse::<T>(&Shape::of(T::KIND).keep(tree)) {
            Ok(mut object) => {
                if matches!(T::KIND, Kind::Service | Kind::EndpointSlice) {
                    object.metadata_mut().namespace = Some(namespace);
                }
                let events = object::events(&object, &key, self.convert);
                // The text that the model holds too.
                let key = match events.first() {
                    Some(Event::Service(service)) => Key { name: service.name.shared().clone(), ..key },
                    Some(Event::Slice { slice, .. }) => Key { name: slice.name.shared().clone(), ..key },
                    _ => key,
                };
                contents.objects.insert(key, Some(events));
            }
            Err(reject) => contents.faulty(key, path, better(reject, tree)),
        }
    }
}

/// What is wrong with what should be a text and not empty.
fn no_text(found: Option<&Tree>) -> String {
    match found {
        None | Some(Tree::Null | Tree::String(_)) => "is missing".to_owned(),
        Some(Tree::Scalar(Scalar::Bool(_), text)) => format!("{text} is a switch (true or false); write {text:?}"),
        Some(Tree::Scalar(_, text)) => format!("{text} is a number; write {text:?}"),
        Some(Tree::List(_)) => "is a list, not a text".to_owned(),
        Some(Tree::Map(_)) => "is a section, not a text".to_owned(),
    }
}

/// The same reject, with what to write where a text is wanted that looks like something else.
fn better(reject: Reject, tree: &Tree) -> Reject {
    match tree.find(&reject.field) {
        Some(found @ Tree::Scalar(..)) if reject.reason.contains("expected a string") => {
            let reason = format!("{}; the object is not used", no_text(Some(found)));
            Reject::new(reject.field, reason)
        }
        _ => reject,
    }
}

/// Names keys that come twice in a document that begins after so many lines.
fn twice(duplicates: &[yaml::Duplicate], lines_before: usize) -> String {
    let named = duplicates.iter().take(NAMED).map(|duplicate| {
        let lines = duplicate.lines.map(|(first, second)| (first + lines_before, second + lines_before));
        yaml::Duplicate { path: duplicate.path.clone(), lines }.to_string()
    });
    let named: Vec<String> = named.collect();
    let more = match duplicates.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("has keys that come twice: {}{more}; the document is not used", named.join(", "))
}

impl Contents {
    fn unclear(&mut self, field: &str, reason: String) {
        let field = match field.trim_end_matches('.') {
            "" => "the document".to_owned(),
            field => field.to_owned(),
        };
        self.rejects.push(Reject::new(field, reason));
        self.unclear = true;
    }

    fn faulty(&mut self, key: Key, path: &str, reject: Reject) {
        self.rejects.push(Reject::new(format!("{path}{}", reject.field), format_args!("{key}: {}", reject.reason)));
        self.objects.insert(key, None);
    }
}

/// The group of an `apiVersion`; empty for the core group.
fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn parse(chunk: Chunk<'_>, format: Format) -> Result<Document, String> {
    let text = std::str::from_utf8(chunk.text).map_err(|err| {
        let (before, after) = chunk.text.split_at(err.valid_up_to());
        let line = chunk.line + lines(before) + 1;
        format!("not UTF-8 (the byte {:#04x} in line {line}); the document is not used", after[0])
    })?;
    let (format, result) = match format {
        Format::Json => ("JSON", yaml::json(text).map_err(|err| err.to_string())),
        Format::Yaml => ("YAML", parse_yaml(text)),
    };
    result.map_err(|err| format!("not {format} ({}); the document is not used", shift_lines(&err, chunk.line)))
}

fn parse_yaml(text: &str) -> Result<Document, String> {
    let documents = yaml::documents(text).map_err(|err| err.to_string())?;
    documents.into_iter().next().ok_or_else(|| "there is nothing in it".to_owned())
}

/// Parsers count lines from the beginning of the document; people from the beginning of the file.
fn shift_lines(message: &str, by: usize) -> String {
    const LINE: &str = " at line ";
    let mut parts = message.split(LINE);
    let mut shifted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = part.split_at(digits);
        let number = number.parse::<usize>().map_or_else(|_| number.to_owned(), |number| (number + by).to_string());
        shifted.extend([LINE, &number, rest]);
    }
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, format: Format) -> Vec<usize> {
        split(text.as_bytes(), format).iter().map(|chunk| chunk.line + 1).collect()
    }

    #[test]
    fn documents_are_told_apart() {
        let cases: &[(Format, &str, &[usize])] = &[
            (Format::Yaml, "", &[]),
            (Format::Yaml, "# nothing\n\n---\n# here\n---\n", &[]),
            (Format::Yaml, "a: 1", &[1]),
            (Format::Yaml, "---\na: 1\n---\nb: 2\n", &[1, 3]),
            (Format::Yaml, "a: 1\n--- # comment\n--- {b: 2}\n", &[1, 3]),
            (Format::Yaml, "a: 1\n...\n%YAML 1.2\n---\nb: 2\n...\n", &[1, 4]),
            (Format::Yaml, "a: 1\r\n---\r\nb: 2\r\n", &[1, 2]),
            (Format::Yaml, "a: |\n ---\n ...\n", &[1]),
            (Format::Yaml, "\u{feff}a: 1\n---\n[[[\n---\nb: 2", &[1, 2, 4]),
            (Format::Json, " \n", &[]),
            (Format::Json, "{}\n{}\n\n[]", &[1, 1, 2]),
            (Format::Json, "{}\n{\n", &[1, 1]),
        ];
        for (format, text, expected) in cases {
            assert_eq!(lines(text, *format), *expected, "{text:?}");
        }
    }

    #[test]
    fn positions_are_those_of_the_file() {
        let refused = |text: &'static str, format, index: usize| {
            parse(split(text.as_bytes(), format)[index], format).expect_err("it is refused")
        };
        let err = refused("a: 1\n---\nb: [\nc: 2\n", Format::Yaml, 1);
        assert!(err.starts_with("not YAML (unclosed bracket '[' at line 3 column 4)"), "{err}");
        let err = refused("{}\n{\"a\":\n  oh}", Format::Json, 1);
        assert!(err.starts_with("not JSON (expected value at line 3 column 3)"), "{err}");
    }
}
