//! Which kinds of objects are followed, as those say who follow them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::model::Kind;

/// How a kind is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Whether what happens to its objects is heard.
    pub state: State,
    /// Since when it is so.
    pub since: Instant,
    /// When anything was last heard of its objects: a list, a change, or that there was none (a bookmark; API servers
    /// send one about once a minute).
    pub heard: Option<Instant>,
    /// Why it is not followed, where that is known.
    pub reason: Option<String>,
}

/// Whether a kind is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not yet.
    Begins,
    /// A watch is open that has lasted for a second or has brought a change; or the next one is being asked for, since a
    /// few seconds.
    Follows,
    /// The server does not have the kind.
    Absent,
    /// No longer, or not yet although it was tried: what is known of it may be old.
    Lost,
}

/// Hears how a kind is followed whenever that changes, or anything is heard of it.
pub type FollowingListener = Box<dyn Fn(Kind, &Followed) + Send + Sync>;

/// How all kinds are followed. Empty where nobody follows any, as with manifests.
#[derive(Default)]
pub struct Following {
    kinds: Mutex<BTreeMap<Kind, Followed>>,
    listener: Option<FollowingListener>,
}

impl Following {
    /// With somebody who hears of every change.
    pub fn with(listener: FollowingListener) -> Following {
        Following { listener: Some(listener), ..Following::default() }
    }

    /// Says how a kind is followed from now on.
    pub(super) fn set(&self, kind: Kind, followed: &Followed) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.get(&kind) == Some(followed) {
            return;
        }
        if let Some(listener) = &self.listener {
            listener(kind, followed);
        }
        kinds.insert(kind, followed.clone());
    }

    /// How each kind is followed.
    pub fn kinds(&self) -> BTreeMap<Kind, Followed> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
