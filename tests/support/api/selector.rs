//! Label and field selectors.

use serde_json::Value;

/// Requirements that must all hold: `key`, `!key`, `key=value`, `key==value`, `key!=value`.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone)]
enum Requirement {
    Exists(String),
    Absent(String),
    Equals(String, String),
    Differs(String, String),
}

impl Selector {
    pub fn parse(labels: &str, fields: &str) -> Selector {
        Selector { labels: requirements(labels), fields: requirements(fields) }
    }

    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        // As in the real server, a field that is not there is empty.
        let field = |path: &str| path.split('.').try_fold(object, |value, part| value.get(part))?.as_str();
        self.labels.iter().all(|requirement| requirement.holds(label))
            && self.fields.iter().all(|requirement| requirement.holds(|path| Some(field(path).unwrap_or_default())))
    }
}

fn requirements(selector: &str) -> Vec<Requirement> {
    let parse = |text: &str| {
        if let Some((key, value)) = text.split_once("!=") {
            Requirement::Differs(key.to_owned(), value.to_owned())
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            Requirement::Equals(key.to_owned(), value.to_owned())
        } else if let Some(key) = text.strip_prefix('!') {
            Requirement::Absent(key.to_owned())
        } else {
            Requirement::Exists(text.to_owned())
        }
    };
    selector.split(',').filter(|text| !text.is_empty()).map(parse).collect()
}

impl Requirement {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Requirement::Exists(key) => value(key).is_some(),
            Requirement::Absent(key) => value(key).is_none(),
            Requirement::Equals(key, wanted) => value(key) == Some(wanted),
            Requirement::Differs(key, unwanted) => value(key) != Some(unwanted),
        }
    }
}
