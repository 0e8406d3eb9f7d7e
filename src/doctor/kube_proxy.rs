//! What kube-proxy has left beside nftables: in IPVS and in legacy iptables. What it has in nftables, and in tables of
//! iptables-nft, is found among the tables.

use std::fs;
use std::io;
use std::path::Path;

use super::{Finding, Subject};
use crate::leftovers::legacy::Table;
use crate::leftovers::walk::needed;
use crate::leftovers::{NET, is_chain};

/// What there is to say about IPVS.
pub(super) fn ipvs(root: &Path) -> Finding {
    const FIX: &str = "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy";
    let text = |name: &str| match fs::read_to_string(root.join(NET).join(name)) {
        Ok(text) => Ok(text),
        // The module is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(format!("/proc/net/{name}: {error}")),
    };
    let (servers, devices) = match (text("ip_vs"), text("dev")) {
        (Ok(servers), Ok(devices)) => (servers, devices),
        (Err(error), _) | (_, Err(error)) => {
            let what = format!("nobody can tell whether IPVS of kube-proxy answers for Services: {error}");
            return Finding::unread(Subject::KubeProxy, what, "as root: nftproxyd doctor");
        }
    };
    let virtual_servers: Vec<&str> = servers.lines().filter(|line| is_virtual_server(line)).collect();
    let device = devices.lines().find(|line| line.trim_start().starts_with("kube-ipvs0:"));
    if virtual_servers.is_empty() && device.is_none() {
        return Finding::ok(Subject::KubeProxy, "there is nothing of kube-proxy in IPVS");
    }
    let named = if device.is_some() { ", interface kube-ipvs0" } else { "" };
    let what = format!("IPVS of kube-proxy answers for Services: {} virtual servers{named}", virtual_servers.len());
    let first = virtual_servers.first().map(|line| format!("/proc/net/ip_vs: {}", line.trim_end()));
    first.into_iter().fold(Finding::wrong(Subject::KubeProxy, what, FIX), Finding::proof)
}

fn is_virtual_server(line: &str) -> bool {
    ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind))
}

/// What there is to say about a table of legacy iptables. `mark` is the bit that we mark packets with.
pub(super) fn legacy(table: &Table, mark: u32) -> Option<Finding> {
    let Table { program, name, saved } = table;
    let saved = match saved {
        Ok(saved) => saved,
        Err(error) => {
            let what = format!("nobody can tell what is in table {name} of {program}, which is in use: {error}");
            let fix = format!("as root, with {program}-save installed: nftproxyd doctor");
            return Some(Finding::unread(Subject::KubeProxy, what, fix));
        }
    };
    let chains = Table::chains(saved, name, mark);
    let needed = needed(&chains);
    let stays = |name: &str| needed.iter().any(|(_, chain)| chain == name);
    let left: Vec<&str> =
        chains.iter().map(|chain| chain.name.as_str()).filter(|name| is_chain(name) && !stays(name)).collect();
    let first = left.first()?;
    let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
    let finding = Finding::wrong(
        Subject::KubeProxy,
        format!("chains of kube-proxy's iptables or ipvs mode in table {name} of {program}: {shown}{more}"),
        "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy",
    );
    Some(finding.proof(format!("{program}-save -t {name}: :{first} - ...")))
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;
    use crate::testing::root;

    #[test]
    fn virtual_servers_are_named() {
        let servers = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n\
                       \x20 -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                       TCP  AC1E0001:01BB rr\n  -> C0000201:192B      Masq    1      0          0\n";
        let with = root(&[
            ("proc/thread-self/net/ip_vs", servers),
            ("proc/thread-self/net/dev", "  lo: 0\nkube-ipvs0: 0 0\n"),
        ]);
        let finding = ipvs(with.path());
        assert_eq!(finding.grade, Grade::Wrong);
        assert!(finding.what.ends_with("1 virtual servers, interface kube-ipvs0"), "{finding:?}");
        assert_eq!(finding.proof, ["/proc/net/ip_vs: TCP  AC1E0001:01BB rr"]);
        assert_eq!(ipvs(root(&[]).path()).grade, Grade::Ok);
    }

    #[test]
    fn legacy_tables_are_read_or_said_not_to_be() {
        let table = |saved| legacy(&Table { program: "iptables-legacy", name: "filter".to_owned(), saved }, 0x4000);
        let error = || Err(io::Error::new(io::ErrorKind::NotFound, "is not installed"));
        assert_eq!(table(error()).map(|finding| finding.grade), Some(Grade::Unread));
        let docker = ":FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n:KUBE-FIREWALL - [0:0]\n-A FORWARD -j DOCKER-USER\n";
        assert_eq!(table(Ok(docker.to_owned())), None);
        let old = ":FORWARD ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n";
        let finding = table(Ok(old.to_owned())).expect("it is named");
        assert_eq!(finding.grade, Grade::Wrong);
        assert!(
            finding.what.ends_with("in table filter of iptables-legacy: KUBE-SERVICES, KUBE-FORWARD"),
            "{finding:?}"
        );
    }
}
