//! How many connections came by a frontend, as the counter of its element says.

use arcstr::ArcStr;

use super::names::SetName;
use super::read;
use super::types::Element;
use crate::model::{Family, FrontendKey, ObjectName};

/// What the element of a frontend has counted since it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendCount {
    /// The frontend.
    pub key: FrontendKey,
    /// The Service that it belongs to, as the element's comment says.
    pub service: ObjectName,
    /// The name of the Service's port; empty if it has none, cut where names are too long for a comment.
    pub port_name: ArcStr,
    /// Packets that found it: the first of each connection, and repetitions of one that was refused or dropped.
    pub packets: u64,
    /// Their bytes, with the IP header.
    pub bytes: u64,
}

impl FrontendCount {
    /// What an element of one of [`SetName::ENTRIES`] has counted; `None` if it is none of ours.
    pub fn read(family: Family, set: SetName, element: &Element, packets: u64, bytes: u64) -> Option<FrontendCount> {
        let (service, port_name) = read::owner(element.comment.as_ref()?)?;
        let port_name = port_name.into();
        let key = read::frontend_key(family, set, element)?;
        Some(FrontendCount { key, service, port_name, packets, bytes })
    }
}
