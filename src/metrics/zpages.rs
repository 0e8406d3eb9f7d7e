//! `/statusz` and `/flagz` as kube-proxy 1.36 has them (KEP-4827, KEP-4828): text for people, and on demand an object for
//! programs, in JSON or YAML.
//!
//! Which it is says the header `Accept`, by the rules of Kubernetes' API servers: whoever wants an object names its kind,
//! group and version, as in `application/json;as=Statusz;v=v1beta1;g=config.k8s.io`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use axum::http::header::{ACCEPT, CONTENT_TYPE, WARNING};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::history::Change;
use super::readings;
use crate::yaml;

/// Who this is.
const COMPONENT: &str = "nftproxyd";
/// The version of Kubernetes whose kube-proxy this does the work of.
const KUBERNETES: &str = "1.36";
const GROUP: &str = "config.k8s.io";
/// What there is to be looked at on the metrics port.
const PATHS: [&str; 7] = ["/configz", "/flagz", "/healthz", "/metrics", "/nftproxyd", "/proxyMode", "/statusz"];

const REMARK: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees \
                      and is for debugging purposes only.";
const NOT_ACCEPTABLE: &str = r#"{
  "kind": "Status",
  "apiVersion": "v1",
  "metadata": {},
  "status": "Failure",
  "message": "only the following media types are accepted: application/json, application/yaml, text/plain",
  "reason": "NotAcceptable",
  "code": 406
}"#;

/// What these pages tell.
pub struct ZPages {
    /// What is below the head of `/statusz`, for people.
    pub status: Box<dyn Fn() -> String + Send + Sync>,
    /// The flags of the command line and their values.
    pub flags: BTreeMap<String, String>,
    /// The last changes, the oldest first.
    pub history: Box<dyn Fn() -> Vec<Change> + Send + Sync>,
}

impl ZPages {
    pub(super) fn history(&self) -> String {
        serde_json::to_string(&(self.history)()).expect("a structure of texts and numbers")
    }

    pub(super) fn statusz(&self, headers: &HeaderMap) -> Response {
        let started = readings::start_time().map_or(0, |seconds| seconds as i64);
        let started = Timestamp::from_second(started).unwrap_or(Timestamp::UNIX_EPOCH);
        let up = Timestamp::now().duration_since(started).as_secs().max(0);
        answer(headers, "Statusz", |api_version| Statusz {
            head: Head::new("Statusz", api_version),
            start_time: started.to_string(),
            uptime_seconds: up,
            go_version: "",
            binary_version: env!("CARGO_PKG_VERSION"),
            emulation_version: KUBERNETES,
            paths: PATHS,
        })
        .unwrap_or_else(|| {
            let at = started.to_zoned(TimeZone::UTC).strftime("%a %b %e %H:%M:%S UTC %Y");
            let (hours, minutes, seconds) = (up / 3_600, up / 60 % 60, up % 60);
            text(format!(
                "\n{COMPONENT} statusz\n{REMARK}\n\nStarted: {at}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
                 Binary version: {}\nEmulation version: {KUBERNETES}\nPaths: {}\n\n{}",
                env!("CARGO_PKG_VERSION"),
                PATHS.join(" "),
                (self.status)()
            ))
        })
    }

    pub(super) fn flagz(&self, headers: &HeaderMap) -> Response {
        let object = |api_version| Flagz { head: Head::new("Flagz", api_version), flags: &self.flags };
        answer(headers, "Flagz", object).unwrap_or_else(|| {
            let flags: String = self.flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            text(format!("\n{COMPONENT} flagz\n{REMARK}\n{flags}"))
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statusz {
    #[serde(flatten)]
    head: Head,
    start_time: String,
    uptime_seconds: i64,
    /// It has to be there.
    go_version: &'static str,
    binary_version: &'static str,
    emulation_version: &'static str,
    paths: [&'static str; PATHS.len()],
}

#[derive(Serialize)]
struct Flagz<'a> {
    #[serde(flatten)]
    head: Head,
    flags: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

impl Head {
    fn new(kind: &'static str, version: Version) -> Head {
        let api_version = format!("{GROUP}/{}", version.name());
        Head { kind, api_version, metadata: Metadata { name: COMPONENT } }
    }
}

/// An answer to whoever wants an object, or nothing that there is; `None`: text is wanted.
fn answer<T: Serialize>(
    headers: &HeaderMap,
    kind: &'static str,
    object: impl FnOnce(Version) -> T,
) -> Option<Response> {
    let accept = headers.get(ACCEPT).map(|value| value.to_str().unwrap_or("?")).unwrap_or_default();
    let (form, version) = match negotiate(accept, kind) {
        Some(Form::Text) => return None,
        Some(Form::Object(form, version)) => (form, version),
        None => {
            return Some(
                (StatusCode::NOT_ACCEPTABLE, [(CONTENT_TYPE, "application/json")], NOT_ACCEPTABLE).into_response(),
            );
        }
    };
    let object = object(version);
    let body = match form {
        "json" => serde_json::to_string_pretty(&object).expect("a structure of texts and numbers"),
        _ => yaml::text(&serde_json::to_value(&object).expect("a structure of texts and numbers")),
    };
    let content_type = format!("application/{form};g={GROUP};v={};as={kind}", version.name());
    let mut response = ([(CONTENT_TYPE, content_type)], body).into_response();
    if version == Version::V1alpha1 {
        let page = kind.to_ascii_lowercase();
        let warning =
            format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"");
        response.headers_mut().extend(warning.parse().ok().map(|warning| (WARNING, warning)));
    }
    Some(response)
}

fn text(text: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Object(&'static str, Version),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1alpha1,
    V1beta1,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Version::V1alpha1 => "v1alpha1",
            Version::V1beta1 => "v1beta1",
        }
    }
}

/// The form that suits the client best, as Kubernetes' `NegotiateMediaTypeOptions` chooses it; `None`: there is none.
fn negotiate(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    let mut clauses: Vec<Clause<'_>> = accept.split(',').filter_map(Clause::parse).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality).then(a.vagueness().cmp(&b.vagueness())));
    let forms = [("application", "json"), ("application", "yaml"), ("text", "plain")];
    let offers = clauses.iter().flat_map(|clause| forms.map(|form| (clause, form)));
    offers.filter(|(clause, form)| clause.is_for(*form)).find_map(|(clause, form)| clause.takes(form, kind))
}

/// One of the types that a client takes.
#[derive(Debug)]
struct Clause<'a> {
    types: (&'a str, &'a str),
    quality: f32,
    parameters: BTreeMap<&'a str, &'a str>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Clause<'a>> {
        let mut parts = text.split(';');
        let name = parts.next()?.trim();
        let types = match name.split_once('/') {
            Some((_, below)) if below.is_empty() || below.contains('/') => return None,
            Some((main, below)) => (main.trim(), below.trim()),
            None if name == "*" => ("*", "*"),
            None => return None,
        };
        let pairs = parts.filter_map(|part| part.split_once('=')).map(|(name, value)| (name.trim(), value.trim()));
        let mut parameters: BTreeMap<&str, &str> = pairs.filter(|(_, value)| !value.is_empty()).collect();
        let quality = parameters.remove("q").map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
        Some(Clause { types, quality, parameters })
    }

    /// What says more comes first.
    fn vagueness(&self) -> Reverse<(bool, bool)> {
        Reverse((self.types.0 != "*", self.types.1 != "*"))
    }

    fn is_for(&self, form: (&str, &str)) -> bool {
        self.types == form || self.types == (form.0, "*") || self.types == ("*", "*")
    }

    /// The answer in this form, if it is one: an object has to be named, and text is none.
    fn takes(&self, form: (&'static str, &'static str), kind: &str) -> Option<Form> {
        let given = |name: &str| self.parameters.get(name).copied();
        // There is no stream, and no version of the server to choose.
        if given("stream").is_some() || given("sv").is_some() {
            return None;
        }
        match (form.0, given("as"), given("g"), given("v")) {
            ("text", None, None, None) => Some(Form::Text),
            ("application", Some(of_kind), Some(GROUP), Some(version)) if of_kind == kind => {
                let version =
                    [Version::V1alpha1, Version::V1beta1].into_iter().find(|known| known.name() == version)?;
                Some(Form::Object(form.1, version))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_that_kube_proxy_chooses() {
        const JSON: Option<Form> = Some(Form::Object("json", Version::V1beta1));
        const TEXT: Option<Form> = Some(Form::Text);
        // As kube-proxy 1.36.2 has answered.
        for (accept, form) in [
            ("", TEXT),
            (" ", TEXT),
            ("text/plain", TEXT),
            ("*/*", TEXT),
            ("text/*", TEXT),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
            ("application/json, text/plain", TEXT),
            ("application/json", None),
            ("application/json;as=Statusz;v=v1beta1;g=config.k8s.io", JSON),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", JSON),
            ("application/*;as=Statusz;v=v1beta1;g=config.k8s.io", JSON),
            ("*/*;as=Statusz;v=v1beta1;g=config.k8s.io", JSON),
            ("application/json;as=Statusz;v=v1beta1;g=config.k8s.io, text/plain", JSON),
            ("text/plain;q=0.1, application/json;as=Statusz;v=v1beta1;g=config.k8s.io;q=0.9", JSON),
            ("application/json;as=Statusz;v=v1alpha1;g=config.k8s.io", Some(Form::Object("json", Version::V1alpha1))),
            ("application/yaml;as=Statusz;v=v1beta1;g=config.k8s.io", Some(Form::Object("yaml", Version::V1beta1))),
            ("application/json;as=Statusz;v=v1;g=config.k8s.io", None),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", None),
            ("application/cbor;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
            ("text/plain;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("nonsense", None),
        ] {
            assert_eq!(negotiate(accept, "Statusz"), form, "{accept:?}");
        }
    }
}
