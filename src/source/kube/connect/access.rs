//! All that is needed to reach an API server, read from where it is written: the kubeconfig and the files that it names,
//! or what a pod has.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use axum::http::{HeaderValue, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster};
use rustls::pki_types::{CertificateDer, ServerName};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::certificates::{self, Identity, Unfit};
use super::error::ConnectError;
use super::files::Files;
use super::kubeconfig::{self, Chosen};
use super::plugin::Command;
use crate::secrets::shown;
use crate::source::kube::proxy::{self, Route};
use crate::source::kube::server;

/// What the kubelet puts into pods.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The extension of a cluster that is meant for plugins.
const FOR_PLUGINS: &str = "client.authentication.k8s.io/exec";

/// Where it is written how an API server is reached.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Empty: what a pod has.
    pub(super) kubeconfig: PathBuf,
    /// The server, instead of what is written there.
    pub(super) master: Option<String>,
}

/// What something was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// A field that holds it.
    Field(&'static str),
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Field(name) => write!(f, "{name} of the kubeconfig"),
            Origin::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// Whose signature makes the server's certificate a good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Authorities {
    /// Whom this machine trusts.
    OfSystem,
    Of(Vec<CertificateDer<'static>>, Origin),
    /// The certificate is not looked at.
    Anybody,
}

/// What a request says of its sender, beside the certificate of the connection.
#[derive(Clone, PartialEq)]
pub(super) enum Credentials {
    Nothing,
    /// A user with a password: the header.
    Password(HeaderValue),
    /// A token: the header.
    Token(HeaderValue, Origin),
    /// Whatever this program says.
    Plugin(Command),
}

/// For whom requests are made, where it is not their sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Impersonated {
    pub(super) user: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

pub(super) struct Access {
    pub(super) server: Uri,
    /// Where the server is named.
    pub(super) named_by: String,
    pub(super) route: Route,
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) authorities: Authorities,
    pub(super) identity: Option<(Identity, Origin)>,
    pub(super) credentials: Credentials,
    pub(super) impersonated: Impersonated,
    pub(super) namespace: Option<String>,
    /// What has no effect, or another one than may be thought.
    pub(super) remarks: Vec<String>,
}

impl Access {
    /// Reads everything. `files` are those that were read, also when it fails.
    pub(super) fn read(place: &Place, files: &mut Files) -> Result<Access, ConnectError> {
        if !place.kubeconfig.as_os_str().is_empty() {
            return of_kubeconfig(&place.kubeconfig, place.master.as_deref(), files);
        }
        match &place.master {
            Some(master) => of_master(master),
            None => of_pod(files),
        }
    }

    fn new(server: Uri, named_by: String, route: Route) -> Access {
        Access {
            server,
            named_by,
            route,
            server_name: None,
            authorities: Authorities::OfSystem,
            identity: None,
            credentials: Credentials::Nothing,
            impersonated: Impersonated::default(),
            namespace: None,
            remarks: Vec::new(),
        }
    }

    /// What differs from another, as the parts of a sentence.
    pub(super) fn differences(&self, before: &Access) -> Vec<String> {
        let mut differences = Vec::new();
        if self.credentials != before.credentials {
            differences.push(match &self.credentials {
                Credentials::Nothing => "no credentials".to_owned(),
                Credentials::Password(_) => "the user and password of the kubeconfig".to_owned(),
                Credentials::Token(_, origin) => format!("the token of {origin}"),
                Credentials::Plugin(command) => format!("the plugin {}", command.name()),
            });
        }
        if self.identity != before.identity {
            differences.push(match &self.identity {
                Some((identity, origin)) => format!("the client certificate {} of {origin}", identity.subject()),
                None => "no client certificate".to_owned(),
            });
        }
        if self.authorities != before.authorities {
            differences.push(format!("for the server's certificate {}", self.authorities));
        }
        if self.server != before.server || self.server_name != before.server_name {
            differences.push(format!("the server {}", self.server));
        }
        if self.route != before.route {
            differences.push(match &self.route {
                Route::Through { proxy, .. } => format!("the proxy {}", shown(&proxy.to_string())),
                _ => "no proxy".to_owned(),
            });
        }
        if self.impersonated != before.impersonated {
            differences.push("other impersonation".to_owned());
        }
        differences
    }

    /// One line for each thing that will be used, without secrets.
    pub(super) fn description(&self) -> Vec<String> {
        let mut lines = vec![format!("API server: {} ({})", self.server, self.named_by)];
        match &self.route {
            Route::Through { proxy, by } => {
                lines.push(format!("proxy: {} ({by})", shown(&proxy.to_string())));
            }
            Route::Excluded(by) => lines.push(format!("proxy: none ({by} is not for this server)")),
            Route::Direct | Route::Unusable { .. } => lines.push("proxy: none".to_owned()),
        }
        if self.server.scheme_str() == Some("https") {
            lines.push(format!("server's certificate: {}", self.authorities));
        }
        let mut credentials = Vec::new();
        if let Some((identity, origin)) = &self.identity {
            credentials.push(format!("client certificate {} ({origin})", identity.subject()));
        }
        match &self.credentials {
            Credentials::Nothing if credentials.is_empty() => credentials.push("none".to_owned()),
            Credentials::Nothing => {}
            Credentials::Password(_) => credentials.push("user and password of the kubeconfig".to_owned()),
            Credentials::Token(_, origin) => credentials.push(format!("token ({origin})")),
            Credentials::Plugin(command) => credentials.push(format!("plugin {}, which was not run", command.name())),
        }
        lines.push(format!("credentials: {}", credentials.join(" and ")));
        lines
    }
}

impl fmt::Display for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authorities::OfSystem => write!(f, "the authorities that this machine trusts"),
            Authorities::Of(certificates, origin) => {
                write!(f, "the authority of {origin}")?;
                match certificates.len() {
                    1 => Ok(()),
                    more => write!(f, " ({more} certificates)"),
                }
            }
            Authorities::Anybody => write!(f, "not looked at (insecure-skip-tls-verify)"),
        }
    }
}

fn of_master(master: &str) -> Result<Access, ConnectError> {
    let mut remarks = Vec::new();
    let server = parse_server("--master", master, false, &mut remarks)?;
    let route = route(&server, None, Path::new(""), &mut remarks)?;
    Ok(Access { remarks, ..Access::new(server, "--master".to_owned(), route) })
}

fn of_pod(files: &mut Files) -> Result<Access, ConnectError> {
    let missing = |name: &str| ConnectError::NotInCluster(format!("{name} is not in the environment"));
    let variable = |name: &str| env::var(name).map_err(|_| missing(name));
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{host}]") } else { host };
    let field = "https://KUBERNETES_SERVICE_HOST:KUBERNETES_SERVICE_PORT";
    let mut remarks = Vec::new();
    let server = parse_server(field, &format!("https://{host}:{port}"), true, &mut remarks)?;
    let route = route(&server, None, Path::new(""), &mut remarks)?;
    let path = |name: &str| Path::new(SERVICE_ACCOUNT).join(name);
    let mut read = |name: &str| {
        let read = files.read(&path(name));
        read.map_err(|err| ConnectError::ServiceAccount(format!("{} cannot be read: {err}", path(name).display())))
    };
    let (authorities, token) = (read("ca.crt")?, read("token")?);
    let namespace = read("namespace").ok().and_then(|text| String::from_utf8(text).ok());
    let unfit = |name: &str, reason: &str| ConnectError::ServiceAccount(format!("{}: {reason}", path(name).display()));
    let authorities = certificates::authorities(&authorities).map_err(|reason| unfit("ca.crt", reason))?;
    let token = token_header(&token).map_err(|reason| unfit("token", reason))?;
    Ok(Access {
        authorities: Authorities::Of(authorities, Origin::File(path("ca.crt"))),
        credentials: Credentials::Token(token, Origin::File(path("token"))),
        namespace,
        remarks,
        ..Access::new(server, "the service account of this pod".to_owned(), route)
    })
}

fn of_kubeconfig(path: &Path, master: Option<&str>, files: &mut Files) -> Result<Access, ConnectError> {
    let file = path.display().to_string();
    let unreadable = |reason: String| ConnectError::Kubeconfig { path: file.clone(), reason };
    let text = files.read(path).map_err(|err| unreadable(format!("it cannot be read: {err}")))?;
    let Chosen { context, cluster_name, cluster, user_name, user, namespace } =
        kubeconfig::choose(&text).map_err(unreadable)?;
    let refused = |reason: String| ConnectError::Field { path: file.clone(), reason };
    let mut remarks = Vec::new();
    let mut reading = Reading { folder: path.parent().unwrap_or(Path::new("")), files, remarks: Vec::new() };
    let tls = wants_tls(&cluster, &user);
    let (server, named_by) = match master {
        Some(master) => (parse_server("--master", master, tls, &mut remarks)?, "--master".to_owned()),
        None => {
            let text = cluster.server.as_deref().unwrap_or_default();
            let field = format!("kubeconfig {file}: server of cluster {cluster_name:?}:");
            let named_by = format!("kubeconfig {file}, context {context:?}");
            (parse_server(&field, text, tls, &mut remarks)?, named_by)
        }
    };
    let route = route(&server, cluster.proxy_url.as_deref(), path, &mut remarks)?;
    let of_cluster = |reason: String| refused(format!("cluster {cluster_name:?}: {reason}"));
    let authorities = reading.authorities(&cluster).map_err(of_cluster)?;
    let server_name = match cluster.tls_server_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => Some(
            ServerName::try_from(name.to_owned())
                .map_err(|_| of_cluster(format!("tls-server-name {name:?} is neither a host name nor an address")))?,
        ),
        None => None,
    };
    let of_user = |reason: String| refused(format!("user {user_name:?}: {reason}"));
    let identity = reading.identity(&user).map_err(of_user)?;
    let for_plugin = ForPlugin { server: &server, cluster: &cluster, authorities: &authorities };
    let credentials = reading.credentials(&user, identity.is_some(), &for_plugin).map_err(of_user)?;
    let impersonated = impersonated(&user).map_err(of_user)?;
    remarks.extend(reading.remarks.iter().map(|remark| format!("kubeconfig {file}: {remark}")));
    Ok(Access {
        server_name,
        authorities,
        identity,
        credentials,
        impersonated,
        namespace,
        remarks,
        ..Access::new(server, named_by, route)
    })
}

/// Whether a server without a scheme is spoken to with TLS (client-go: `defaultServerUrlFor`).
fn wants_tls(cluster: &Cluster, user: &AuthInfo) -> bool {
    let files = [
        &cluster.certificate_authority,
        &cluster.certificate_authority_data,
        &user.client_certificate,
        &user.client_certificate_data,
    ];
    cluster.insecure_skip_tls_verify == Some(true) || files.into_iter().any(|text| given(text).is_some())
}

fn parse_server(field: &str, text: &str, tls: bool, remarks: &mut Vec<String>) -> Result<Uri, ConnectError> {
    let shown = shown(text);
    if shown != text {
        remarks.push(format!("{field} {shown:?} has a user in it, who is not used: name the user in the kubeconfig"));
    }
    server::parse(text, tls).map_err(|reason| ConnectError::Server { field: field.to_owned(), value: shown, reason })
}

/// The way to the server, which the kubeconfig or the environment names.
fn route(server: &Uri, field: Option<&str>, path: &Path, remarks: &mut Vec<String>) -> Result<Route, ConnectError> {
    match proxy::route(server, field, |name| env::var(name).ok()) {
        Route::Unusable { by: proxy::FIELD, value, reason } => {
            Err(ConnectError::Proxy { path: path.display().to_string(), value, reason })
        }
        // It may be meant for others: nobody wrote it for this program.
        Route::Unusable { by, value, reason } => {
            remarks.push(format!(
                "{by}={value:?} is not a proxy that can be used: {reason}. The API server is connected to directly; \
                 set it to http://HOST:PORT, or name the API server in NO_PROXY"
            ));
            Ok(Route::Direct)
        }
        route => Ok(route),
    }
}

fn given(field: &Option<String>) -> Option<&str> {
    field.as_deref().filter(|text| !text.trim().is_empty())
}

fn secret(field: &Option<SecretString>) -> Option<&str> {
    field.as_ref().map(|text| text.expose_secret()).filter(|text| !text.trim().is_empty())
}

struct ForPlugin<'a> {
    server: &'a Uri,
    cluster: &'a Cluster,
    authorities: &'a Authorities,
}

struct Reading<'a> {
    /// Paths that are relative begin here.
    folder: &'a Path,
    files: &'a mut Files,
    remarks: Vec<String>,
}

impl Reading<'_> {
    /// What the field for data holds or, where there is nothing in it, the file that the other field names.
    fn data_or_file(
        &mut self,
        (data_field, data): (&'static str, Option<&str>),
        (file_field, file): (&'static str, Option<&str>),
    ) -> Result<Option<(Vec<u8>, Origin)>, String> {
        if let Some(data) = data {
            if file.is_some() {
                self.remarks.push(format!("{file_field} has no effect beside {data_field}"));
            }
            // Wrapped and indented as it may be.
            let bare: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let decoded = STANDARD.decode(bare).map_err(|_| format!("{data_field}: it is not base64"))?;
            return Ok(Some((decoded, Origin::Field(data_field))));
        }
        file.map(|file| self.file(file_field, file)).transpose()
    }

    fn file(&mut self, field: &str, file: &str) -> Result<(Vec<u8>, Origin), String> {
        let path = self.folder.join(file);
        let read = self.files.read(&path);
        let text = read.map_err(|err| format!("{field}: file {} cannot be read: {err}", path.display()))?;
        Ok((text, Origin::File(path)))
    }

    fn authorities(&mut self, cluster: &Cluster) -> Result<Authorities, String> {
        const DATA: &str = "certificate-authority-data";
        const FILE: &str = "certificate-authority";
        let (data, file) = (given(&cluster.certificate_authority_data), given(&cluster.certificate_authority));
        if cluster.insecure_skip_tls_verify == Some(true) {
            if data.is_some() || file.is_some() {
                let field = if data.is_some() { DATA } else { FILE };
                return Err(format!(
                    "insecure-skip-tls-verify and {field} are both given: take out insecure-skip-tls-verify to have the \
                     server's certificate checked"
                ));
            }
            self.remarks.push(
                "insecure-skip-tls-verify: whoever is between this node and the API server can read and change all \
                 that is sent; give a certificate-authority instead"
                    .to_owned(),
            );
            return Ok(Authorities::Anybody);
        }
        let Some((text, origin)) = self.data_or_file((DATA, data), (FILE, file))? else {
            return Ok(Authorities::OfSystem);
        };
        let field = if matches!(origin, Origin::File(_)) { FILE } else { DATA };
        let certificates = certificates::authorities(&text);
        let certificates = certificates.map_err(|reason| unfit(field, &origin, reason))?;
        Ok(Authorities::Of(certificates, origin))
    }

    fn identity(&mut self, user: &AuthInfo) -> Result<Option<(Identity, Origin)>, String> {
        const FIELDS: [&str; 2] = ["client-certificate", "client-key"];
        let certificate = (given(&user.client_certificate_data), given(&user.client_certificate));
        let key = (secret(&user.client_key_data), given(&user.client_key));
        let certificate = self.data_or_file(("client-certificate-data", certificate.0), (FIELDS[0], certificate.1))?;
        let Some((certificate, origin)) = certificate else {
            if key.0.is_some() || key.1.is_some() {
                self.remarks.push("client-key has no effect without client-certificate".to_owned());
            }
            return Ok(None);
        };
        let key = self.data_or_file(("client-key-data", key.0), (FIELDS[1], key.1))?;
        let (key, key_origin) = key.ok_or("client-certificate is given without client-key: give both")?;
        let identity = Identity::new(&certificate, &key).map_err(|wrong| match wrong {
            Unfit::Certificate(reason) => unfit(FIELDS[0], &origin, &reason),
            Unfit::Key(reason) => unfit(FIELDS[1], &key_origin, &reason),
        })?;
        Ok(Some((identity, origin)))
    }

    fn credentials(
        &mut self,
        user: &AuthInfo,
        has_certificate: bool,
        for_plugin: &ForPlugin<'_>,
    ) -> Result<Credentials, String> {
        if let Some(provider) = &user.auth_provider {
            let name = &provider.name;
            // kube-proxy has none of them either.
            return Err(format!("auth-provider {name:?} is not supported: use a token, a client certificate or exec"));
        }
        let (token, token_file) = (secret(&user.token), given(&user.token_file));
        let (name, password) = (given(&user.username), secret(&user.password));
        if name.is_some() || password.is_some() {
            if token.is_some() || token_file.is_some() {
                return Err("both a password and a token are given: take out one of them".to_owned());
            }
            let text = format!("{}:{}", name.unwrap_or_default(), password.unwrap_or_default());
            self.idle_plugin(user);
            return Ok(Credentials::Password(header(&format!("Basic {}", STANDARD.encode(text)))?));
        }
        if let Some(file) = token_file {
            self.idle_plugin(user);
            // The token beside it is what was in the file once.
            let read = self.file("tokenFile", file).and_then(|(text, origin)| {
                let header = token_header(&text).map_err(|reason| unfit("tokenFile", &origin, reason))?;
                Ok(Credentials::Token(header, origin))
            });
            return match (read, token) {
                (Ok(credentials), _) => Ok(credentials),
                (Err(reason), None) => Err(reason),
                (Err(reason), Some(token)) => {
                    self.remarks.push(format!("{reason}; the token beside it is used"));
                    Ok(Credentials::Token(token_header(token.as_bytes())?, Origin::Field("token")))
                }
            };
        }
        if let Some(token) = token {
            self.idle_plugin(user);
            let header = token_header(token.as_bytes()).map_err(|reason| format!("token: {reason}"))?;
            return Ok(Credentials::Token(header, Origin::Field("token")));
        }
        let Some(exec) = &user.exec else { return Ok(Credentials::Nothing) };
        if has_certificate {
            self.idle_plugin(user);
            return Ok(Credentials::Nothing);
        }
        let cluster = exec.provide_cluster_info.then(|| for_plugin.json());
        Ok(Credentials::Plugin(Command::new(exec, self.folder, cluster)?))
    }

    fn idle_plugin(&mut self, user: &AuthInfo) {
        if user.exec.is_some() {
            self.remarks.push("exec has no effect beside other credentials".to_owned());
        }
    }
}

impl ForPlugin<'_> {
    /// `spec.cluster` of an `ExecCredential`.
    fn json(&self) -> serde_json::Value {
        let mut cluster = json!({ "server": self.server.to_string() });
        let extensions = self.cluster.extensions.iter().flatten();
        let fields = [
            ("tls-server-name", self.cluster.tls_server_name.clone().map(Into::into)),
            ("insecure-skip-tls-verify", (*self.authorities == Authorities::Anybody).then(|| true.into())),
            ("proxy-url", self.cluster.proxy_url.clone().map(Into::into)),
            ("config", { extensions }.find(|item| item.name == FOR_PLUGINS).map(|item| item.extension.clone())),
            (
                "certificate-authority-data",
                match self.authorities {
                    Authorities::Of(certificates, _) => {
                        let blocks = certificates.iter().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec()));
                        Some(STANDARD.encode(pem::encode_many(&blocks.collect::<Vec<_>>())).into())
                    }
                    _ => None,
                },
            ),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                cluster[name] = value;
            }
        }
        cluster
    }
}

fn unfit(field: &str, origin: &Origin, reason: &str) -> String {
    match origin {
        Origin::Field(name) => format!("{name}: {reason}"),
        Origin::File(_) => format!("{field}: {origin}: {reason}"),
    }
}

/// The header for a token, which files have with blanks and the end of a line.
fn token_header(text: &[u8]) -> Result<HeaderValue, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text")?.trim();
    if text.is_empty() {
        return Err("it is empty");
    }
    header(&format!("Bearer {text}"))
}

fn header(text: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "it has a character in it that cannot be sent")?;
    value.set_sensitive(true);
    Ok(value)
}

fn impersonated(user: &AuthInfo) -> Result<Impersonated, String> {
    let impersonated = Impersonated {
        user: given(&user.impersonate).map(str::to_owned),
        uid: given(&user.impersonate_uid).map(str::to_owned),
        groups: user.impersonate_groups.clone().unwrap_or_default(),
        extra: user.impersonate_user_extra.clone().unwrap_or_default().into_iter().collect(),
    };
    if impersonated.user.is_none() && impersonated != Impersonated::default() {
        return Err("as-uid, as-groups and as-user-extra need as".to_owned());
    }
    Ok(impersonated)
}
