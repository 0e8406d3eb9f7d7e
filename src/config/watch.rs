//! Notices that the configuration file has other contents, however they got there: written, renamed into place, or by the
//! swap of a link by which the kubelet updates a mounted ConfigMap (`..data`). kube-proxy overlooks the last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::threads;

/// How long nothing must happen before the file is read: who writes it in pieces is let finish.
const QUIET: Duration = Duration::from_millis(100);

/// The longest wait for that. In a folder where something else is written all the time it is never quiet.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How often the file itself is then looked at, [`QUIET`] apart, until it is as it was the last time.
const LOOKS: usize = 20;

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
        let notice = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| may_matter(event.kind)) {
                // One that waits stands for all that follow.
                let _ = sender.try_send(());
            }
        };
        let watcher = threads::for_library("inotify", || notify::recommended_watcher(notice));
        let mut watcher = watcher.map_err(notify::Error::io)??;
        // The folder, not the file: a file that takes its place has another inode.
        watcher.watch(path.parent().unwrap_or(Path::new("/")), RecursiveMode::NonRecursive)?;
        let mut watch = Watch { path, text, watcher, target: None, events };
        watch.follow_links();
        Ok(watch)
    }

    /// Waits until the file can be read and its contents are not those that were last known, and returns them. What
    /// happened before this is called counts too, also if it was called before and not waited for to its end.
    pub async fn changed(&mut self) -> String {
        loop {
            // First, so that nothing falls between this and the reading.
            self.follow_links();
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
            self.settle().await;
        }
    }

    /// Somebody else has read the file: these contents are known.
    pub fn known(&mut self, text: &str) {
        text.clone_into(&mut self.text);
    }

    /// Waits until nothing has happened for a while. Where something always happens, the file alone has to be the same
    /// for as long.
    async fn settle(&mut self) {
        let end = Instant::now() + LONGEST_WAIT;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(end) => break,
                Some(()) = self.events.recv() => {}
                () = sleep(QUIET) => return,
            }
        }
        let read = |path: &Path| std::fs::read(path).ok();
        let mut before = read(&self.path);
        for _ in 0..LOOKS {
            sleep(QUIET).await;
            let now = read(&self.path);
            if now == before {
                return;
            }
            before = now;
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

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

    /// Writes a file beside the configuration every few milliseconds until it is dropped.
    struct Neighbour(Arc<AtomicBool>, Option<JoinHandle<()>>);

    impl Neighbour {
        fn of(file: &Path) -> Neighbour {
            let (file, stop) = (file.with_file_name("neighbour.log"), Arc::new(AtomicBool::new(false)));
            let stopped = Arc::clone(&stop);
            let writing = std::thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    fs::write(&file, "a line").expect("it can be written");
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            Neighbour(stop, Some(writing))
        }
    }

    impl Drop for Neighbour {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
            let _ = self.1.take().map(JoinHandle::join);
        }
    }

    /// A change that comes while the watch is waiting: what is there when it begins is seen at once.
    async fn seen_after(watch: &mut Watch, change: impl FnOnce()) -> String {
        let later = async {
            sleep(QUIET * 3).await;
            change();
        };
        tokio::join!(next(watch), later).0
    }

    #[tokio::test]
    async fn a_neighbour_that_is_written_all_the_time_hides_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let file = path("config");
        fs::write(&file, "1").expect("it can be written");
        let mut watch = Watch::new(&file, "1".to_owned()).expect("it can be watched");
        let _neighbour = Neighbour::of(&file);
        assert!(tokio::time::timeout(QUIET * 3, watch.changed()).await.is_err(), "nothing has changed");
        let text = seen_after(&mut watch, || fs::write(&file, "2").expect("it can be written")).await;
        assert_eq!(text, "2");
        let text = seen_after(&mut watch, || {
            fs::write(path("other"), "3").expect("it can be written");
            fs::rename(path("other"), &file).expect("it can be renamed");
        })
        .await;
        assert_eq!(text, "3");
        // By a link, and behind it, where it is quiet.
        let elsewhere = tempfile::tempdir().expect("a temporary folder");
        let target = elsewhere.path().join("file");
        let text = seen_after(&mut watch, || {
            fs::write(&target, "4").expect("a file");
            symlink(&target, path("link")).expect("a link");
            fs::rename(path("link"), &file).expect("it can be renamed");
        })
        .await;
        assert_eq!(text, "4");
        let text = seen_after(&mut watch, || fs::write(&target, "5").expect("a file")).await;
        assert_eq!(text, "5");
    }

    #[tokio::test]
    async fn a_file_that_is_written_all_the_time_is_read_all_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("neighbour.log");
        fs::write(&file, "1").expect("it can be written");
        let mut watch = Watch::new(&file, "1".to_owned()).expect("it can be watched");
        let _itself = Neighbour::of(&file);
        // It may be read between the two steps of a write.
        while next(&mut watch).await != "a line" {}
    }
}
