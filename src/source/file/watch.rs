//! Following the changes of a folder.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, MetadataKind, ModifyKind, RemoveKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use super::folder::{Folder, format_of, passes};
use super::{FolderError, load};
use crate::model::{Event, ObjectRef, RefKind, Reject};
use crate::source::convert::Converter;
use crate::threads;

/// How long a file may be missing before what it said is gone.
pub const REMOVAL_GRACE: Duration = Duration::from_millis(50);

/// The pause before what could not be read for a reason that passes is read again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// A look at all files is not begun before so many times as long as the last one took has passed since: it may have to be
/// repeated for as long as somebody changes more files than the kernel tells of.
const RESCAN_SHARE: u32 = 4;

/// Says what a folder holds, as a list of every kind, and then follows its changes until the receiver is dropped.
///
/// Only the Node named `node_name` is read. Files are read in a thread of their own, which ends with this future.
///
/// # Errors
/// The folder cannot be read or watched at start. What happens to it later is reported by [`Event::Rejects`].
///
/// # Panics
/// If the thread that reads the folder panicked.
pub async fn watch(
    folder: PathBuf,
    node_name: String,
    convert: Arc<Converter>,
    events: Sender<Event>,
) -> Result<(), FolderError> {
    let (messages, inbox) = mpsc::channel();
    let (done, ended) = oneshot::channel();
    let _stop = StopOnDrop(messages.clone());
    let receiver = events.clone();
    let body = move || drop(done.send(follow(folder, &node_name, convert, &events, messages, &inbox)));
    threads::spawn("manifests", body).map_err(FolderError::NoThread)?;
    tokio::select! {
        ended = ended => ended.expect("the thread that reads manifests does not panic"),
        () = receiver.closed() => Ok(()),
    }
}

/// What the thread is told.
#[derive(Debug)]
enum Message {
    /// A file of this name has come to be, and may still be written to.
    Born(OsString),
    /// A file of this name is complete.
    Complete(OsString),
    /// A file's permissions may have changed.
    Permissions(OsString),
    /// A file of this name is gone.
    Gone(OsString),
    /// Anything may have changed in the folder.
    Rescan,
    /// The folder itself may be another, or gone.
    FolderChanged,
    Stop,
}

struct StopOnDrop(mpsc::Sender<Message>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(Message::Stop);
    }
}

/// Says what happened as messages. Called in the watcher's thread, so it must not block.
fn translate(folder: &Path, event: notify::Result<notify::Event>, send: impl Fn(Message)) {
    let event = match event {
        Ok(event) if event.need_rescan() => return send(Message::Rescan),
        Ok(event) => event,
        Err(_) => return send(Message::FolderChanged),
    };
    let moves = matches!(
        event.kind,
        EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::To))
    );
    for path in &event.paths {
        // The folder, or one on the way to it.
        if folder.starts_with(path) {
            if moves {
                send(Message::FolderChanged);
            }
            continue;
        }
        let (Some(name), true) = (path.file_name(), path.parent() == Some(folder)) else { continue };
        let name = name.to_owned();
        // A volume of the kubelet changes by `..data`, a link, which is renamed into place.
        if format_of(&name).is_none() {
            if name == "..data" && moves {
                send(Message::Rescan);
            }
            continue;
        }
        match event.kind {
            EventKind::Create(CreateKind::File) => send(Message::Born(name)),
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => send(Message::Complete(name)),
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)) => send(Message::Permissions(name)),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(RemoveKind::File) => {
                send(Message::Gone(name));
            }
            _ => {}
        }
    }
}

/// The folder with its watches.
struct Watched {
    path: PathBuf,
    watcher: RecommendedWatcher,
}

impl Watched {
    fn new(path: PathBuf, messages: mpsc::Sender<Message>) -> notify::Result<Watched> {
        let folder = path.clone();
        let watcher = notify::recommended_watcher(move |event| {
            translate(&folder, event, |message| drop(messages.send(message)));
        })?;
        Ok(Watched { path, watcher })
    }

    /// Watches the folder that is there now, and the one it is in, to see when it is replaced.
    fn renew(&mut self) -> notify::Result<()> {
        let _ = self.watcher.unwatch(&self.path);
        // The parent first: what comes to be after that is seen. That it may not be read is no reason to give up.
        let mut ancestors = self.path.ancestors().skip(1);
        let parent = ancestors.next().map(|parent| self.watcher.watch(parent, RecursiveMode::NonRecursive));
        if matches!(parent, Some(Err(_))) {
            let _ = ancestors.find(|ancestor| self.watcher.watch(ancestor, RecursiveMode::NonRecursive).is_ok());
        }
        self.watcher.watch(&self.path, RecursiveMode::NonRecursive)
    }
}

/// What is to be done after a number of messages.
#[derive(Default)]
struct Work {
    look_at: BTreeSet<OsString>,
    rescan: bool,
    renew: bool,
    stop: bool,
}

fn follow(
    path: PathBuf,
    node_name: &str,
    convert: Arc<Converter>,
    events: &Sender<Event>,
    messages: mpsc::Sender<Message>,
    inbox: &mpsc::Receiver<Message>,
) -> Result<(), FolderError> {
    let mut emit = |event| drop(events.blocking_send(event));
    let unreadable = |source| FolderError::Unreadable { path: path.clone(), source };
    let unwatchable = |source| FolderError::Unwatchable { path: path.clone(), source };
    let absolute = std::path::absolute(&path).map_err(unreadable)?;
    // Before it is watched, so that what is wrong with it is said in simple words.
    std::fs::read_dir(&absolute).map_err(unreadable)?;
    let watched = threads::for_library("inotify", || Watched::new(absolute.clone(), messages));
    let mut watched = watched.map_err(FolderError::NoThread)?.map_err(unwatchable)?;
    watched.renew().map_err(unwatchable)?;
    let mut folder = Folder::new(&absolute, node_name, convert);
    load(&mut folder, &mut emit).map_err(unreadable)?;

    let mut missing = Missing::default();
    let mut again = Again::default();
    again.plan(false, folder.has_unread());
    // When all files may be looked at next, and whether they are to be.
    let (mut rescan_from, mut rescan_due) = (Instant::now(), false);
    let mut folder_reported = false;
    loop {
        let wake = [missing.next(), again.at, rescan_due.then_some(rescan_from)].into_iter().flatten().min();
        let first = match wake {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut work = Work::default();
        match first {
            Ok(first) => {
                for message in std::iter::once(first).chain(inbox.try_iter()) {
                    work.take(message, &folder, &mut missing);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if work.stop || events.is_closed() {
            return Ok(());
        }
        let started = Instant::now();
        let retry = again.at.is_some_and(|at| at <= started);
        let renew = work.renew || (retry && folder_reported);
        rescan_due |= work.rescan;
        if renew || (rescan_due && rescan_from <= started) {
            rescan_due = false;
            let renewed = if renew { watched.renew() } else { Ok(()) };
            let result = renewed.map_err(into_io).and_then(|()| folder.rescan(&mut emit));
            rescan_from = Instant::now() + started.elapsed() * RESCAN_SHARE;
            again.folder = result.as_ref().is_err_and(passes);
            report_folder(&absolute, result.err(), &mut folder_reported, &mut emit);
        }
        if retry {
            folder.read_unread();
        }
        for name in work.look_at {
            missing.remove(&name);
            folder.look_at(&name);
        }
        for name in missing.take_due(Instant::now()) {
            // One that is back but was not closed yet will be: then it is read.
            if !folder.has_on_disk(&name) {
                folder.look_at(&name);
            }
        }
        again.plan(retry, folder.has_unread());
        folder.flush_objects(&mut emit);
        // A file that is about to go must not be reported as winning over the one it was renamed to.
        if missing.is_empty() {
            folder.flush_reports(&mut emit);
        }
    }
}

/// Files that are gone, until it is sure that they do not come back at once.
#[derive(Default)]
struct Missing {
    names: BTreeMap<OsString, Instant>,
    /// In the order of time. Names that are no longer missing, or are again since later, are passed over.
    queue: VecDeque<(Instant, OsString)>,
}

impl Missing {
    fn insert(&mut self, name: OsString, deadline: Instant) {
        self.queue.push_back((deadline, name.clone()));
        self.names.insert(name, deadline);
    }

    fn remove(&mut self, name: &OsString) {
        self.names.remove(name);
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// When there may be something to do.
    fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(deadline, _)| *deadline)
    }

    /// Those that were missing for long enough.
    fn take_due(&mut self, now: Instant) -> Vec<OsString> {
        let mut due = Vec::new();
        while self.next().is_some_and(|deadline| deadline <= now) {
            let Some((deadline, name)) = self.queue.pop_front() else { break };
            if self.names.get(&name) == Some(&deadline) {
                self.names.remove(&name);
                due.push(name);
            }
        }
        due
    }
}

/// When to read again what could not be read for a reason that passes.
#[derive(Default)]
struct Again {
    at: Option<Instant>,
    pause: Duration,
    /// Whether the folder itself is one that could not be.
    folder: bool,
}

impl Again {
    /// `tried`: it was just tried; `files`: whether there are files that could not be read.
    fn plan(&mut self, tried: bool, files: bool) {
        if !files && !self.folder {
            *self = Again::default();
        } else if tried || self.at.is_none() {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.at = Some(Instant::now() + self.pause);
        }
    }
}

fn into_io(error: notify::Error) -> io::Error {
    match error.kind {
        notify::ErrorKind::Io(error) => error,
        _ => io::Error::other(error),
    }
}

impl Work {
    fn take(&mut self, message: Message, folder: &Folder, missing: &mut Missing) {
        match message {
            Message::Born(name) if folder.is_complete_at_birth(&name) => drop(self.look_at.insert(name)),
            Message::Born(_) => {}
            Message::Complete(name) => drop(self.look_at.insert(name)),
            Message::Permissions(name) if folder.is_unreadable(&name) => drop(self.look_at.insert(name)),
            Message::Permissions(_) => {}
            Message::Gone(name) => {
                self.look_at.remove(&name);
                missing.insert(name, Instant::now() + REMOVAL_GRACE);
            }
            Message::Rescan => self.rescan = true,
            Message::FolderChanged => self.renew = true,
            Message::Stop => self.stop = true,
        }
    }
}

/// Reports that the folder cannot be read, or that it can again.
fn report_folder(path: &Path, error: Option<io::Error>, reported: &mut bool, emit: &mut dyn FnMut(Event)) {
    let object = ObjectRef { kind: RefKind::Folder, name: path.display().to_string().into() };
    let again = |error: &io::Error| if passes(error) { "it is tried again, and " } else { "" };
    let said =
        |error: io::Error| format!("cannot be read ({error}); {}what it said before stays in force", again(&error));
    let reason = error.map(said);
    let rejects = reason.map(|reason| Reject::new("the folder", reason));
    if rejects.is_some() || std::mem::take(reported) {
        *reported = rejects.is_some();
        emit(Event::Rejects { object, rejects: rejects.into_iter().collect() });
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{DataChange, Flag};

    use super::*;

    #[test]
    fn what_is_missing_is_gone_after_its_time() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        let name = |name: &str| OsString::from(name);
        for (file, milliseconds) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
            missing.insert(name(file), at(milliseconds));
        }
        // Back, and back and gone again.
        missing.remove(&name("b"));
        missing.remove(&name("a"));
        missing.insert(name("a"), at(5));
        assert_eq!(missing.next(), Some(at(1)));
        assert_eq!(missing.take_due(at(3)), [name("c")]);
        assert_eq!((missing.next(), missing.is_empty()), (Some(at(4)), false));
        assert_eq!(missing.take_due(at(9)), [name("d"), name("a")]);
        assert_eq!((missing.next(), missing.is_empty()), (None, true));
    }

    #[test]
    fn what_passes_is_tried_again_after_growing_pauses() {
        let mut again = Again::default();
        again.plan(false, false);
        assert_eq!(again.at, None);
        let mut pauses = Vec::new();
        again.plan(false, true);
        for _ in 0..8 {
            let at = again.at;
            again.plan(false, true);
            assert_eq!(again.at, at, "it is not put off");
            pauses.push(again.pause.as_millis());
            again.plan(true, true);
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 16_000, 16_000]);
        again.plan(true, false);
        assert_eq!((again.at, again.pause), (None, Duration::ZERO), "it is over");
        again.folder = true;
        again.plan(false, false);
        assert!(again.at.is_some(), "the folder counts too");
    }

    #[test]
    fn what_the_kernel_says_becomes_messages() {
        let from = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        let to = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let both = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let permissions = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let created = EventKind::Create(CreateKind::File);
        let cases: &[(EventKind, &[&str], &str)] = &[
            (created, &["/etc/m/a.yaml"], "Born(\"a.yaml\")"),
            (written, &["/etc/m/a.yaml"], ""),
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), &["/etc/m/a.yaml"], ""),
            (closed, &["/etc/m/a.yaml"], "Complete(\"a.yaml\")"),
            (closed, &["/etc/m/a.txt"], ""),
            (closed, &["/etc/m/.a.yaml"], ""),
            (closed, &["/etc/a.yaml"], ""),
            (permissions, &["/etc/m/a.yaml"], "Permissions(\"a.yaml\")"),
            (permissions, &["/etc/m"], ""),
            (from, &["/etc/m/a.yaml"], "Gone(\"a.yaml\")"),
            (to, &["/etc/m/a.yaml"], "Complete(\"a.yaml\")"),
            (both, &["/etc/m/a.yaml", "/etc/m/b.yaml"], ""),
            (EventKind::Remove(RemoveKind::File), &["/etc/m/a.yaml"], "Gone(\"a.yaml\")"),
            (to, &["/etc/m/..data"], "Rescan"),
            (EventKind::Create(CreateKind::Folder), &["/etc/m/sub"], ""),
            (EventKind::Remove(RemoveKind::Folder), &["/etc/m"], "FolderChanged"),
            (from, &["/etc/m"], "FolderChanged"),
            (EventKind::Create(CreateKind::Folder), &["/etc"], "FolderChanged"),
            (to, &["/etc/other"], ""),
        ];
        let said = |event| {
            let said = std::cell::RefCell::new(Vec::new());
            translate(Path::new("/etc/m"), event, |message| said.borrow_mut().push(format!("{message:?}")));
            said.into_inner().join(" ")
        };
        for (kind, paths, expected) in cases {
            let event = paths.iter().fold(notify::Event::new(*kind), |event, path| event.add_path(path.into()));
            assert_eq!(said(Ok(event)), *expected, "{kind:?} {paths:?}");
        }
        let overflow = notify::Event::new(EventKind::Other).set_flag(Flag::Rescan);
        assert_eq!(said(Ok(overflow)), "Rescan");
        assert_eq!(said(Err(notify::Error::generic("lost"))), "FolderChanged");
    }
}
