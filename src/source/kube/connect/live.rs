//! The client that is in use, which is replaced when what it was made of changes.
//!
//! Files are compared with what was read every second: there are few, they are small, and neither links, mounts nor
//! clocks can hide a change so. Requests that are under way, and watches, go on as they began, unless it is another server
//! that is to be asked; whatever comes after goes over new connections. What cannot be used leaves what is in use as it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use futures::future::BoxFuture;
use kube::Config;
use kube::client::{AuthError, Body, ConfigExt as _, DynBody};
use kube::config::AuthInfo;
use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer as _, Service, ServiceExt as _};
use tracing::{info, warn};

use super::access::{Access, Authorities, Credentials, Origin, Place};
use super::certificates::{Identity, provider};
use super::error::ConnectError;
use super::explain::explained;
use super::files::Files;
use super::plugin::{Issued, Plugin};
use super::until::until;
use super::verify::{Anything, Verifier};
use crate::secrets::shown;
use crate::source::bypass::Bypass;
use crate::source::kube::proxy::Route;
use crate::source::kube::server;
use crate::source::kube::transport::{Names, Transport, Way, transport};

/// How often files are compared with what was read. A change has to be there twice: it may be half a one.
const LOOK: Duration = Duration::from_secs(1);

/// What requests are sent with.
struct Connection {
    access: Arc<Access>,
    plugin: Option<Arc<Plugin>>,
    /// The certificate that the plugin has given.
    issued: Option<Identity>,
    transport: Transport,
    /// Becomes true when another server, or another way to it, is in use.
    over: Arc<watch::Sender<bool>>,
}

impl Connection {
    /// In place of another, if there is one.
    fn new(
        access: Arc<Access>,
        plugin: Option<Arc<Plugin>>,
        issued: Option<Identity>,
        before: Option<&Connection>,
        outer: &Outer,
    ) -> Result<Connection, String> {
        let mut config = Config::new(match &access.route {
            // Who asks a proxy takes 443 for every port that is not there.
            Route::Through { .. } => server::with_port(&access.server),
            _ => access.server.clone(),
        });
        let impersonated = &access.impersonated;
        config.auth_info = AuthInfo {
            impersonate: impersonated.user.clone(),
            impersonate_uid: impersonated.uid.clone(),
            impersonate_groups: Some(impersonated.groups.clone()),
            impersonate_user_extra: Some(impersonated.extra.clone().into_iter().collect()),
            ..AuthInfo::default()
        };
        let headers = config.extra_headers_layer().map_err(|err| format!("impersonation (as): {err}"))?;
        let identity = issued.as_ref().or(access.identity.as_ref().map(|(identity, _)| identity));
        let proxy = match &access.route {
            Route::Through { proxy, .. } => Some(proxy),
            _ => None,
        };
        let schemes = [access.server.scheme_str(), proxy.and_then(|proxy| proxy.scheme_str())];
        // Whom the machine trusts is a long list.
        let nobody = Authorities::Of(Vec::new(), Origin::Field("certificate-authority"));
        let authorities = if schemes.contains(&Some("https")) { &access.authorities } else { &nobody };
        let tls = tls(authorities, identity)?;
        let server_name = access.server_name.as_ref();
        let transport = transport(&Way {
            server: &access.server,
            proxy,
            tls,
            server_name,
            bypass: outer.bypass.as_ref(),
            names: &outer.names,
        });
        let transport = BoxCloneSyncService::new(config.base_uri_layer().layer(headers.layer(transport)));
        let same = |before: &&Connection| before.access.server == access.server && before.access.route == access.route;
        let over = before.filter(same).map(|before| Arc::clone(&before.over));
        Ok(Connection { access, plugin, issued, transport, over: over.unwrap_or_default() })
    }

    async fn send(
        &self,
        head: &Parts,
        body: &Bytes,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Box<DynBody>>, BoxError> {
        let mut request = Request::from_parts(head.clone(), Body::from(body.clone()));
        if let Some(value) = authorization {
            request.headers_mut().insert(AUTHORIZATION, value.clone());
        }
        let sent = self.transport.clone().oneshot(request).await;
        let answer = sent.map_err(|err| explained(err, || self.subject()))?;
        let mut over = self.over.subscribe();
        let over = Box::pin(async move {
            if over.wait_for(|over| *over).await.is_err() {
                // It went with all else.
                std::future::pending::<()>().await;
            }
        });
        Ok(until(over, answer))
    }

    /// Whom the certificate of this client names.
    fn subject(&self) -> Option<String> {
        let identity = self.issued.as_ref().or(self.access.identity.as_ref().map(|(identity, _)| identity));
        identity.map(Identity::subject)
    }
}

fn tls(authorities: &Authorities, identity: Option<&Identity>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|err| err.to_string())?.dangerous();
    let builder = match authorities {
        Authorities::Anybody => builder.with_custom_certificate_verifier(Arc::new(Anything)),
        _ => builder.with_custom_certificate_verifier(Arc::new(Verifier::new(authorities))),
    };
    Ok(match identity {
        Some(identity) => {
            let key = SingleCertAndKey::from(Arc::clone(&identity.certified));
            builder.with_client_cert_resolver(Arc::new(key))
        }
        None => builder.with_no_client_auth(),
    })
}

struct State {
    connection: Arc<Connection>,
    /// Those that were read last, whether they could be used or not.
    files: Files,
    /// How they have been found changed, until they are found the same again.
    unsettled: Option<Files>,
    /// Why those that were read last cannot be used.
    refused: Option<String>,
}

/// What stays, whatever the files say.
struct Outer {
    bypass: Option<Bypass>,
    names: Names,
}

/// The client that is in use.
pub(super) struct Live {
    place: Place,
    outer: Outer,
    state: Mutex<State>,
}

/// What a request was sent with.
struct Sender {
    connection: Arc<Connection>,
    issued: Option<Arc<Issued>>,
}

impl Live {
    /// Reads everything, says what is remarkable, and goes on to look at the files as long as somebody has the result.
    pub(super) fn start(place: Place, bypass: Option<Bypass>) -> Result<Arc<Live>, ConnectError> {
        let mut files = Files::default();
        let access = Access::read(&place, &mut files)?;
        access.remarks.iter().for_each(|remark| warn!("{remark}"));
        match &access.route {
            Route::Excluded(by) => {
                info!("{by} is not used: the API server is on this node, or NO_PROXY names it");
            }
            Route::Through { proxy, by } => {
                info!("the API server is reached through the proxy {} ({by})", shown(&proxy.to_string()));
            }
            Route::Direct | Route::Unusable { .. } => {}
        }
        let plugin = plugin_of(&access, None);
        let outer = Outer { bypass, names: Names::default() };
        let path = place.kubeconfig.display().to_string();
        let connection = Connection::new(Arc::new(access), plugin, None, None, &outer);
        let connection = connection.map_err(|reason| ConnectError::Field { path, reason })?;
        let state = State { connection: Arc::new(connection), files, unsettled: None, refused: None };
        let live = Arc::new(Live { place, outer, state: Mutex::new(state) });
        tokio::spawn(follow(Arc::downgrade(&live)));
        Ok(live)
    }

    /// `HOST:PORT` of the server as it is written.
    pub(super) fn host(&self) -> String {
        self.connection().access.server.authority().map(ToString::to_string).unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> String {
        self.connection().access.namespace.clone().unwrap_or_else(|| "default".to_owned())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is ever half done in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.lock().connection)
    }

    /// Looks whether the files have changed, and for good.
    fn look(&self) {
        let mut state = self.lock();
        let now = state.files.now();
        if now == state.files {
            state.unsettled = None;
        } else if state.unsettled.as_ref() != Some(&now) {
            state.unsettled = Some(now);
        } else {
            self.read_again(&mut state, true);
        }
    }

    /// Reads everything again. Returns whether others than before are in use now.
    fn read_again(&self, state: &mut State, complain: bool) -> bool {
        let mut files = Files::default();
        let read = Access::read(&self.place, &mut files).map_err(|err| err.to_string());
        let before = Arc::clone(&state.connection);
        let made = read.and_then(|access| {
            let differences = access.differences(&before.access);
            if differences.is_empty() {
                return Ok(None);
            }
            access.remarks.iter().filter(|remark| !before.access.remarks.contains(remark)).for_each(|remark| {
                warn!("{remark}");
            });
            let plugin = plugin_of(&access, before.plugin.as_ref());
            let connection = Connection::new(Arc::new(access), plugin, None, Some(&before), &self.outer)?;
            Ok(Some((connection, differences)))
        });
        match made {
            Ok(exchanged) => {
                state.files = files;
                state.unsettled = None;
                state.refused = None;
                let Some((connection, differences)) = exchanged else { return false };
                if !Arc::ptr_eq(&connection.over, &before.over) {
                    before.over.send_replace(true);
                }
                state.connection = Arc::new(connection);
                info!("for requests to the API server there is now in use: {}", differences.join("; "));
                true
            }
            Err(reason) if complain => {
                state.files = files;
                state.unsettled = None;
                if state.refused.as_ref() != Some(&reason) {
                    warn!("{reason}; what was in use for the API server stays in use until it is mended");
                    state.refused = Some(reason);
                }
                false
            }
            // It may be half a change: the next looks will tell.
            Err(_) => false,
        }
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Box<DynBody>>, BoxError> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let sender = self.sender().await?;
        let answer = sender.send(&head, &body).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match self.others_than(&sender).await {
            Some(sender) => sender.send(&head, &body).await,
            None => Ok(answer),
        }
    }

    /// What to send a request with. Runs the plugin if need be.
    async fn sender(&self) -> Result<Sender, BoxError> {
        loop {
            let connection = self.connection();
            let Some(plugin) = &connection.plugin else { return Ok(Sender { connection, issued: None }) };
            let issued = plugin.issued().await.map_err(not_asked)?;
            if let Some(sender) = self.with_issued(&connection, issued)? {
                return Ok(sender);
            }
        }
    }

    /// Whom to send a request with that the server does not know the sender of, if there is anybody else.
    async fn others_than(&self, refused: &Sender) -> Option<Sender> {
        if self.is_other_than(&refused.connection) {
            return self.sender().await.ok();
        }
        let plugin = refused.connection.plugin.as_ref()?;
        let issued = plugin.others_than(refused.issued.as_ref()?).await?;
        self.with_issued(&refused.connection, issued).ok()?
    }

    /// Whether another connection than this is in use, or is now that the files were read again.
    fn is_other_than(&self, connection: &Arc<Connection>) -> bool {
        let mut state = self.lock();
        !Arc::ptr_eq(&state.connection, connection) || self.read_again(&mut state, false)
    }

    /// Puts the certificate of a plugin into use. `None`: the plugin itself is no longer in use.
    fn with_issued(&self, connection: &Arc<Connection>, issued: Arc<Issued>) -> Result<Option<Sender>, BoxError> {
        let mut state = self.lock();
        let present = &state.connection;
        let same = |plugin: &Option<Arc<Plugin>>| plugin.as_ref().map(Arc::as_ptr);
        if same(&present.plugin) != same(&connection.plugin) {
            return Ok(None);
        }
        if present.issued != issued.identity {
            let (access, plugin) = (Arc::clone(&present.access), present.plugin.clone());
            let connection = Connection::new(access, plugin, issued.identity.clone(), Some(present), &self.outer);
            state.connection = Arc::new(connection.map_err(not_asked)?);
        }
        Ok(Some(Sender { connection: Arc::clone(&state.connection), issued: Some(issued) }))
    }
}

impl Sender {
    async fn send(&self, head: &Parts, body: &Bytes) -> Result<Response<Box<DynBody>>, BoxError> {
        let authorization = match &self.connection.access.credentials {
            Credentials::Nothing => None,
            Credentials::Password(value) | Credentials::Token(value, _) => Some(value),
            Credentials::Plugin(_) => self.issued.as_ref().and_then(|issued| issued.token.as_ref()),
        };
        self.connection.send(head, body, authorization).await
    }
}

fn not_asked(reason: String) -> BoxError {
    kube::Error::Auth(AuthError::AuthExec(reason)).into()
}

/// Whether connections can be made of an access; none is.
pub(super) fn check(access: &Arc<Access>) -> Result<(), String> {
    let outer = Outer { bypass: None, names: Names::default() };
    Connection::new(Arc::clone(access), None, None, None, &outer).map(drop)
}

/// The plugin of an access; the one from before where it is the same, with what it has said.
fn plugin_of(access: &Access, before: Option<&Arc<Plugin>>) -> Option<Arc<Plugin>> {
    let Credentials::Plugin(command) = &access.credentials else { return None };
    let same = before.filter(|plugin| plugin.command() == command).cloned();
    Some(same.unwrap_or_else(|| Arc::new(Plugin::new(command.clone()))))
}

/// Looks at the files as long as there is a client.
async fn follow(live: Weak<Live>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(live) = live.upgrade() else { return };
        live.look();
    }
}

/// Sends requests with what is in use.
#[derive(Clone)]
pub(super) struct Sending(pub(super) Arc<Live>);

impl Service<Request<Body>> for Sending {
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Box<DynBody>>, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let live = Arc::clone(&self.0);
        Box::pin(async move { live.answer(request).await })
    }
}
