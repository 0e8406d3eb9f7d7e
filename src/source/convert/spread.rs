//! The annotations that say how connections are spread.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::parse::shown;
use crate::model::scheduler::MAGLEV_SIZES;
use crate::model::{Reject, Scheduler};

/// Ours, on a Service: a name of [`Scheduler`].
pub const SCHEDULER: &str = "nftproxyd.io/scheduler";
/// kube-router's, with the same names.
pub const KUBE_ROUTER_SCHEDULER: &str = "kube-router.io/service.scheduler";
/// kube-router's flags of IPVS schedulers, separated by commas.
pub const KUBE_ROUTER_FLAGS: &str = "kube-router.io/service.schedflags";
/// Cilium's: `random` or `maglev`.
pub const CILIUM_ALGORITHM: &str = "service.cilium.io/lb-algorithm";
/// Ours, on a Service: how many slots its Maglev tables have.
pub const MAGLEV_SIZE: &str = "nftproxyd.io/maglev-table-size";
/// Ours, on a Service: whether its connections are accounted for.
pub const ACCOUNTING: &str = "nftproxyd.io/accounting";
/// Ours, on a Service: whether its source ranges hold for external IPs and node ports, too.
pub const RANGES_EVERYWHERE: &str = "nftproxyd.io/source-ranges-everywhere";
/// Ours, on a Service: whether its addresses answer pings.
pub const PING: &str = "nftproxyd.io/ping";
/// Ours, on a Service: whether its connections to endpoints that are gone are reset.
pub const RESET_CONNECTIONS: &str = "nftproxyd.io/reset-connections";
/// Ours, on an EndpointSlice: the weight of its endpoints.
pub const WEIGHT: &str = "nftproxyd.io/weight";
/// Cilium's, with the same meaning.
pub const CILIUM_WEIGHT: &str = "service.cilium.io/weight";

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

/// Whether a Service's connections are accounted for by endpoint.
pub(super) fn accounting(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> bool {
    switch(metadata, ACCOUNTING, "nothing is accounted for", rejects).unwrap_or(false)
}

/// Whether a Service's source ranges hold for all that is reached from outside.
pub(super) fn ranges_everywhere(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> bool {
    let otherwise = "source ranges hold for load-balancer IPs only";
    switch(metadata, RANGES_EVERYWHERE, otherwise, rejects).unwrap_or(false)
}

/// Whether a Service's connections to endpoints that are gone are reset.
pub(super) fn reset_connections(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> bool {
    switch(metadata, RESET_CONNECTIONS, "no connection is reset", rejects).unwrap_or(false)
}

/// Whether a Service's addresses answer pings, if it says so.
pub(super) fn ping(metadata: &ObjectMeta, rejects: &mut Vec<Reject>) -> Option<bool> {
    switch(metadata, PING, "pings are answered as configured for all", rejects)
}

/// What an annotation says that is true or false; `None` where there is none, or another value: then it is as `otherwise`
/// says.
fn switch(metadata: &ObjectMeta, name: &str, otherwise: &str, rejects: &mut Vec<Reject>) -> Option<bool> {
    let text = metadata.annotations.as_ref()?.get(name)?;
    let value = text.trim().parse().ok();
    if value.is_none() {
        let reason = format_args!("{} is neither true nor false; {otherwise}", shown(text));
        rejects.push(Reject::new(field(name), reason));
    }
    value
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

/// The field of an annotation.
pub(super) fn field(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Annotations<'a> = &'a [(&'a str, &'a str)];

    fn metadata(annotations: Annotations<'_>) -> ObjectMeta {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }
    }

    /// What is read, and what is said.
    fn read<T>(of: fn(&ObjectMeta, &mut Vec<Reject>) -> T, annotations: Annotations<'_>) -> (T, Vec<String>) {
        let mut rejects = Vec::new();
        let found = of(&metadata(annotations), &mut rejects);
        (found, rejects.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn switches_are_true_or_false() {
        type Read = fn(&ObjectMeta, &mut Vec<Reject>) -> bool;
        let switches: [(&str, Read, &str); 3] = [
            (ACCOUNTING, accounting, "nothing is accounted for"),
            (RESET_CONNECTIONS, reset_connections, "no connection is reset"),
            (RANGES_EVERYWHERE, ranges_everywhere, "source ranges hold for load-balancer IPs only"),
        ];
        for (name, of, otherwise) in switches {
            for (annotations, found) in
                [(&[] as Annotations<'_>, false), (&[(name, "true")], true), (&[(name, " false ")], false)]
            {
                assert_eq!(read(of, annotations), (found, Vec::new()));
            }
            let (found, rejects) = read(of, &[(name, "yes")]);
            assert!(!found);
            let said = format!("metadata.annotations[{name}]: \"yes\" is neither true nor false; {otherwise}");
            assert_eq!(rejects, [said]);
        }
        for (annotations, found) in
            [(&[] as Annotations<'_>, None), (&[(PING, "true")], Some(true)), (&[(PING, "false")], Some(false))]
        {
            assert_eq!(read(ping, annotations), (found, Vec::new()));
        }
        let said = "metadata.annotations[nftproxyd.io/ping]: \"\" is neither true nor false; pings are answered as configured for all";
        assert_eq!(read(ping, &[(PING, "")]), (None, vec![said.to_owned()]));
    }

    #[test]
    fn schedulers_of_others_are_understood() {
        let cases: [(Annotations<'_>, Option<Scheduler>); 12] = [
            (&[], None),
            (&[("other", "rr")], None),
            (&[(SCHEDULER, "wlc")], Some(Scheduler::WeightedLeastConnections)),
            (&[(SCHEDULER, " rr ")], Some(Scheduler::RoundRobin)),
            (&[(KUBE_ROUTER_SCHEDULER, "lc")], Some(Scheduler::LeastConnections)),
            (&[(KUBE_ROUTER_SCHEDULER, "sh"), (KUBE_ROUTER_FLAGS, "sh-port")], Some(Scheduler::SourceHashWithPort)),
            (&[(KUBE_ROUTER_SCHEDULER, "mh"), (KUBE_ROUTER_FLAGS, "flag-1, flag-2")], Some(Scheduler::MaglevWithPort)),
            (&[(KUBE_ROUTER_SCHEDULER, "mh"), (KUBE_ROUTER_FLAGS, "mh-fallback,sh-port")], Some(Scheduler::Maglev)),
            (&[(SCHEDULER, "sh"), (KUBE_ROUTER_FLAGS, "sh-port")], Some(Scheduler::SourceHash)),
            (&[(CILIUM_ALGORITHM, "maglev")], Some(Scheduler::MaglevWithPort)),
            (&[(CILIUM_ALGORITHM, "random")], Some(Scheduler::Random)),
            (
                &[(CILIUM_ALGORITHM, "maglev"), (SCHEDULER, "rr"), (KUBE_ROUTER_SCHEDULER, "dh")],
                Some(Scheduler::RoundRobin),
            ),
        ];
        for (annotations, expected) in cases {
            assert_eq!(read(scheduler, annotations), (expected, vec![]), "{annotations:?}");
        }
    }

    #[test]
    fn what_is_no_scheduler_is_named_with_its_annotation() {
        for name in [SCHEDULER, KUBE_ROUTER_SCHEDULER, CILIUM_ALGORITHM] {
            let (found, said) = read(scheduler, &[(name, "best")]);
            assert_eq!(found, Some(Scheduler::Random));
            let begins = format!("metadata.annotations[{name}]: \"best\" is not a scheduler; there are random, rr, ");
            assert!(said.len() == 1 && said[0].starts_with(&begins), "{said:?}");
        }
        let (_, said) = read(scheduler, &[(SCHEDULER, "")]);
        assert!(said[0].contains("\"\" is not a scheduler"), "{said:?}");
    }

    #[test]
    fn sizes_and_weights_are_read() {
        assert_eq!(read(maglev_size, &[(MAGLEV_SIZE, "1021")]), (Some(1_021), vec![]));
        let (found, said) = read(maglev_size, &[(MAGLEV_SIZE, "1024")]);
        let sizes = "251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521";
        let expected = format!(
            "metadata.annotations[{MAGLEV_SIZE}]: \"1024\" is none of {sizes}; the number of endpoints decides"
        );
        assert_eq!((found, said), (None, vec![expected]));

        assert_eq!(read(weight, &[]), (1, vec![]));
        assert_eq!(read(weight, &[(WEIGHT, "0")]), (0, vec![]));
        assert_eq!(read(weight, &[(CILIUM_WEIGHT, "65535")]), (65_535, vec![]));
        assert_eq!(read(weight, &[(CILIUM_WEIGHT, "7"), (WEIGHT, "3")]), (3, vec![]));
        for text in ["-1", "65536", "1.5", "", "many"] {
            let (found, said) = read(weight, &[(WEIGHT, text)]);
            let expected = format!(
                "metadata.annotations[{WEIGHT}]: {text:?} is not a weight from 0 to 65535; its endpoints have 1"
            );
            assert_eq!((found, said), (1, vec![expected]));
        }
    }
}
