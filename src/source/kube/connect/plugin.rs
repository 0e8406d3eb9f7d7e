//! Programs that are asked for credentials (`exec` of a kubeconfig).
//!
//! As client-go runs them, but that it waits for ever: a program that has not ended in time is ended with all that it has
//! started. It is run again when what it said expires, after the server has not known who asks, and with growing pauses
//! when it fails. What it prints on its standard output is a secret and never shown.

use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use futures::future::{Either, select};
use jiff::{SignedDuration, Timestamp};
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::certificates::{Identity, Unfit};
use crate::printable;

/// A program that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first pause after a failure; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Credentials are taken to have expired so long before they do.
const EARLY: SignedDuration = SignedDuration::from_secs(10);
/// Credentials that the server refuses are asked for again when they are older: it may refuse all.
const MIN_AGE: Duration = Duration::from_secs(5);
/// How long what it has complained of is waited for when it has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Bytes of what a program says that are read. More is no credential.
const MAX_OUTPUT: u64 = 1 << 20;
/// Characters of what it complains of that are shown.
const MAX_COMPLAINT: usize = 150;

/// How to run a program.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Command {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    api_version: String,
    hint: Option<String>,
    cluster: Option<Value>,
}

impl Command {
    /// `folder`: that of the kubeconfig.
    pub(super) fn new(exec: &ExecConfig, folder: &Path, cluster: Option<Value>) -> Result<Command, String> {
        let program = exec.command.clone().filter(|command| !command.is_empty());
        let program = program.ok_or("exec: command is missing")?;
        let api_version = exec.api_version.clone().unwrap_or_default();
        if !["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"].contains(&&*api_version) {
            return Err(format!(
                "exec: apiVersion {api_version:?} is neither client.authentication.k8s.io/v1 nor v1beta1"
            ));
        }
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err("exec: interactiveMode Always needs a terminal, which a daemon does not have".to_owned());
        }
        let mut environment = Vec::new();
        for variable in exec.env.iter().flatten() {
            let text = |name: &str| variable.get(name).cloned().unwrap_or_default();
            if text("name").is_empty() {
                return Err("exec: a variable of env has no name".to_owned());
            }
            environment.push((text("name"), text("value")));
        }
        Ok(Command {
            // A name alone is looked up in PATH.
            program: if program.contains('/') { folder.join(&program).display().to_string() } else { program },
            arguments: exec.args.clone().unwrap_or_default(),
            environment,
            api_version,
            hint: exec.install_hint.clone().filter(|hint| !hint.is_empty()),
            cluster,
        })
    }

    /// The program.
    pub(super) fn name(&self) -> &str {
        &self.program
    }

    async fn run(&self) -> Result<Issued, String> {
        let mut spec = json!({ "interactive": false });
        if let Some(cluster) = &self.cluster {
            spec["cluster"] = cluster.clone();
        }
        let asked = json!({ "kind": "ExecCredential", "apiVersion": self.api_version, "spec": spec });
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("KUBERNETES_EXEC_INFO", asked.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|err| {
            let hint = self.hint.as_ref().map(|hint| format!(" ({})", one_line(hint.as_bytes())));
            format!("it cannot be started: {err}{}", hint.unwrap_or_default())
        })?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut said, mut complaint) = (Vec::new(), Vec::new());
        let ended = {
            let ended = async { tokio::join!(all_of(stdout, &mut said), child.wait()).1 };
            let complaining = all_of(stderr, &mut complaint);
            timeout(PATIENCE, async {
                // What it leaves running may go on to complain: nobody waits for the end of that.
                match select(pin!(ended), pin!(complaining)).await {
                    Either::Left((status, complaining)) => {
                        let _ = timeout(LAST_WORDS, complaining).await;
                        status
                    }
                    Either::Right(((), ended)) => ended.await,
                }
            })
            .await
        };
        let status = match ended {
            Ok(status) => status.map_err(|err| err.to_string())?,
            Err(_) => return Err(format!("it has not ended within {} s and was killed", PATIENCE.as_secs())),
        };
        group.0 = None;
        if !status.success() {
            return Err(failed(status, &complaint));
        }
        issued(&said, &self.api_version)
    }
}

/// The processes that a program has started, itself among them. They end with whoever waits for it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Reads to the end, and keeps the beginning.
async fn all_of(pipe: Option<impl AsyncRead + Unpin>, text: &mut Vec<u8>) {
    let Some(pipe) = pipe else { return };
    let mut limited = pipe.take(MAX_OUTPUT);
    let _ = limited.read_to_end(text).await;
    let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
}

fn failed(status: ExitStatus, stderr: &[u8]) -> String {
    let complaint = one_line(stderr);
    if complaint.is_empty() {
        format!("it fails with {status}")
    } else {
        format!("it fails with {status}: {complaint}")
    }
}

/// What a program complains of, on one line that is not too long.
fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    printable::one_line(shown.split_whitespace(), MAX_COMPLAINT)
}

/// What a program has said.
#[derive(PartialEq)]
pub(super) struct Issued {
    pub(super) token: Option<HeaderValue>,
    pub(super) identity: Option<Identity>,
    expires: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: Option<String>,
    kind: Option<String>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Reads an `ExecCredential`. No error repeats any of it.
fn issued(text: &[u8], api_version: &str) -> Result<Issued, String> {
    let said: ExecCredential =
        serde_json::from_slice(text).map_err(|_| "what it prints is no ExecCredential (JSON)".to_owned())?;
    if said.kind.as_deref() != Some("ExecCredential") || said.api_version.as_deref() != Some(api_version) {
        return Err(format!("what it prints is no ExecCredential of {api_version}, as exec.apiVersion asks for"));
    }
    let status = said.status.ok_or("what it prints has no status")?;
    let nonempty = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = nonempty(status.token).map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
    let mut token = token.transpose().map_err(|_| "its status.token cannot be sent")?;
    token.iter_mut().for_each(|token| token.set_sensitive(true));
    let identity = match (nonempty(status.client_certificate_data), nonempty(status.client_key_data)) {
        (None, None) if token.is_none() => {
            return Err("what it prints has neither a token nor a certificate".to_owned());
        }
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let identity = Identity::new(certificate.as_bytes(), key.as_bytes());
            Some(identity.map_err(|unfit| match unfit {
                Unfit::Certificate(reason) => format!("its status.clientCertificateData: {reason}"),
                Unfit::Key(reason) => format!("its status.clientKeyData: {reason}"),
            })?)
        }
        _ => return Err("what it prints has a certificate or a key, but not both".to_owned()),
    };
    let expires = nonempty(status.expiration_timestamp).map(|text| text.parse());
    let expires = expires.transpose().map_err(|_| "its status.expirationTimestamp is no time")?;
    Ok(Issued { token, identity, expires })
}

/// A program, with what it has said last.
pub(super) struct Plugin {
    command: Command,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    issued: Option<(Arc<Issued>, Instant)>,
    failed: Option<Failed>,
}

struct Failed {
    reason: String,
    /// Not to be run again before.
    until: Instant,
    pause: Duration,
}

impl Plugin {
    pub(super) fn new(command: Command) -> Plugin {
        Plugin { command, state: Mutex::default() }
    }

    pub(super) fn command(&self) -> &Command {
        &self.command
    }

    /// Credentials that have not expired. Runs the program if need be; whoever else asks waits for that.
    pub(super) async fn issued(&self) -> Result<Arc<Issued>, String> {
        let mut state = self.state.lock().await;
        let now = Timestamp::now();
        match &state.issued {
            Some((issued, _)) if issued.expires.is_none_or(|expires| now + EARLY < expires) => Ok(Arc::clone(issued)),
            Some((issued, _)) => {
                let before = Arc::clone(issued);
                let still_good = before.expires.is_some_and(|expires| now < expires);
                self.run(&mut state).await.or_else(|reason| if still_good { Ok(before) } else { Err(reason) })
            }
            None => self.run(&mut state).await,
        }
    }

    /// Others than these, which the server does not know.
    pub(super) async fn others_than(&self, refused: &Arc<Issued>) -> Option<Arc<Issued>> {
        let mut state = self.state.lock().await;
        if let Some((issued, since)) = &state.issued {
            if !Arc::ptr_eq(issued, refused) {
                return Some(Arc::clone(issued));
            }
            if since.elapsed() < MIN_AGE {
                return None;
            }
        }
        let before = state.failed.as_ref().map(|failed| failed.reason.clone());
        match self.run(&mut state).await {
            Ok(again) => (again != *refused).then_some(again),
            Err(reason) => {
                // What the log says of the request is only that the server refuses it.
                if before.as_ref() != Some(&reason) {
                    warn!("{reason}; the API server has refused what it gave before");
                }
                None
            }
        }
    }

    async fn run(&self, state: &mut State) -> Result<Arc<Issued>, String> {
        let now = Instant::now();
        if let Some(failed) = state.failed.as_ref().filter(|failed| now < failed.until) {
            return Err(failed.reason.clone());
        }
        match self.command.run().await {
            Ok(issued) => {
                let issued = Arc::new(issued);
                *state = State { issued: Some((Arc::clone(&issued), Instant::now())), failed: None };
                Ok(issued)
            }
            Err(reason) => {
                let reason = format!("exec plugin {}: {reason}", self.command.program);
                let pause = pause_after(state.failed.as_ref().map(|failed| failed.pause));
                state.failed = Some(Failed { reason: reason.clone(), until: Instant::now() + pause, pause });
                Err(reason)
            }
        }
    }
}

/// How long not to run a program that has failed, given how long it was the last time.
pub(super) fn pause_after(before: Option<Duration>) -> Duration {
    before.map_or(FIRST_PAUSE, |before| LONGEST_PAUSE.min(before * 2))
}
