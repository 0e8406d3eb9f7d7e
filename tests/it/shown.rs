//! What the front page and the manual show of `explain` and `status --watch` (`testdata/terminal`) is what they print, on a node
//! that serves the demo. It was recorded in the network of `deploy/try`, with connections; numbers of these differ here.
//!
//! `NFTPROXYD_UPDATE=1 cargo test --test it -- shown` replaces the lines that are not the same any more. Then the pictures and the
//! manual are to be written as well: `NFTPROXYD_UPDATE=1 cargo test --test readme --test cli`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::world::{Interface, World};
use crate::watch::Terminal;

const PATIENCE: Duration = Duration::from_secs(30);
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
/// How a recording begins.
const PROMPT: &str = "# nftproxyd ";
/// Of the terminal that was recorded.
const SIZE: (u16, u16) = (100, 24);

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/terminal").join(name).with_extension("txt")
}

/// The line without what differs from one time to the next: numbers, and how long a change took.
fn lasting(line: &str) -> String {
    let line = line.split_once(": written in ").map_or(line, |(change, _)| change);
    let is_time = |word: &str| word.matches([':', '-']).count() == 2 && word.starts_with(|c: char| c.is_ascii_digit());
    let is_number = |word: &str| word.trim_matches(['(', ')', ',']).parse::<f64>().is_ok();
    let words = line.split_whitespace().map(|word| if is_time(word) || is_number(word) { "#" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// The lasting parts. Rows of frontends are in alphabetical order: they are sorted by what differs.
fn all_lasting<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut lines: Vec<String> = lines.map(lasting).collect();
    if let Some(heading) = lines.iter().position(|line| line.starts_with("NEW/S ")) {
        let end = lines[heading..].iter().position(String::is_empty).map_or(lines.len(), |rows| heading + rows);
        lines[heading + 1..end].sort();
    }
    lines
}

/// What is wrong with a recording if this is printed now.
fn compare(name: &str, printed: &[String]) -> Result<(), String> {
    let path = recording(name);
    let recorded = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines: Vec<&str> = recorded.trim_end().lines().skip(1).collect();
    let found = all_lasting(printed.iter().map(|line| line.trim_end()));
    if found == all_lasting(lines.iter().copied()) {
        return Ok(());
    }
    Err(format!("{}:\n{recorded}\nis now\n{}", path.display(), printed.join("\n")))
}

/// Asks until what is printed is what was recorded: a change may be on its way. Or records it.
fn is_shown(name: &str, mut print: impl FnMut(&[&str]) -> Vec<String>) {
    let recorded = fs::read_to_string(recording(name)).expect("a recording");
    let command = recorded.lines().next().and_then(|line| line.strip_prefix(PROMPT)).expect("a command").to_owned();
    let arguments: Vec<&str> = command.split(' ').collect();
    let end = Instant::now() + PATIENCE / 3;
    loop {
        let printed = print(&arguments);
        match compare(name, &printed) {
            Ok(()) => return,
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            Err(_) if std::env::var_os("NFTPROXYD_UPDATE").is_some() => return update(name, &recorded, &printed),
            Err(why) => panic!("{why}"),
        }
    }
}

/// Lines that say the same stay, with the numbers that they have.
fn update(name: &str, recorded: &str, printed: &[String]) {
    let old: Vec<&str> = recorded.lines().collect();
    let mut text = format!("{}\n", old[0]);
    for line in printed {
        let kept = old.iter().find(|old| lasting(old) == lasting(line) && !old.is_empty());
        text += &format!("{}\n", kept.unwrap_or(&line.as_str()).trim_end());
    }
    fs::write(recording(name), text).expect("it can be written");
}

/// The node of `deploy/try`: a device for the client, and one for each pod of the Service.
fn node() -> Option<World> {
    let device = |name: &str, ips: [&str; 2], cidrs: [&str; 2]| Interface {
        name: name.to_owned(),
        ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        cidrs: cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect(),
    };
    let client = device("client", ["10.125.0.1", "fd00:10:125::1"], ["10.125.0.0/24", "fd00:10:125::/64"]);
    let pods = [("web-1", 11), ("web-2", 12), ("web-3", 13)].map(|(pod, number)| {
        let cidrs = [format!("10.124.0.{number}/32"), format!("fd00:10:124::{number}/128")];
        device(pod, ["10.124.0.1", "fd00:10:124::1"], [&cidrs[0], &cidrs[1]])
    });
    World::new(&[], &[&[client][..], &pods[..]].concat())
}

#[test]
fn it_is_printed_as_it_is_shown() {
    let Some(world) = node() else { return };
    let manifests = tempfile::tempdir().expect("a folder");
    let copied = fs::read_dir(DEMO).expect("the demo").map(|entry| entry.expect("a file").path());
    copied.for_each(|path| {
        fs::copy(&path, manifests.path().join(path.file_name().expect("a name"))).expect("it can be copied");
    });
    let edit = |file: &str, change: &dyn Fn(&str) -> String| {
        let text = change(&fs::read_to_string(Path::new(DEMO).join(file)).expect("it is there"));
        let new = manifests.path().join("edited");
        fs::write(&new, text).and_then(|()| fs::rename(&new, manifests.path().join(file))).expect("it can be replaced");
    };
    let folder = manifests.path().to_str().expect("text");
    let daemon =
        Daemon::start(&world, &["run", "--manifests", folder, "--hostname-override", "node-1"]).expect("it can start");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    let print = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nftproxyd"));
        command.args(arguments);
        let output = world.run(move || command.output()).expect("it can be started");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
    };

    is_shown("explain-served", print);
    is_shown("explain-node-port", print);
    let drops = "table inet fw { chain forward { type filter hook forward priority filter; policy accept; \
                 ip daddr 10.124.0.12 drop; }; }";
    world.nft(&["-f", "-"], drops).expect("it can be added");
    is_shown("explain-dropped", print);
    world.nft(&["delete", "table", "inet", "fw"], "").expect("it is there");
    is_shown("explain-served", print);

    edit("endpointslice-web-ipv4.yaml", &|text| {
        text.lines().filter(|line| !line.contains("10.124.0.13")).collect::<Vec<_>>().join("\n")
    });
    let mut terminal = None;
    is_shown("status-watch", |arguments| {
        terminal.get_or_insert_with(|| Terminal::start(&world, SIZE, arguments)).frame()
    });
    terminal.expect("it was started").quit();

    edit("service-web.yaml", &|text| {
        text.replace("  type: LoadBalancer", "  type: LoadBalancer\n  externalTrafficPolicy: Local")
    });
    edit("endpointslice-web-ipv4.yaml", &|text| text.replace("nodeName: node-1", "nodeName: node-2"));
    is_shown("explain-local", print);
}

#[test]
fn what_differs_each_time_is_no_part_of_it() {
    assert_eq!(lasting("IPv4      in sync; last synced 2 s ago"), lasting("IPv4      in sync; last synced 11 s ago"));
    assert_eq!(lasting("15.0   140    tcp 10.96.0.80:80"), "# # tcp 10.96.0.80:80");
    let change = "2026-11-30 19:05:55.388 EndpointSlice shop/web-ipv4: written in 2834 us (16 operations";
    assert_eq!(lasting(change), "# # EndpointSlice shop/web-ipv4");
    assert_ne!(lasting("=> REACHED"), lasting("=> DROPPED"));
    assert_ne!(lasting("10.124.0.11:8080  33.3%"), lasting("10.124.0.12:8080  33.3%"));
}
