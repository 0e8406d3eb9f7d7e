//! A client for the API server, made of a kubeconfig, of `--master` or of what a pod has.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;
use kube::client::ClientBuilder;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tracing::{info, warn};

use super::proxy::{self, Route};
use super::{server, transport};
use crate::errors;
use crate::source::exchange::{ExchangeListener, ReportExchanges};

/// A connection on which nothing arrives for so long is given up: the other end may be gone without a word, behind one
/// that goes on acknowledging. API servers send a bookmark on each watch about once a minute.
const SILENCE: Duration = Duration::from_secs(90);

/// Why there is no connection to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig file, or a file that it names, cannot be used.
    #[error(
        "kubeconfig {path}: {source}. Check clientConnection.kubeconfig (or --kubeconfig); \
         leave it empty to use the pod's service account"
    )]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// There is no kubeconfig and this is not a pod with a service account.
    #[error(
        "no kubeconfig is given and there is no service account to use ({0}). \
         Set clientConnection.kubeconfig in the configuration file, or run in a pod with a service account"
    )]
    NotInCluster(String),
    /// What is written as the server is no URL that can be used.
    #[error("{field} {value:?} is not the URL of an API server, such as https://192.0.2.1:6443: {reason}")]
    Server {
        /// Where it is written.
        field: String,
        /// What is written, without a password.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `proxy-url` of the kubeconfig is no proxy that can be used.
    #[error(
        "kubeconfig {path}: proxy-url {value:?} is not a proxy that can be used: {reason}. \
         Set it to http://HOST:PORT, or take it out"
    )]
    Proxy {
        /// The file.
        path: String,
        /// What is written, without a password.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No client can be made of the configuration.
    #[error("no client for the API server {url}: {reason}")]
    Client {
        /// The API server.
        url: String,
        /// What is wrong.
        reason: String,
    },
}

/// Makes a client; the server is not contacted yet.
///
/// `kubeconfig`: the file; empty means the service account of the pod that this runs in. `master`, if any, overrides
/// the server's URL.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect(kubeconfig: &Path, master: Option<&str>) -> Result<Client, ConnectError> {
    connect_with(kubeconfig, master, Arc::new(|_| {})).await
}

/// The same, with somebody who hears of every request and its answer.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect_with(
    kubeconfig: &Path,
    master: Option<&str>,
    listener: ExchangeListener,
) -> Result<Client, ConnectError> {
    let (mut config, proxy_url) = if !kubeconfig.as_os_str().is_empty() {
        from_kubeconfig(kubeconfig, master)?
    } else if let Some(master) = master {
        (Config::new(parse_server("--master", master, false)?), None)
    } else {
        (in_cluster()?, None)
    };
    choose_proxy(&mut config, kubeconfig, proxy_url.as_deref())?;
    // The watchers try again by themselves, and say so.
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    let url = config.cluster_url.to_string();
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let client = match config.proxy_url {
        None => transport::direct(&config),
        Some(_) => ClientBuilder::try_from(config),
    };
    let builder = client.map_err(|err| ConnectError::Client { url, reason: errors::text(&err) })?;
    Ok(builder.with_layer(&ReportExchanges { listener, host }).build())
}

/// Sets the proxy that the kubeconfig or the environment names, and says so.
fn choose_proxy(config: &mut Config, kubeconfig: &Path, field: Option<&str>) -> Result<(), ConnectError> {
    match proxy::route(&config.cluster_url, field, |name| std::env::var(name).ok()) {
        Route::Direct => {}
        Route::Excluded(by) => {
            info!("{by} is not used: the API server is on this node, or NO_PROXY names it");
        }
        Route::Through { proxy, by } => {
            info!("the API server is reached through the proxy {} ({by})", server::shown(&proxy.to_string()));
            config.cluster_url = server::with_port(&config.cluster_url);
            config.proxy_url = Some(proxy);
        }
        Route::Unusable { by: proxy::FIELD, value, reason } => {
            return Err(ConnectError::Proxy { path: kubeconfig.display().to_string(), value, reason });
        }
        // It may be meant for others: nobody wrote it for this program.
        Route::Unusable { by, value, reason } => warn!(
            "{by}={value:?} is not a proxy that can be used: {reason}. The API server is connected to directly; \
             set it to http://HOST:PORT, or name the API server in NO_PROXY"
        ),
    }
    Ok(())
}

fn in_cluster() -> Result<Config, ConnectError> {
    let mut config = Config::incluster().map_err(|err| ConnectError::NotInCluster(errors::text(&err)))?;
    config.cluster_url = server::check(&config.cluster_url).map_err(|reason| ConnectError::Server {
        field: "https://KUBERNETES_SERVICE_HOST:KUBERNETES_SERVICE_PORT".to_owned(),
        value: server::shown(&config.cluster_url.to_string()),
        reason,
    })?;
    Ok(config)
}

/// What kube's own conversion makes of a kubeconfig, but for the URLs: it takes what it then panics at.
/// With `proxy-url`.
fn from_kubeconfig(path: &Path, master: Option<&str>) -> Result<(Config, Option<String>), ConnectError> {
    let failed = |source| ConnectError::Kubeconfig { path: path.display().to_string(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    let (name, cluster, mut user, namespace) = current(kubeconfig).map_err(failed)?;
    // This reads the file of the certificates as well.
    let for_plugin = ExecAuthCluster::try_from(&cluster).map_err(failed)?;
    let cluster_url = match master {
        Some(master) => parse_server("--master", master, wants_tls(&cluster, &user))?,
        None => {
            let text = cluster.server.as_deref().ok_or_else(|| failed(KubeconfigError::MissingClusterUrl))?;
            let field = format!("kubeconfig {}: server of cluster {name:?}:", path.display());
            parse_server(&field, text, wants_tls(&cluster, &user))?
        }
    };
    let mut config = Config::new(cluster_url);
    if let Some(pem) = &for_plugin.certificate_authority_data {
        let blocks = pem::parse_many(pem).map_err(|err| failed(KubeconfigError::ParseCertificates(err)))?;
        let certificates = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
        config.root_cert = Some(certificates.map(pem::Pem::into_contents).collect());
    }
    if let Some(exec) = user.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some(for_plugin);
    }
    take_token(&mut user);
    config.auth_info = user;
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.tls_server_name = cluster.tls_server_name;
    if let Some(namespace) = namespace {
        config.default_namespace = namespace;
    }
    Ok((config, cluster.proxy_url))
}

/// The name of the cluster of the current context, itself, its user (who may be missing) and its namespace.
fn current(kubeconfig: Kubeconfig) -> Result<(String, Cluster, AuthInfo, Option<String>), KubeconfigError> {
    let name = kubeconfig.current_context.ok_or(KubeconfigError::CurrentContextNotSet)?;
    let context = kubeconfig.contexts.into_iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context).ok_or(KubeconfigError::LoadContext(name))?;
    let cluster = kubeconfig.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster);
    let cluster = cluster.ok_or_else(|| KubeconfigError::LoadClusterOfContext(context.cluster.clone()))?;
    let user = kubeconfig.auth_infos.into_iter().find(|user| Some(&user.name) == context.user.as_ref());
    let user = user.and_then(|user| user.auth_info).unwrap_or_default();
    Ok((context.cluster, cluster, user, context.namespace))
}

/// Whether a server without a scheme is spoken to with TLS (client-go: `defaultServerUrlFor`).
fn wants_tls(cluster: &Cluster, user: &AuthInfo) -> bool {
    let files = [
        &cluster.certificate_authority,
        &cluster.certificate_authority_data,
        &user.client_certificate,
        &user.client_certificate_data,
    ];
    cluster.insecure_skip_tls_verify == Some(true) || files.into_iter().flatten().any(|text| !text.is_empty())
}

fn parse_server(field: &str, text: &str, tls: bool) -> Result<Uri, ConnectError> {
    let shown = server::shown(text);
    if shown != text {
        warn!("{field} {shown:?} has a user in it, who is not used: name the user in the kubeconfig");
    }
    server::parse(text, tls).map_err(|reason| ConnectError::Server { field: field.to_owned(), value: shown, reason })
}

/// kube's client sends the file of a token as it is, and no header can have the end of a line in it. Written by hand, the
/// file has one; kube-proxy takes it off.
fn take_token(auth: &mut AuthInfo) {
    let Some(file) = auth.token_file.as_ref().filter(|_| auth.token.is_none()) else { return };
    // A file that cannot be read is named by the client.
    let Ok(token) = std::fs::read_to_string(file) else { return };
    let trimmed = token.trim();
    if trimmed.len() != token.len() {
        warn!("{file} has blanks around the token: they are taken off, and the file is not read again when it changes");
        auth.token = Some(trimmed.to_owned().into());
    }
}
