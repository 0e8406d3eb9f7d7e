//! Listening, and serving HTTP in such a way that it can be stopped.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// Connections that one socket serves at a time; more wait.
const CONNECTIONS: usize = 256;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing is accepted after that failed, which is mostly for lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(500);

/// Listens on an address. On an IPv6 address IPv4 clients are served only with `dual_stack` (and only on `[::]`).
pub(crate) fn listen(address: SocketAddr, dual_stack: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, Ipv6V6Only, &!dual_stack)?;
        socket
    };
    // Connections of a socket that was closed a moment ago do not matter.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Listens on an address of the configuration. `0.0.0.0` and `::` mean every address of both families, or of IPv4 where
/// the kernel has no IPv6, as they do in kube-proxy.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen(address, false);
    }
    match listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), true) {
        Err(error) if no_ipv6(&error) => listen(SocketAddr::new([0; 4].into(), address.port()), false),
        listening => listening,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT))
}

/// Serves for ever. When the future is dropped, the listening socket and all connections are closed; `axum::serve`
/// instead leaves its connections to tasks that nobody owns.
pub(crate) async fn serve(listener: TcpListener, app: Router) {
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < CONNECTIONS;
        tokio::select! {
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => {
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(PATIENCE)
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
                    // How a client fails is its own affair.
                    connections.spawn(async { connection.await.ok() });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
