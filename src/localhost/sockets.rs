//! The sockets themselves: opened, taken over, connected.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockname,
    getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};
use tokio::net::TcpStream;

use super::plan::address;
use crate::model::{FrontendKey, Protocol};

/// A socket that is listened on.
#[derive(Debug)]
pub(super) enum Listener {
    /// Of TCP, and of SCTP, whose sockets are used the same way (sctp(7): one-to-one).
    Stream(TcpListener),
    /// Of UDP.
    Datagram(UdpSocket),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Stream(listener) => listener.as_fd(),
            Listener::Datagram(socket) => socket.as_fd(),
        }
    }
}

impl Listener {
    fn new(socket: OwnedFd, protocol: Protocol) -> Listener {
        match protocol {
            Protocol::Tcp | Protocol::Sctp => Listener::Stream(socket.into()),
            Protocol::Udp => Listener::Datagram(socket.into()),
        }
    }

    /// Listens on a port of 127.0.0.1 or ::1, and nowhere else.
    ///
    /// # Errors
    /// `EADDRINUSE` if somebody else has it; `EPROTONOSUPPORT` and the like where the kernel does not have the protocol.
    pub(super) fn open(key: &FrontendKey) -> io::Result<Listener> {
        let (socket, at) = (new(key.protocol, address(key))?, address(key));
        if at.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        // Connections of before do not keep it from being opened again. Nobody else can take it for that: of sockets that
        // listen there is one for an address and port.
        let streams = key.protocol != Protocol::Udp;
        if streams {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
        if streams {
            listen(&socket, Backlog::MAXALLOWABLE)?;
        }
        Ok(Listener::new(socket, key.protocol))
    }

    /// One that was open before this process was, if it is what it is said to be.
    pub(super) fn inherited(key: &FrontendKey, socket: OwnedFd) -> Option<Listener> {
        let streams = key.protocol != Protocol::Udp;
        let kind = if streams { SockType::Stream } else { SockType::Datagram };
        let is_it = bound(&socket) == Some(address(key))
            && getsockopt(&socket, sockopt::SockType) == Ok(kind)
            && getsockopt(&socket, sockopt::AcceptConn) == Ok(streams)
            && has_protocol(&socket, key.protocol);
        let never_waits = || fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok();
        (is_it && never_waits()).then(|| Listener::new(socket, key.protocol))
    }

    /// Nobody can connect from now on, even if others have the socket open as well.
    pub(super) fn end(&self) {
        if let Listener::Stream(listener) = self {
            // It may have ended already.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// There is no safe call for `SO_PROTOCOL`: only TCP has options of TCP.
fn has_protocol(socket: &OwnedFd, protocol: Protocol) -> bool {
    getsockopt(socket, sockopt::TcpNoDelay).is_ok() == (protocol == Protocol::Tcp)
}

fn bound(socket: &OwnedFd) -> Option<SocketAddr> {
    let name: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = name.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| name.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// A socket that waits for nothing and is not for programs that are started, of the family of an address.
pub(super) fn new(protocol: Protocol, of: SocketAddr) -> io::Result<OwnedFd> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let family = if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, number)?)
}

/// Begins a connection of TCP or SCTP with a [`new`] socket; whether it comes about says [`connected`].
pub(super) fn begin(socket: OwnedFd, to: SocketAddr) -> io::Result<TcpStream> {
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => TcpStream::from_std(socket.into()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a connection that was begun.
pub(super) async fn connected(stream: &TcpStream) -> io::Result<()> {
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(()), Err)
}

/// A socket of UDP that sends to one address and hears of nobody else.
pub(super) fn datagrams_to(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new(Protocol::Udp, to)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

/// What suits a connection that is only passed on: nothing waits for more, and who has gone without a word is found out.
pub(super) fn tune(protocol: Protocol, stream: &TcpStream) {
    if protocol == Protocol::Tcp {
        // It works all the same without.
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    }
}

/// Whether the process, or the node, may have no more descriptors, or no more memory for sockets.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
