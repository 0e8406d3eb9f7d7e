//! How many connections there are.

/// The connections of one frontend to one endpoint, as one look at the kernel's table finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seen {
    /// Those that are open.
    pub open: u32,
    /// Those of them that were not at the look before. What came and went in between is not seen.
    pub new: u32,
}
