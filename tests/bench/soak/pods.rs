//! The pods: TCP and UDP servers at every address of the backend, which say at which it was.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt::Ipv4PacketInfo,
};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::netns::Namespace;

/// The port of every pod.
pub(crate) const PORT: u16 = 8080;
/// What a client asks a TCP server for, after the pod's address has come: to send back what it gets, ...
pub(crate) const ECHO: u8 = b'e';
/// ... or to send something by itself every [`PUSH_EVERY`].
pub(crate) const PUSH: u8 = b'p';
/// See [`PUSH`].
pub(crate) const PUSH_EVERY: Duration = Duration::from_millis(200);

/// Serves for as long as the process lives.
pub(crate) fn serve(backend: &Namespace) {
    let (tcp, udp) = backend.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there is IPv4");
        socket.set_reuse_address(true).expect("an option of every socket");
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into()).expect("the namespace is new");
        socket.listen(4096).expect("it is bound");
        socket.set_nonblocking(true).expect("an option of every socket");
        let udp = UdpSocket::bind(("0.0.0.0", PORT)).expect("the namespace is new");
        setsockopt(&udp, Ipv4PacketInfo, &true).expect("an option of IPv4");
        (TcpListener::from(socket), udp)
    });
    thread::spawn(move || tokio_runtime().block_on(serve_tcp(tcp)));
    thread::spawn(move || serve_udp(&udp));
}

/// A runtime for one thread.
pub(crate) fn tokio_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

async fn serve_tcp(listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let Ok(SocketAddr::V4(address)) = stream.local_addr() else { return };
            // A client that is gone is no concern of the server's.
            if stream.write_all(&address.ip().octets()).await.is_err() {
                return;
            }
            let mut bytes = [0; 64];
            match stream.read_u8().await {
                Ok(ECHO) => {
                    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                        if stream.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(PUSH) => {
                    while stream.write_u8(PUSH).await.is_ok() {
                        tokio::time::sleep(PUSH_EVERY).await;
                    }
                }
                _ => {}
            }
        });
    }
}

/// Answers each datagram with the address that it was for and what was in it, from that address.
fn serve_udp(socket: &UdpSocket) {
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let mut bytes = [0; 64];
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let Ok(message) = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) else {
            continue;
        };
        let (length, client) = (message.bytes, message.address);
        let to = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| if let ControlMessageOwned::Ipv4PacketInfo(to) = one { Some(to) } else { None })
        });
        let (Some(mut to), Some(client)) = (to, client) else { continue };
        let pod = Ipv4Addr::from(u32::from_be(to.ipi_addr.s_addr));
        to.ipi_spec_dst = to.ipi_addr;
        to.ipi_ifindex = 0;
        let octets = pod.octets();
        let parts = [IoSlice::new(&octets), IoSlice::new(&bytes[..length])];
        // A client that cannot be reached asks again.
        let _ = sendmsg(socket.as_raw_fd(), &parts, &[ControlMessage::Ipv4PacketInfo(&to)], flags, Some(&client));
    }
}
