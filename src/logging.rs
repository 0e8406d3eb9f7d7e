//! The log: one line for each change of state that matters, to standard error, for journald and for people.
//!
//! What others have written, such as the name of an object or of a file, cannot make a line of its own: see [`OneLine`].
//!
//! The daemon's lines wait in a [`queue`] for a thread that writes them: a pipe that is full, or read slowly, costs lines,
//! and stops nothing.

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Logging};
use crate::printable::is_dangerous;

/// How long the end of the process, or of a thread by a panic, waits for the log to be read.
const LAST_LINES: Duration = Duration::from_secs(2);

/// There once the log is JSON.
static JSON: OnceLock<()> = OnceLock::new();

/// Starts logging of a command that does one thing and ends: at once, in between what else it writes.
pub(crate) fn init(logging: Logging) {
    begin(logging, io::stderr);
}

/// Starts logging of a daemon: who logs never waits for who reads. Its panics are lines of the log, too.
///
/// # Errors
/// When there can be no thread that writes.
pub(crate) fn init_queued(logging: Logging) -> io::Result<()> {
    let writer = queue::start()?;
    if begin(logging, move || writer.clone()) {
        panic::set_hook(Box::new(|panic| {
            log_panic(panic);
            queue::flush(LAST_LINES);
        }));
    }
    Ok(())
}

/// Says why the process fails, in the last line of standard error, behind all that was logged. Where the log is JSON, so is
/// this, with its time and level.
pub(crate) fn last_words(why: &str) {
    if JSON.get().is_some() {
        tracing::error!("{why}");
        return;
    }
    let text = format!("Error: {why}");
    if !queue::write(&text) {
        eprintln!("{text}");
    }
}

/// Waits for what was logged to be read, but not for ever.
pub(crate) fn flush() {
    queue::flush(LAST_LINES);
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let why = panic.payload_as_str().unwrap_or("something that is no text");
    tracing::error!("thread {} panicked at {at}: {why}", thread.name().unwrap_or("without a name"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        trace.to_string().lines().for_each(|line| tracing::error!("{line}"));
    }
}

/// Logs at a klog-like verbosity: 0 and 1 for information, 2 to 4 for debugging, 5 and more for everything. Returns whether
/// nobody did before.
///
/// Libraries are held to warnings below 5: what they say is rarely about Services.
fn begin<W, M>(Logging { format, verbosity }: Logging, writer: M) -> bool
where
    W: io::Write,
    M: Fn() -> W + Send + Sync + 'static,
{
    let (own, others) = match verbosity {
        0 | 1 => (LevelFilter::INFO, LevelFilter::WARN),
        2..=4 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    // kube's client speaks of every attempt that fails; our sources say when it begins and when it ends.
    let kube = if verbosity < 5 { LevelFilter::OFF } else { others };
    let filter = Targets::new()
        .with_default(others)
        .with_targets([("kube_client", kube), ("kube_runtime", kube), ("tower_http", kube)])
        .with_target("nftproxyd", own);
    let lines = tracing_subscriber::fmt::layer().with_writer(move || OneLine(writer())).with_ansi(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if journald_listens() => lines.event_format(Journal).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // A second call, in tests, changes nothing.
    let first = tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok();
    if first && format == LogFormat::Json {
        JSON.get_or_init(|| ());
    }
    first
}

/// Whether standard error leads to journald, which says so in `JOURNAL_STREAM` (systemd.exec(5)).
fn journald_listens() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = nix::sys::stat::fstat(std::io::stderr().as_fd()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Lines for journald: it adds the time itself, and takes the priority from the beginning of the line (sd-daemon(3)).
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "<{}>{text}", priority(*event.metadata().level()))
    }
}

/// Writes each event as one line: whatever is in it that would end the line, or speak to a terminal, is escaped, in a way
/// that JSON can be written with, too. The one place that every line of every format passes.
struct OneLine<W>(W);

impl<W: io::Write> io::Write for OneLine<W> {
    /// `event` is all of an event, with the end of its line.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if line.contains(is_dangerous) {
            let mut escaped = String::with_capacity(line.len() + 16);
            for c in line.chars() {
                match c {
                    '\n' => escaped.push_str("\\n"),
                    c if is_dangerous(c) => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
                    c => escaped.push(c),
                }
            }
            escaped.push('\n');
            self.0.write_all(escaped.as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const NASTY: &str = "a\n<3>forged\r\u{1b}[2J\u{9b}\u{7f}\u{2028}\u{202e}";

    /// What is logged ends up here.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged<L>(layer: impl FnOnce(Sink) -> L) -> String
    where
        L: Layer<tracing_subscriber::Registry> + Send + Sync,
    {
        let sink = Sink::default();
        let subscriber = tracing_subscriber::registry().with(layer(sink.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(kind = "Service", name = NASTY, "one\ntwo {NASTY}");
            tracing::info!(operations = 3, "in sync");
        });
        let bytes = sink.0.lock().expect("nobody panics").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn assert_harmless(text: &str) {
        let found = text.chars().filter(|c| is_dangerous(*c) && *c != '\n').count();
        assert_eq!(found, 0, "{text:?}");
    }

    #[test]
    fn people_get_one_line_for_each_event() {
        let text = logged(|sink| {
            let writer = move || OneLine(sink.clone());
            tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false)
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("WARN nftproxyd::logging::tests: one\\ntwo a\\n<3>forged"), "{text}");
        assert_harmless(&text);
    }

    #[test]
    fn journald_gets_priorities_and_no_time() {
        let text = logged(|sink| {
            let writer = move || OneLine(sink.clone());
            tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).event_format(Journal)
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("<4>one\\ntwo a\\n<3>forged\\u000d"), "{text}");
        assert_eq!(lines[1], "<6>in sync operations=3");
        assert_harmless(&text);
    }

    #[test]
    fn json_is_one_object_for_each_line() {
        let text = logged(|sink| {
            let writer = move || OneLine(sink.clone());
            tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).json().flatten_event(true)
        });
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (lines[0]["message"].as_str(), &lines[0]["name"]),
            (Some(&*format!("one\ntwo {NASTY}")), &NASTY.into())
        );
        assert_harmless(&text);
        assert_eq!(lines[0]["kind"], "Service");
        assert_eq!((&lines[1]["level"], &lines[1]["operations"]), (&"INFO".into(), &3.into()));
    }
}
