//! Following the changes of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, MetadataKind, ModifyKind, RemoveKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

use super::folder::{Folder, format_of};
use super::{FolderError, load};
use crate::model::{Event, ObjectRef, RefKind, Reject};
use crate::source::convert::Converter;
use crate::threads;

/// How long a file may be missing before what it said is gone.
pub const REMOVAL_GRACE: Duration = Duration::from_millis(50);

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

    let mut missing: BTreeMap<OsString, Instant> = BTreeMap::new();
    let mut folder_reported = false;
    loop {
        let first = match missing.values().min() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
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
        if work.renew {
            let renewed = watched.renew().map_err(|err| err.to_string());
            let result = renewed.and_then(|()| folder.rescan(&mut emit).map_err(|err| err.to_string()));
            report_folder(&absolute, result.err(), &mut folder_reported, &mut emit);
        } else if work.rescan {
            let result = folder.rescan(&mut emit).map_err(|err| err.to_string());
            report_folder(&absolute, result.err(), &mut folder_reported, &mut emit);
        }
        for name in work.look_at {
            missing.remove(&name);
            folder.look_at(&name);
        }
        let now = Instant::now();
        missing.retain(|name, deadline| {
            // One that is back but was not closed yet will be: then it is read.
            let wait = *deadline > now;
            if !wait && !folder.has_on_disk(name) {
                folder.look_at(name);
            }
            wait
        });
        folder.flush_objects(&mut emit);
        // A file that is about to go must not be reported as winning over the one it was renamed to.
        if missing.is_empty() {
            folder.flush_reports(&mut emit);
        }
    }
}

impl Work {
    fn take(&mut self, message: Message, folder: &Folder, missing: &mut BTreeMap<OsString, Instant>) {
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
fn report_folder(path: &Path, error: Option<String>, reported: &mut bool, emit: &mut dyn FnMut(Event)) {
    let object = ObjectRef { kind: RefKind::Folder, name: path.display().to_string().into() };
    let reason = error.map(|error| format!("cannot be read ({error}); what it said before stays in force"));
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
