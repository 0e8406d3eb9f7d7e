//! A client, a node and a backend, each in a network namespace, joined by veth pairs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

use crate::netns::{Namespace, ip, set_sysctl};

/// The node's address on the side of the backend.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Every pod of the cluster listens here.
pub(crate) const POD_PORT: u16 = 8080;
/// The pods' range; the client's address is in it unless it is outside.
pub(crate) const PODS: &str = "10.128.0.0/9";
/// The same of IPv6.
pub(crate) const PODS_V6: &str = "fd00:10::/32";

/// Three namespaces. They end with the process, or when this and the processes in them are gone.
pub(crate) struct Network {
    client: Namespace,
    node: Namespace,
    /// Accepts connections to any pod.
    pub(crate) pods: TcpListener,
    /// Receives what is sent to any pod, of either family.
    pub(crate) datagrams: UdpSocket,
    /// The client's addresses, IPv4 and IPv6.
    pub(crate) clients: [IpAddr; 2],
}

impl Network {
    /// Leaves the thread in the node.
    pub(crate) fn new(client_outside: bool) -> Network {
        let [client, backend, node] = [(); 3].map(|()| Namespace::new().expect("it was possible before"));
        let (gateway, address) =
            if client_outside { ("198.18.1.1", "198.18.1.2") } else { ("10.255.0.1", "10.255.0.2") };
        let (gateway_v6, address_v6) =
            if client_outside { ("fd00:18:1::1", "fd00:18:1::2") } else { ("fd00:10:ff::1", "fd00:10:ff::2") };
        node.join("client", &client, "eth0");
        node.join("backend", &backend, "eth0");
        node.run(|| {
            ip(&format!("address add {gateway}/30 dev client"));
            ip(&format!("address add {NODE}/30 dev backend"));
            ip(&format!("address add {gateway_v6}/64 dev client nodad"));
            ip("address add fd00:18::1/64 dev backend nodad");
            ip("link set client up");
            ip("link set backend up");
            ip(&format!("route add {PODS} via 198.18.0.2"));
            ip(&format!("route add {PODS_V6} via fd00:18::2"));
            for (setting, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/client/rp_filter", "0"),
                ("ipv4/conf/backend/rp_filter", "0"),
            ] {
                set_sysctl(setting, value).expect("a setting of this namespace");
            }
        });
        client.run(|| {
            ip("link set eth0 up");
            ip(&format!("address add {address}/30 dev eth0"));
            ip(&format!("route add default via {gateway}"));
            ip(&format!("address add {address_v6}/64 dev eth0 nodad"));
            ip(&format!("route add default via {gateway_v6}"));
        });
        let (pods, datagrams) = backend.run(|| {
            for step in [
                "link set eth0 up",
                "address add 198.18.0.2/30 dev eth0",
                "address add fd00:18::2/64 dev eth0 nodad",
                "route add default via 198.18.0.1",
                "route add default via fd00:18::1",
            ] {
                ip(step);
            }
            ip(&format!("route add local {PODS} dev lo"));
            ip(&format!("route add local {PODS_V6} dev lo"));
            if !client_outside {
                ip(&format!("route add {address}/32 via {NODE}"));
            }
            let pods = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, POD_PORT));
            let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, POD_PORT)).expect("the port is free");
            datagrams.set_nonblocking(true).expect("a setting of sockets");
            (pods.expect("the port is free"), datagrams)
        });
        node.enter();
        let clients = [address, address_v6].map(|address| address.parse().expect("an address"));
        Network { client, node, pods, datagrams, clients }
    }

    /// Takes this thread to the client.
    pub(crate) fn enter_client(&self) {
        self.client.enter();
    }

    /// Takes this thread to the node.
    pub(crate) fn enter_node(&self) {
        self.node.enter();
    }

    /// Does something in the node, on a thread of its own.
    pub(crate) fn in_node<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.node.run(job)
    }

    /// Empties the node's table of tracked connections: those that ended stay in it for seconds, and the next
    /// connection from the same port would find them.
    pub(crate) fn forget_connections(&self) {
        /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
        const DELETE: u16 = 0x102;
        /// `NLM_F_REQUEST | NLM_F_ACK`.
        const FLAGS: u16 = 0x5;
        self.node.enter();
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
