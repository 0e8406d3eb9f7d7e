//! `nftproxyd status --watch` on a terminal, which is left as it was however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::support::daemon::Daemon;
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_nftproxyd");

fn node() -> Option<World> {
    World::new(&[IpAddr::from([192, 0, 2, 10])], &[])
}

/// A terminal and the program on it.
pub(crate) struct Terminal {
    child: Child,
    keys: File,
    shown: Receiver<Vec<u8>>,
    text: String,
    /// The side of the program, kept open so that what it leaves can be looked at.
    line: OwnedFd,
}

impl Terminal {
    /// Columns and lines are its size.
    pub(crate) fn start(world: &World, (columns, lines): (u16, u16), args: &[&str]) -> Terminal {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("a terminal");
        let mut command = Command::new(PROGRAM);
        let side = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.args(args).stdin(side()).stdout(side()).stderr(side());
        let child = world.spawn(command).expect("it can be started");
        let mut screen = File::from(master.try_clone().expect("a descriptor"));
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keys: File::from(master), shown, text: String::new(), line: slave }
    }

    /// Waits until this is shown, after what was waited for before. Returns what was in between.
    pub(crate) fn wait_for(&mut self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                let mut before = std::mem::replace(&mut self.text, rest);
                before.truncate(at);
                return before;
            }
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{what:?} is not shown ({error}): {:?}", self.text),
            }
        }
    }

    /// The lines of the next frame.
    pub(crate) fn frame(&mut self) -> Vec<String> {
        self.wait_for("\x1b[H");
        let drawn = self.wait_for("\x1b[J").replace("\x1b[K", "");
        drawn.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect()
    }

    /// Types `q`, and waits for the end.
    pub(crate) fn quit(&mut self) {
        self.keys.write_all(b"q").expect("it can be typed");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }

    /// Whether lines are gathered, and shown as they are typed.
    fn modes(&self) -> [bool; 2] {
        let flags = tcgetattr(&self.line).expect("a terminal").local_flags;
        [LocalFlags::ICANON, LocalFlags::ECHO].map(|flag| flags.contains(flag))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        kill(pid, signal).expect("it runs");
    }
}

#[test]
fn the_terminal_is_left_as_it_was() {
    let Some(world) = node() else { return };
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
    let daemon = Daemon::start(&world, &["run", "--manifests", manifests, "--hostname-override", "node-1"])
        .expect("it can start");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).expect("it syncs");
    for end in ["q", "SIGINT", "SIGTERM"] {
        let mut terminal = Terminal::start(&world, (80, 20), &["status", "--watch", "1"]);
        terminal.wait_for("\x1b[?1049h\x1b[?25l\x1b[H");
        terminal.wait_for("sorted by new connections a second");
        terminal.wait_for("\x1b[J");
        assert_eq!(terminal.modes(), [false, false], "keys come at once");
        terminal.keys.write_all(b"c").expect("it can be typed");
        terminal.wait_for("sorted by connections;");
        terminal.keys.write_all(b"xn").expect("it can be typed");
        terminal.wait_for("sorted by name;");
        terminal.wait_for("NEW/S");
        terminal.wait_for("shop/web:http");
        match end {
            "q" => terminal.keys.write_all(b"q").expect("it can be typed"),
            "SIGINT" => terminal.signal(Signal::SIGINT),
            _ => terminal.signal(Signal::SIGTERM),
        }
        terminal.wait_for("\x1b[?25h\x1b[?1049l");
        let status = terminal.child.wait().expect("it ends");
        assert!(status.success(), "{end}: {status}");
        assert_eq!(terminal.modes(), [true, true], "{end}");
    }
}

#[test]
fn without_a_terminal_frames_follow_each_other() {
    let Some(world) = node() else { return };
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
    let daemon = Daemon::start(&world, &["run", "--manifests", manifests, "--hostname-override", "node-1"])
        .expect("it can start");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).expect("it syncs");
    let mut command = Command::new("sh");
    let line = format!("timeout --preserve-status 2.5 {PROGRAM} status shop/web --watch 1");
    command.args(["-c", &line]);
    let output = world.run(move || command.output()).expect("it can be started");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && !text.contains('\x1b'), "{}: {text}", output.status);
    assert!((2..=3).contains(&text.matches("\nsorted by ").count()), "{text}");
    assert!(text.contains("shop/web:http") && !text.contains("shop/dns:dns"), "{text}");
    assert!(text.contains("\nlast changes\n") && text.contains(" Service shop/web: written in "), "{text}");
    // Nobody reads any more.
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{PROGRAM} status --watch 1 | head -1")]);
    let output = world.run(move || command.output()).expect("it can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args);
        let output = world.run(move || command.output()).expect("it can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let rate = run(&["status", "shop/web", "--rate"]);
    assert!(rate.contains("  NEW/S\n") && rate.ends_with(", 0.0 new a second\n"), "{rate}");
    let history = run(&["status", "shop/dns", "--history"]);
    assert!(history.lines().all(|line| line.contains("shop/dns")) && history.lines().count() == 3, "{history}");
    let json: serde_json::Value = serde_json::from_str(&run(&["status", "--history", "-o", "json"])).expect("JSON");
    assert_eq!(json[0]["result"], "written", "{json}");
    // Nothing is said to be nothing, and who reads no more is no error.
    let mut command = Command::new(PROGRAM);
    command.args(["status", "--history", "nosuch/x"]);
    let none = world.run(move || command.output()).expect("it can be started");
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(none.status.success() && said.ends_with("remembers no change of nosuch/x\n"), "{said}");
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", &format!("{PROGRAM} trace --seconds 1 shop/web | true")]);
    let piped = world.run(move || command.output()).expect("it can be started");
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
}
