//! The last changes, on the metrics port, as JSON: the server writes it, `nftproxyd status --history` reads it.

use serde::{Deserialize, Serialize};

/// Where it is served on the metrics port: a list of [`Change`]s, the oldest first.
pub const PATH: &str = "/nftproxyd/history";

/// An object that came, changed or went, or a table that others had changed, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// When the daemon heard of it, as RFC 3339.
    pub at: String,
    /// Its kind; `table` for one of ours that was repaired.
    pub kind: String,
    /// Its name, with its namespace or family.
    pub name: String,
    /// The Service that it is or belongs to.
    pub service: Option<String>,
    /// Whether it went.
    pub gone: bool,
    /// How many objects that had changed were synced together, with this one.
    pub together: u64,
    /// How many objects of the tables (elements and chains) were written or deleted for all of these.
    pub operations: u64,
    /// In so many transactions.
    pub transactions: u64,
    /// Of so many bytes.
    pub bytes: u64,
    /// From hearing of it to when the kernel had it, in microseconds; `None` where there was nothing to sync.
    pub took_microseconds: Option<u64>,
    /// The part of it that the kernel took.
    pub kernel_microseconds: u64,
    /// What came of it.
    pub result: Outcome,
    /// Why it is not in the tables.
    pub reason: Option<String>,
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The tables are as they should be with it, and something had to be written.
    Written,
    /// They are, and nothing had to be written.
    Nothing,
    /// The kernel refuses something of its Service, or a table could not be synced: it is tried again.
    Failed,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}
