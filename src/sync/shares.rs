//! The slots that endpoints get by the connections that are open to them.

use std::collections::BTreeMap;

use arcstr::ArcStr;

use crate::model::{Family, ObjectName, Protocol, ServicePort};
use crate::ruleset::slots::Shares;

/// A Service port in a family, of those whose connections are counted.
type Port = (Family, ArcStr, Protocol);

/// What was counted last, by Service.
#[derive(Debug, Default)]
pub(super) struct AllShares(BTreeMap<ObjectName, BTreeMap<Port, Shares>>);

impl AllShares {
    /// Those of a Service port; `None` where nothing was counted, or it says nothing.
    pub(super) fn of(&self, service: &ObjectName, port: &ServicePort, family: Family) -> Option<&Shares> {
        self.0.get(service)?.get(&(family, ArcStr::clone(&port.name), port.protocol))
    }
}
