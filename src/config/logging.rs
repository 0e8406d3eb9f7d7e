//! The section `logging` of KubeProxyConfiguration, whose options have forms of their own.

use super::kube_proxy::Resolver;
use super::{LogFormat, Logging};
use crate::yaml::{Scalar, Tree};

const VMODULE: &str = "logging.vmodule";
const OPTIONS: &str = "logging.options";
/// The feature gate without which the options cannot be used.
const GATE: &str = "LoggingAlphaOptions";
/// Suffixes of Kubernetes' quantities.
const SUFFIXES: [&str; 15] = ["n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Resolver<'_> {
    pub(super) fn logging(&mut self) -> Option<Logging> {
        let format = match self.fields.string("logging.format") {
            "" | "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            other => self.problem("logging.format", other, "must be text or json"),
        };
        let verbosity = self.within("logging.verbosity", 0, 0..=i32::MAX.into());
        if let Some(frequency) = self.fields.exact_duration("logging.flushFrequency")
            && frequency.get().is_none()
        {
            self.problem::<()>("logging.flushFrequency", frequency, "must not be negative");
        }
        self.check_vmodule(format);
        self.check_options();
        Some(Logging { format: format?, verbosity: u32::try_from(verbosity?).ok()? })
    }

    /// A list of patterns of files' names, each with its verbosity: no effect here, but checked as in kube-proxy.
    fn check_vmodule(&mut self, format: Option<LogFormat>) {
        let items = match self.fields.tree(VMODULE) {
            None | Some(Tree::Null) => return,
            Some(Tree::List(items)) => items.iter().map(item_of_file).collect(),
            // As the flag has it.
            Some(Tree::String(text)) => text.split(',').filter(|_| !text.is_empty()).map(item_of_flag).collect(),
            Some(other) => {
                let expected = "must be a list of filePattern and verbosity";
                self.problem::<()>(VMODULE, Shown(other), expected);
                return;
            }
        };
        let items: Vec<Option<(String, i64)>> = items;
        if format == Some(LogFormat::Json) && !items.is_empty() {
            self.problem::<()>(VMODULE, items.len(), "can only be used with the log format text");
        }
        for (index, item) in items.into_iter().enumerate() {
            let field = format!("{VMODULE}[{index}]");
            let Some((pattern, verbosity)) = item else {
                self.problem::<()>(&field, "", "must be a filePattern and a verbosity, such as main=4");
                continue;
            };
            if pattern.is_empty() || pattern.contains(['=', ',']) {
                self.problem::<()>(&field, pattern, "must not be empty, and have no = and no comma");
            } else if !(0..=i32::MAX.into()).contains(&verbosity) {
                self.problem::<()>(&field, verbosity, format!("must be from 0 to {}", i32::MAX));
            }
        }
    }

    fn complain(&mut self, field: &str, value: impl std::fmt::Debug, reason: impl Into<String>) {
        self.problem::<()>(field, value, reason);
    }

    /// Buffers and split streams: no effect here, but checked as in kube-proxy.
    fn check_options(&mut self) {
        let Some(tree) = self.fields.tree(OPTIONS) else { return };
        let allowed = self.fields.switches("featureGates").any(|(gate, on)| [GATE, "AllAlpha"].contains(&gate) && on);
        let needs_gate = format!("can only be used with the feature gate {GATE}");
        for form in ["text", "json"] {
            let option =
                |name| tree.at(form).and_then(|options| options.at(name)).filter(|value| **value != Tree::Null);
            if let Some(split) = option("splitStream") {
                let field = format!("{OPTIONS}.{form}.splitStream");
                match split {
                    Tree::Scalar(Scalar::Bool(false), _) => {}
                    Tree::Scalar(Scalar::Bool(true), _) if allowed => {}
                    Tree::Scalar(Scalar::Bool(true), _) => self.complain(&field, true, needs_gate.clone()),
                    other => self.complain(&field, Shown(other), "must be true or false"),
                }
            }
            if let Some(size) = option("infoBufferSize") {
                let field = format!("{OPTIONS}.{form}.infoBufferSize");
                match is_zero_quantity(size) {
                    Some(true) => {}
                    Some(false) if allowed => {}
                    Some(false) => self.complain(&field, Shown(size), needs_gate.clone()),
                    None => self.complain(&field, Shown(size), "must be a size, such as \"64Ki\""),
                }
            }
        }
    }
}

/// A value as it is written in a file.
struct Shown<'a>(&'a Tree);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

fn item_of_file(item: &Tree) -> Option<(String, i64)> {
    match (item.at("filePattern"), item.at("verbosity")) {
        (Some(Tree::String(pattern)), Some(Tree::Scalar(Scalar::Int(verbosity), _))) => {
            Some((pattern.clone(), *verbosity))
        }
        (Some(Tree::String(pattern)), None) => Some((pattern.clone(), 0)),
        _ => None,
    }
}

fn item_of_flag(text: &str) -> Option<(String, i64)> {
    let (pattern, verbosity) = text.split_once('=')?;
    Some((pattern.to_owned(), verbosity.parse().ok()?))
}

/// Whether a quantity of Kubernetes is zero; `None` for what is none.
fn is_zero_quantity(tree: &Tree) -> Option<bool> {
    let text = match tree {
        Tree::Scalar(Scalar::Int(number), _) => return Some(*number == 0),
        Tree::String(text) => text.as_str(),
        _ => return None,
    };
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = &text[number.len()..];
    let is_number = !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || "+-.".contains(c));
    let value: f64 = number.parse().ok().filter(|_| is_number && (suffix.is_empty() || SUFFIXES.contains(&suffix)))?;
    Some(value == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_zero_or_not_or_none() {
        for (text, expected) in [
            ("0", Some(true)),
            ("0Ki", Some(true)),
            ("64Ki", Some(false)),
            ("1.5M", Some(false)),
            ("", None),
            ("Ki", None),
            ("64 Ki", None),
            ("64Kx", None),
        ] {
            assert_eq!(is_zero_quantity(&Tree::String(text.to_owned())), expected, "{text}");
        }
        assert_eq!(is_zero_quantity(&Tree::scalar(Scalar::Int(5))), Some(false));
        assert_eq!(is_zero_quantity(&Tree::scalar(Scalar::Bool(true))), None);
    }
}
