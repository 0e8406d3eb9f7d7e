//! A client for the API server, made of a kubeconfig, of `--master` or of what a pod has.
//!
//! `kubeconfig` says which cluster and user are meant, `access` reads all that these name, `live` makes connections of it
//! and others when it changes, `plugin` runs programs for credentials, `verify` looks at the server's certificate.

mod access;
mod certificates;
mod error;
mod explain;
mod files;
mod kubeconfig;
mod live;
mod plugin;
mod until;
mod verify;

use std::path::Path;
use std::sync::Arc;

use kube::Client;
use kube::client::ClientBuilder;

use self::access::{Access, Place};
pub use self::error::ConnectError;
use self::files::Files;
use self::live::{Live, Sending};
use crate::source::bypass::Bypass;
use crate::source::exchange::{ExchangeListener, ReportExchanges};

/// Makes a client; the server is not contacted yet.
///
/// `kubeconfig`: the file; empty means the service account of the pod that this runs in. `master`, if any, overrides
/// the server's URL. What is read is read again when it changes, as long as there is a client.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect(kubeconfig: &Path, master: Option<&str>) -> Result<Client, ConnectError> {
    connect_with(kubeconfig, master, None, Arc::new(|_| {})).await
}

/// The same, past the Services of this node where that is possible, with somebody who hears of every request and its answer.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect_with(
    kubeconfig: &Path,
    master: Option<&str>,
    bypass: Option<Bypass>,
    listener: ExchangeListener,
) -> Result<Client, ConnectError> {
    let live = Live::start(place(kubeconfig, master), bypass)?;
    let (host, namespace) = (live.host(), live.namespace());
    let builder = ClientBuilder::new(Sending(live), namespace);
    Ok(builder.with_layer(&ReportExchanges { listener, host }).build())
}

/// What [`connect`] would use, one line for each thing, without secrets; and what is remarkable about it.
///
/// # Errors
/// The same.
pub fn describe(kubeconfig: &Path, master: Option<&str>) -> Result<(Vec<String>, Vec<String>), ConnectError> {
    let access = Arc::new(Access::read(&place(kubeconfig, master), &mut Files::default())?);
    let path = kubeconfig.display().to_string();
    live::check(&access).map_err(|reason| ConnectError::Field { path, reason })?;
    Ok((access.description(), access.remarks.clone()))
}

fn place(kubeconfig: &Path, master: Option<&str>) -> Place {
    Place { kubeconfig: kubeconfig.to_owned(), master: master.map(str::to_owned) }
}

#[cfg(test)]
mod tests;
