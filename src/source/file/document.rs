//! The text of a manifest becomes documents, and a document becomes objects. Pure: no files here.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::model::{Event, Kind, Reject};
use crate::source::Key;
use crate::source::convert::Converter;
use crate::source::object::{self, Object};
use crate::source::shape::Shape;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A document of a file that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    text: &'a str,
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
pub(super) fn split(text: &str, format: Format) -> Vec<Chunk<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Yaml => split_yaml(text),
        Format::Json => split_json(text),
    }
}

/// A line that begins with `---` or `...` and a blank is a marker wherever it stands, even inside of a quoted scalar
/// (YAML 1.2.2, 9.1.2), so documents can be told apart without reading them.
fn split_yaml(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut start = (0, 0);
    let mut offset = 0;
    let mut push = |start: (usize, usize), end: usize| {
        let chunk = Chunk { text: &text[start.0..end], line: start.1 };
        if chunk.text.lines().any(has_content) {
            chunks.push(chunk);
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        let is_marker = |marker| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if is_marker("---") {
            push(start, offset);
            start = (offset, number);
        } else if is_marker("...") {
            push(start, offset);
            start = (next, number + 1);
        }
        offset = next;
    }
    push(start, offset);
    chunks
}

/// Whether a line is more than blank, a comment, a directive or a mere marker.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

fn split_json(text: &str) -> Vec<Chunk<'_>> {
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut chunks, mut start, mut line) = (Vec::new(), 0, 0);
    loop {
        let document = documents.next();
        // Of a document that cannot be read, nobody knows where it ends: it is all the rest.
        let end = if matches!(document, Some(Ok(_))) { documents.byte_offset() } else { text.len() };
        let chunk = &text[start..end];
        if !chunk.trim().is_empty() {
            chunks.push(Chunk { text: chunk, line });
        }
        if end == text.len() {
            return chunks;
        }
        line += chunk.matches('\n').count();
        start = end;
    }
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
            Ok(value) => self.object(value, "", None, &mut contents),
            Err(reason) => contents.unclear("the document", reason),
        }
        contents
    }

    /// Reads an object or a list of objects. `path` is where it stands in the document, with a dot at its end;
    /// `of_list` what kind of list it stands in, as `apiVersion` and `kind`.
    fn object(&self, mut value: Value, path: &str, of_list: Option<(&str, &str)>, contents: &mut Contents) {
        if value.is_null() {
            return;
        }
        if !value.is_object() {
            return contents.unclear(path, "is not an object; it is not used".to_owned());
        }
        let text = |field: &str, default: Option<&str>| {
            value.get(field).and_then(Value::as_str).or(default).unwrap_or_default().to_owned()
        };
        let api_version = text("apiVersion", of_list.map(|list| list.0));
        let kind = text("kind", of_list.map(|list| list.1));
        for (field, found) in [("apiVersion", &api_version), ("kind", &kind)] {
            if found.is_empty() {
                return contents.unclear(&format!("{path}{field}"), "is missing; the object is not used".to_owned());
            }
        }

        if let Some(of_items) = kind.strip_suffix("List")
            && let Some(items) = value.get_mut("items")
        {
            let of_items = (!of_items.is_empty()).then_some((api_version.as_str(), of_items));
            match items.take() {
                Value::Null => {}
                Value::Array(items) => {
                    for (index, item) in items.into_iter().enumerate() {
                        self.object(item, &format!("{path}items[{index}]."), of_items, contents);
                    }
                }
                _ => contents.unclear(&format!("{path}items"), "is not a list; it is not used".to_owned()),
            }
            return;
        }

        match (group(&api_version), kind.as_str()) {
            ("", "Service") => self.typed::<Service>(value, path, &api_version, "v1", contents),
            ("", "Node") => self.typed::<Node>(value, path, &api_version, "v1", contents),
            ("discovery.k8s.io", "EndpointSlice") => {
                self.typed::<EndpointSlice>(value, path, &api_version, "discovery.k8s.io/v1", contents);
            }
            ("networking.k8s.io", "ServiceCIDR") => {
                self.typed::<ServiceCIDR>(value, path, &api_version, "networking.k8s.io/v1", contents);
            }
            _ => contents.other_kinds.push(format!("{api_version} {kind}")),
        }
    }

    fn typed<T: Object>(&self, mut value: Value, path: &str, found: &str, wanted: &str, contents: &mut Contents) {
        let text = |field: &str| {
            let field = value.get("metadata").and_then(|metadata| metadata.get(field));
            field.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let (mut namespace, name) = (text("namespace"), text("name"));
        if namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        if T::KIND == Kind::Node && name != self.node_name && !name.is_empty() {
            return;
        }
        let Some(key) = Key::new(T::KIND, &namespace, &name) else {
            let reason = if name.is_empty() { "is missing".to_owned() } else { format!("{name:?} is not a name") };
            return contents.unclear(&format!("{path}metadata.name"), format!("{reason}; the {} is not used", T::KIND));
        };
        if found != wanted {
            let reason = format!("{found} is not read; write {wanted}");
            return contents.faulty(key, path, Reject::new("apiVersion", reason));
        }
        Shape::of(T::KIND).prune(&mut value);
        match object::parse::<T>(&value) {
            Ok(mut object) => {
                if matches!(T::KIND, Kind::Service | Kind::EndpointSlice) {
                    object.metadata_mut().namespace = Some(namespace);
                }
                let events = object::events(&object, &key, self.convert);
                contents.objects.insert(key, Some(events));
            }
            Err(reject) => contents.faulty(key, path, reject),
        }
    }
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

fn parse(chunk: Chunk<'_>, format: Format) -> Result<Value, String> {
    let (format, result) = match format {
        Format::Json => ("JSON", serde_json::from_str(chunk.text).map_err(|err| err.to_string())),
        Format::Yaml => ("YAML", parse_yaml(chunk.text).map_err(|err| err.to_string())),
    };
    result.map_err(|err| format!("not {format} ({}); the document is not used", shift_lines(&err, chunk.line)))
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

fn parse_yaml(text: &str) -> Result<Value, serde_yaml::Error> {
    if !text.contains("<<:") {
        return Value::deserialize(serde_yaml::Deserializer::from_str(text));
    }
    // Merge keys need a second pass.
    let mut value: serde_yaml::Value = serde_yaml::from_str(text)?;
    value.apply_merge()?;
    serde_yaml::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, format: Format) -> Vec<usize> {
        split(text, format).iter().map(|chunk| chunk.line + 1).collect()
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
        let chunks = split("a: 1\n---\nb: [\nc: 2\n", Format::Yaml);
        let err = parse(chunks[1], Format::Yaml).expect_err("not YAML");
        let expected =
            "not YAML (did not find expected ',' or ']' at line 5 column 1, while parsing a flow sequence at line 3";
        assert!(err.starts_with(expected), "{err}");
        let chunks = split("{}\n{\"a\":\n  oh}", Format::Json);
        let err = parse(chunks[1], Format::Json).expect_err("not JSON");
        assert!(err.starts_with("not JSON (expected value at line 3 column 3)"), "{err}");
    }

    #[test]
    fn merge_keys_are_applied() {
        let chunks = split("base: &base {a: 1}\nmore: {<<: *base, b: 2}\n", Format::Yaml);
        let value = parse(chunks[0], Format::Yaml).expect("YAML");
        assert_eq!(value["more"], serde_json::json!({"a": 1, "b": 2}));
    }
}
