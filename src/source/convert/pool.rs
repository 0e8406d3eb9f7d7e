//! Texts that many objects repeat (port names, zones) are kept once.

use std::collections::HashSet;

use arcstr::ArcStr;

/// A pool of shared texts. Never iterated over in a way that its order could show.
#[derive(Debug, Default)]
pub struct Pool {
    texts: HashSet<ArcStr>,
    /// Size at which texts that nobody else holds are thrown out, so that a long life does not fill the pool.
    sweep_at: usize,
}

impl Pool {
    const FIRST_SWEEP: usize = 256;

    /// The shared copy of a text.
    pub fn share(&mut self, text: &str) -> ArcStr {
        if let Some(shared) = self.texts.get(text) {
            return ArcStr::clone(shared);
        }
        if self.texts.len() >= self.sweep_at.max(Self::FIRST_SWEEP) {
            self.texts.retain(|shared| ArcStr::strong_count(shared) != Some(1));
            // Twice what is in use: sweeping costs a constant per new text.
            self.sweep_at = self.texts.len() * 2;
        }
        let shared: ArcStr = text.into();
        self.texts.insert(ArcStr::clone(&shared));
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
        assert!(ArcStr::ptr_eq(&http, &pool.share("http")));
        for n in 0..10_000 {
            pool.share(&n.to_string());
        }
        assert!(pool.texts.len() <= Pool::FIRST_SWEEP, "{}", pool.texts.len());
        assert!(ArcStr::ptr_eq(&http, &pool.share("http")), "what is in use stays");
    }
}
