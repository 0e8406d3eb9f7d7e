//! Clients that connect and do not get on: they keep nobody from being answered.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::health::{self, checked};
use super::{Node, PROGRAM, socket, yaml};
use crate::support::daemon::Daemon;

/// As many as are there all the time: one that is sent away comes back a second later.
const CLIENTS: usize = 2_000;
/// How long they stay, which is longer than the daemon's patience.
const STAY: Duration = Duration::from_secs(9);
/// How often each port is asked meanwhile, and how late the answer may be.
const EACH: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(1);
/// What the daemon has to manage with, once it has raised its limit.
const DESCRIPTORS: u32 = 1_024;
/// The machine may have other things to do.
const ATTEMPTS: usize = 3;

const LIVEZ: (&str, &str) = ("127.0.0.1:10256", "/livez");
const METRICS: (&str, &str) = ("127.0.0.1:10249", "/metrics");
const CHECK: (&str, &str) = ("192.0.2.10:32000", "/");
const CHECKS: u16 = 5;

#[test]
fn clients_that_say_nothing_or_read_nothing_lock_nobody_out() {
    let Some(mut node) = Node::new() else { return };
    let services =
        (0..CHECKS).flat_map(|nth| checked(&format!("lb-{nth}"), &format!("172.30.5.{nth}"), 32000 + nth, 1));
    node.write("services.yaml", &yaml(&services.collect::<Vec<_>>()));
    let (config, folder) = (node.write_config(&json!({})), node.folder());
    let arguments = [
        &*format!("--nofile=200:{DESCRIPTORS}"),
        PROGRAM,
        &format!("--config={}", config.display()),
        &format!("--manifests={}", folder.display()),
        "-v=2",
    ];
    let daemon = Daemon::start_program(&node.world, "prlimit", &arguments).expect("the daemon can be started");
    node.daemon = Some(daemon);
    for nth in 0..CHECKS {
        let server = format!("192.0.2.10:{}", 32000 + nth);
        health::wait_for(&mut node, "a health check", &server, "/", |answer| {
            answer.is_some_and(|answer| answer.status == 200)
        });
    }
    health::wait_for(&mut node, "the limit is raised", METRICS.0, METRICS.1, |answer| {
        answer.is_some_and(|answer| answer.body.contains(&format!("\nprocess_max_fds {DESCRIPTORS}\n")))
    });
    let before = node.daemon().resident_memory().expect("it lives");
    let mut said = Vec::new();
    for _ in 0..ATTEMPTS {
        let Seen { latest, answers, turned_away } = node.world.run(crowd);
        assert!(turned_away > CLIENTS / 2, "{turned_away} were sent away");
        let memory = node.daemon().resident_memory().expect("it lives").saturating_sub(before) >> 20;
        assert!(memory < 64, "{memory} MiB more");
        let log = node.log();
        assert!(!log.contains("os error 24"), "too many open files: {log}");
        let is_well = latest < LATEST && answers >= 3 * 20;
        said.push(format!("latest answer after {latest:?}, of {answers}; {memory} MiB more"));
        if is_well {
            println!("{}", said.concat());
            node.stop();
            return;
        }
    }
    panic!("{said:?}");
}

struct Seen {
    latest: Duration,
    answers: usize,
    turned_away: usize,
}

fn crowd() -> Seen {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("it may be raised so far");
    let turned_away = Arc::new(AtomicUsize::new(0));
    let end = Instant::now() + STAY;
    let counted = Arc::clone(&turned_away);
    let clients = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let clients = (0..CLIENTS).map(|nth| visit_until(end, nth, &counted));
            futures::future::join_all(clients).await;
        });
    });
    let asking = [LIVEZ, METRICS, CHECK].map(|(server, path)| thread::spawn(move || ask_until(end, server, path)));
    let answers: Vec<Duration> = asking.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    clients.join().expect("no panic");
    let latest = answers.iter().copied().max().unwrap_or(STAY);
    Seen { latest, answers: answers.len(), turned_away: turned_away.load(Ordering::Relaxed) }
}

/// How long each answer has taken.
fn ask_until(end: Instant, server: &str, path: &str) -> Vec<Duration> {
    let mut times = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        let answer = ask(socket(server), path);
        // What went wrong has no answer ever.
        let took = if answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) { start.elapsed() } else { STAY };
        times.push(took);
        sleep(EACH.saturating_sub(start.elapsed()));
    }
    times
}

fn ask(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, STAY)?;
    stream.set_read_timeout(Some(STAY))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One client, again and again.
async fn visit_until(end: Instant, nth: usize, turned_away: &AtomicUsize) {
    let ports = [10249, 10256].into_iter().chain((0..CHECKS).map(|nth| 32000 + nth)).collect::<Vec<u16>>();
    let server = SocketAddr::from(([192, 0, 2, 10], ports[nth % ports.len()]));
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        match timeout(left, visit(server, nth / ports.len() % 4)).await {
            // It was closed.
            Ok(_) => drop(turned_away.fetch_add(1, Ordering::Relaxed)),
            Err(_) => return,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ends when the server has closed the connection.
async fn visit(server: SocketAddr, manner: usize) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    // The answer does not find room in buffers.
    socket.set_recv_buffer_size(1_000)?;
    let mut stream = socket.connect(server).await?;
    match manner {
        0 => {}
        1 => stream.write_all(b"GET /livez HTTP/1.1\r\nHost:").await?,
        2 => {
            for byte in b"GET /livez HTTP/1.1\r\nHost: a\r\n".iter().cycle() {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        _ => {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await?;
            while stream.read(&mut [0]).await? > 0 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
