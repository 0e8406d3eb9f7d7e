//! Notices that the configuration file has other contents, however they got there: written, renamed into place, or by the
//! swap of a link by which the kubelet updates a mounted ConfigMap (`..data`). kube-proxy overlooks the last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How long nothing must happen before the file is read: who writes it in pieces is let finish.
const QUIET: Duration = Duration::from_millis(100);

/// A configuration file that is watched.
pub struct Watch {
    path: PathBuf,
    text: String,
    watcher: RecommendedWatcher,
    /// The folder that the file really is in, where links lead elsewhere.
    target: Option<PathBuf>,
    events: mpsc::Receiver<()>,
}

impl Watch {
    /// Watches `file`, whose contents were `text` when they were read.
    ///
    /// # Errors
    /// The folder that it is in cannot be watched.
    pub fn new(file: &Path, text: String) -> notify::Result<Watch> {
        let path = std::path::absolute(file)?;
        let (sender, events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| may_matter(event.kind)) {
                // One that waits stands for all that follow.
                let _ = sender.try_send(());
            }
        })?;
        // The folder, not the file: a file that takes its place has another inode.
        watcher.watch(path.parent().unwrap_or(Path::new("/")), RecursiveMode::NonRecursive)?;
        let mut watch = Watch { path, text, watcher, target: None, events };
        watch.follow_links();
        Ok(watch)
    }

    /// Waits until the file can be read and its contents are not those that were last known, and returns them. What
    /// happened before this is called counts too.
    pub async fn changed(&mut self) -> String {
        loop {
            // A file that is missing is about to be replaced, or left behind by somebody who does not need it any more.
            if let Ok(text) = std::fs::read_to_string(&self.path)
                && text != self.text
            {
                self.text.clone_from(&text);
                return text;
            }
            if self.events.recv().await.is_none() {
                return std::future::pending().await;
            }
            loop {
                tokio::select! {
                    biased;
                    Some(()) = self.events.recv() => {}
                    () = sleep(QUIET) => break,
                }
            }
            self.follow_links();
        }
    }

    /// Watches the folder at the end of the links too. That it cannot be watched leaves what is noticed without it.
    fn follow_links(&mut self) {
        let folder = self.path.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
        let folder = folder.filter(|folder| Some(folder.as_path()) != self.path.parent());
        if folder == self.target {
            return;
        }
        if let Some(old) = self.target.take() {
            let _ = self.watcher.unwatch(&old);
        }
        self.target = folder.filter(|folder| self.watcher.watch(folder, RecursiveMode::NonRecursive).is_ok());
    }
}

/// Reading does not change a file; we do it ourselves.
fn may_matter(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn next(watch: &mut Watch) -> String {
        tokio::time::timeout(PATIENCE, watch.changed()).await.expect("the change is noticed")
    }

    #[tokio::test]
    async fn a_file_is_followed_however_it_changes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("config");
        fs::write(&file, "1").expect("it can be written");
        let mut watch = Watch::new(&file, "0".to_owned()).expect("it can be watched");
        assert_eq!(next(&mut watch).await, "1", "what changed before");
        fs::write(&file, "2").expect("it can be written");
        assert_eq!(next(&mut watch).await, "2");
        fs::write(folder.path().join("other"), "3").expect("it can be written");
        fs::rename(folder.path().join("other"), &file).expect("it can be renamed");
        assert_eq!(next(&mut watch).await, "3");
        // The same again and a missing file are no changes.
        fs::write(&file, "3").expect("it can be written");
        fs::remove_file(&file).expect("it can be removed");
        assert!(tokio::time::timeout(QUIET * 3, watch.changed()).await.is_err());
        fs::write(&file, "4").expect("it can be written");
        assert_eq!(next(&mut watch).await, "4");
    }

    #[tokio::test]
    async fn the_links_of_a_config_map_are_followed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let version = |name: &str, text: &str| {
            fs::create_dir(path(name)).expect("a folder");
            fs::write(path(name).join("config.conf"), text).expect("a file");
            symlink(name, path("..data_tmp")).expect("a link");
            fs::rename(path("..data_tmp"), path("..data")).expect("it can be renamed");
        };
        version("..1", "1");
        symlink("..data/config.conf", path("config.conf")).expect("a link");
        let mut watch = Watch::new(&path("config.conf"), "1".to_owned()).expect("it can be watched");
        for count in 2..5 {
            let (name, text) = (format!("..{count}"), count.to_string());
            version(&name, &text);
            fs::remove_dir_all(path(&format!("..{}", count - 1))).expect("it can be removed");
            assert_eq!(next(&mut watch).await, text);
        }
        // And a link to a file elsewhere.
        let elsewhere = tempfile::tempdir().expect("a temporary folder");
        let target = elsewhere.path().join("file");
        fs::write(&target, "5").expect("a file");
        fs::remove_file(path("config.conf")).expect("it can be removed");
        symlink(&target, path("config.conf")).expect("a link");
        assert_eq!(next(&mut watch).await, "5");
        fs::write(&target, "6").expect("a file");
        assert_eq!(next(&mut watch).await, "6");
    }
}
