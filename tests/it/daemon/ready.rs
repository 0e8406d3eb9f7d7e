//! What the start waits for, and who is told when it has all come.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;

use serde_json::{Value, json};

use super::api::node_with_api;
use super::health::get;
use super::take_over::Owner;
use super::{NODE_IP, Node, PROGRAM, node_object, run_to_end, web, yaml};
use crate::support::daemon::Daemon;
use crate::support::objects::service_cidr;

/// A service manager, which does not wait for what it is told.
struct Manager(UnixDatagram);

impl Manager {
    fn of(node: &Node) -> Manager {
        let socket = UnixDatagram::bind(node.file("notify")).expect("a socket can be bound");
        socket.set_nonblocking(true).expect("it can be");
        Manager(socket)
    }

    /// What it has been told since the last time.
    fn heard(&self) -> Option<String> {
        let mut text = [0; 256];
        self.0.recv(&mut text).ok().map(|length| String::from_utf8_lossy(&text[..length]).trim().to_owned())
    }
}

/// Starts the daemon as a service manager does, with these fields in its configuration.
fn spawn(node: &mut Node, config: &Value, arguments: &[&OsStr]) {
    let socket = format!("NOTIFY_SOCKET={}", node.file("notify").display());
    let config = node.write_config(config);
    let first: [&OsStr; 4] = [socket.as_ref(), PROGRAM.as_ref(), "--config".as_ref(), config.as_ref()];
    let arguments = [&first, arguments].concat();
    node.daemon = Some(Daemon::start_program(&node.world, "env", &arguments).expect("it can be started"));
}

/// The answer on the health port's `/readyz`: the status, and the lines.
fn readyz(node: &Node) -> Result<(u16, Vec<String>), String> {
    let answer = get(node, &format!("{NODE_IP}:10256"), "/readyz")?.ok_or("nobody listens")?;
    Ok((answer.status, answer.body.lines().map(str::to_owned).collect()))
}

/// What the daemon says that it waits for, on its metrics port.
fn awaited(node: &Node) -> Result<Vec<String>, String> {
    let answer = get(node, "127.0.0.1:10249", "/nftproxyd/status")?.ok_or("nobody listens")?;
    let status: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
    serde_json::from_value(status["awaited"].clone()).map_err(|error| error.to_string())
}

/// An API server that has no EndpointSlices, then a table that somebody else owns: what is missing has a name everywhere,
/// and nobody is told that the proxy is ready.
#[test]
fn a_start_names_what_it_waits_for() {
    let Some((mut node, api)) = node_with_api() else { return };
    let Some(owner) = Owner::of(&node, "ip6 nftproxyd") else { return };
    let manager = Manager::of(&node);
    api.set_absent(&["endpointslices"]);
    api.apply(service_cidr());
    api.apply(node_object(&[]));
    let kubeconfig = node.file("kubeconfig");
    spawn(&mut node, &json!({"clientConnection": {"kubeconfig": kubeconfig}}), &[]);

    let expected = ["the first list of EndpointSlices", "table ip nftproxyd", "table ip6 nftproxyd"];
    let lines = expected.map(|name| format!("waiting for: {name}"));
    node.eventually("the other lists are there", |node| match readyz(node)? {
        (503, said) if said == lines => Ok(()),
        said => Err(format!("{said:?}")),
    });
    assert_eq!(awaited(&node).expect("it is served"), expected);
    let line = format!("waiting for: {}", expected.join(", "));
    node.wait_for_log("the first words", |found| found.ends_with(&line));
    // The table of the owner is there, and this daemon has none.
    let status = run_to_end(&node, true, &["status"]).stdout;
    let never = |family| status.lines().any(|line| line.starts_with(&format!("{family}      NEVER IN SYNC")));
    assert!(never("IPv4") && never("IPv6") && !status.contains("in sync"), "{status}");
    assert!(status.contains(&format!("start     waits for {}\n", expected.join(", "))), "{status}");
    assert_eq!(manager.heard(), None);

    api.set_absent(&[]);
    let table = "waiting for: table ip6 nftproxyd (the table belongs to netlink port";
    node.eventually("one table is in line", |node| match readyz(node)? {
        (503, said) if matches!(&said[..], [line] if line.starts_with(table)) => Ok(()),
        said => Err(format!("{said:?}")),
    });
    // The kinds are followed once their watches have lasted a second.
    let mut status = String::new();
    node.eventually("the status says so", |node| {
        status = run_to_end(node, true, &["status"]).stdout;
        let is_so =
            status.contains("IPv4      in sync; ") && status.contains("IPv6      NEVER IN SYNC: the table belongs");
        if is_so { Ok(()) } else { Err(status.clone()) }
    });
    assert!(status.contains("start     waits for table ip6 nftproxyd (the table belongs to netlink port"), "{status}");
    assert_eq!(manager.heard(), None);
    assert!(!node.log().lines().any(|line| line.ends_with(" ready")), "{}", node.log());

    drop(owner);
    node.eventually("ready", |node| match readyz(node)? {
        (200, said) if said == ["ok"] => Ok(()),
        said => Err(format!("{said:?}")),
    });
    node.eventually("it is told", |_| {
        manager.heard().filter(|text| text == "READY=1").map(drop).ok_or("silent".into())
    });
    assert_eq!(awaited(&node).expect("it is served"), Vec::<String>::new());
    let status = run_to_end(&node, true, &["status"]).stdout;
    assert!(status.contains("IPv6      in sync; ") && !status.contains("waits for"), "{status}");
    node.stop();
}

/// Without a table of any kind, too, `status` says what the daemon waits for, and that nothing is proxied.
#[test]
fn status_says_what_a_daemon_without_tables_waits_for() {
    let Some((mut node, api)) = node_with_api() else { return };
    api.set_absent(&["services"]);
    api.apply(service_cidr());
    api.apply(node_object(&[]));
    let kubeconfig = node.file("kubeconfig");
    let nobody = run_to_end(&node, true, &["status"]);
    assert_eq!((nobody.status, nobody.stdout.as_str()), (Some(1), ""));
    spawn(&mut node, &json!({"clientConnection": {"kubeconfig": kubeconfig}}), &[]);
    let names = ["the first list of Services", "table ip nftproxyd", "table ip6 nftproxyd"];
    node.eventually("the other lists are there", |node| match awaited(node)? {
        said if said == names => Ok(()),
        said => Err(format!("{said:?}")),
    });
    let status = run_to_end(&node, true, &["status"]);
    assert!(status.stdout.contains(&format!("start     waits for {}\n", names.join(", "))), "{}", status.stdout);
    assert_eq!(status.status, Some(1));
    assert!(status.stderr.contains("there is no table nftproxyd"), "{}", status.stderr);
    node.stop();
}

/// A port that somebody else has, as a kube-proxy that is to be taken over from may, is named and holds up nobody.
#[test]
fn a_busy_port_is_named_and_does_not_hold_up_the_start() {
    let Some(mut node) = Node::new() else { return };
    let manager = Manager::of(&node);
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    let port = format!("{NODE_IP}:10256");
    let address = port.clone();
    let taken = node.world.run(move || TcpListener::bind(address)).expect("it is free");
    let folder = node.folder();
    spawn(&mut node, &json!({"healthzBindAddress": port}), &["--manifests".as_ref(), folder.as_ref()]);
    node.eventually("it is told", |_| {
        manager.heard().filter(|text| text == "READY=1").map(drop).ok_or("silent".into())
    });
    node.wait_forward("it is ready in fact", "172.30.1.1:80", &["10.1.0.1:8080"]);
    let named = format!("the health port {port} (Address already in use (os error 98))");
    assert_eq!(awaited(&node).expect("it is served"), std::slice::from_ref(&named));
    let status = run_to_end(&node, true, &["status"]).stdout;
    assert!(status.contains(&format!("start     waits for {named}\n")), "{status}");

    drop(taken);
    node.eventually("the port is tried again", |node| match readyz(node)? {
        (200, said) if said == ["ok"] => Ok(()),
        said => Err(format!("{said:?}")),
    });
    assert_eq!(awaited(&node).expect("it is served"), Vec::<String>::new());
    node.stop();
}
