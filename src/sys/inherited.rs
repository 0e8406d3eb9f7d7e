//! Descriptors that the process was started with.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nftnl::nftnl_sys::libc;

/// Those that have an owner.
static OWNED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Owns a descriptor that whoever started the process has given it, and has named as given (`LISTEN_FDS`): no other code of
/// the process has opened it. `None` for one that has an owner, or is not open, or is one of the first three.
pub(crate) fn inherited(descriptor: RawFd) -> Option<OwnedFd> {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: this asks about a number, whether or not there is a descriptor of it.
    let is_open = unsafe { libc::fcntl(descriptor, libc::F_GETFD) } != -1;
    if descriptor <= libc::STDERR_FILENO || !is_open || !owned.insert(descriptor) {
        return None;
    }
    // SAFETY: it is open, nobody has got it here before, and it was open before any code of the process could open one.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn what_has_an_owner_gets_no_other() {
        let given = File::open("/dev/null").expect("it can be opened").into_raw_fd();
        let first = inherited(given);
        assert!(first.is_some() && inherited(given).is_none());
        assert!(inherited(0).is_none() && inherited(-1).is_none() && inherited(RawFd::MAX).is_none());
    }
}
