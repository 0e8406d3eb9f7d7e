//! Cluster IPs outside all ServiceCIDRs: counted, so that it need not be asked of every Service.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::{Family, PerFamily};

/// The cluster IP of each family of one Service.
type ClusterIps = PerFamily<Option<IpAddr>>;

/// How many Services have a cluster IP outside.
#[derive(Debug, Default)]
pub(super) struct Stray {
    cidrs: PerFamily<Vec<IpNet>>,
    count: PerFamily<usize>,
}

impl Stray {
    /// Counts the cluster IPs of all Services against these ranges.
    pub(super) fn new<'a>(cidrs: PerFamily<Vec<IpNet>>, services: impl Iterator<Item = &'a ClusterIps>) -> Self {
        let mut stray = Stray { cidrs, count: PerFamily::default() };
        for cluster_ips in services {
            stray.replace(&ClusterIps::default(), cluster_ips);
        }
        stray
    }

    /// One Service has other cluster IPs than before.
    pub(super) fn replace(&mut self, before: &ClusterIps, after: &ClusterIps) {
        for family in Family::ALL {
            self.count[family] += usize::from(self.is_outside(after[family], family));
            self.count[family] -= usize::from(self.is_outside(before[family], family));
        }
    }

    /// Whether there is one in this family.
    pub(super) fn any(&self, family: Family) -> bool {
        self.count[family] > 0
    }

    fn is_outside(&self, cluster_ip: Option<IpAddr>, family: Family) -> bool {
        cluster_ip.is_some_and(|address| !self.cidrs[family].iter().any(|cidr| cidr.contains(&address)))
    }
}
