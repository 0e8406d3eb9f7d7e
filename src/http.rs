//! Listening, and serving HTTP in such a way that it can be stopped.

mod budget;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6V6Only;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinSet, yield_now};
use tower::{ServiceExt as _, service_fn};

pub(crate) use budget::Budget;
use budget::Place;

/// Connections that may wait to be accepted; the kernel's `somaxconn` may be less.
const BACKLOG: u32 = 4_096;

/// The longest head of a request. A client that sends more is told so.
const LONGEST_HEAD: usize = 16 << 10;

/// How long nothing is accepted after that failed, which is mostly for lack of file descriptors in the whole system.
const PAUSE: Duration = Duration::from_millis(100);

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
///
/// It always accepts: whoever is too much for the budget takes the place of another.
pub(crate) async fn serve(listener: TcpListener, app: Router, budget: Budget) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let place = budget.place().await;
                    connections.spawn(connection(stream, app.clone(), place));
                    // It may have said what it wants already, and is answered before others come.
                    yield_now().await;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    budget.make_room();
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers a client until it goes, or has used up its time.
async fn connection(stream: TcpStream, app: Router, place: Place) {
    let place = &place;
    let app = service_fn(move |request| {
        place.asks();
        app.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::select! {
        // How a client fails is its own affair.
        _ = connection => {}
        () = place.is_over() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::http::Client;
    use crate::testing::in_network_namespace_async;

    #[test]
    fn a_head_has_to_be_short_and_a_client_may_ask_again() {
        in_network_namespace_async(async || {
            const ADDRESS: &str = "127.0.0.1:10256";
            let listener = bind(ADDRESS.parse().expect("an address")).expect("free");
            let app = Router::new().fallback(async || "ok");
            let serving = tokio::spawn(serve(listener, app, Budget::default()));
            let mut client = Client::connect(ADDRESS).await;
            for length in [10, LONGEST_HEAD / 2, LONGEST_HEAD / 2] {
                let line = format!("A: {}\r\n", "a".repeat(length));
                assert_eq!(client.request_with("GET", "/", &line).await.status, 200);
            }
            let line = format!("A: {}\r\n", "a".repeat(LONGEST_HEAD));
            assert_eq!(client.request_with("GET", "/", &line).await.status, 431);
            client.closed().await;
            serving.abort();
        });
    }
}
