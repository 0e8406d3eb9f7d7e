//! Kubernetes Events, where kube-proxy makes them, in its words: what `kubectl get events` and alerts look for.
//!
//! Best effort: whoever has something to say never waits, and what cannot be sent for some minutes is forgotten.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::model::ObjectName;
use crate::printable::printable;

/// Who says it. The name is kube-proxy's, since whatever looks for these Events looks for that.
const CONTROLLER: &str = "kube-proxy";

/// Notices that wait to be sent; more are forgotten.
const WAITING: usize = 64;

/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often one is tried while the API server cannot be reached, as in kube-proxy's client.
const TRIES: u32 = 12;

/// The first pause between two tries; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The API's limit for a note, in bytes.
const NOTE: usize = 1024;

/// Something to say about the node or a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// Whether something is wrong.
    pub warning: bool,
    /// One word for what happened.
    pub reason: &'static str,
    /// One word for what was being done.
    pub action: &'static str,
    /// Details for people; cut at 1024 bytes, and left out if empty.
    pub note: String,
}

/// What a notice is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

impl Notice {
    /// The proxy starts.
    pub fn starting() -> Notice {
        Notice {
            regarding: Regarding::Node,
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: String::new(),
        }
    }

    /// Something about the node went wrong at start.
    pub fn start_failed(reason: &'static str, note: String) -> Notice {
        Notice { regarding: Regarding::Node, warning: true, reason, action: "StartKubeProxy", note }
    }

    /// What is to be done about the node, after a look around it.
    pub fn found_by_doctor(note: String) -> Notice {
        Notice { regarding: Regarding::Node, warning: true, reason: "FoundByDoctor", action: "Examine", note }
    }

    /// A Service asks for something that it does not get.
    pub fn unusable(service: ObjectName, reason: &'static str, note: String) -> Notice {
        Notice { regarding: Regarding::Service(service), warning: true, reason, action: "Balance", note }
    }

    /// A node port of a Service cannot be served on localhost.
    pub fn localhost_failed(service: ObjectName, note: String) -> Notice {
        Notice {
            regarding: Regarding::Service(service),
            warning: true,
            reason: "FailedToListenOnLocalhost",
            action: "Listen",
            note,
        }
    }

    /// The health check of a Service cannot be served.
    pub fn health_check_failed(service: ObjectName, note: String) -> Notice {
        Notice {
            regarding: Regarding::Service(service),
            warning: true,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note,
        }
    }
}

/// Takes notices. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Option<Sender<Notice>>);

impl Events {
    /// Forgets all: there is no API server.
    pub fn nowhere() -> Events {
        Events(None)
    }

    /// Takes notices for a [`publish`].
    pub fn channel() -> (Events, Receiver<Notice>) {
        let (sender, receiver) = channel(WAITING);
        (Events(Some(sender)), receiver)
    }

    /// Says it, if there is room. Never waits.
    pub fn say(&self, notice: Notice) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(notice)
        {
            debug!("an event is not sent: {error}");
        }
    }
}

/// Sends notices to the API server until nobody can say anything any more; the same one again within some minutes is
/// counted there.
pub async fn publish(client: Client, node_name: &str, host_name: &str, mut notices: Receiver<Notice>) {
    let instance = Some(format!("{CONTROLLER}-{host_name}"));
    let recorder = Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance });
    while let Some(notice) = notices.recv().await {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            // Nobody waits for the API server at the end of the process.
            if publish_one(&recorder, node_name, &notice).await || notices.is_closed() {
                break;
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

/// Whether it need not be tried again: the API server has answered, whatever it has said.
async fn publish_one(recorder: &Recorder, node_name: &str, notice: &Notice) -> bool {
    let event = event(notice);
    match timeout(PATIENCE, recorder.publish(&event, &reference(&notice.regarding, node_name))).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => {
            debug!(reason = notice.reason, "cannot send an event: {error}");
            return matches!(error, kube::Error::Api(_));
        }
        Err(_) => debug!(reason = notice.reason, "cannot send an event within {} s", PATIENCE.as_secs()),
    }
    false
}

fn event(notice: &Notice) -> Event {
    let mut note = printable(&notice.note).into_owned();
    note.truncate(note.floor_char_boundary(NOTE));
    Event {
        type_: if notice.warning { EventType::Warning } else { EventType::Normal },
        reason: notice.reason.to_owned(),
        note: Some(note).filter(|note| !note.is_empty()),
        action: notice.action.to_owned(),
        secondary: None,
    }
}

/// kube-proxy gives no UID; Events about the node are in the namespace `default`, where the API puts those of objects
/// without a namespace.
fn reference(regarding: &Regarding, node_name: &str) -> ObjectReference {
    let (kind, namespace, name) = match regarding {
        Regarding::Node => ("Node", None, node_name),
        Regarding::Service(service) => ("Service", Some(service.namespace().to_owned()), service.name()),
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests;
