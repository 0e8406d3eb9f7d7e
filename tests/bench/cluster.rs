//! Measures the daemon against a stand-in for an API server, in a network namespace of its own; needs root.
//!
//! `cargo bench --bench cluster -- 10000x10 44000x1` measures clusters of so many Services x endpoints each (default:
//! 1000x10 and 10000x10) and prints a table. The variable `NFTPROXYD` names another build of the daemon. Nothing passes or fails here. Times end when the kernel has
//! committed and the daemon has said so in its log.

#[path = "../support/api/mod.rs"]
mod api;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use api::{Api, synthetic};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Changes of each kind of which the median is told.
const CHANGES: usize = 41;
const CHURN_PER_SECOND: u32 = 200;
const CHURN_SECONDS: u32 = 20;

fn main() {
    let sizes: Vec<(usize, usize)> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .map(|argument| size(&argument).unwrap_or_else(|| panic!("{argument}: not SERVICESxENDPOINTS, as 1000x10")))
        .collect();
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no permission to make a network namespace ({error}); run as root");
        return;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "cannot use ip");
    println!("| Services x endpoints | what | figures |\n|---|---|---|");
    for (services, endpoints) in if sizes.is_empty() { vec![(1_000, 10), (10_000, 10)] } else { sizes } {
        measure(services, endpoints);
    }
}

fn size(text: &str) -> Option<(usize, usize)> {
    let (services, endpoints) = text.split_once('x')?;
    Some((services.parse().ok()?, endpoints.parse().ok()?))
}

fn measure(services: usize, endpoints: usize) {
    let row = |what: &str, figures: String| println!("| {services} x {endpoints} | {what} | {figures} |");
    let api = Api::local();
    api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": synthetic::NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}}));
    for object in synthetic::cluster(services, endpoints) {
        api.apply(object);
    }
    for what in ["cold start", "restart"] {
        let start = Instant::now();
        let daemon = Daemon::start(&api);
        let (at, line) = daemon.line("in sync");
        let cpu = daemon.cpu();
        let kernel = field(&line, "kernel_ms");
        row(
            what,
            format!(
                "{} ms, of which {kernel} ms in the kernel; processor {} ms; {} operations",
                ms(at - start),
                ms(cpu),
                field(&line, "operations")
            ),
        );
        daemon.wait_until_idle();
        row(
            &format!("memory after {what}"),
            format!("resident {} MiB, peak {} MiB", daemon.mib("VmRSS"), daemon.mib("VmHWM")),
        );
        if what == "restart" {
            changes(&api, &daemon, services, endpoints, &row);
        }
    }
    let flushed = Command::new("nft").args(["flush", "ruleset"]).status();
    assert!(flushed.is_ok_and(|status| status.success()), "cannot use nft");
}

fn changes(api: &Api, daemon: &Daemon, services: usize, endpoints: usize, row: &dyn Fn(&str, String)) {
    // Spread over the cluster.
    let index = |turn: usize| turn * 7_919 % services;
    let replaced = |turn: usize| {
        let mut slice = synthetic::slice(index(turn), endpoints);
        slice["endpoints"][0]["addresses"][0] = json!(format!("172.16.{}.{}", turn / 250 % 250, turn % 250 + 1));
        slice
    };
    let original = |turn: usize| synthetic::slice(index(turn), endpoints);
    let with_one_more = |turn: usize| {
        let mut slice = original(turn);
        let mut one = slice["endpoints"][0].clone();
        one["addresses"][0] = json!("172.17.0.1");
        slice["endpoints"].as_array_mut().expect("a list").push(one);
        slice
    };
    let rows: [(&str, &dyn Fn(usize) -> Value); 4] = [
        ("one endpoint replaced", &replaced),
        ("replaced again", &original),
        ("one endpoint added", &with_one_more),
        ("one endpoint removed", &original),
    ];
    for (what, object) in rows {
        let mut taken = Vec::new();
        let mut kernel = Vec::new();
        let mut last = String::new();
        for turn in 0..CHANGES.min(services) {
            let object = object(turn);
            let start = Instant::now();
            api.apply(object);
            let (at, line) = daemon.line("synced");
            taken.push(at - start);
            kernel.push(field(&line, "kernel_us").parse::<u64>().unwrap_or(0));
            last = line;
        }
        taken.sort_unstable();
        kernel.sort_unstable();
        row(
            what,
            format!(
                "p50 {} ms, longest {} ms; kernel p50 {} us; {} operations, {} bytes",
                ms(taken[taken.len() / 2]),
                ms(taken[taken.len() - 1]),
                kernel[kernel.len() / 2],
                field(&last, "operations"),
                field(&last, "bytes"),
            ),
        );
    }

    let (cpu, start) = (daemon.cpu(), Instant::now());
    let mut last = start;
    for turn in 0..CHURN_PER_SECOND * CHURN_SECONDS {
        let due = start + Duration::from_secs(1) / CHURN_PER_SECOND * turn;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let object = replaced(turn as usize);
        last = Instant::now();
        api.apply(object);
    }
    let elapsed = start.elapsed();
    let lag = daemon.last_line().map_or(Duration::ZERO, |at| at.saturating_duration_since(last));
    let used = daemon.cpu() - cpu;
    row(
        "200 changes a second for 20 s",
        format!(
            "{:.1} % of one core, lag at the end {} ms",
            used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
            ms(lag)
        ),
    );
}

/// The daemon as a child process. Killed when dropped.
struct Daemon {
    child: Child,
    lines: Receiver<(Instant, String)>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(api: &Api) -> Daemon {
        let folder = tempfile::tempdir().expect("a folder");
        let (kubeconfig, config) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
        std::fs::write(&kubeconfig, api.kubeconfig()).expect("a file");
        let text = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "clientConnection": {"kubeconfig": kubeconfig}});
        std::fs::write(&config, text.to_string()).expect("a file");
        // Another build can be measured by the same hand.
        let program = std::env::var_os("NFTPROXYD").unwrap_or_else(|| env!("CARGO_BIN_EXE_nftproxyd").into());
        let mut command = Command::new(program);
        command.args(["run", "-v", "2", "--hostname-override", synthetic::NODE, "--config"]).arg(config);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the daemon starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || follow(stderr, &sender));
        Daemon { child, lines, _folder: folder }
    }

    /// Waits for the next line of the log that ends its message so.
    fn line(&self, message: &str) -> (Instant, String) {
        loop {
            let (at, line) = self.lines.recv_timeout(PATIENCE).expect("the daemon says something in time");
            if line.contains(message) {
                return (at, line);
            }
        }
    }

    /// When the last sync ended: nothing follows for a while.
    fn last_line(&self) -> Option<Instant> {
        let mut last = None;
        while let Ok((at, line)) = self.lines.recv_timeout(Duration::from_millis(500)) {
            last = Some(at).filter(|_| line.contains("synced")).or(last);
        }
        last
    }

    fn wait_until_idle(&self) {
        while self.lines.recv_timeout(Duration::from_secs(2)).is_ok() {}
    }

    fn process(&self) -> procfs::process::Process {
        procfs::process::Process::new(self.child.id().cast_signed()).expect("the daemon runs")
    }

    fn mib(&self, field: &str) -> u64 {
        let status = self.process().status().expect("the daemon runs");
        (if field == "VmRSS" { status.vmrss } else { status.vmhwm }).unwrap_or(0) / 1024
    }

    /// Processor time used so far.
    fn cpu(&self) -> Duration {
        let stat = self.process().stat().expect("the daemon runs");
        Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(stderr: ChildStderr, lines: &std::sync::mpsc::Sender<(Instant, String)>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if lines.send((Instant::now(), line)).is_err() {
            return;
        }
    }
}

/// The value of a field of a line of the log.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let value = line.split_once(&format!("{name}=")).map_or("?", |(_, rest)| rest);
    value.split_once(' ').map_or(value, |(value, _)| value)
}

fn ms(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}
