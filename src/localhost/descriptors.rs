//! How many descriptors all of this may have: enough are left for what the rest of the daemon lives on, whoever connects here.

use std::cell::Cell;
use std::rc::Rc;

use nix::sys::resource::{Resource, getrlimit};

/// Where the limit cannot be told, what it mostly is.
const USUAL: usize = 1_024;

/// Descriptors that are left. Cheap to clone; all clones are of the same.
#[derive(Debug, Clone)]
pub(super) struct Descriptors(Rc<Cell<usize>>);

impl Descriptors {
    /// Three quarters of those that the process may have.
    pub(super) fn of_process() -> Descriptors {
        let limit =
            getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| usize::try_from(soft).unwrap_or(USUAL));
        Descriptors::new(limit / 4 * 3)
    }

    /// So many.
    pub(super) fn new(number: usize) -> Descriptors {
        Descriptors(Rc::new(Cell::new(number)))
    }

    /// So many of them, until what is returned is dropped; `None` if there are no longer so many.
    pub(super) fn take(&self, number: usize) -> Option<Taken> {
        self.0.set(self.0.get().checked_sub(number)?);
        Some(Taken { from: self.clone(), number })
    }
}

/// Descriptors that somebody has.
#[derive(Debug)]
pub(super) struct Taken {
    from: Descriptors,
    number: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.from.0.set(self.from.0.get() + self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let all = Descriptors::new(5);
        let (two, three) = (all.take(2), all.clone().take(3));
        assert!(two.is_some() && three.is_some() && all.take(1).is_none());
        drop(two);
        assert!(all.take(3).is_none() && all.take(2).is_some());
        drop(three);
        assert!(all.take(5).is_some());
    }
}
