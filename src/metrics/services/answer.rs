//! What the owner of the store is asked, and answers.

use std::net::IpAddr;

use super::{Node, Query, ServiceFacts};
use crate::model::claims::Claims;
use crate::model::store::Store;
use crate::model::{Family, ObjectName, Service};

/// One question. Each costs the one who answers little, whatever the number of Services, but for the first two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The names of all Services. In proportion to them: only for somebody who wants to see all.
    All,
    /// The names of those with a cluster IP, external IP or load-balancer IP. In proportion to all Services, as there is no
    /// index for an address without a port: only for somebody who asks for that.
    At(IpAddr),
    /// The names of those that own a frontend.
    Owners(Query),
    /// What there is to say of these; of so many of the first as can be told at once.
    Services(Vec<ObjectName>),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// In no order, each once.
    Names(Vec<ObjectName>),
    /// Of those that there are, in the order in which they were asked for.
    Facts {
        /// The Services.
        facts: Vec<ServiceFacts>,
        /// How many of the names that were asked for have been looked at.
        looked_at: usize,
    },
}

/// So many endpoints are told of at once, or those of one Service: it takes about a millisecond.
const ENDPOINTS_AT_ONCE: usize = 2_000;

/// Answers from what is known of the cluster.
pub fn answer(ask: Ask, store: &Store, claims: &Claims, node: Node<'_>) -> Answer {
    let names = match ask {
        Ask::All => return Answer::Names(store.services().map(|service| service.name.clone()).collect()),
        Ask::At(address) => {
            let at = store.services().filter(|service| has_address(service, address));
            return Answer::Names(at.map(|service| service.name.clone()).collect());
        }
        Ask::Owners(query) => {
            let owners = query.keys().into_iter().filter_map(|key| Some(claims.owner(&key)?.service.clone()));
            let mut owners: Vec<ObjectName> = owners.collect();
            owners.sort_unstable();
            owners.dedup();
            return Answer::Names(owners);
        }
        Ask::Services(names) => names,
    };
    let (mut facts, mut endpoints, mut looked_at) = (Vec::new(), 0, 0);
    for name in &names {
        let slices = store.slices(name);
        endpoints += slices.iter().map(|slice| slice.endpoints.len() * slice.ports.len()).sum::<usize>();
        if looked_at > 0 && endpoints > ENDPOINTS_AT_ONCE {
            break;
        }
        looked_at += 1;
        if let Some(service) = store.service(name) {
            facts.push(ServiceFacts::new(service, slices, node).with_claims(service, claims));
        }
    }
    Answer::Facts { facts, looked_at }
}

fn has_address(service: &Service, address: IpAddr) -> bool {
    service.cluster_ips[Family::of(address)] == Some(address)
        || service.external_ips.contains(&address)
        || service.load_balancer_ips.contains(&address)
}
