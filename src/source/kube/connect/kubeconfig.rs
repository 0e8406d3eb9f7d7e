//! Reads a kubeconfig: which cluster and which user its current context names.
//!
//! What is taken and what is refused is what client-go does (`tools/clientcmd`), but for what it lets pass although it
//! can only fail later.

use kube::config::{AuthInfo, Cluster, Kubeconfig};
use serde::Deserialize;
use serde_json::Value;

/// What the current context names.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) context: String,
    pub(super) cluster_name: String,
    pub(super) cluster: Cluster,
    /// Empty where the context names no user.
    pub(super) user_name: String,
    pub(super) user: AuthInfo,
    pub(super) namespace: Option<String>,
}

/// Reads the text of a file.
///
/// # Errors
/// What is wrong with it. No value is repeated: there are secrets among them.
pub(super) fn choose(text: &[u8]) -> Result<Chosen, String> {
    let Kubeconfig { clusters, auth_infos, contexts, current_context, .. } = parse(text)?;
    let context_name = current_context.filter(|name| !name.is_empty());
    let context_name = context_name.ok_or("current-context is not set: name one of its contexts there")?;
    let context = contexts.into_iter().find(|context| context.name == context_name);
    let context =
        context.ok_or_else(|| format!("there is no context {context_name:?}, which current-context names"))?;
    let context = context.context.ok_or_else(|| format!("context {context_name:?} is empty"))?;
    let cluster = clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let missing = |what: &str, name: &str| format!("there is no {what} {name:?}, which context {context_name:?} names");
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster.unwrap_or_default();
    let user_name = context.user.unwrap_or_default();
    let user = auth_infos.into_iter().find(|user| user.name == user_name);
    let user = match user {
        Some(user) => user.auth_info.unwrap_or_default(),
        // client-go goes on without credentials, which no cluster lets read what is needed.
        None if !user_name.is_empty() => return Err(missing("user", &user_name)),
        None => AuthInfo::default(),
    };
    let namespace = context.namespace.filter(|namespace| !namespace.is_empty());
    Ok(Chosen { context: context_name, cluster_name: context.cluster, cluster, user_name, user, namespace })
}

/// As Go reads YAML: of fields that are there twice the last counts, and of documents the first.
fn parse(text: &[u8]) -> Result<Kubeconfig, String> {
    let broken = |err: serde_yaml::Error| format!("it is not YAML: {}", without_values(&err.to_string()));
    let mut value = Value::Null;
    let text = decoded(text).ok_or("it is no text")?;
    for document in serde_yaml::Deserializer::from_str(&text) {
        value = Value::deserialize(document).map_err(broken)?;
        if !value.is_null() {
            break;
        }
    }
    merge(&mut value);
    let Value::Object(fields) = &value else {
        return Err(if value.is_null() { "it is empty".to_owned() } else { "it is no mapping of fields".to_owned() });
    };
    if let Some(kind) = fields.get("kind").and_then(Value::as_str).filter(|kind| !matches!(*kind, "" | "Config")) {
        return Err(format!("it is no kubeconfig (kind Config), but has the kind {kind:?}"));
    }
    serde_path_to_error::deserialize(value).map_err(|err| {
        let path = err.path().to_string();
        format!("{path}: {}", without_values(&err.into_inner().to_string()))
    })
}

/// The characters of a file, which begins with a mark of its encoding if that is not UTF-8.
fn decoded(text: &[u8]) -> Option<String> {
    let of_pairs = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, odd) = rest.as_chunks();
        String::from_utf16(&pairs.iter().copied().map(unit).collect::<Vec<_>>()).ok().filter(|_| odd.is_empty())
    };
    match text {
        [0xff, 0xfe, rest @ ..] => of_pairs(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => of_pairs(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => String::from_utf8(rest.to_vec()).ok(),
    }
}

/// Puts into each mapping what others give it by `<<`, as far as it does not say it itself.
fn merge(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(merge),
        Value::Object(fields) => {
            let others = match fields.remove("<<") {
                Some(Value::Array(others)) => others,
                other => other.into_iter().collect(),
            };
            for other in others {
                let Value::Object(other) = other else { continue };
                for (name, value) in other {
                    fields.entry(name).or_insert(value);
                }
            }
            fields.values_mut().for_each(merge);
        }
        _ => {}
    }
}

/// An error of serde without the text that it found: "invalid type: string "..." , expected a map".
fn without_values(error: &str) -> String {
    let Some((start, rest)) = error.split_once(": string \"") else { return error.to_owned() };
    let end = rest.rfind("\", expected").map_or("", |end| &rest[end + 1..]);
    format!("{start}: a text{end}")
}
