//! Writes YAML that means the same by the rules of YAML 1.1 and of 1.2.

use serde_json::Value;

use super::resolve;
use super::tree::Tree;

/// A value as a document.
pub(crate) fn text(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text.trim_start_matches([' ', '\n']).to_owned() + "\n"
}

/// Writes what comes behind a key or a dash.
fn write(value: &Value, indent: usize, out: &mut String) {
    let line = |out: &mut String| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                line(out);
                out.push_str(&quoted(key));
                out.push(':');
                write(value, indent + 2, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                line(out);
                out.push('-');
                write(item, indent + 2, out);
            }
        }
        Value::String(text) => out.extend([" ", &quoted(text)]),
        other => out.extend([" ", &other.to_string()]),
    }
}

/// A text, in quotes unless it is one to every reader without them.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    // A colon ends a key where a blank, or nothing, follows.
    // YAML 1.1 has dates and times of its own.
    let is_date =
        text.split_once('-').is_some_and(|(year, _)| year.len() == 4 && year.bytes().all(|c| c.is_ascii_digit()));
    let is_plain = !is_date
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && text.split(':').all(|part| !part.is_empty() && part.chars().all(plain))
        && matches!(resolve::plain(text.to_owned()), Tree::String(_));
    if is_plain { text.to_owned() } else { Value::from(text).to_string() }
}
