//! What an API server sends, as far as it can be read: pages of lists, and lines of watches.
//!
//! A page is read in one go. Where that fails, it is read object by object, so that one that is no JSON that can be used
//! (a number out of range, half of a surrogate, bytes that are no UTF-8, brackets nested too deep) does not keep the others
//! from being used.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::Resource;
use kube::core::{Status, WatchEvent};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::failure::Failure;
use super::guarded::Guarded;
use crate::source::object::Object;

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<T> {
    /// The version of the list.
    pub(super) version: Option<String>,
    /// The token for the next page; `None` at the end.
    pub(super) rest: Option<String>,
    pub(super) items: Vec<Guarded<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "T: Object")]
struct List<T> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: Option<ListMeta>,
    /// `null` where there are none, as Go writes a list that was never made.
    #[serde(deserialize_with = "items")]
    items: Vec<Guarded<T>>,
}

fn items<'de, T: Object, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Guarded<T>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads the answer to a list.
///
/// # Errors
/// It is no list, or one of another kind: it says nothing about what there is.
pub(super) fn page<T>(text: &[u8]) -> Result<Page<T>, Failure>
where
    T: Object + Resource<DynamicType = ()>,
{
    let list = match serde_json::from_slice::<List<T>>(text) {
        Ok(list) => list,
        Err(err) => by_item(&with_surrogates(text))
            .ok_or_else(|| Failure::Unreadable(format!("no {}List can be read: {err}", T::kind(&()))))?,
    };
    let (kind, api_version) = (format!("{}List", T::kind(&())), T::api_version(&()));
    if list.kind != kind || list.api_version != *api_version {
        let of = format!("an object of kind {:?} of {:?}", list.kind, list.api_version);
        return Err(Failure::Unreadable(format!("{of} in place of a {kind} of {api_version}")));
    }
    let metadata = list.metadata.unwrap_or_default();
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Page { version: some(metadata.resource_version), rest: some(metadata.continue_), items: list.items })
}

/// What a line of a watch says.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// It is there, as it is or as it was until now.
    There(Guarded<T>),
    Gone(Guarded<T>),
    /// Nothing else happened up to this version.
    Bookmark(String),
    Refused(Box<Status>),
}

/// Reads a line of a watch.
///
/// # Errors
/// It is no event of this kind: it is not known what happened.
pub(super) fn change<T>(line: &[u8]) -> Result<Change<T>, Failure>
where
    T: Object + Resource<DynamicType = ()>,
{
    let event = serde_json::from_slice::<WatchEvent<Guarded<T>>>(line);
    let (object, is_gone) = match event {
        Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
        Ok(WatchEvent::Deleted(object)) => (object, true),
        Ok(WatchEvent::Bookmark(bookmark)) => return Ok(Change::Bookmark(bookmark.metadata.resource_version)),
        Ok(WatchEvent::Error(status)) => return Ok(Change::Refused(status)),
        Err(err) => {
            // Some servers send a bare status.
            if let Some(status) = status(line) {
                return Ok(Change::Refused(Box::new(status)));
            }
            return Err(Failure::Unreadable(format!("an event that cannot be read: {err}")));
        }
    };
    if !object.is_named() {
        return Err(Failure::Unreadable(format!("an event with no {} that has a name", T::kind(&()))));
    }
    Ok(if is_gone { Change::Gone(object) } else { Change::There(object) })
}

/// The status that a text is.
pub(super) fn status(text: &[u8]) -> Option<Status> {
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
    }
    let is_one = serde_json::from_slice::<Kind>(text).is_ok_and(|Kind { kind }| kind == "Status");
    if is_one { serde_json::from_slice(text).ok() } else { None }
}

/// The text with half of a surrogate, which no text in JSON can have, where it has bytes that are no UTF-8: only who
/// needs such a text fails.
fn with_surrogates(text: &[u8]) -> String {
    let mut readable = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        readable.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            readable.push_str("\\ud800");
        }
    }
    readable
}

/// Reads a list object by object. `None` where it is none.
fn by_item<T: Object>(text: &str) -> Option<List<T>> {
    let mut list = List { api_version: String::new(), kind: String::new(), metadata: None, items: Vec::new() };
    let mut rest = after(text, '{')?;
    let mut has_items = false;
    while after(rest, '}').is_none() {
        let (name, behind) = value(rest)?;
        let name: String = serde_json::from_str(name).ok()?;
        rest = after(behind, ':')?;
        let entries = if name == "items" { after(rest, '[') } else { None };
        if let Some(mut entries) = entries {
            has_items = true;
            while after(entries, ']').is_none() {
                let (item, behind) = value(entries)?;
                list.items.push(Guarded::read(item));
                entries = next(behind, ']')?;
            }
            rest = after(entries, ']')?;
        } else {
            let (field, behind) = value(rest)?;
            match &*name {
                "items" => return None,
                "apiVersion" => list.api_version = read(field)?,
                "kind" => list.kind = read(field)?,
                "metadata" => list.metadata = read(field)?,
                _ => {}
            }
            rest = behind;
        }
        rest = next(rest, '}')?;
    }
    let end = after(rest, '}')?;
    (has_items && end.trim().is_empty()).then_some(list)
}

fn read<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// What follows on this sign.
fn after(text: &str, sign: char) -> Option<&str> {
    text.trim_start().strip_prefix(sign)
}

/// What follows on a comma, or begins with `end`.
fn next(text: &str, end: char) -> Option<&str> {
    after(text, ',').or_else(|| text.trim_start().starts_with(end).then_some(text))
}

/// A value of JSON, of which only the brackets have to be right, and what follows on it.
fn value(text: &str) -> Option<(&str, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(text.split_at(values.byte_offset()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::networking::v1::ServiceCIDR;

    use super::*;

    fn list(items: &str) -> Vec<u8> {
        let head =
            r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":""},"items":["#;
        [head.as_bytes(), items.as_bytes(), b"]}"].concat()
    }

    fn service(name: &str, spec: &str) -> String {
        format!(r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"5"}},"spec":{spec}}}"#)
    }

    /// The name of each object, and what is wrong with it.
    fn said(text: &[u8]) -> Vec<(String, Option<String>)> {
        let page = page::<Service>(text).unwrap_or_else(|err| panic!("{}: {err}", String::from_utf8_lossy(text)));
        assert_eq!((page.version.as_deref(), page.rest), (Some("7"), None));
        let name = |object: &Guarded<Service>| object.metadata.name.clone().unwrap_or_default();
        page.items.iter().map(|object| (name(object), object.object.as_ref().err().map(ToString::to_string))).collect()
    }

    #[test]
    fn one_object_that_cannot_be_read_does_not_keep_the_others_out() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        let cases = [
            (r#"{"clusterIP":"\ud800"}"#.to_owned(), "spec.clusterIP: "),
            (r#"{"ports":[{"port":80},{"port":1e999}]}"#.to_owned(), "spec.ports[1].port: number out of range"),
            (format!(r#"{{"externalIPs":{deep}}}"#), "recursion limit exceeded"),
        ];
        for (spec, expected) in cases {
            let text = list(&[service("a", "{}"), service("bad", &spec), service("b", "{}")].join(","));
            let [(_, None), (bad, Some(why)), (_, None)] = &*said(&text) else { panic!("{spec}: {:?}", said(&text)) };
            assert!(bad == "bad" && why.contains(expected), "{spec}: {bad} {why}");
        }
    }

    #[test]
    fn bytes_that_are_no_utf_8_spoil_what_they_are_in() {
        let bad = |spec: &str| {
            let text = list(&[service("a", r#"{"clusterIP":"?"}"#), service("bad", spec)].join(","));
            let place = text.iter().rposition(|byte| *byte == b'~').expect("a place for it");
            [&text[..place], b"\xff\xfe", &text[place + 1..]].concat()
        };
        let [(_, None), (name, Some(why))] = &*said(&bad(r#"{"clusterIP":"~"}"#)) else { panic!("it is read") };
        assert!(name == "bad" && why.starts_with("spec.clusterIP: "), "{name} {why}");
        // Nobody reads it.
        assert!(said(&bad(r#"{"selector":{"app":"~"}}"#)).iter().all(|(_, why)| why.is_none()));
        // Not even the name can be read.
        let text = list(&[service("a", "{}"), service("~", "{}")].join(","));
        let place = text.iter().position(|byte| *byte == b'~').expect("a place for it");
        let text = [&text[..place], b"\xff", &text[place + 1..]].concat();
        let [(_, None), (name, Some(_))] = &*said(&text) else { panic!("{:?}", said(&text)) };
        assert_eq!(name, "");
    }

    #[test]
    fn what_is_no_list_of_the_kind_is_refused() {
        let whole = String::from_utf8(list(&service("a", "{}"))).expect("UTF-8");
        assert_eq!(said(whole.as_bytes()).len(), 1);
        let without_metadata = whole.replace("metadata\":{\"resourceVersion", "x\":{\"resourceVersion");
        assert!(page::<Service>(without_metadata.as_bytes()).expect("a list").version.is_none());
        for text in [
            whole.replace("ServiceList", "PodList"),
            whole.replace("ServiceList", "Service"),
            whole.replace("ServiceList", ""),
            whole.replace(r#""kind":"ServiceList","#, ""),
            whole.replace(r#""apiVersion":"v1""#, r#""apiVersion":"v2""#),
            whole.replace("\"items\"", "\"things\""),
            whole.replace("\"ServiceList\"", "5"),
            whole[..whole.len() - 1].to_owned(),
            format!("{whole}{whole}"),
            whole.replace("[{", "{").replace("}]", "}"),
            "null".to_owned(),
            "{}".to_owned(),
            "[]".to_owned(),
            String::new(),
            "<html>".to_owned(),
        ] {
            let failure = page::<Service>(text.as_bytes()).expect_err(&text);
            assert!(matches!(failure, Failure::Unreadable(_)), "{text}: {failure}");
        }
        let none = list("");
        assert!(said(&none).is_empty());
        let null = String::from_utf8(none).expect("UTF-8").replace("[]", "null");
        assert!(said(null.as_bytes()).is_empty(), "as Go writes an empty list");
        let cidrs = br#"{"kind":"ServiceCIDRList","apiVersion":"networking.k8s.io/v1","metadata":{},"items":[]}"#;
        assert!(page::<ServiceCIDR>(cidrs).is_ok());
        assert!(page::<Service>(cidrs).is_err());
    }

    #[test]
    fn objects_without_a_usable_name_are_told_apart_from_those_that_have_one() {
        for item in ["null", "5", "[]", "{}", "\"x\"", r#"{"metadata":{"name":"a"}}"#, &service("a/b", "{}")] {
            let text = list(&[&*service("a", "{}"), item].join(","));
            let page = page::<Service>(&text).expect("a list");
            assert_eq!(page.items.iter().map(Guarded::is_named).collect::<Vec<_>>(), [true, false], "{item}");
            assert!(page.items[1].object.is_err(), "{item}");
        }
        let pod = service("a", "{}").replacen('{', r#"{"kind":"Pod","#, 1);
        let why = said(&list(&pod))[0].1.clone().expect("it is no Service");
        assert!(why.contains("Pod") && why.contains("Service"), "{why}");
    }

    #[test]
    fn lines_of_watches() {
        let line = |what: &str, object: &str| format!(r#"{{"type":"{what}","object":{object}}}"#);
        let web = service("web", "{}");
        assert!(matches!(change::<Service>(line("ADDED", &web).as_bytes()), Ok(Change::There(_))));
        assert!(matches!(change::<Service>(line("DELETED", &web).as_bytes()), Ok(Change::Gone(_))));
        let status = r#"{"kind":"Status","code":410}"#;
        for text in [line("ERROR", status), status.to_owned()] {
            let Ok(Change::Refused(status)) = change::<Service>(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(status.code, 410);
        }
        let added = line("ADDED", &web);
        for text in [
            line("PATCHED", &web),
            added.clone() + &added,
            added[..added.len() - 3].to_owned(),
            line("ADDED", &service("web", r#"{"ports":[{"port":1e999}]}"#)),
            line("ADDED", &service("web", r#"{"clusterIP":"\ud800"}"#)),
            line("ADDED", "null"),
            line("ADDED", "{}"),
            line("DELETED", &service("", "{}")),
            "hello".to_owned(),
            "{}".to_owned(),
        ] {
            let said = change::<Service>(text.as_bytes());
            assert!(matches!(said, Err(Failure::Unreadable(_))), "{text}: {said:?}");
        }
        let mut invalid = line("ADDED", &service("web", r#"{"clusterIP":"~"}"#)).into_bytes();
        let place = invalid.iter().position(|byte| *byte == b'~').expect("a place for it");
        invalid[place] = 0xff;
        assert!(change::<Service>(&invalid).is_err());
    }
}
