//! Scenario files, as `testdata/scenarios/README.md` describes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Map, Value};

use super::objects::{self, ObjectKey};
use super::packet::Protocol;
use super::world::{Interface, Probe};

/// A state of a cluster, packets and what must become of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    #[serde(rename = "scenario")]
    pub(crate) name: String,
    #[serde(rename = "description")]
    _description: String,
    pub(crate) node: Node,
    /// Fields of a `KubeProxyConfiguration`.
    #[serde(default)]
    pub(crate) config: Map<String, Value>,
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    #[serde(default)]
    pub(crate) packets: Vec<Check>,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
}

/// The node that the proxy runs on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) ips: Vec<IpAddr>,
    #[serde(default)]
    labels: Map<String, Value>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(default)]
    pub(crate) interfaces: Vec<Interface>,
}

/// Changes, and checks after them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) apply: Vec<Value>,
    #[serde(default)]
    pub(crate) delete: Vec<ObjectKey>,
    /// Seconds that the proxy may clean up for when its rules are in place.
    #[serde(default)]
    pub(crate) wait: f64,
    #[serde(default)]
    pub(crate) packets: Vec<Check>,
}

/// One packet or request, and what must become of it.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) name: Option<String>,
    pub(crate) what: What,
}

/// What is checked.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Packet { probe: Probe, flow: Option<String>, expect: Expect },
    Http { server: SocketAddr, path: String, expect: ExpectHttp },
}

/// What must become of a packet.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expect {
    Reject,
    Drop,
    Pass,
    #[serde(untagged)]
    Forward(Forward),
}

/// Its destination must be changed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Forward {
    /// To one of these, and each of them is used.
    #[serde(rename = "forward")]
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) masq: Option<ExpectMasquerade>,
    /// The source that all endpoints see.
    pub(crate) source: Option<IpAddr>,
    /// Each client reaches one of the endpoints; not all of them need to be used.
    #[serde(default)]
    pub(crate) sticky: bool,
}

/// Which endpoints see another source than the client.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum ExpectMasquerade {
    All(bool),
    Only(Vec<SocketAddr>),
}

/// The answer to a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ExpectHttp {
    Refused,
    #[serde(untagged)]
    Status(u16),
}

/// One check as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckFields {
    name: Option<String>,
    from: Option<Clients>,
    #[serde(default)]
    proto: Protocol,
    to: Option<IpAddr>,
    http: Option<IpAddr>,
    port: u16,
    path: Option<String>,
    flow: Option<String>,
    expect: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(IpAddr),
    InTurn(Vec<IpAddr>),
}

impl<'de> Deserialize<'de> for Check {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Check, D::Error> {
        let fields = CheckFields::deserialize(deserializer)?;
        let called = fields.name.clone().unwrap_or_else(|| "a packet without a name".to_owned());
        let wrong = |why: String| D::Error::custom(format!("{called}: {why}"));
        let what = match (fields.from, fields.to, fields.http) {
            (Some(from), Some(to), None) => {
                let clients = match from {
                    Clients::One(client) => vec![client],
                    Clients::InTurn(clients) => clients,
                };
                if clients.is_empty() || clients.iter().any(|client| client.is_ipv4() != to.is_ipv4()) {
                    return Err(wrong("`from` and `to` must be of one family".to_owned()));
                }
                let expect: Expect = serde_json::from_value(fields.expect)
                    .map_err(|error| wrong(format!("`expect` is no outcome of a packet: {error}")))?;
                let probe = Probe { clients, protocol: fields.proto, destination: SocketAddr::new(to, fields.port) };
                What::Packet { probe, flow: fields.flow, expect }
            }
            (None, None, Some(server)) => What::Http {
                server: SocketAddr::new(server, fields.port),
                path: fields.path.unwrap_or_else(|| "/".to_owned()),
                expect: serde_json::from_value(fields.expect)
                    .map_err(|error| wrong(format!("`expect` is no answer to a request: {error}")))?,
            },
            _ => return Err(wrong("it has either `from` and `to`, or `http`".to_owned())),
        };
        Ok(Check { name: fields.name, what })
    }
}

impl Scenario {
    /// The objects at the beginning, with those that need not be written out: the ServiceCIDR and the Node.
    pub(crate) fn initial_objects(&self) -> Vec<Value> {
        let mut objects = vec![objects::service_cidr()];
        if self.objects.iter().all(|object| object["kind"] != "Node") {
            objects.push(objects::node(&self.node.name, &self.node.ips, &self.node.labels, &self.node.pod_cidrs));
        }
        objects.extend(self.objects.iter().cloned());
        objects
    }

    /// Changes what is expected of packets whose destination must be changed.
    pub(crate) fn each_forward(&mut self, mut change: impl FnMut(&mut Forward)) {
        let later = self.steps.iter_mut().flat_map(|step| &mut step.packets);
        for check in self.packets.iter_mut().chain(later) {
            if let What::Packet { expect: Expect::Forward(forward), .. } = &mut check.what {
                change(forward);
            }
        }
    }
}

/// Reads the scenarios of a file.
///
/// # Errors
/// What is wrong with it and where.
pub(crate) fn parse(text: &str) -> Result<Vec<Scenario>, String> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Scenario::deserialize(document).map_err(|error| error.to_string()))
        .collect()
}

/// All scenarios of `testdata/scenarios`, by name.
pub(crate) fn load_all() -> Result<BTreeMap<String, Scenario>, String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/scenarios");
    let mut all = BTreeMap::new();
    for entry in folder.read_dir().map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for scenario in parse(&text).map_err(|error| format!("{}: {error}", path.display()))? {
            if let Some(other) = all.insert(scenario.name.clone(), scenario) {
                return Err(format!("{}: a second scenario named {}", path.display(), other.name));
            }
        }
    }
    Ok(all)
}
