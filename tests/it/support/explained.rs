//! Whether `explain` says of packets what became of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use serde::Deserialize;

use super::outcome::{Kind, Masquerade, Outcome};
use super::world::{Probe, World};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_nftproxyd");

/// What matters of an explanation.
#[derive(Debug, Deserialize)]
struct Explanation {
    verdict: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: SocketAddr,
    sees: Option<String>,
}

/// The exit status that a verdict has.
const STATUSES: [(&str, i32); 6] =
    [("reached", 0), ("refused", 3), ("dropped", 4), ("not-ours", 5), ("unsure", 6), ("not-served", 7)];

/// Asks for an explanation of the packets of a probe, of each of its clients, and compares it with what became of them.
pub(crate) fn agrees(world: &World, probe: &Probe, outcome: &Outcome) -> Result<(), String> {
    let clients: BTreeSet<IpAddr> = probe.clients.iter().copied().collect();
    clients.into_iter().try_for_each(|client| {
        let (explanation, text) = explain(world, client, probe)?;
        compare(&explanation, outcome).map_err(|why| format!("explain says otherwise ({client}): {why}\n{text}"))
    })
}

fn explain(world: &World, client: IpAddr, probe: &Probe) -> Result<(Explanation, String), String> {
    let mut command = Command::new(PROGRAM);
    let protocol = format!("--proto={}", probe.protocol.to_string().to_lowercase());
    command.args(["explain", "-o", "json", &protocol, &client.to_string(), &probe.destination.to_string()]);
    let output = world.run(move || command.output()).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = |why: &str| format!("explain: {why}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let mut all: Vec<Explanation> = serde_json::from_str(&text).map_err(|error| failed(&error.to_string()))?;
    let (Some(explanation), true) = (all.pop(), all.is_empty()) else { return Err(failed("not one explanation")) };
    let status = STATUSES.iter().find(|(verdict, _)| *verdict == explanation.verdict).map(|(_, status)| *status);
    if status.is_none() || output.status.code() != status {
        return Err(failed(&format!("exit status {:?}", output.status.code())));
    }
    Ok((explanation, text))
}

fn compare(explanation: &Explanation, outcome: &Outcome) -> Result<(), String> {
    let Explanation { verdict, endpoints } = explanation;
    let wanted: &[&str] = match outcome.kind() {
        // Nobody answers the packets of these tests.
        Some(Kind::Forward) => &["reached", "not-served"],
        Some(Kind::Reject) => &["refused"],
        Some(Kind::Drop) => &["dropped"],
        Some(Kind::Pass) => &["not-ours"],
        None => return Ok(()),
    };
    if !wanted.contains(&verdict.as_str()) {
        return Err(format!("{verdict}, and the packets: {outcome}"));
    }
    let said: BTreeSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let met = outcome.endpoints();
    // One that is remembered goes to one by now, where the first packets of several clients went to all.
    let few = outcome.sticky() && !met.is_empty() && !said.is_empty() && (said.is_subset(&met) || met.is_subset(&said));
    let is_right = said == met || few;
    if !is_right {
        return Err(format!("endpoints {said:?}, and the packets: {outcome}"));
    }
    for Endpoint { address, sees } in endpoints {
        let is_masqueraded = match outcome.masquerade(address) {
            Masquerade::Yes => true,
            Masquerade::No => false,
            Masquerade::Unknown | Masquerade::Mixed => continue,
        };
        let source = sees.as_ref().and_then(|sees| sees.parse().ok());
        let is_seen = source.is_none_or(|source| outcome.sources().contains(&source));
        if sees.is_some() != is_masqueraded || !is_seen {
            return Err(format!("{address} sees {sees:?}, and the packets: {outcome}"));
        }
    }
    Ok(())
}
