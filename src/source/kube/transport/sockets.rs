//! Connected sockets: which address of a name they lead to, and their options.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tower::Service;

use super::names::Names;

/// An address that does not answer for so long is given up: nobody is there, or nothing gets through. The kernel has asked
/// at once, after one second and after three; a new attempt meets one that is back sooner than the next question would.
const CONNECTED: Duration = Duration::from_secs(4);
/// The next address of a name is tried when there is no answer from those before for so long (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
/// A connection on which nothing is sent or received for so long is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(10);
/// And again, until there is an answer.
const AGAIN: Duration = Duration::from_secs(5);
/// What was sent, or asked, and not acknowledged for so long breaks the connection (`TCP_USER_TIMEOUT`, tcp(7)).
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Makes sockets: the only place that does, whatever is at their other end. hyper-util's `HttpConnector` cannot give them
/// a priority.
#[derive(Debug, Clone)]
pub(super) struct Sockets {
    /// `SO_PRIORITY`, if it is to be a certain one.
    pub(super) priority: Option<u32>,
    pub(super) names: Names,
}

impl Service<Uri> for Sockets {
    type Response = Socket;
    type Error = Unconnected;
    type Future = BoxFuture<'static, Result<Socket, Unconnected>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unconnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Sockets { priority, names } = self.clone();
        Box::pin(async move {
            let addresses = addresses(&to, &names).await.map_err(|cause| Unconnected { step: "dns error", cause })?;
            let connected = first_connected(addresses.clone(), |address| connect(address, priority)).await;
            let stream = connected.map_err(|cause| Unconnected { step: "tcp connect error", cause })?;
            Ok(Socket { stream: TokioIo::new(stream), reached: Reached(Arc::new(addresses.into_iter().collect())) })
        })
    }
}

/// There is no connection to anybody.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(super) struct Unconnected {
    step: &'static str,
    #[source]
    cause: io::Error,
}

/// The addresses that a URL stands for.
async fn addresses(url: &Uri, names: &Names) -> io::Result<Vec<SocketAddr>> {
    let host = url.host().ok_or(io::ErrorKind::InvalidInput)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    Ok(names.addresses(host).await?.iter().map(|address| SocketAddr::new(*address, port)).collect())
}

/// The two families in turns, beginning with the first that the resolver names.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv4) else { return addresses };
    let (preferred, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv4() == first);
    let mut others = others.into_iter();
    let mut all: Vec<SocketAddr> = preferred.into_iter().flat_map(|one| [Some(one), others.next()]).flatten().collect();
    all.extend(others);
    all
}

/// Connects to whichever address answers first. Each is given a moment before the next is asked, too. The error is that
/// of the first: it is the one that was meant.
async fn first_connected<T, F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let mut waiting = in_turns(addresses).into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut error = None;
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(connect(address));
        }
        let a_moment = async {
            match waiting.len() {
                0 => std::future::pending().await,
                _ => sleep(NEXT_ADDRESS).await,
            }
        };
        tokio::select! {
            ended = attempts.next() => match ended {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(err)) => drop(error.get_or_insert(err)),
                None => return Err(error.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address"))),
            },
            () = a_moment => {}
        }
    }
}

async fn connect(address: SocketAddr, priority: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(priority) = priority {
        // The kernel keeps 32 bits.
        setsockopt(&socket, sockopt::Priority, &priority.cast_signed())?;
    }
    socket.set_keepalive(true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &seconds(IDLE))?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &seconds(AGAIN))?;
    setsockopt(&socket, sockopt::TcpUserTimeout, &(seconds(UNACKNOWLEDGED) * 1_000))?;
    timeout(CONNECTED, socket.connect(address)).await?
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// All addresses of the other end's name.
#[derive(Debug, Clone)]
pub(super) struct Reached(pub(super) Arc<BTreeSet<SocketAddr>>);

/// A connected socket that knows the addresses of the other end.
pub(super) struct Socket {
    stream: TokioIo<TcpStream>,
    reached: Reached,
}

impl Socket {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.reached.clone())
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    fn all(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_take_turns() {
        let cases: [(&[&str], &[&str]); 3] = [
            (&[], &[]),
            (&["192.0.2.1:1", "192.0.2.2:1"], &["192.0.2.1:1", "192.0.2.2:1"]),
            (
                &["[2001:db8::1]:1", "192.0.2.1:1", "192.0.2.2:1", "[2001:db8::2]:1", "192.0.2.3:1"],
                &["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "192.0.2.3:1"],
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(in_turns(all(given)), all(expected));
        }
    }

    #[tokio::test]
    async fn a_url_stands_for_its_host_and_port() {
        let cases = [
            ("https://192.0.2.1", "192.0.2.1:443"),
            ("http://192.0.2.1/api", "192.0.2.1:80"),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]:6443"),
        ];
        for (url, expected) in cases {
            let found = addresses(&url.parse().expect("a URL"), &Names::default()).await;
            assert_eq!(found.expect("an address"), all(&[expected]));
        }
    }

    /// The last part of an address says what is there: 1 answers after a second, 2 refuses, 3 never answers.
    #[tokio::test(start_paused = true)]
    async fn whichever_address_answers_first_is_taken() {
        let cases = [
            (&["192.0.2.1:1"][..], Some("192.0.2.1:1"), 1_000, 1),
            (&["192.0.2.2:1", "192.0.2.1:1"], Some("192.0.2.1:1"), 1_000, 2),
            (&["192.0.2.3:1", "192.0.2.3:2", "192.0.2.1:1"], Some("192.0.2.1:1"), 1_600, 3),
            (&["192.0.2.1:1", "192.0.2.3:1", "192.0.2.3:2", "192.0.2.3:3"], Some("192.0.2.1:1"), 1_000, 4),
            (&["192.0.2.2:1", "192.0.2.2:2"], None, 0, 2),
            (&["192.0.2.3:1", "192.0.2.2:1"], None, 4_000, 2),
            (&[], None, 0, 0),
        ];
        for (addresses, expected, milliseconds, asked_for) in cases {
            let (began, asked) = (Instant::now(), Mutex::new(0));
            let connect = |address: SocketAddr| {
                *asked.lock().expect("nobody panics") += 1;
                async move {
                    let answer = async {
                        match address.to_string().split(':').next() {
                            Some("192.0.2.1") => sleep(Duration::from_secs(1)).await,
                            Some("192.0.2.2") => return Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                            _ => std::future::pending().await,
                        }
                        Ok(address)
                    };
                    timeout(CONNECTED, answer).await?
                }
            };
            let found = first_connected(all(addresses), connect).await;
            assert_eq!(found.ok(), expected.map(|text| all(&[text])[0]), "{addresses:?}");
            assert_eq!(began.elapsed().as_millis(), milliseconds, "{addresses:?}");
            assert_eq!(asked.into_inner().expect("nobody panics"), asked_for, "{addresses:?}");
        }
    }

    #[tokio::test]
    async fn sockets_have_their_options() {
        use nix::sys::socket::getsockopt;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        // Anybody may set one up to 6.
        let stream = connect(listener.local_addr().expect("it has an address"), Some(6)).await.expect("it is there");
        assert_eq!(getsockopt(&stream, sockopt::Priority), Ok(6));
        assert_eq!(getsockopt(&stream, sockopt::KeepAlive), Ok(true));
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepIdle), Ok(10));
        assert_eq!(getsockopt(&stream, sockopt::TcpKeepInterval), Ok(5));
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout), Ok(20_000));
    }
}
