//! Writes objects to an API server, over HTTP like everybody.

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::objects::NAMESPACE;

/// How many objects are created at the same time.
const AT_ONCE: usize = 32;

/// A client of an API server. Its calls return when the server has answered.
pub(crate) struct Writer {
    runtime: Runtime,
    client: Client,
}

impl Writer {
    /// From this thread's network namespace; the server is not contacted yet.
    pub(crate) fn new(kubeconfig: &str) -> Result<Writer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Writer { runtime, client })
    }

    /// Whether the server says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        let request = Request::new("/readyz").list(&ListParams::default());
        request.is_ok_and(|request| self.runtime.block_on(send(&self.client, request)).is_ok())
    }

    /// Creates an object.
    pub(crate) fn create(&self, object: &Value) -> Result<()> {
        self.runtime.block_on(create(&self.client, object))
    }

    /// Creates many, several at a time.
    pub(crate) fn create_all(&self, objects: impl Iterator<Item = Value>) -> Result<()> {
        let client = &self.client;
        let creations = stream::iter(objects).map(|object| async move { create(client, &object).await });
        self.runtime.block_on(creations.buffer_unordered(AT_ONCE).try_collect())
    }

    /// Replaces an object that is there.
    pub(crate) fn replace(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let request = Request::new(collection(object)?).replace(name, &PostParams::default(), bytes(object));
        self.runtime.block_on(send(&self.client, request?))
    }

    /// Deletes an object that is there.
    pub(crate) fn delete(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let request = Request::new(collection(object)?).delete(name, &DeleteParams::default());
        self.runtime.block_on(send(&self.client, request?))
    }
}

async fn create(client: &Client, object: &Value) -> Result<()> {
    let request = Request::new(collection(object)?).create(&PostParams::default(), bytes(object));
    send(client, request?).await
}

async fn send(client: &Client, request: hyper::Request<Vec<u8>>) -> Result<()> {
    client.request_text(request).await.context("the API server refuses a change")?;
    Ok(())
}

/// Without what a real server gives an object itself, and does not let others change.
fn bytes(object: &Value) -> Vec<u8> {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("creationTimestamp");
    }
    object.to_string().into_bytes()
}

/// The path of the collection that an object belongs to.
fn collection(object: &Value) -> Result<String> {
    Ok(match object["kind"].as_str() {
        Some("Service") => format!("/api/v1/namespaces/{NAMESPACE}/services"),
        Some("EndpointSlice") => format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"),
        Some("Node") => "/api/v1/nodes".to_owned(),
        Some("Namespace") => "/api/v1/namespaces".to_owned(),
        kind => return Err(anyhow!("nobody writes objects of kind {kind:?}")),
    })
}
