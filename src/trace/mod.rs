//! `nftproxyd trace`: what becomes of the first packets of connections, as the kernel tells it while they pass.
//!
//! * `destination`: what is asked for. Pure.
//! * `services`: whose addresses and ports are, read from the tables that serve.
//! * `table`, `expressions`: the table that has packets traced, as messages. `hook`: its chains. Pure.
//! * `limit`: how much the limit of the table has not let pass.
//! * `live`: the table in the kernel, and the socket that hears of packets.
//! * `decode`, `packet`: messages about packets, read. Pure.
//! * `connections`: from steps of packets to what has become of connections. Pure.
//! * `rules`: the rule that has dropped one, as text.
//! * `report`: all of it in words, as JSON, and as an exit status. Pure.

mod connections;
mod decode;
mod expressions;
mod hook;
mod limit;
mod live;
mod packet;
mod report;
mod rules;
mod services;
mod table;
#[cfg(test)]
mod testing;

use std::io;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

use connections::{Connection, Connections, End, Tables};
pub use live::TraceError;
use live::{Ears, Heard, Tracing};
use report::{About, Report, Summary};
use rules::{Rule, Rules};
pub use services::NoTarget;
use services::Services;

use crate::model::{Destination, Family, Protocol, Source};
use crate::nftables::KernelError;
use crate::ruleset::names::TableName;

/// What to trace.
#[derive(Debug, Clone)]
pub struct Question {
    /// The table that serves.
    pub table: TableName,
    /// The clients; all if `None`.
    pub from: Option<Source>,
    /// Where they connect to.
    pub to: Destination,
    /// The protocol; all if `None`.
    pub protocol: Option<Protocol>,
    /// How many connections, at most.
    pub count: u64,
    /// For how long, at most.
    pub time: Duration,
}

/// A trace came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to trace.
    #[error(transparent)]
    NoTarget(#[from] NoTarget),
    /// The tables that serve cannot be read.
    #[error(transparent)]
    Tables(#[from] KernelError),
    /// The kernel does not trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// What was found cannot be told.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

/// How what is found is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs: one object on each line.
    Json,
}

/// A trace that has begun.
pub struct Trace {
    question: Question,
    tracing: Tracing,
    ears: AsyncFd<Ears>,
    services: Services,
    connections: Connections,
    rules: Rules,
    summary: Summary,
}

impl Trace {
    /// Begins. Within a tokio runtime.
    ///
    /// # Errors
    /// There is no such Service, or no permission.
    pub fn start(question: Question) -> Result<Trace, Error> {
        let services = Services::read(question.table)?;
        let mut targets = services.targets(&question.to, question.protocol)?;
        if let Some(Source(net)) = question.from {
            targets.retain(|of| of.family == Family::of(net.addr()));
            if targets.is_empty() {
                return Err(NoTarget::OtherFamily(net.to_string()).into());
            }
        }
        // What is traced from the first moment on is heard.
        let ears = Ears::open()?.asynchronous()?;
        let tracing = Tracing::start(&targets, question.from.map(|source| source.0), question.time)?;
        let tables = Tables { trace: tracing.table().to_owned(), services: question.table.as_str().to_owned() };
        let (connections, rules) = (Connections::new(tables, question.count), Rules::default());
        Ok(Trace { question, tracing, ears, services, connections, rules, summary: Summary::default() })
    }

    /// Families that are traced, and have no table that serves.
    pub fn unserved(&self) -> Vec<Family> {
        self.tracing.families().iter().copied().filter(|family| !self.services.serves(*family)).collect()
    }

    /// Listens until the time is over, as many connections have come, or `stopped` comes back, and writes what becomes of
    /// each. Returns the exit status.
    ///
    /// # Errors
    /// The kernel's messages cannot be read, or nobody reads what is written.
    pub async fn run(
        mut self,
        form: Form,
        mut write: impl FnMut(&str) -> io::Result<()>,
        stopped: impl Future<Output = ()>,
    ) -> Result<u8, Error> {
        let end = Instant::now() + self.question.time;
        let mut stopped = std::pin::pin!(stopped);
        let mut closed = false;
        while !self.connections.is_done() {
            let next = self.connections.next_end().unwrap_or(end);
            let wake = if closed { next } else { next.min(end) };
            let is_stopped = tokio::select! {
                heard = self.ears.readable() => {
                    heard.map_err(TraceError::at_listening)?.clear_ready();
                    false
                }
                () = sleep_until(wake.into()) => false,
                () = &mut stopped, if !closed => true,
            };
            // Whatever it was: of what waits to be read nobody can say that it has not come.
            self.listen()?;
            let now = Instant::now();
            let ended = self.connections.ended(now);
            self.tell(ended, form, &mut write)?;
            if !closed && (is_stopped || now >= end) {
                // What is on its way gets to its end, for which the tables are needed.
                closed = true;
                self.connections.close();
            }
        }
        let over_limit = self.tracing.over_limit()?;
        self.summary.over_limit(over_limit, self.connections.is_full());
        drop(self.tracing);
        let text = match form {
            Form::Text => self.summary.text(),
            Form::Json => self.summary.json().map_err(|error| Error::Write(error.into()))?,
        };
        write(&text).map_err(Error::Write)?;
        Ok(self.summary.exit_status())
    }

    /// Takes in all that waits.
    fn listen(&mut self) -> Result<(), TraceError> {
        while let Some(heard) = self.ears.get_mut().read().map_err(TraceError::at_listening)? {
            match heard {
                Heard::Steps(steps) => {
                    let (now, at) = (Instant::now(), SystemTime::now());
                    steps.iter().for_each(|step| self.connections.step(step, now, at));
                }
                Heard::Lost => {
                    self.summary.lost_messages();
                    self.connections.gap();
                }
            }
        }
        self.connections.caught_up();
        Ok(())
    }

    fn tell(
        &mut self,
        ended: Vec<Connection>,
        form: Form,
        write: &mut impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), Error> {
        for connection in ended {
            let report = self.report(&connection);
            self.summary.add(&report);
            let text = match form {
                Form::Text => report.text(),
                Form::Json => report.json().map_err(|error| Error::Write(error.into()))?,
            };
            write(&text).map_err(Error::Write)?;
        }
        Ok(())
    }

    fn report(&mut self, connection: &Connection) -> Report {
        let device = |index: u32| {
            let name = nix::net::if_::if_indextoname(index).ok();
            name.map_or_else(|| format!("device {index}"), |name| name.to_string_lossy().into_owned())
        };
        let rule = match &connection.end {
            End::Dropped(culprit) | End::Taken(culprit) => self.rules.look_up(culprit),
            _ => Rule::default(),
        };
        let service = self.services.name(connection).map(|name| name.to_string());
        let serves = self.services.serves(Family::of(connection.flow.destination.ip()));
        let about = About {
            service,
            services: serves.then_some(self.question.table.as_str()),
            input: connection.input.map(device),
            output: if let End::Left(index) = connection.end { index.map(device) } else { None },
            rule,
        };
        Report::new(connection, about)
    }
}
