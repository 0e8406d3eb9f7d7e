//! An API server with a cluster in it: the stand-in, or a real one with its etcd.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::objects;
use crate::process::{Log, Process};
use crate::size::Size;
use crate::stand_in;
use crate::writer::Writer;

/// The ports are free: the network namespace is new.
const ETCD: &str = "127.0.0.1:2379";
const API_SERVER: &str = "127.0.0.1:6443";
const PATIENCE: Duration = Duration::from_secs(120);
/// Who is let in, by a file that is made for the run.
const TOKEN: &str = "benchmark";

/// Programs of a real one.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) kube_apiserver: PathBuf,
    pub(crate) etcd: PathBuf,
}

/// A running one. Ends when dropped.
pub(crate) struct ControlPlane {
    pub(crate) kubeconfig: String,
    pub(crate) writer: Writer,
    _processes: Vec<Process>,
    _folder: Option<tempfile::TempDir>,
}

impl ControlPlane {
    /// Starts it in this thread's network namespace, and creates the cluster.
    pub(crate) fn start(programs: Option<&Programs>, size: Size) -> Result<ControlPlane> {
        match programs {
            None => {
                let (process, kubeconfig) = stand_in::start(size)?;
                let writer = Writer::new(&kubeconfig)?;
                Ok(ControlPlane { kubeconfig, writer, _processes: vec![process], _folder: None })
            }
            Some(programs) => {
                let control_plane = start_real(programs)?;
                let writer = &control_plane.writer;
                writer.create(&json!({"apiVersion": "v1", "kind": "Namespace",
                    "metadata": {"name": objects::NAMESPACE}}))?;
                writer.create(&objects::node())?;
                writer.create_all(objects::cluster(size))?;
                Ok(control_plane)
            }
        }
    }
}

fn start_real(programs: &Programs) -> Result<ControlPlane> {
    let folder = tempfile::tempdir().context("no folder for etcd")?;
    let at = |name: &str| folder.path().join(name);
    let etcd = server(&programs.etcd, |etcd| {
        etcd.arg("--data-dir").arg(at("etcd"));
        etcd.args(["--listen-client-urls", &format!("http://{ETCD}")]);
        etcd.args(["--advertise-client-urls", &format!("http://{ETCD}")]);
        // The benchmark is of proxies, not of disks.
        etcd.args(["--unsafe-no-fsync", "--quota-backend-bytes=8589934592", "--log-level=error"]);
    })?;
    reachable(ETCD)?;
    make_key(&at("key"))?;
    std::fs::write(at("tokens"), format!("{TOKEN},{TOKEN},{TOKEN},\"system:masters\"\n"))?;
    let api = server(&programs.kube_apiserver, |api| {
        api.arg("--etcd-servers").arg(format!("http://{ETCD}"));
        api.arg("--cert-dir").arg(at("certificates"));
        api.arg("--token-auth-file").arg(at("tokens"));
        for flag in ["--service-account-key-file", "--service-account-signing-key-file"] {
            api.arg(flag).arg(at("key"));
        }
        api.args(["--service-account-issuer=https://benchmark", "--authorization-mode=AlwaysAllow"]);
        api.args(["--service-cluster-ip-range=10.96.0.0/14", "--bind-address=127.0.0.1"]);
        api.args(["--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none"]);
        api.args(["--max-requests-inflight=0", "--max-mutating-requests-inflight=0"]);
        api.arg("--enable-priority-and-fairness=false");
    })?;
    reachable(API_SERVER)?;
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster":
            {"server": format!("https://{API_SERVER}"), "insecure-skip-tls-verify": true}}],
        "users": [{"name": "default", "user": {"token": TOKEN}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    })
    .to_string();
    let writer = Writer::new(&kubeconfig)?;
    ready(&writer)?;
    Ok(ControlPlane { kubeconfig, writer, _processes: vec![api, etcd], _folder: Some(folder) })
}

fn server(program: &Path, arguments: impl FnOnce(&mut Command)) -> Result<Process> {
    let mut command = Command::new(program);
    arguments(&mut command);
    let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
    // Read, so that the pipe never fills up; nobody needs to know what it says.
    drop(process.0.stderr.take().map(Log::of));
    Ok(process)
}

/// The key that an API server insists on for service accounts, which there are none of.
fn make_key(path: &Path) -> Result<()> {
    let output = Command::new("openssl").args(["genrsa", "-out"]).arg(path).arg("2048").output();
    let output = output.context("cannot start openssl, which makes a key for kube-apiserver")?;
    anyhow::ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn reachable(address: &str) -> Result<()> {
    wait(address, || TcpStream::connect(address).is_ok())
}

/// An API server answers before it takes objects.
fn ready(writer: &Writer) -> Result<()> {
    wait(API_SERVER, || writer.is_ready())
}

fn wait(what: &str, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        if Instant::now() > deadline {
            bail!("nobody answers at {what} within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
