//! The files that a client is made of, and whether they are still what was read.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

/// No kubeconfig, token or bundle of certificates is as long.
const LONGEST: u64 = 16 << 20;

/// The files that were read, whether they could be or not. Their contents are not kept: there are keys in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files(BTreeMap<PathBuf, u64>);

impl Files {
    /// Reads a file, through whatever links lead to it.
    pub(super) fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        let read = contents(path);
        self.0.insert(path.to_owned(), digest(&read));
        read
    }

    /// The same files as they are now.
    pub(super) fn now(&self) -> Files {
        Files(self.0.keys().map(|path| (path.clone(), digest(&contents(path)))).collect())
    }
}

/// What is in a file. It is read by the thread that does everything else: nothing is read that could keep it waiting, or
/// has no end.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    if file.take(LONGEST + 1).read_to_end(&mut text)? as u64 > LONGEST {
        return Err(io::Error::other(format!("it has more than {} MiB", LONGEST >> 20)));
    }
    Ok(text)
}

fn digest(read: &io::Result<Vec<u8>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    read.as_ref().map_err(io::Error::kind).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn nothing_is_read_that_waits_or_has_no_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("token"), "abc").expect("written");
        symlink(path("token"), path("link")).expect("made");
        assert_eq!(contents(&path("link")).expect("it can be read"), b"abc");
        mkfifo(&path("pipe"), Mode::S_IRWXU).expect("made");
        symlink("/dev/zero", path("zero")).expect("made");
        for name in ["pipe", "zero", "."] {
            let error = contents(&path(name)).expect_err(name);
            assert!(error.to_string().contains("regular file"), "{name}: {error}");
        }
        fs::File::create(path("long")).and_then(|file| file.set_len(LONGEST + 1)).expect("made");
        assert!(contents(&path("long")).is_err_and(|error| error.to_string().contains("more than 16 MiB")));
        assert_eq!(contents(&path("none")).expect_err("there is none").kind(), io::ErrorKind::NotFound);
    }
}
