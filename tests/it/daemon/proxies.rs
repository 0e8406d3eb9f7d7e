//! Proxies between the daemon and the API server.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::lose_old_connections;
use super::{NODE_IP, Node, OTHER_IP, PATIENCE, PROGRAM, web};
use crate::api::{Api, Verb};
use crate::support::daemon::Daemon;

/// A proxy in the node: for CONNECT or, where a connection begins with a 5, SOCKS 5. It ends when dropped.
struct Proxy {
    listener: TcpListener,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// Where a client wanted to go.
#[derive(Debug, Clone, PartialEq)]
struct Heard {
    by: &'static str,
    target: String,
    authorization: Option<String>,
}

impl Proxy {
    fn new(node: &Node) -> Proxy {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let of_thread = Arc::clone(&heard);
        let listener = node.world.run(move || {
            let listener = TcpListener::bind((OTHER_IP, 0)).expect("the address is the node's");
            let accepting = listener.try_clone().expect("a second descriptor");
            thread::spawn(move || {
                for client in accepting.incoming() {
                    let (Ok(client), heard) = (client, Arc::clone(&of_thread)) else { return };
                    thread::spawn(move || serve(client, &heard));
                }
            });
            listener
        });
        Proxy { listener, heard }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Whoever waits for connections on it hears of this.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

fn serve(mut client: TcpStream, heard: &Mutex<Vec<Heard>>) -> io::Result<()> {
    let mut first = [0];
    client.peek(&mut first)?;
    let asked = if first == [5] { socks(&mut client)? } else { connect(&client)? };
    let server = TcpStream::connect(&asked.target)?;
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    match asked.by {
        "socks" => client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?,
        _ => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?,
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        to_server.shutdown(Shutdown::Write)
    });
    let _ = io::copy(&mut &server, &mut client);
    client.shutdown(Shutdown::Both)
}

/// Reads a request; nothing comes behind it before it is answered.
fn connect(client: &TcpStream) -> io::Result<Heard> {
    let mut lines = BufReader::new(client).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let target = request.strip_prefix("CONNECT ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    let target = target.ok_or_else(|| io::Error::other(request.clone()))?.to_owned();
    let mut authorization = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        authorization = line.strip_prefix("Proxy-Authorization: ").map(str::to_owned).or(authorization);
    }
    Ok(Heard { by: "connect", target, authorization })
}

/// RFC 1928, without a user and with an IPv4 address.
fn socks(client: &mut TcpStream) -> io::Result<Heard> {
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting)?;
    client.write_all(&[5, 0])?;
    let mut request = [0; 10];
    client.read_exact(&mut request)?;
    let [5, 1, 0, 1, a, b, c, d, high, low] = request else { return Err(io::Error::other("another request")) };
    let target = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low]))).to_string();
    Ok(Heard { by: "socks", target, authorization: None })
}

/// A node with an API server on its own address: loopback is never behind a proxy.
fn node_with_api() -> Option<(Node, Api)> {
    let node = Node::new()?;
    let listener = node.world.run(|| TcpListener::bind((NODE_IP, 0))).expect("the address is the node's");
    let api = Api::start(listener);
    for object in web("web", "172.30.1.1", &["10.1.0.1:8080"]) {
        api.apply(object);
    }
    Some((node, api))
}

/// Starts the daemon with this environment and, in its kubeconfig, this `proxy-url`.
fn spawn(node: &mut Node, api: &Api, environment: &[(&str, &str)], proxy_url: Option<&str>) {
    let mut kubeconfig: Value = serde_json::from_str(&api.kubeconfig()).expect("JSON");
    if let Some(url) = proxy_url {
        kubeconfig["clusters"][0]["cluster"]["proxy-url"] = url.into();
    }
    let path = node.file("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).expect("a file can be written");
    let config = node.write_config(&json!({"clientConnection": {"kubeconfig": path}}));
    spawn_with(node, environment, &[format!("--config={}", config.display())]);
}

fn spawn_with(node: &mut Node, environment: &[(&str, &str)], arguments: &[String]) {
    // Not with what the tests themselves were started with.
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
    let mut all: Vec<String> = names.into_iter().map(|name| format!("--unset={name}")).collect();
    all.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    all.push(PROGRAM.to_owned());
    all.extend_from_slice(arguments);
    all.push("--hostname-override=node-0".to_owned());
    node.daemon = Some(Daemon::start_program(&node.world, "env", &all).expect("the daemon can be started"));
}

fn synced(node: &mut Node) {
    node.wait_for_log("in sync", |line| line.contains(" in sync services=1 "));
    node.wait_forward("it works", "172.30.1.1:80", &["10.1.0.1:8080"]);
}

#[test]
fn the_proxy_of_the_environment_is_used_and_its_password_not_shown() {
    let Some((mut node, api)) = node_with_api() else { return };
    let proxy = Proxy::new(&node);
    let url = format!("http://me:s%40cret@{}", proxy.address());
    let by_kubeconfig: [&[(&str, &str)]; 2] =
        [&[("HTTP_PROXY", &url)], &[("http_proxy", &url), ("NO_PROXY", "192.0.2.11")]];
    for environment in by_kubeconfig {
        let before = proxy.heard().len();
        spawn(&mut node, &api, environment, None);
        synced(&mut node);
        // One for each kind, that goes on with the watch.
        let heard = &proxy.heard()[before..];
        assert!(heard.len() >= 4, "{heard:?}");
        let expected = Heard {
            by: "connect",
            target: api.address().to_string(),
            authorization: Some("Basic bWU6c0BjcmV0".into()),
        };
        assert!(heard.iter().all(|heard| *heard == expected), "{heard:?}");
        let name = environment[0].0;
        let said = format!("through the proxy http://me:***@{}/ ({name})", proxy.address());
        assert!(node.log().contains(&said) && !node.log().contains("cret@"), "{}", node.log());
        node.stop();
    }

    let before = proxy.heard().len();
    spawn_with(&mut node, &[("HTTP_PROXY", &url)], &[format!("--master={}", api.url())]);
    synced(&mut node);
    assert!(proxy.heard().len() >= before + 4, "--master as well");
    node.stop();
}

#[test]
fn a_server_that_no_proxy_names_is_asked_directly() {
    let Some((mut node, api)) = node_with_api() else { return };
    let proxy = Proxy::new(&node);
    let alive = format!("http://{}", proxy.address());
    // Nobody listens there.
    let dead = format!("http://{OTHER_IP}:1");
    let with_port = format!("a.example,{}", api.address());
    for (url, exceptions) in [
        (&*alive, NODE_IP),
        (&*alive, "10.96.0.0/12, 192.0.2.0/26,.svc"),
        (&*dead, "10.96.0.0/12,,192.0.2.0/26,.svc,"),
        (&*dead, &*with_port),
        (&*dead, "*"),
    ] {
        for [proxy_name, exceptions_name] in [["HTTP_PROXY", "NO_PROXY"], ["http_proxy", "no_proxy"]] {
            let environment = [(proxy_name, url), ("HTTPS_PROXY", dead.as_str()), (exceptions_name, exceptions)];
            spawn(&mut node, &api, &environment, None);
            synced(&mut node);
            assert!(node.log().contains(&format!("{proxy_name} is not used")), "{}", node.log());
            node.stop();
        }
    }
    assert_eq!(proxy.heard(), []);
}

#[test]
fn an_environment_that_cannot_be_used_is_a_warning() {
    let Some((mut node, api)) = node_with_api() else { return };
    for url in ["ftp://me:secret@192.0.2.77", "http://me:secret@", "socks5://me:secret@192.0.2.77"] {
        // The other variable is for servers with TLS.
        spawn(&mut node, &api, &[("HTTP_PROXY", url), ("HTTPS_PROXY", "http://192.0.2.77:1")], None);
        synced(&mut node);
        let log = node.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("HTTP_PROXY=")).collect();
        assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("connected to directly"), "{log}");
        assert!(!log.contains("secret"), "{log}");
        node.stop();
    }
}

#[test]
fn the_proxy_of_the_kubeconfig_goes_before_the_environment() {
    let Some((mut node, api)) = node_with_api() else { return };
    let proxy = Proxy::new(&node);
    for (scheme, by) in [("http", "connect"), ("socks5", "socks")] {
        let before = proxy.heard().len();
        let url = format!("{scheme}://{}", proxy.address());
        spawn(&mut node, &api, &[("HTTP_PROXY", "http://192.0.2.77:1"), ("NO_PROXY", "*")], Some(&url));
        synced(&mut node);
        let heard = &proxy.heard()[before..];
        let expected = Heard { by, target: api.address().to_string(), authorization: None };
        assert!(heard.len() >= 4 && heard.iter().all(|heard| *heard == expected), "{heard:?}");
        node.stop();
    }
    spawn(&mut node, &api, &[], Some("ftp://me:secret@192.0.2.77"));
    let line = node.wait_for_log("it is said", |line| line.contains("proxy-url"));
    assert!(
        line.contains("me:***@192.0.2.77") && line.contains("kubeconfig") && line.contains("take it out"),
        "{line}"
    );
    node.eventually("it ends", |node| if node.daemon().alive() { Err("it runs".to_owned()) } else { Ok(()) });
    assert!(!node.log().contains("secret"), "{}", node.log());
}

#[test]
fn a_proxy_that_is_dead_is_said_and_tried_again() {
    let Some((mut node, api)) = node_with_api() else { return };
    let proxy = Proxy::new(&node);
    let address = proxy.address();
    drop(proxy);
    spawn(&mut node, &api, &[("HTTP_PROXY", &format!("http://me:secret@{address}"))], None);
    node.wait_for_log("it is said", |line| line.contains("nothing is known yet") && line.contains("tunnel"));
    assert!(node.daemon().alive() && !node.log().contains("secret"), "{}", node.log());
    assert_eq!(api.requests(), [], "not directly");
    let status = node.daemon.take().expect("it was started").terminate(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
}

#[test]
fn a_connection_through_a_proxy_that_is_dead_without_a_word_is_given_up() {
    // Bookmarks come once a minute: what only waits for one needs 90 s.
    const PATIENCE: Duration = Duration::from_secs(45);
    let Some((mut node, api)) = node_with_api() else { return };
    let proxy = Proxy::new(&node);
    spawn(&mut node, &api, &[], Some(&format!("http://{}", proxy.address())));
    synced(&mut node);
    node.eventually("it watches", |_| match api.requests_for("services", Verb::Watch).is_empty() {
        false => Ok(()),
        true => Err("not asked for".to_owned()),
    });
    lose_old_connections(&node, proxy.address().port());
    let began = Instant::now();
    for object in web("new", "172.30.1.2", &["10.1.0.2:8080"]) {
        api.apply(object);
    }
    while !node.table("ip").expect("the table is there").contains("shop/new") {
        assert!(began.elapsed() < PATIENCE, "nothing new after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("noticed after {:?}", began.elapsed());
    node.stop();
}

#[test]
fn an_address_where_nobody_answers_is_given_up() {
    let Some((mut node, api)) = node_with_api() else { return };
    let port = api.address().port();
    let lost = format!(
        "table inet lost {{ chain lost {{ type filter hook output priority -300; tcp dport {port} drop; }}; }}"
    );
    node.world.nft(&["-f", "-"], &lost).expect("rules of the test's own");
    let began = Instant::now();
    spawn(&mut node, &api, &[], None);
    node.wait_for_log("it is said", |line| line.contains("nothing is known yet"));
    let after = began.elapsed();
    println!("said after {after:?}");
    assert!(after < Duration::from_secs(25), "{after:?}");
    node.stop();
}
