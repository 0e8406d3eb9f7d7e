//! Objects from a folder of manifests: for `render`, for trying things out, and for nodes without an API server.
//!
//! - Files: `*.yaml`, `*.yml` and `*.json` in the folder itself; hidden files and subfolders are not read, links are
//!   followed (a ConfigMap volume of the kubelet works). A file may hold several documents, and lists of objects.
//! - Of an object that is in two files the one in the file with the later name counts (bytes compared); when that goes,
//!   the other comes back.
//! - A faulty document is reported with file, number, field and reason; all other documents work. What a document or
//!   file said before it became faulty stays in force until it is repaired or removed.
//! - Changes are followed by inotify, without polling. A file is read when its writer closes it, or when it is renamed
//!   or linked into place, so half-written files are not seen. Only that file is read, and in it only the documents
//!   that have changed. What a removed file said goes after [`REMOVAL_GRACE`], unless it is back by then: many editors
//!   replace a file by removing it.
//! - What cannot be read for a reason that passes, such as want of descriptors, is tried again after growing pauses.
//! - Where the folder itself is replaced, the new one counts. Where it goes away, what it said stays in force.

mod document;
mod folder;
mod update;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::convert::Converter;
use crate::model::{Event, Kind};
use folder::Folder;

pub use watch::{REMOVAL_GRACE, watch};

/// Why a folder cannot be read or watched at start.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be read.
    #[error("folder of manifests {}: {source}. Name a folder that exists and can be read", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// There is no thread to read it.
    #[error(transparent)]
    NoThread(io::Error),
    /// Changes in it cannot be followed.
    #[error(
        "folder of manifests {}: its changes cannot be followed ({source}). \
         If a limit is reached, raise fs.inotify.max_user_watches or fs.inotify.max_user_instances",
        path.display()
    )]
    Unwatchable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: notify::Error,
    },
}

/// Says what a folder holds now, as one complete list of every kind.
///
/// Only the Node named `node_name` is read. Objects that are in several files come several times; the last time counts.
///
/// # Errors
/// The folder cannot be read. Files that cannot are reported by [`Event::Rejects`].
pub fn load_once(
    folder: &Path,
    node_name: &str,
    convert: Arc<Converter>,
    emit: &mut dyn FnMut(Event),
) -> Result<(), FolderError> {
    load(&mut Folder::new(folder, node_name, convert), emit)
        .map_err(|source| FolderError::Unreadable { path: folder.to_owned(), source })
}

/// The first look at a folder.
fn load(folder: &mut Folder, emit: &mut dyn FnMut(Event)) -> io::Result<()> {
    Kind::ALL.into_iter().map(Event::ListStarted).for_each(&mut *emit);
    folder.rescan(emit)?;
    Kind::ALL.into_iter().map(Event::ListDone).for_each(&mut *emit);
    Ok(())
}
