//! How large a cluster is.

use std::fmt;
use std::str::FromStr;

/// So many Services with so many endpoints each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
}

/// Cluster IPs are of 10.96.0.0/14, of which some are set apart.
const MOST_SERVICES: usize = 260_000;
/// Pods are at 10.128.0.0/9, of which the end is set apart.
const MOST_PODS: usize = 7_700_000;
/// API servers take no more in one EndpointSlice.
const MOST_ENDPOINTS: usize = 1_000;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let parts = text.split_once('x').and_then(|(services, endpoints)| {
            Some(Size { services: services.parse().ok()?, endpoints: endpoints.parse().ok()? })
        });
        let size = parts.ok_or("not SERVICESxENDPOINTS, as 1000x10")?;
        if size.services == 0 || size.endpoints == 0 {
            return Err("at least one Service and one endpoint".to_owned());
        }
        if size.services > MOST_SERVICES
            || size.endpoints > MOST_ENDPOINTS
            || size.services * size.endpoints > MOST_PODS
        {
            return Err(format!(
                "at most {MOST_SERVICES} Services with {MOST_ENDPOINTS} endpoints each, and {MOST_PODS} endpoints in all"
            ));
        }
        Ok(size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.services, self.endpoints)
    }
}
