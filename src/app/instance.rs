//! One daemon serves a network namespace; another waits until it ends.
//!
//! Two that both write the tables would take each other's changes for foreign ones, and repair them without end. So whoever
//! serves holds a unix socket with an abstract name: such names belong to the network namespace, as the tables do, and
//! one is free again the moment its holder ends, however that is. Who wants to know asks there; who waits stays
//! connected, and hears of the end at once.

use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::service_manager;
use crate::printable::printable;
use crate::ruleset::names::TableName;

/// How long the answer of a holder is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause before the name is tried again where its holder does not keep a connection.
const AGAIN: Duration = Duration::from_secs(1);

/// How many may wait for the end of a holder at the same time. More have their answer, and ask again.
const WAITING: usize = 32;

/// The longest answer, in bytes.
const LONGEST: u64 = 4096;

/// The bit of `CAP_NET_ADMIN` (capabilities(7)): who lacks it cannot write the tables.
const NET_ADMIN: u32 = 12;

/// What a holder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// As it sees itself; the kernel's word counts where there is one.
    pid: i32,
    version: String,
    node: String,
    /// Since when it serves.
    since: Timestamp,
}

/// Who has the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    table: TableName,
    /// `None` where it is in another pid namespace.
    pid: Option<i32>,
    /// `None` where it does not answer, or not as a daemon does.
    identity: Option<Identity>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.identity, self.pid) {
            (Some(Identity { pid, version, node, since }), known) => {
                let (pid, version, node) = (known.unwrap_or(*pid), printable(version), printable(node));
                write!(
                    f,
                    "another nftproxyd (pid {pid}, version {version}) serves this node as {node} since {since:.0}"
                )
            }
            (None, Some(pid)) => {
                write!(f, "another process (pid {pid}) holds the socket @{}, and does not answer", self.table)
            }
            (None, None) => write!(f, "another process holds the socket @{}, and does not answer", self.table),
        }
    }
}

/// The right to serve, for as long as this lives.
#[derive(Debug)]
pub(super) struct Instance {
    /// `None` where somebody who cannot be a daemon has taken the name.
    listener: Option<UnixListener>,
    identity: Identity,
}

/// The name of the socket is that of the tables.
fn name(table: TableName) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(table.as_str())
}

/// Takes the name, waiting for its holder to end. Says once of each holder that it is waited for. Has to be given up
/// (dropped) where the process is told to end.
///
/// # Errors
/// The kernel has no unix sockets, or no descriptor can be had.
pub(super) async fn acquire(table: TableName, node: &str) -> anyhow::Result<Instance> {
    let mut said = None;
    loop {
        match net::UnixListener::bind_addr(&name(table)?) {
            Ok(listener) => {
                if said.is_some() {
                    info!("it has ended; this one serves now");
                }
                return Instance::new(Some(listener), node);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("cannot have the unix socket by which one daemon serves a node"),
        }
        let Ok((mut stream, holder, may_serve)) = ask(table).await else {
            // It ended just now, or takes no more connections.
            sleep(AGAIN / 10).await;
            continue;
        };
        if !may_serve {
            warn!("{holder}; it cannot be a proxy, as it has not the permission to be one: this one serves beside it");
            return Instance::new(None, node);
        }
        if said.as_ref() != Some(&holder) {
            let line = format!("{holder}; waiting until it ends");
            info!("{line}");
            service_manager::status(&line);
            said = Some(holder);
        }
        let began = tokio::time::Instant::now();
        until_the_end(&mut stream).await;
        if began.elapsed() < AGAIN {
            // It keeps no more connections, perhaps.
            sleep(AGAIN / 10).await;
        }
    }
}

/// Who serves this network namespace, if anybody does and it can be known.
pub(super) fn serving(table: TableName) -> Option<Holder> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(holder(table))
}

/// The same in a runtime.
pub(super) async fn holder(table: TableName) -> Option<Holder> {
    let (_, holder, may_serve) = ask(table).await.ok()?;
    may_serve.then_some(holder)
}

/// Connects to the holder. Returns what it is, and whether it may be a daemon.
async fn ask(table: TableName) -> io::Result<(UnixStream, Holder, bool)> {
    let stream = net::UnixStream::connect_addr(&name(table)?)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let peer = stream.peer_cred()?;
    let pid = peer.pid().filter(|pid| *pid > 0);
    // Names are free for all: who may not write tables must not keep a daemon from doing it.
    let may_serve = peer.uid() == 0 || peer.uid() == geteuid().as_raw() || pid.is_some_and(has_net_admin);
    let mut reader = BufReader::new(stream.take(LONGEST));
    let mut line = String::new();
    let answer = timeout(PATIENCE, reader.read_line(&mut line)).await;
    let identity = if matches!(answer, Ok(Ok(1..))) { serde_json::from_str(&line).ok() } else { None };
    Ok((reader.into_inner().into_inner(), Holder { table, pid, identity }, may_serve))
}

/// Whether a process has `CAP_NET_ADMIN`, as far as /proc says.
fn has_net_admin(pid: i32) -> bool {
    let status = procfs::process::Process::new(pid).and_then(|process| process.status());
    status.is_ok_and(|status| status.capeff >> NET_ADMIN & 1 == 1)
}

/// Waits until whoever is connected is gone.
async fn until_the_end(stream: &mut UnixStream) {
    let mut bytes = [0; 64];
    while let Ok(1..) = stream.read(&mut bytes).await {}
}

impl Instance {
    fn new(listener: Option<net::UnixListener>, node: &str) -> anyhow::Result<Instance> {
        let pid = std::process::id().cast_signed();
        let (version, node) = (env!("CARGO_PKG_VERSION").to_owned(), node.to_owned());
        let identity = Identity { pid, version, node, since: Timestamp::now() };
        let listener = listener.map(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        Ok(Instance { listener: listener.transpose().context("cannot listen on a unix socket")?, identity })
    }

    /// Tells who asks, for ever, and stays connected with who waits.
    pub(super) async fn tell(&self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        let line = serde_json::to_string(&self.identity).expect("it has no maps") + "\n";
        // They end with this.
        let mut waiting = JoinSet::new();
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                // No descriptor can be had, say.
                sleep(AGAIN).await;
                continue;
            };
            // It fits into the buffer of a new connection.
            let told = matches!(stream.try_write(line.as_bytes()), Ok(length) if length == line.len());
            while waiting.try_join_next().is_some() {}
            if told && waiting.len() < WAITING {
                waiting.spawn(async move { until_the_end(&mut stream).await });
            } else {
                let _ = stream.shutdown().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_network_namespace_async;

    #[test]
    fn one_has_the_name_and_the_next_follows_at_its_end() {
        in_network_namespace_async(async || {
            let first = acquire(TableName::NODE, "node-a").await.expect("the name is free");
            let telling = tokio::spawn(async move { first.tell().await });
            let (mut stream, holder, may_serve) = ask(TableName::NODE).await.expect("it answers");
            let text = holder.to_string();
            let pid = std::process::id();
            assert!(may_serve && text.starts_with(&format!("another nftproxyd (pid {pid}, version ")), "{text}");
            assert!(text.contains("serves this node as node-a since 2"), "{text}");
            let second = tokio::spawn(acquire(TableName::NODE, "node-a"));
            sleep(Duration::from_millis(100)).await;
            assert!(!second.is_finished(), "two have it");
            telling.abort();
            until_the_end(&mut stream).await;
            second.await.expect("no panic").expect("the name is free again");
        });
    }

    #[test]
    fn who_does_not_answer_is_waited_for_and_many_have_an_answer() {
        in_network_namespace_async(async || {
            let silent = net::UnixListener::bind_addr(&name(TableName::NODE).expect("a name")).expect("free");
            let next = tokio::spawn(acquire(TableName::NODE, "node-a"));
            let (_, holder, may_serve) = ask(TableName::NODE).await.expect("there is a holder");
            assert!(may_serve && holder.identity.is_none(), "{holder}");
            assert!(holder.to_string().contains("holds the socket @nftproxyd, and does not answer"), "{holder}");
            assert!(!next.is_finished());
            drop(silent);
            let instance = next.await.expect("no panic").expect("the name is free again");
            tokio::spawn(async move { instance.tell().await });
            let mut kept = Vec::new();
            for number in 0..2 * WAITING {
                let (stream, holder, _) = ask(TableName::NODE).await.expect("there is a holder");
                assert!(holder.identity.is_some(), "number {number}");
                kept.push(stream);
            }
            // More than it keeps are told and sent away.
            let sent_away = kept.iter_mut().skip(WAITING);
            for stream in sent_away {
                timeout(Duration::from_secs(30), until_the_end(stream)).await.expect("it is closed");
            }
            let closed = timeout(Duration::from_millis(50), until_the_end(&mut kept[0])).await;
            assert!(closed.is_err(), "who came first is kept");
        });
    }

    #[test]
    fn nothing_of_a_holder_can_make_a_line_of_its_own() {
        let identity = serde_json::from_str(
            "{\"pid\":1,\"version\":\"1\\n2\",\"node\":\"a\\u001b[2J\",\"since\":\"2026-01-01T00:00:00Z\"}",
        );
        let holder = Holder { table: TableName::NODE, pid: None, identity: Some(identity.expect("JSON")) };
        assert!(!holder.to_string().contains(['\n', '\u{1b}']), "{holder}");
    }
}
