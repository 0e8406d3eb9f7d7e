//! What is logged while a test runs.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::Level;
use tracing_subscriber::fmt;

/// Runs something and returns what it logs on this thread, from level `INFO` on, without times.
pub(crate) fn captured(run: impl FnOnce()) -> String {
    // With one subscriber alone, a callsite that a thread without any meets first is switched off for all.
    static ANOTHER: LazyLock<tracing::Dispatch> =
        LazyLock::new(|| fmt().with_max_level(Level::INFO).with_writer(io::sink).finish().into());
    LazyLock::force(&ANOTHER);
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = Writer(Arc::clone(&log));
    let subscriber =
        fmt().with_max_level(Level::INFO).with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, run);
    let text = log.lock().expect("no panic").clone();
    String::from_utf8(text).expect("UTF-8")
}

#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
