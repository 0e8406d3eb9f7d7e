//! Whether a store is the one that was read before.
//!
//! An API server whose store was restored from a snapshot has a version that is behind the one last seen, until it has come
//! past it. From then on, only its objects tell: a watch from the old version goes on in the new history, and nobody says
//! what the two have not in common.

use std::fmt;

use super::failure::Failure;
use super::version;

/// An object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Empty where the kind has none.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named { namespace, name } = self;
        if namespace.is_empty() { f.write_str(name) } else { write!(f, "{namespace}/{name}") }
    }
}

/// An object as it was last heard of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Latest {
    object: Named,
    version: String,
    is_gone: bool,
}

/// What a look has found of the object that it was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It was for none, or the answer was about others.
    Nothing,
    /// It is not there.
    Gone,
    /// It is there, with this version.
    There(String),
}

/// Whether a store is the one that was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Same {
    /// As far as can be seen.
    Yes,
    /// What would tell has changed meanwhile.
    Unknown,
}

/// What is known of the store of a kind.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The version last seen, from which a watch begins; empty before there was a list.
    pub(super) version: String,
    /// The object that changed last, so far as it is known. A store that was restored and has come past `version` since has
    /// it with an older version, or has it not.
    latest: Option<Latest>,
    /// The object of which the next watch has to say that it is gone: it is, if the store is the same.
    vanished: Option<Named>,
    /// The object of which it has not said so: a list has it, if it was only the look that did not find it.
    missing: Option<Named>,
    /// Whether looks do not find what is there.
    looks_in_vain: bool,
}

impl History {
    /// A list begins.
    pub(super) fn begins(&mut self) {
        self.latest = None;
        self.vanished = None;
    }

    /// A list has ended. Returns the object that is missing although nobody has said that it is gone.
    pub(super) fn ends(&mut self) -> Option<Named> {
        self.missing.take()
    }

    /// The object that changed last, if it can be looked for.
    pub(super) fn latest(&self) -> Option<&Named> {
        self.latest.as_ref().map(|latest| &latest.object).filter(|_| !self.looks_in_vain)
    }

    /// Whether the watch has still to say that an object is gone.
    pub(super) fn waits(&self) -> bool {
        self.vanished.is_some()
    }

    /// The object of which it has not said so, and should have.
    pub(super) fn vanished(&mut self) -> Option<Named> {
        self.missing = self.vanished.take();
        self.missing.clone()
    }

    /// An object of the list that is under way came, or one that a watch has named, with its version.
    pub(super) fn saw(&mut self, namespace: &str, name: &str, version: &str, is_gone: bool) {
        let is_it = |object: &mut Named| (&*object.namespace, &*object.name) == (namespace, name);
        self.vanished.take_if(is_it);
        if self.missing.take_if(is_it).is_some() && !is_gone {
            self.looks_in_vain = true;
        }
        let is_later = |latest: &Latest| !version::is_before(version, &latest.version);
        if !version::is_comparable(version) || !self.latest.as_ref().is_none_or(is_later) {
            return;
        }
        let latest = self.latest.get_or_insert_default();
        // Copied into what is there: this is done for each object.
        namespace.clone_into(&mut latest.object.namespace);
        name.clone_into(&mut latest.object.name);
        version.clone_into(&mut latest.version);
        latest.is_gone = is_gone;
    }

    /// Whether a version that the server has now is not behind the one last seen.
    ///
    /// # Errors
    /// It is.
    pub(super) fn is_ahead(&self, now: &str) -> Result<(), Failure> {
        if version::is_before(now, &self.version) {
            return Err(Failure::WentBack { known: self.version.clone(), now: now.to_owned() });
        }
        Ok(())
    }

    /// Whether what was found of the object that changed last is of the store that was read before.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn is_the_same(&mut self, found: &Found) -> Result<Same, Failure> {
        self.vanished = None;
        let Some(latest) = &self.latest else { return Ok(Same::Yes) };
        let now = match found {
            Found::Nothing => return Ok(Same::Yes),
            Found::Gone => {
                self.vanished = (!latest.is_gone).then(|| latest.object.clone());
                // That it is gone may be so in both.
                return Ok(if latest.is_gone { Same::Unknown } else { Same::Yes });
            }
            Found::There(now) => now,
        };
        if (*now == latest.version && !latest.is_gone) || !version::is_comparable(now) {
            return Ok(Same::Yes);
        }
        if !version::is_before(&self.version, now) {
            let (object, known, is_gone) = (latest.object.to_string(), latest.version.clone(), latest.is_gone);
            return Err(Failure::AnotherStore { object, known, now: now.clone(), is_gone });
        }
        // It has changed meanwhile, as it may in any store.
        Ok(Same::Unknown)
    }
}
