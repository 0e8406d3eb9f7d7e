//! What somebody wants to know of the cluster, whom the loop answers between syncs.

use std::fmt;

use crate::model::claims::Claims;
use crate::model::store::Store;

/// What there is to know.
#[derive(Debug, Clone, Copy)]
pub struct Knowledge<'a> {
    /// The objects.
    pub store: &'a Store,
    /// Which Service has which address.
    pub claims: &'a Claims,
}

/// A question. Whoever asks sees to it that the answer takes no longer than a millisecond or two, as a change may come.
pub struct Question(Box<dyn FnOnce(Knowledge<'_>) + Send>);

impl Question {
    /// One that is answered by this, which must not wait for anything.
    pub fn new(answer: impl FnOnce(Knowledge<'_>) + Send + 'static) -> Question {
        Question(Box::new(answer))
    }

    pub(super) fn answer(self, knowledge: Knowledge<'_>) {
        (self.0)(knowledge);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").finish_non_exhaustive()
    }
}
