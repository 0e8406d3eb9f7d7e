//! The page that turns commands for kube-proxy into ours (`deploy/commands.md`): each of ours that stands there is run, on a
//! node that serves the demo.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::netns::has;
use crate::support::daemon::Daemon;
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(30);
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const PAGE: &str = include_str!("../../deploy/commands.md");

/// How a command begins that is not run here, and why.
const NOT_RUN: [(&str, &str); 3] =
    [("kubectl ", "there is no cluster"), ("nftproxyd --config=FILE", "FILE"), ("nftproxyd check-config FILE", "FILE")];
/// Not while the daemon runs.
const AT_THE_END: &str = "nftproxyd cleanup";

/// The commands in the right column of the page's tables, in order.
fn commands() -> Vec<String> {
    let mut commands = Vec::new();
    for row in PAGE.lines().filter(|line| line.starts_with("| ")) {
        // A bar inside of a command is escaped.
        let cells: Vec<String> =
            row.replace("\\|", "\u{0}").split('|').map(|cell| cell.replace('\u{0}', "|")).collect();
        let [_, _, ours, _] = &cells[..] else { panic!("two columns: {row}") };
        let quoted = ours.split('`').skip(1).step_by(2);
        commands.extend(quoted.filter(|text| is_command(text)).map(str::to_owned));
    }
    commands
}

fn is_command(text: &str) -> bool {
    let program = text.split(' ').next().unwrap_or_default();
    ["nftproxyd", "nft", "conntrack", "curl", "timeout", "kubectl"].contains(&program) && text != "nftproxyd"
}

/// Runs a command on the node as it stands on the page.
fn run(world: &World, command: &str) -> Result<String, String> {
    let folder = Path::new(env!("CARGO_BIN_EXE_nftproxyd")).parent().expect("a folder").display();
    let path = format!("{folder}:{}", std::env::var("PATH").expect("there is one"));
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("PATH", path).current_dir(REPOSITORY);
    let output = world.run(move || shell.output()).expect("it can be started");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if output.status.success() { Ok(said[0].clone()) } else { Err(said.concat()) }
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    if !has(&["curl", "conntrack"]) {
        return;
    }
    let Some(world) = World::new(&[IpAddr::from([10, 125, 0, 1])], &[]) else { return };
    let manifests = Path::new(REPOSITORY).join("testdata/demo");
    let arguments = [format!("--manifests={}", manifests.display()), "--hostname-override=node-1".to_owned()];
    let mut daemon = Daemon::start(&world, &arguments).expect("it can be started");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");

    let (at_the_end, while_it_runs): (Vec<_>, Vec<_>) =
        commands.iter().partition(|command| command.starts_with(AT_THE_END));
    for command in while_it_runs {
        if NOT_RUN.iter().any(|(beginning, _)| command.starts_with(beginning)) {
            continue;
        }
        // What is listened to for a second has nothing to say.
        let succeeds = !command.contains("nft monitor") && !command.contains("|| true");
        match run(&world, command) {
            Ok(said) => assert!(!succeeds || !said.is_empty() || command.contains("conntrack"), "{command}: nothing"),
            Err(said) => panic!("{command}: {said}"),
        }
    }
    // They say what the page says of them.
    for (command, expected) in [
        ("nftproxyd status", "shop/web:http"),
        ("nftproxyd status 10.96.0.80:80", "10.124.0.13:8080"),
        ("timeout --preserve-status 2 nftproxyd status --watch 1", "sorted by new connections a second"),
        ("nftproxyd status shop/web --history", "Service shop/web: written in "),
        ("nftproxyd explain 10.125.0.2 10.96.0.80:80", "=> REACHED"),
        (
            "nftproxyd explain --manifests testdata/demo --hostname-override node-1 10.125.0.2 shop/web",
            "10.125.0.2 -> 192.0.2.80:80 tcp",
        ),
        ("nft list map ip nftproxyd endpoints | grep '10.96.0.80 . tcp . 80 '", "10.124.0.12 . 8080"),
        ("nft list map ip nftproxyd service-nodeports", "tcp . 30080"),
        ("nft list set ip nftproxyd nodeport-ips", "10.125.0.1"),
        ("curl --fail http://127.0.0.1:10249/proxyMode", "nftables"),
        ("curl --fail http://127.0.0.1:10249/metrics", "kubeproxy_sync_proxy_rules_last_timestamp_seconds"),
    ] {
        assert!(commands.iter().any(|it| it == command), "the page has no {command}");
        let said = run(&world, command).unwrap_or_else(|said| panic!("{command}: {said}"));
        assert!(said.contains(expected), "{command}: {said}");
    }

    assert!(daemon.terminate(PATIENCE).expect("it ends").success(), "{}", daemon.log());
    assert_eq!(at_the_end.len(), 2);
    for command in at_the_end {
        run(&world, command).unwrap_or_else(|said| panic!("{command}: {said}"));
    }
    assert!(!world.nft(&["list", "tables"], "").expect("it can be asked").contains("nftproxyd"));
}
