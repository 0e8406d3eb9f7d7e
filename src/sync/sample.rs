//! One Service as a table must hold it, to be compared with what the kernel holds: before anything of another proxy is
//! removed, this shows that something is served in its place.

use std::fmt;

use crate::errors;
use crate::model::{Family, FrontendKey, ObjectName};
use crate::nftables::{Kernel, KernelError};
use crate::ruleset::base::{self, FrameFacts};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::text;
use crate::ruleset::types::Element;

use super::mend::{frame_repairs, must_be_replaced};

/// A Service that has endpoints, and the frame of the table that it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The Service.
    pub service: ObjectName,
    /// Where it is served.
    pub family: Family,
    pub(super) key: FrontendKey,
    pub(super) facts: FrameFacts,
    pub(super) owned: bool,
    /// What the table holds for one of its frontends, in sets whose elements can be asked for one by one.
    pub(super) elements: Vec<(SetName, Element)>,
}

/// Why a Service does not work by what the kernel holds.
#[derive(Debug)]
pub enum NotServed {
    /// The rules are not as they should be.
    Frame,
    /// This is missing, or something else is there.
    Element(SetName),
    /// It cannot be read.
    Kernel(KernelError),
}

impl From<KernelError> for NotServed {
    fn from(error: KernelError) -> NotServed {
        NotServed::Kernel(error)
    }
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotServed::Frame => f.write_str("its rules are not as they should be"),
            NotServed::Element(set) => write!(f, "{set} does not hold it"),
            NotServed::Kernel(error) => write!(f, "it cannot be read: {}", errors::text(error)),
        }
    }
}

impl Sample {
    /// The name of the table that it is in, with its family.
    pub fn table(&self) -> String {
        text::table(self.facts.table, self.family).to_string()
    }

    /// Asks the kernel whether a packet to the Service is sent to its endpoints: by all rules of the table, and by the elements
    /// of one frontend. Costs the same whatever else the table holds.
    ///
    /// # Errors
    /// What is not so, or cannot be told.
    pub fn is_served(&self, kernel: &mut impl Kernel) -> Result<(), NotServed> {
        let frame = base::frame(&self.facts);
        let on_demand = |name| base::on_demand(name, &self.facts);
        let snapshot = kernel.dump(self.family, &frame.sets, &frame.chains, &on_demand)?;
        let is_there = |chain: &ChainName| snapshot.chains.contains(chain) || snapshot.other_rules.contains(chain);
        let kinds = self.elements.iter().filter_map(|(_, element)| Kind::of_data(&element.data));
        let needed = kinds.flat_map(|kind| [kind.counter(), Some(kind)]).flatten().filter_map(Kind::on_demand);
        let lost = needed.filter(|chain| !is_there(chain)).collect();
        if !snapshot.table
            || must_be_replaced(&frame, &snapshot, self.owned)
            || !frame_repairs(self.family, &frame, &snapshot, &lost, on_demand, self.owned).is_empty()
        {
            return Err(NotServed::Frame);
        }
        for (set, element) in &self.elements {
            if !kernel.holds(self.family, &base::set(*set), element)? {
                return Err(NotServed::Element(*set));
            }
        }
        Ok(())
    }
}
