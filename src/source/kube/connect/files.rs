//! The files that a client is made of, and whether they are still what was read.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// The files that were read, whether they could be or not. Their contents are not kept: there are keys in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files(BTreeMap<PathBuf, u64>);

impl Files {
    /// Reads a file, through whatever links lead to it.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let read = fs::read(path);
        self.0.insert(path.to_owned(), digest(&read));
        read
    }

    /// The same files as they are now.
    pub(super) fn now(&self) -> Files {
        Files(self.0.keys().map(|path| (path.clone(), digest(&fs::read(path)))).collect())
    }
}

fn digest(read: &io::Result<Vec<u8>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    read.as_ref().map_err(io::Error::kind).hash(&mut hasher);
    hasher.finish()
}
