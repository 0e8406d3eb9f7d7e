//! A node, a client and a host of backends, as three network namespaces.
//!
//! ```text
//! client, all of 172.31.0.0/16 ---- node ---- backend, all of 10.128.0.0/9
//!        172.30.1.2     172.30.1.1       172.30.2.1      172.30.2.2
//! ```
//!
//! The namespaces have no names: they are gone with the last process in them. Nothing outside of them is touched.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

/// The node's own address, by which the Node object knows it.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 1);

/// What the node's kernel is told. Without the second, a client that is refused often would hear of it only at times.
const NODE_SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
];

/// A network namespace.
pub(crate) struct Namespace(File);

impl Namespace {
    /// A new one, with a loopback device that is up.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub(crate) fn new() -> Result<Namespace, Errno> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            ip(&["link", "set", "lo", "up"]);
            Ok(Namespace(File::open("/proc/thread-self/ns/net").expect("procfs is mounted")))
        });
        made.join().expect("ip can be used")
    }

    /// Moves this thread, and what it starts from now on, into the namespace.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("whoever made the namespace may enter it");
    }

    /// Runs something on a thread in the namespace.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                job()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path by which a child process can name the namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The namespaces, connected.
pub(crate) struct Network {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    pub(crate) backend: Namespace,
}

impl Network {
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub(crate) fn new() -> Result<Network, Errno> {
        let network = Network { node: Namespace::new()?, client: Namespace::new()?, backend: Namespace::new()? };
        network.node.run(|| {
            for (device, other, subnet) in [("client", &network.client, 1), ("backend", &network.backend, 2)] {
                ip(&["link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", &other.path()]);
                ip(&["address", "add", &format!("172.30.{subnet}.1/24"), "dev", device]);
                ip(&["link", "set", device, "up"]);
            }
            ip(&["route", "add", "172.31.0.0/16", "via", "172.30.1.2"]);
            // To all pods. What is for nobody goes there as well, and is dropped: a node knows a way for every packet,
            // and where it does not, packets end before those rules that refuse them.
            ip(&["route", "add", "default", "via", "172.30.2.2"]);
            for (setting, value) in NODE_SETTINGS {
                fs::write(format!("/proc/sys/{setting}"), value).unwrap_or_else(|error| panic!("{setting}: {error}"));
            }
        });
        for (namespace, subnet) in [(&network.client, 1), (&network.backend, 2)] {
            namespace.run(|| {
                ip(&["address", "add", &format!("172.30.{subnet}.2/24"), "dev", "eth0"]);
                ip(&["link", "set", "eth0", "up"]);
                ip(&["route", "add", "default", "via", &format!("172.30.{subnet}.1")]);
            });
        }
        // Every address of a pod is the backend's own, and the client has many.
        network.backend.run(|| ip(&["route", "add", "local", "10.128.0.0/9", "dev", "lo"]));
        network.client.run(|| ip(&["route", "add", "local", "172.31.0.0/16", "dev", "lo"]));
        Ok(network)
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip of iproute2 is installed");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}
