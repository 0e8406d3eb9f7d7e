//! The log: one line for each change of state that matters, to standard error, for journald and for people.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging at a klog-like verbosity: 0 and 1 for information, 2 to 4 for debugging, 5 and more for everything.
///
/// Libraries are held to warnings below 5: what they say is rarely about Services.
pub(crate) fn init(verbosity: u8) {
    let (own, others) = match verbosity {
        0 | 1 => (LevelFilter::INFO, LevelFilter::WARN),
        2..=4 => (LevelFilter::DEBUG, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // kube's client warns of every attempt that fails; our sources say when it begins and when it ends.
    let kube = if verbosity < 5 { LevelFilter::ERROR } else { others };
    let filter = Targets::new()
        .with_default(others)
        .with_targets([("kube_client", kube), ("kube_runtime", kube)])
        .with_target("nftproxyd", own);
    // A second call, in tests, changes nothing.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
