//! A client, a node and a backend, each in a network namespace, joined by veth pairs.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

/// The node's address on the side of the backend.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Every pod of the cluster listens here.
pub(crate) const POD_PORT: u16 = 8080;
/// The pods' range; the client's address is in it unless it is outside.
pub(crate) const PODS: &str = "10.128.0.0/9";

/// Three namespaces. They end with the process, or when this and the processes in them are gone.
pub(crate) struct Network {
    client: File,
    node: File,
    /// Accepts connections to any pod.
    pub(crate) pods: TcpListener,
}

/// Whether namespaces can be made here.
pub(crate) fn allowed() -> io::Result<()> {
    namespace().map(drop)
}

fn namespace() -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    File::open("/proc/thread-self/ns/net")
}

/// Takes this thread into a namespace.
fn enter(namespace: &File) {
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("a namespace that this process made");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot do: ip {arguments}");
}

impl Network {
    /// Leaves the thread in the node.
    pub(crate) fn new(client_outside: bool) -> Network {
        let [client, backend, node] = [(); 3].map(|()| namespace().expect("it was possible before"));
        let path = |namespace: &File| format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let (gateway, address) =
            if client_outside { ("198.18.1.1", "198.18.1.2") } else { ("10.255.0.1", "10.255.0.2") };
        ip("link set lo up");
        ip(&format!("link add client type veth peer name eth0 netns {}", path(&client)));
        ip(&format!("link add backend type veth peer name eth0 netns {}", path(&backend)));
        ip(&format!("address add {gateway}/30 dev client"));
        ip(&format!("address add {NODE}/30 dev backend"));
        ip("link set client up");
        ip("link set backend up");
        ip(&format!("route add {PODS} via 198.18.0.2"));
        for (setting, value) in [
            ("ip_forward", "1"),
            ("conf/all/rp_filter", "0"),
            ("conf/client/rp_filter", "0"),
            ("conf/backend/rp_filter", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value).expect("a setting of this namespace");
        }
        enter(&client);
        for step in ["link set lo up", "link set eth0 up"] {
            ip(step);
        }
        ip(&format!("address add {address}/30 dev eth0"));
        ip(&format!("route add default via {gateway}"));
        enter(&backend);
        for step in [
            "link set lo up",
            "link set eth0 up",
            "address add 198.18.0.2/30 dev eth0",
            "route add default via 198.18.0.1",
        ] {
            ip(step);
        }
        ip(&format!("route add local {PODS} dev lo"));
        if !client_outside {
            ip(&format!("route add {address}/32 via {NODE}"));
        }
        let pods = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, POD_PORT)).expect("the port is free");
        enter(&node);
        Network { client, node, pods }
    }

    /// Takes this thread to the client.
    pub(crate) fn enter_client(&self) {
        enter(&self.client);
    }

    /// Takes this thread to the node.
    pub(crate) fn enter_node(&self) {
        enter(&self.node);
    }

    /// Empties the node's table of tracked connections: those that ended stay in it for seconds, and the next
    /// connection from the same port would find them.
    pub(crate) fn forget_connections(&self) {
        /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
        const DELETE: u16 = 0x102;
        /// `NLM_F_REQUEST | NLM_F_ACK`.
        const FLAGS: u16 = 0x5;
        enter(&self.node);
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                .expect("a netlink socket");
        let mut message = Vec::new();
        message.extend(20_u32.to_ne_bytes());
        message.extend(DELETE.to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        // Sequence, port, then `struct nfgenmsg`: all families.
        message.extend([0; 12]);
        sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).expect("the kernel listens");
        let mut answer = [0; 256];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("the kernel answers");
        assert_eq!(answer.get(16..20.min(length)), Some(&[0; 4][..]), "connections cannot be deleted");
    }
}
