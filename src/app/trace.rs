//! `nftproxyd trace`.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tracing::{info, warn};

use super::signals::Signals;
use crate::cli::{LineOutput, TraceArgs};
use crate::config::Logging;
use crate::logging;
use crate::trace::{Error, Form, Question, Trace};

/// Traces, until it is over or stopped. The exit status is that of what was found.
pub(super) fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    logging::init(Logging::default());
    let question = Question {
        table: super::table(args.service_proxy_name.as_deref()),
        from: args.from,
        to: args.to.clone(),
        protocol: args.protocol.map(Into::into),
        count: args.count,
        time: Duration::from_secs(args.seconds),
    };
    let form = match args.output {
        LineOutput::Text => Form::Text,
        LineOutput::Json => Form::Json,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let status = runtime.block_on(async {
        let (mut signals, _hangups) = Signals::listen()?;
        let table = question.table;
        let trace = Trace::start(question)?;
        for family in trace.unserved() {
            warn!("there is no table {table} of {family}: nothing is proxied there");
        }
        info!(
            "tracing for {} seconds, or {} connections; only connections that begin now are seen",
            args.seconds, args.count
        );
        let write = |text: &str| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        };
        match trace.run(form, write, signals.stop()).await {
            // Nobody reads any more: it is over, as `status --watch` is then.
            Err(Error::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            status => anyhow::Ok(status?),
        }
    })?;
    Ok(status.into())
}
