//! The annotations that say how connections are spread.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::parse::shown;
use crate::model::scheduler::MAGLEV_SIZES;
use crate::model::{Reject, Scheduler};

/// Ours, on a Service: a name of [`Scheduler`].
pub(super) const SCHEDULER: &str = "nftproxyd.io/scheduler";
/// kube-router's, with the same names.
pub(super) const KUBE_ROUTER_SCHEDULER: &str = "kube-router.io/service.scheduler";
/// kube-router's flags of IPVS schedulers, separated by commas.
pub(super) const KUBE_ROUTER_FLAGS: &str = "kube-router.io/service.schedflags";
/// Cilium's: `random` or `maglev`.
pub(super) const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";
/// Ours, on a Service: how many slots its Maglev tables have.
pub(super) const MAGLEV_SIZE: &str = "nftproxyd.io/maglev-table-size";
/// Ours, on an EndpointSlice: the weight of its endpoints.
pub(super) const WEIGHT: &str = "nftproxyd.io/weight";
/// Cilium's, with the same meaning.
pub(super) const CILIUM_WEIGHT: &str = "service.cilium.io/weight";

/// The scheduler that a Service asks for. One that asks for one that there is not gets `random`.
pub(super) fn scheduler(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> Option<Scheduler> {
    let annotations = metadata.annotations.as_ref()?;
    let (name, asked) = [SCHEDULER, KUBE_ROUTER_SCHEDULER, CILIUM_ALGORITHM]
        .iter()
        .find_map(|name| annotations.get_key_value(*name))?;
    // Cilium hashes addresses and ports of both sides.
    let known = match asked.trim() {
        "maglev" if name == CILIUM_ALGORITHM => Ok(Scheduler::MaglevWithPort),
        asked => Scheduler::parse(asked),
    };
    match known {
        Ok(scheduler) if name == KUBE_ROUTER_SCHEDULER => Some(flagged(scheduler, annotations)),
        Ok(scheduler) => Some(scheduler),
        Err(unknown) => {
            let reason = format_args!("{unknown}; endpoints are chosen at random");
            rejects.push(Reject::new(field(name), reason));
            Some(Scheduler::Random)
        }
    }
}

/// By address and port, where kube-router's flags say so. The other flag, `sh-fallback` or `mh-fallback`, says what is always
/// so: another endpoint is chosen where one is gone.
fn flagged(scheduler: Scheduler, annotations: &BTreeMap<String, String>) -> Scheduler {
    let flags = annotations.get(KUBE_ROUTER_FLAGS).map(String::as_str).unwrap_or_default();
    let with_port = match scheduler {
        // What IPVS calls flag-1 is a fallback for both, flag-2 the port.
        Scheduler::SourceHash => ["sh-port", "flag-2"],
        _ => ["mh-port", "flag-2"],
    };
    if flags.split(',').any(|flag| with_port.contains(&flag.trim())) { scheduler.with_port() } else { scheduler }
}

/// The size of the Maglev tables that a Service asks for.
pub(super) fn maglev_size(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> Option<u16> {
    let text = metadata.annotations.as_ref()?.get(MAGLEV_SIZE)?;
    let size = text.trim().parse().ok().filter(|size| MAGLEV_SIZES.contains(size));
    if size.is_none() {
        let sizes = MAGLEV_SIZES.map(|size| size.to_string()).join(", ");
        let reason = format_args!("{} is none of {sizes}; the number of endpoints decides", shown(text));
        rejects.push(Reject::new(field(MAGLEV_SIZE), reason));
    }
    size
}

/// The weight of a slice's endpoints.
pub(super) fn weight(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> u16 {
    let annotations = metadata.annotations.as_ref();
    let found = annotations
        .and_then(|annotations| [WEIGHT, CILIUM_WEIGHT].iter().find_map(|name| annotations.get_key_value(*name)));
    let Some((name, text)) = found else { return 1 };
    text.trim().parse().unwrap_or_else(|_| {
        let reason = format_args!("{} is not a weight from 0 to 65535; its endpoints have 1", shown(text));
        rejects.push(Reject::new(field(name), reason));
        1
    })
}

fn field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}
