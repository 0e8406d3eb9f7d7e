//! How many clients the kernel remembers.
//!
//! The map `affinity` is one for all Services, and bounded. When it is full, nothing fails: a client that is not in it yet
//! gets its connection, but the next one may go elsewhere, until an entry of whomever runs out. So spoofed clients of one
//! Service, 25 a second, take the affinity of new clients of all Services. That is told, and not prevented: the kernel's maps
//! forget nobody before their time is over, a map for each Service (which kube-proxy has) would be an object to make,
//! list and compare for each, and who is spoofed cannot be told from who is not, so that there is nobody to be forgotten.

use std::fmt;

use tracing::{info, warn};

use crate::ruleset::base::{AFFINITY_HIGH, AFFINITY_SIZE};

/// Below so many percent it is not about to be full any more: less than [`AFFINITY_HIGH`], so that nothing is said again and
/// again.
const LOW: u32 = 80;

/// How many clients one family's table remembers, when last counted.
#[derive(Debug, Default)]
pub(super) struct Remembers {
    count: usize,
    is_high: bool,
}

impl Remembers {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// They have been counted. Says of the table when they become too many, and when they are no longer.
    pub(super) fn note(&mut self, table: impl fmt::Display, count: usize) {
        self.count = count;
        let most = AFFINITY_SIZE as usize;
        let is_from = |percent: u32| count * 100 >= most * percent as usize;
        if !self.is_high && is_from(AFFINITY_HIGH) {
            self.is_high = true;
            warn!(
                "table {table} remembers {count} clients of Services with session affinity, and has room for {most}: \
                 when it is full, clients that come anew to any of these Services may be sent elsewhere with each connection; \
                 nftproxyd-ruleset(7) says how to see whose they are"
            );
        } else if self.is_high && !is_from(LOW) {
            self.is_high = false;
            info!("table {table} has room for clients of Services with session affinity again: it remembers {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::log::captured;

    #[test]
    fn that_it_fills_is_said_once_and_that_it_is_over() {
        let mut remembers = Remembers::default();
        let most = AFFINITY_SIZE as usize;
        let mut said = |count| captured(|| remembers.note("ip nftproxyd", count));
        for few in [0, most / 2, most * 89 / 100] {
            assert_eq!(said(few), "");
        }
        let full = said(most * 95 / 100);
        assert!(full.contains("WARN") && full.contains("table ip nftproxyd remembers 249036 clients"), "{full}");
        assert_eq!(full.lines().count(), 1);
        // To and fro about the line.
        for many in [most * 85 / 100, most, most * 89 / 100, most * 91 / 100] {
            assert_eq!(said(many), "");
        }
        let over = said(most / 2);
        assert!(over.contains("INFO") && over.contains("has room"), "{over}");
        assert_eq!(said(0), "");
        assert!(said(most).contains("WARN"), "it is news again");
        assert_eq!(remembers.count(), most);
    }
}
