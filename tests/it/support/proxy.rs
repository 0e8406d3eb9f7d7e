//! The proxies that scenarios can be run against.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::canary;
use super::daemon::Daemon;
use super::objects::ObjectKey;
use super::world::World;

/// A service proxy in a node. Objects are whole and have all defaults.
pub(crate) trait Proxy {
    /// Starts it. `config` is a `KubeProxyConfiguration` that does not say yet where the objects come from. There are
    /// objects before the start.
    fn start(&mut self, world: &World, config: &Value) -> Result<(), String>;

    /// Creates or changes an object.
    fn apply(&mut self, world: &World, object: &Value) -> Result<(), String>;

    /// Deletes an object, if it is there.
    fn delete(&mut self, world: &World, key: &ObjectKey) -> Result<(), String>;

    /// Whether it runs.
    fn alive(&mut self) -> bool;

    /// Whether `explain` has to say of packets what becomes of them.
    fn is_explained(&self) -> bool {
        false
    }

    /// What it has said.
    fn log(&self) -> String;

    /// Ends it as an administrator would; it is an error when it has failed or must be killed.
    fn stop(&mut self) -> Result<(), String>;
}

/// The daemon, with a folder of manifests: one file for each object.
pub(crate) struct WithManifests {
    files: TempDir,
    daemon: Option<Daemon>,
}

impl WithManifests {
    pub(crate) fn new() -> Result<WithManifests, String> {
        let files = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
        let proxy = WithManifests { files, daemon: None };
        std::fs::create_dir(proxy.folder()).map_err(|error| error.to_string())?;
        Ok(proxy)
    }

    fn folder(&self) -> PathBuf {
        self.files.path().join("manifests")
    }

    fn manifest(&self, key: &ObjectKey) -> PathBuf {
        self.folder().join(format!("{}_{}_{}.yaml", key.kind, key.namespace, key.name).to_lowercase())
    }
}

impl Proxy for WithManifests {
    fn start(&mut self, world: &World, config: &Value) -> Result<(), String> {
        let file = write_yaml(&self.files, "config.yaml", config)?;
        let folder = self.folder();
        let arguments =
            ["run".as_ref(), "--manifests".as_ref(), folder.as_os_str(), "--config".as_ref(), file.as_os_str()];
        self.daemon = Some(Daemon::start(world, &arguments).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn apply(&mut self, _: &World, object: &Value) -> Result<(), String> {
        // Written elsewhere and moved, so that nobody reads half of it.
        let written = write_yaml(&self.files, "next.yaml", object)?;
        std::fs::rename(written, self.manifest(&ObjectKey::of(object))).map_err(|error| error.to_string())
    }

    fn delete(&mut self, _: &World, key: &ObjectKey) -> Result<(), String> {
        match std::fs::remove_file(self.manifest(key)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn is_explained(&self) -> bool {
        true
    }

    fn alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Daemon::alive)
    }

    fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    fn stop(&mut self) -> Result<(), String> {
        stop(&mut self.daemon)
    }
}

/// An API server, or what stands in for it, in the namespace of a node.
pub(crate) trait ApiServer {
    /// Creates or changes an object.
    fn apply(&mut self, object: &Value) -> Result<(), String>;

    /// Deletes an object, if it is there.
    fn delete(&mut self, key: &ObjectKey) -> Result<(), String>;

    /// The text of a kubeconfig file by which a process of the node reaches it.
    fn kubeconfig(&self) -> String;
}

/// The daemon, with an API server.
pub(crate) struct WithApi {
    files: TempDir,
    api: Box<dyn ApiServer>,
    daemon: Option<Daemon>,
}

impl WithApi {
    pub(crate) fn new(api: Box<dyn ApiServer>) -> Result<WithApi, String> {
        let files = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
        Ok(WithApi { files, api, daemon: None })
    }
}

impl Proxy for WithApi {
    fn start(&mut self, world: &World, config: &Value) -> Result<(), String> {
        let kubeconfig = self.files.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.api.kubeconfig()).map_err(|error| error.to_string())?;
        let mut config = config.clone();
        config["clientConnection"]["kubeconfig"] = json!(kubeconfig);
        let file = write_yaml(&self.files, "config.yaml", &config)?;
        let arguments = ["run".as_ref(), "--config".as_ref(), file.as_os_str()];
        self.daemon = Some(Daemon::start(world, &arguments).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn apply(&mut self, _: &World, object: &Value) -> Result<(), String> {
        self.api.apply(object)
    }

    fn delete(&mut self, _: &World, key: &ObjectKey) -> Result<(), String> {
        self.api.delete(key)
    }

    fn alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Daemon::alive)
    }

    fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    fn stop(&mut self) -> Result<(), String> {
        stop(&mut self.daemon)
    }
}

/// Rules made by hand, to try the harness itself. Only the canary's objects matter: its rules follow them.
pub(crate) struct HandMade {
    rules: String,
    canary_ports: Value,
    canary_ips: Vec<String>,
    canary_endpoints: Vec<String>,
    started: bool,
}

impl HandMade {
    /// `rules` is what `nft -f` reads.
    pub(crate) fn new(rules: &str) -> HandMade {
        HandMade {
            rules: rules.to_owned(),
            canary_ports: Value::Null,
            canary_ips: Vec::new(),
            canary_endpoints: Vec::new(),
            started: false,
        }
    }

    fn load_canary(&self, world: &World) -> Result<(), String> {
        let mut rules = "table inet canary {}\ndelete table inet canary\ntable inet canary {\n".to_owned();
        rules.push_str("chain nat-prerouting { type nat hook prerouting priority -110\n");
        for ip in &self.canary_ips {
            let family = if ip.contains(':') { "ip6" } else { "ip" };
            let to = self.canary_endpoints.iter().find(|endpoint| endpoint.contains('[') == ip.contains(':'));
            if let Some(to) = to {
                let port = &self.canary_ports[0]["port"];
                rules.push_str(&format!("{family} daddr {ip} udp dport {port} dnat {family} to {to}\n"));
            }
        }
        rules.push_str("}\n}\n");
        world.nft(&["-f", "-"], &rules).map(drop).map_err(|error| error.to_string())
    }
}

impl Proxy for HandMade {
    fn start(&mut self, world: &World, _: &Value) -> Result<(), String> {
        world.nft(&["-f", "-"], &self.rules).map_err(|error| error.to_string())?;
        self.started = true;
        self.load_canary(world)
    }

    fn apply(&mut self, world: &World, object: &Value) -> Result<(), String> {
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let key = ObjectKey::of(object);
        match key.kind.as_str() {
            _ if key.namespace != canary::NAMESPACE => return Ok(()),
            "Service" => {
                self.canary_ports = object["spec"]["ports"].clone();
                self.canary_ips = texts(&object["spec"]["clusterIPs"]);
                self.canary_endpoints.clear();
            }
            "EndpointSlice" => {
                let port = object["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                for address in texts(&object["endpoints"][0]["addresses"]) {
                    let ip = address.parse().map_err(|error| format!("{address}: {error}"))?;
                    self.canary_endpoints.push(SocketAddr::new(ip, port.ok_or("no port")?).to_string());
                }
            }
            _ => {}
        }
        if self.started { self.load_canary(world) } else { Ok(()) }
    }

    fn delete(&mut self, _: &World, _: &ObjectKey) -> Result<(), String> {
        Ok(())
    }

    fn alive(&mut self) -> bool {
        self.started
    }

    fn log(&self) -> String {
        "(rules made by hand)".to_owned()
    }

    fn stop(&mut self) -> Result<(), String> {
        self.started = false;
        Ok(())
    }
}

fn write_yaml(files: &TempDir, name: &str, value: &Value) -> Result<PathBuf, String> {
    let path = files.path().join(name);
    let text = serde_yaml::to_string(value).map_err(|error| error.to_string())?;
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn stop(daemon: &mut Option<Daemon>) -> Result<(), String> {
    let Some(daemon) = daemon else { return Ok(()) };
    let status = daemon.terminate(Duration::from_secs(20)).map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}")) }
}
