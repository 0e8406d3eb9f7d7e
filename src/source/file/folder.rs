//! What the files of a folder say together. No watching and no waiting here; reading a file is the only effect.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use smallvec::SmallVec;
use tracing::info;

use super::document::{self, Format, Reader};
use super::update::{Document, Update, winners};
use crate::keyed::{Keyed, KeyedTable};
use crate::model::{Event, ObjectRef, RefKind, Reject};
use crate::source::Key;
use crate::source::convert::Converter;
use crate::source::rejects::Reported;

/// File systems stamp changes with a coarse clock (10 ms at most): a file that changed this short before it was read
/// may have changed again under the same stamp.
const STAMP_RESOLUTION: Duration = Duration::from_millis(50);

/// Documents of a file of which it is told one by one what is wrong with them.
const MOST_DOCUMENTS: usize = 20;

/// The folder, and which file gave which object. Objects themselves are not kept: where an object is to be taken
/// from another file, that file is read again.
pub(super) struct Folder {
    path: PathBuf,
    node_name: String,
    convert: Arc<Converter>,
    files: KeyedTable<File>,
    /// Which files give an object.
    claims: KeyedTable<Claim>,
    /// What is to be said about objects, collected so that an object that moves from file to file is never gone.
    changes: BTreeMap<Key, Vec<Event>>,
    /// Objects that another file gave until now, and that are to be taken from these files instead.
    restore: BTreeMap<Arc<OsStr>, BTreeSet<Key>>,
    /// Files that could not be read for a reason that passes.
    unread: BTreeSet<Arc<OsStr>>,
    /// Files whose reports may have to change.
    unreported: BTreeSet<Arc<OsStr>>,
    /// Reports about files that are gone.
    withdrawn: Vec<ObjectRef>,
    reported: Reported,
    other_kinds: BTreeSet<String>,
    /// Those of them that have not been logged yet.
    unnamed_kinds: BTreeSet<String>,
    subfolders_named: bool,
    /// Of stamps.
    hasher: RandomState,
}

/// Which files give an object; the last name wins.
struct Claim {
    key: Key,
    givers: Givers,
}

impl Keyed for Claim {
    type Key = Key;

    fn key(&self) -> &Key {
        &self.key
    }
}

/// Names of files, sorted, each once. Nearly always one, kept in place.
#[derive(Default)]
struct Givers(SmallVec<[Arc<OsStr>; 1]>);

impl Givers {
    fn last(&self) -> Option<&Arc<OsStr>> {
        self.0.last()
    }

    fn insert(&mut self, name: Arc<OsStr>) {
        if let Err(at) = self.0.binary_search(&name) {
            self.0.insert(at, name);
        }
    }

    /// Returns whether it was there.
    fn remove(&mut self, name: &Arc<OsStr>) -> bool {
        let at = self.0.binary_search(name);
        at.is_ok_and(|at| {
            self.0.remove(at);
            self.0.shrink_to_fit();
            true
        })
    }
}

/// What is known of a file. There may be a great many, each with one object: this is kept small.
struct File {
    name: Arc<OsStr>,
    documents: Box<[Document]>,
    /// Why it could not be read, at the last attempt.
    unreadable: Option<Box<Reject>>,
    /// `None` where the next look at it must read it.
    stamp: Option<Stamp>,
    /// What was last reported, by number of the document; 0 is the file itself.
    reported: Option<Box<Reports>>,
}

type Reports = BTreeMap<usize, Vec<Reject>>;

impl File {
    fn new(name: Arc<OsStr>) -> File {
        File { name, documents: Box::default(), unreadable: None, stamp: None, reported: None }
    }
}

impl Keyed for File {
    type Key = Arc<OsStr>;

    fn key(&self) -> &Arc<OsStr> {
        &self.name
    }
}

/// When this is equal, so is the file: a hash of what the file system says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(NonZeroU64);

impl Stamp {
    fn of(metadata: &fs::Metadata, hasher: &RandomState) -> Stamp {
        let identity = (metadata.dev(), metadata.ino(), metadata.size());
        let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        Stamp(NonZeroU64::new(hasher.hash_one((identity, times))).unwrap_or(NonZeroU64::MIN))
    }
}

/// Whether a change after `now` gives another stamp.
fn is_settled(metadata: &fs::Metadata, now: SystemTime) -> bool {
    let seconds = metadata.ctime().try_into().unwrap_or(0);
    let changed = Duration::new(seconds, metadata.ctime_nsec().try_into().unwrap_or(0));
    now.duration_since(SystemTime::UNIX_EPOCH + changed).is_ok_and(|age| age > STAMP_RESOLUTION)
}

/// Whether reading may work a little later although nothing changes in the folder: there are no descriptors or no memory,
/// or a disk or a server somewhere has a moment of weakness.
pub(super) fn passes(error: &io::Error) -> bool {
    const PASSING: [Errno; 8] = [
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOMEM,
        Errno::EIO,
        Errno::EINTR,
        Errno::EAGAIN,
        Errno::ESTALE,
        Errno::ENOBUFS,
    ];
    error.kind() == io::ErrorKind::OutOfMemory
        || error.raw_os_error().is_some_and(|number| PASSING.contains(&Errno::from_raw(number)))
}

/// How the files of this name are written, if it is the name of a manifest.
pub(super) fn format_of(name: &OsStr) -> Option<Format> {
    if name.as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

impl Folder {
    pub(super) fn new(path: &Path, node_name: &str, convert: Arc<Converter>) -> Folder {
        Folder {
            path: path.to_owned(),
            node_name: node_name.to_owned(),
            convert,
            files: KeyedTable::default(),
            claims: KeyedTable::default(),
            changes: BTreeMap::new(),
            restore: BTreeMap::new(),
            unread: BTreeSet::new(),
            unreported: BTreeSet::new(),
            withdrawn: Vec::new(),
            reported: Reported::default(),
            other_kinds: BTreeSet::new(),
            unnamed_kinds: BTreeSet::new(),
            subfolders_named: false,
            hasher: RandomState::new(),
        }
    }

    /// Looks at all files; reads those that are new or may have changed. `emit` is called after each file where
    /// nothing can be gone, else at the end.
    pub(super) fn rescan(&mut self, emit: &mut dyn FnMut(Event)) -> io::Result<()> {
        let first = self.files.is_empty();
        let mut names: Vec<OsString> = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if format_of(&entry.file_name()).is_some() {
                names.push(entry.file_name());
            } else if !self.subfolders_named && entry.file_type()?.is_dir() && !is_hidden(&entry.file_name()) {
                self.subfolders_named = true;
                info!(folder = %self.path.display(), "manifests in subfolders are not read");
            }
        }
        names.sort_unstable();
        let is_there = |name: &OsStr| names.binary_search_by(|there| there.as_os_str().cmp(name)).is_ok();
        let all = self.files.iter_unordered().map(|file| &file.name);
        let mut gone: Vec<_> = all.filter(|name| !is_there(name)).cloned().collect();
        gone.sort_unstable();
        for name in gone {
            self.forget(&name);
        }
        for name in names {
            self.look_at(&name);
            if first {
                self.flush_objects(emit);
            }
        }
        self.flush(emit);
        Ok(())
    }

    /// Reads a file that may have changed, or be gone.
    pub(super) fn look_at(&mut self, name: &OsStr) {
        let name: Arc<OsStr> = name.into();
        let stamp = self.files.get(&name).and_then(|file| file.stamp);
        let now = || fs::metadata(self.path.join(&*name)).map(|metadata| Stamp::of(&metadata, &self.hasher));
        if stamp.is_none() || now().ok() != stamp {
            self.look_at_for(name, &BTreeSet::new());
        }
    }

    /// Whether there are files that could not be read for a reason that passes.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Tries to read them.
    pub(super) fn read_unread(&mut self) {
        for name in std::mem::take(&mut self.unread) {
            self.look_at_for(name, &BTreeSet::new());
        }
    }

    /// Reads a file. What it says about the objects of `wanted` is to be said again.
    fn look_at_for(&mut self, name: Arc<OsStr>, wanted: &BTreeSet<Key>) {
        let Some(format) = format_of(&name) else { return };
        self.unread.remove(&name);
        match read(&self.path.join(&*name), &self.hasher) {
            Ok(Some((text, stamp))) => self.read(&name, &text, format, stamp, wanted),
            Ok(None) => self.forget(&name),
            Err(err) => {
                let passes = passes(&err);
                let again = if passes { "it is tried again, and " } else { "" };
                let reason = format!("cannot be read ({err}); {again}what it said before stays in force");
                if passes {
                    self.unread.insert(Arc::clone(&name));
                }
                let file = self.files.get_or_insert_with(&name, || File::new(Arc::clone(&name)));
                file.unreadable = Some(Box::new(Reject::new("the file", reason)));
                file.stamp = None;
                file.documents.iter_mut().for_each(|document| document.must_be_said(wanted));
                self.unreported.insert(name);
            }
        }
    }

    /// Whether the last attempt to read this file failed.
    pub(super) fn is_unreadable(&self, name: &OsStr) -> bool {
        self.files.get(&name.into()).is_some_and(|file| file.unreadable.is_some())
    }

    /// Whether there is such a file on disk.
    pub(super) fn has_on_disk(&self, name: &OsStr) -> bool {
        fs::metadata(self.path.join(name)).is_ok()
    }

    /// A file that has come to be but may still be written to: whether it is complete all the same, because it is a
    /// link to a file that was there before.
    pub(super) fn is_complete_at_birth(&self, name: &OsStr) -> bool {
        fs::symlink_metadata(self.path.join(name))
            .is_ok_and(|metadata| metadata.is_symlink() || (metadata.is_file() && metadata.nlink() > 1))
    }

    /// The file is gone.
    fn forget(&mut self, name: &Arc<OsStr>) {
        let Some(file) = self.files.remove(name) else { return };
        for key in winners(&file.documents).keys() {
            self.release(name, key);
        }
        let reported = file.reported.iter().flat_map(|reports| reports.keys());
        self.withdrawn.extend(reported.map(|&number| object(name, number)));
        self.unreported.remove(name);
        self.unread.remove(name);
    }

    fn read(&mut self, name: &Arc<OsStr>, text: &[u8], format: Format, stamp: Option<Stamp>, wanted: &BTreeSet<Key>) {
        let before = self.files.remove(name).unwrap_or_else(|| File::new(Arc::clone(name)));
        let winners_before = winners(&before.documents);
        let reader = Reader { node_name: &self.node_name, convert: &self.convert };
        let mut update =
            Update::new(before.documents.into_vec(), document::split(text, format), |chunk| reader.read(chunk, format));
        let winners = winners(&update.documents);
        for (key, winner) in &winners {
            let claim = || Claim { key: key.clone(), givers: Givers::default() };
            let files = &mut self.claims.get_or_insert_with(key, claim).givers;
            let won_before = files.last() == Some(name);
            files.insert(Arc::clone(name));
            if files.0.len() > 1 {
                self.unreported.extend(files.0.iter().cloned());
            }
            let wins = files.last() == Some(name);
            let said_before = won_before && update.is_unchanged(winner.document, winners_before.get(key));
            if wins && (!said_before || wanted.contains(key)) {
                self.changes.extend(update.events_of(winner.document, key).map(|events| (key.clone(), events)));
            }
        }
        for kind in update.other_kinds() {
            if self.other_kinds.insert(kind.to_owned()) {
                self.unnamed_kinds.insert(kind.to_owned());
            }
        }
        let documents = update.documents.into();
        self.files.insert(File { documents, unreadable: None, stamp, ..before });
        self.unreported.insert(Arc::clone(name));
        // An object that is to be taken from this file, but became faulty while another file gave it, counts as gone.
        let faulty = wanted.iter().filter(|key| winners.get(key).is_some_and(|winner| !winner.usable));
        for key in winners_before.keys().filter(|key| !winners.contains_key(*key)).chain(faulty) {
            self.release(name, key);
        }
    }

    /// A file no longer gives an object.
    fn release(&mut self, name: &Arc<OsStr>, key: &Key) {
        let Some(Claim { givers: files, .. }) = self.claims.get_mut(key) else { return };
        let won = files.last() == Some(name);
        if !files.remove(name) {
            return;
        }
        self.unreported.extend(files.0.iter().cloned());
        match files.last() {
            None => {
                self.claims.remove(key);
                self.changes.insert(key.clone(), Vec::new());
            }
            Some(next) if won => {
                self.restore.entry(Arc::clone(next)).or_default().insert(key.clone());
            }
            Some(_) => {}
        }
    }

    /// Says what has changed.
    pub(super) fn flush(&mut self, emit: &mut dyn FnMut(Event)) {
        self.flush_objects(emit);
        self.flush_reports(emit);
    }

    /// Says what has changed about objects.
    pub(super) fn flush_objects(&mut self, emit: &mut dyn FnMut(Event)) {
        while let Some((name, keys)) = self.restore.pop_first() {
            // Where it cannot be read, what was said last stays in force.
            self.look_at_for(name, &keys);
        }
        for (key, events) in std::mem::take(&mut self.changes) {
            if events.is_empty() && self.claims.get(&key).is_none() {
                key.gone().into_iter().for_each(&mut *emit);
                self.reported.withdraw(&key.object()).into_iter().for_each(&mut *emit);
            }
            events.into_iter().filter(|event| self.reported.is_news(event)).for_each(&mut *emit);
        }
    }

    /// Says what has changed about what is wrong with files and documents.
    pub(super) fn flush_reports(&mut self, emit: &mut dyn FnMut(Event)) {
        let kinds: Vec<String> = std::mem::take(&mut self.unnamed_kinds).into_iter().collect();
        if !kinds.is_empty() {
            info!(kinds = kinds.join(", "), "objects of these kinds are not read; skipped");
        }
        for name in std::mem::take(&mut self.unreported) {
            let Some(file) = self.files.get(&name) else { continue };
            let wanted = self.reports(&name, file);
            let none = Reports::new();
            let reported = file.reported.as_deref().unwrap_or(&none);
            let numbers: BTreeSet<_> = wanted.keys().chain(reported.keys()).copied().collect();
            for number in numbers {
                if wanted.get(&number) != reported.get(&number) {
                    let rejects = wanted.get(&number).cloned().unwrap_or_default();
                    emit(Event::Rejects { object: object(&name, number), rejects });
                }
            }
            if let Some(file) = self.files.get_mut(&name) {
                file.reported = (!wanted.is_empty()).then(|| Box::new(wanted));
            }
        }
        for object in std::mem::take(&mut self.withdrawn) {
            emit(Event::Rejects { object, rejects: Vec::new() });
        }
    }

    /// What is wrong with a file, by number of the document; 0 is the file itself.
    fn reports(&self, name: &Arc<OsStr>, file: &File) -> Reports {
        let mut reports = Reports::new();
        reports.extend(file.unreadable.iter().map(|reject| (0, vec![Reject::clone(reject)])));
        let winners = winners(&file.documents);
        for (index, document) in file.documents.iter().enumerate() {
            let overruled = document.objects.iter().filter_map(|(key, _)| {
                let givers = self.claims.get(key).map(|claim| &claim.givers);
                let by_file = givers.and_then(Givers::last).filter(|last| *last != name);
                let by_document = winners.get(key).map(|winner| winner.document).filter(|&winner| winner != index);
                let by = match (by_file, by_document) {
                    (Some(file), _) => format!("file {}, whose name comes later", file.display()),
                    (None, Some(document)) => format!("document {}", document + 1),
                    (None, None) => return None,
                };
                let reason = format!("{key} is not used from here: it is also in {by}");
                Some(Reject::new("metadata.name", reason))
            });
            let rejects: Vec<_> = document.rejects.iter().cloned().chain(overruled).collect();
            if !rejects.is_empty() {
                reports.insert(index + 1, Reject::fold(rejects));
            }
        }
        let more = reports.keys().filter(|number| **number > 0).nth(MOST_DOCUMENTS).copied();
        if let Some(first) = more {
            let count = reports.split_off(&first).len();
            let reason = format_args!("{count} more have parts that cannot be used");
            reports.entry(0).or_default().push(Reject::new("documents", reason));
        }
        reports
    }
}

/// A document, or with number 0 the file, for a report about it.
fn object(file: &OsStr, document: usize) -> ObjectRef {
    let name = match document {
        0 => file.display().to_string(),
        number => format!("{}, document {number}", file.display()),
    };
    ObjectRef { kind: RefKind::File, name: name.into() }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Reads a file; `None` where there is none. There is no stamp if the file may be changing.
fn read(path: &Path, hasher: &RandomState) -> io::Result<Option<(Vec<u8>, Option<Stamp>)>> {
    let found = |result: io::Result<fs::Metadata>| match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    // Checked before it is opened: opening a pipe can block.
    let Some(metadata) = found(fs::metadata(path))? else { return Ok(None) };
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let now = SystemTime::now();
    // Some of the kernel's files are called regular, and wait for more.
    let mut file = match fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(Some((text, is_settled(&metadata, now).then(|| Stamp::of(&metadata, hasher)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_pass() {
        for (errno, expected) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ENOMEM, true),
            (Errno::EIO, true),
            (Errno::EINTR, true),
            (Errno::ESTALE, true),
            (Errno::EACCES, false),
            (Errno::ELOOP, false),
            (Errno::ENOENT, false),
        ] {
            assert_eq!(passes(&io::Error::from(errno)), expected, "{errno}");
        }
        assert!(passes(&io::ErrorKind::OutOfMemory.into()));
        assert!(!passes(&io::Error::other("it is not a regular file")));
    }
}
