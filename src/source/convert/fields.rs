//! Reading single fields: numbers, protocols, names, labels.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::parse::{self, shown};
use crate::model::{ObjectName, Protocol, Reject};

/// The name of a namespaced object, or which part of it is missing or bad.
pub(super) fn object_name(metadata: &ObjectMeta) -> Result<ObjectName, Reject> {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    ObjectName::new(namespace, name).ok_or_else(|| {
        let (field, value) = if ObjectName::is_part(namespace) { ("name", name) } else { ("namespace", namespace) };
        let what = if value.is_empty() { "missing".to_owned() } else { format!("{} is not a name", shown(value)) };
        Reject::new(format!("metadata.{field}"), format_args!("{what}; the object is not used"))
    })
}

/// A label's value; `None` if the label is absent.
pub(super) fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// A list that may be absent.
pub(super) fn list<T>(field: &Option<Vec<T>>) -> &[T] {
    field.as_deref().unwrap_or_default()
}

/// An address that is not `wrong`, as [`parse::special`] says of some.
pub(super) fn address(text: &str, wrong: fn(IpAddr) -> Option<&'static str>) -> Result<IpAddr, String> {
    let address = parse::address(text).map_err(|error| error.to_string())?;
    match wrong(address) {
        None => Ok(address),
        Some(why) => Err(format!("{} is {why}", shown(text))),
    }
}

/// A port number, 1..=65535.
pub(super) fn port_number(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// The name of a port, which may be empty: no stranger than a name of an object.
pub(super) fn port_name(name: &str) -> Result<&str, String> {
    if name.is_empty() || ObjectName::is_part(name) { Ok(name) } else { Err(format!("{} is not a name", shown(name))) }
}

/// A protocol; absent or empty is TCP, the default of the API.
pub(super) fn protocol(field: Option<&str>) -> Result<Protocol, String> {
    match field.unwrap_or_default() {
        "" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(format!("{} is not a protocol (TCP, UDP or SCTP)", shown(other))),
    }
}

/// CIDRs in their order; bad ones are rejected as `field[i]`.
pub(super) fn cidrs(texts: &[String], field: &str, rejects: &mut Vec<Reject>) -> Box<[IpNet]> {
    let read = |(i, text): (usize, &String)| match parse::cidr(text) {
        Ok(cidr) => Some(cidr),
        Err(error) => {
            rejects.push(Reject::new(format!("{field}[{i}]"), format_args!("{error}; skipped")));
            None
        }
    };
    texts.iter().enumerate().filter_map(read).collect()
}

/// Sorts and removes duplicates.
pub(super) fn sorted_set<T: Ord>(mut values: Vec<T>) -> Box<[T]> {
    values.sort_unstable();
    values.dedup();
    values.into()
}
