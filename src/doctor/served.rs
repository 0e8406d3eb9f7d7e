//! What the tables serve.

use crate::model::Family;
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base;
use crate::ruleset::names::SetName;

/// What one family's table serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Served {
    any: bool,
}

impl Served {
    /// Whether there is any Service.
    pub(super) fn is_served(&self) -> bool {
        self.any
    }
}

/// Reads it.
///
/// # Errors
/// The table cannot be read.
pub(super) fn read(kernel: &mut impl Kernel, family: Family) -> Result<Served, KernelError> {
    let mut any = false;
    kernel.read_elements(family, &base::set(SetName::ClusterIps), &mut |element| any = element.is_some())?;
    Ok(Served { any })
}
