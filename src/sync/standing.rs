//! How a table stands to what is wanted of it: whoever says "in sync", "ready" or "healthy" asks this.

use std::collections::BTreeMap;
use std::fmt;

use super::failure::Failure;
use crate::model::ObjectName;

/// How many Services a line of the log names; of the others it says how many there are.
pub(super) const MOST_NAMED: usize = 10;

/// How one family's table stands to what is wanted of it.
///
/// It follows from what the table is known to hold, not from how a sync ended: one that has nothing to do in a family, or
/// leaves it alone until its next attempt, says nothing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Something has still to be listed, read or sent.
    Behind,
    /// The last attempt failed as a whole, for this reason. Another will follow.
    Failing(&'a str),
    /// It is in line but for these Services.
    InLineBut(Refused<'a>),
    /// It holds what it should.
    InLine,
}

impl Standing<'_> {
    /// Whether all is in place that the kernel takes. A Service that it refuses is named, and holds up no others.
    pub fn is_in_line(self) -> bool {
        matches!(self, Standing::InLine | Standing::InLineBut(_))
    }
}

/// The Services of which the kernel refuses something. They stay as they were and are tried again. At least one.
#[derive(Clone, Copy)]
pub struct Refused<'a>(pub(super) &'a BTreeMap<ObjectName, Failure>);

impl<'a> Refused<'a> {
    /// Each with the reason, by name.
    pub fn services(self) -> impl Iterator<Item = (&'a ObjectName, &'a str)> {
        self.0.iter().map(|(name, failure)| (name, failure.error.as_str()))
    }

    /// Whether this Service is one of them.
    pub fn contains(self, name: &ObjectName) -> bool {
        self.0.contains_key(name)
    }
}

impl PartialEq for Refused<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.services().eq(other.services())
    }
}

impl Eq for Refused<'_> {}

impl fmt::Debug for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.services()).finish()
    }
}

/// `shop/a (why), shop/b (why)`, and how many more.
impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (name, error)) in self.services().take(MOST_NAMED).enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            write!(f, "{comma}{name} ({error})")?;
        }
        match self.0.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
