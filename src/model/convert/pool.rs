//! Texts that many objects repeat (port names, zones) are kept once.

use std::collections::HashSet;
use std::sync::Arc;

/// A pool of shared texts. Never iterated over in a way that its order could show.
#[derive(Debug, Default)]
pub struct Pool {
    texts: HashSet<Arc<str>>,
    /// Size at which texts that nobody else holds are thrown out, so that a long life does not fill the pool.
    sweep_at: usize,
}

impl Pool {
    const FIRST_SWEEP: usize = 256;

    /// The shared copy of a text.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.texts.get(text) {
            return Arc::clone(shared);
        }
        if self.texts.len() >= self.sweep_at.max(Self::FIRST_SWEEP) {
            self.texts.retain(|shared| Arc::strong_count(shared) > 1);
            // Twice what is in use: sweeping costs a constant per new text.
            self.sweep_at = self.texts.len() * 2;
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut pool = Pool::default();
        let http = pool.share("http");
        assert!(Arc::ptr_eq(&http, &pool.share("http")));
        for n in 0..10_000 {
            pool.share(&n.to_string());
        }
        assert!(pool.texts.len() <= Pool::FIRST_SWEEP, "{}", pool.texts.len());
        assert!(Arc::ptr_eq(&http, &pool.share("http")), "what is in use stays");
    }
}
