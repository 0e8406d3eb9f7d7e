//! Which UDP frontends have to be checked for stale flows although their elements stay as they are.

use std::collections::BTreeSet;

use super::report::{Report, UdpChange};
use crate::diff::Installed;
use crate::model::{Family, ObjectName, Protocol};

/// What waits for the next sync of one family that succeeds: its flows are looked at only when the kernel has the rules
/// that the flows' next packets will meet.
#[derive(Debug)]
pub(super) enum Unchecked {
    /// Everything: at the start, and when the table was read back. Nobody knows what became of flows until then.
    All,
    /// Services of which other endpoints serve UDP ports than before. What serves need not be what new flows are sent
    /// to: it may be terminating, meant for another zone, or not on this node.
    Services(BTreeSet<ObjectName>),
}

impl Unchecked {
    /// Other endpoints serve UDP ports of a Service.
    pub(super) fn add(&mut self, service: ObjectName) {
        if let Unchecked::Services(services) = self {
            services.insert(service);
        }
    }

    /// A sync of the family has ended. Tells what is to be checked if the kernel holds what it should now, apart from
    /// what it refused: else it waits. Costs what the Services that wait have.
    pub(super) fn synced(&mut self, family: Family, in_line: bool, installed: &Installed, report: &mut Report) {
        if report.families[family].as_ref().is_some_and(|report| report.full) {
            *self = Unchecked::All;
        }
        if !in_line {
            return;
        }
        match std::mem::replace(self, Unchecked::Services(BTreeSet::new())) {
            Unchecked::All => report.udp_all[family] = true,
            Unchecked::Services(services) => {
                let frontends = services.iter().flat_map(|service| installed.frontends_of(service));
                let udp = frontends.filter(|(key, _)| key.protocol == Protocol::Udp);
                report.udp.extend(udp.map(|(key, frontend)| UdpChange {
                    key: *key,
                    service: Some((frontend.service.clone(), frontend.port_name.clone())),
                }));
            }
        }
    }
}
