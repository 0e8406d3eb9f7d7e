//! The maker of network namespaces that all tests use, and the rule for what cannot run on a machine.

#[path = "support/netns/mod.rs"]
mod netns;

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use netns::{Namespace, has, in_namespace, ip, set_sysctl, skip};

const PATIENCE: Duration = Duration::from_secs(30);

/// The namespace of this thread, as the kernel names it.
fn current() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").expect("procfs is mounted")
}

#[test]
fn a_namespace_is_new_and_its_loopback_is_up() {
    let (outside, setting) = (current(), "/proc/sys/net/ipv4/ip_forward");
    let forwards = || fs::read_to_string(setting).expect("a setting").trim() == "1";
    let forwards_outside = forwards();
    in_namespace(|| {
        assert_ne!(current(), outside);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback is up");
        set_sysctl("ipv4/ip_forward", if forwards_outside { "0" } else { "1" }).expect("a setting of the namespace");
        assert_ne!(forwards(), forwards_outside);
        assert_eq!(set_sysctl("ipv4/nothing", "1").expect_err("no").kind(), std::io::ErrorKind::NotFound);
        let inside = current();
        thread::spawn(move || assert_eq!(current(), inside)).join().expect("threads stay in it");
    });
    let Some(namespace) = Namespace::for_test() else { return };
    let here = current();
    assert_ne!(namespace.run(current), here);
    assert_eq!(namespace.run(current), namespace.run(current), "one for all jobs");
    assert_eq!(current(), here, "whoever makes one stays where it is");
    assert_eq!(forwards(), forwards_outside);
}

#[test]
fn many_can_be_made_at_once() {
    thread::scope(|scope| {
        let listen = || in_namespace(|| drop(TcpListener::bind("127.0.0.1:80").expect("nobody else is here")));
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(listen)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it works"));
    });
}

fn pair() -> Option<(Namespace, Namespace)> {
    let (near, far) = (Namespace::for_test()?, Namespace::for_test()?);
    near.join("to-far", &far, "eth0");
    Some((near, far))
}

#[test]
fn packets_pass_between_two() {
    let Some((near, far)) = pair() else { return };
    near.run(|| {
        ip("address add 192.0.2.1/24 dev to-far");
        ip("link set to-far up");
    });
    let server = far.run(|| {
        ip("address add 192.0.2.2/24 dev eth0");
        ip("link set eth0 up");
        UdpSocket::bind("192.0.2.2:7").expect("a free port")
    });
    server.set_read_timeout(Some(PATIENCE)).expect("settable");
    let client = near.run(|| UdpSocket::bind("192.0.2.1:0").expect("a free port"));
    client.send_to(b"hello", "192.0.2.2:7").expect("there is a route");
    let mut received = [0; 5];
    assert_eq!(server.recv_from(&mut received).expect("it arrives").1, client.local_addr().expect("an address"));
    assert_eq!(&received, b"hello");
}

/// The far end of the pair goes with its namespace, and takes the near end along.
#[test]
fn nothing_is_left_of_one_whose_test_panics() {
    let Some((near, far)) = pair() else { return };
    let is_there = || near.run(|| fs::read_to_string("/proc/thread-self/net/dev").expect("devices").contains("to-far"));
    assert!(is_there());
    let panic = catch_unwind(AssertUnwindSafe(move || far.run(|| panic!("the test has failed"))));
    assert_eq!(panic.expect_err("it is one of the caller").downcast_ref(), Some(&"the test has failed"));
    let end = Instant::now() + PATIENCE;
    while is_there() {
        assert!(Instant::now() < end, "the namespace is still there");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs one of the tests below, at home or in CI; without capabilities, or with nothing installed.
fn outcome(test: &str, ci: bool, circumstances: Circumstances) -> Output {
    let this = std::env::current_exe().expect("this test");
    let mut command = match circumstances {
        Circumstances::Unprivileged => Command::new("setpriv"),
        Circumstances::NothingInstalled | Circumstances::Same => Command::new(&this),
    };
    match circumstances {
        Circumstances::Unprivileged => drop(command.arg("--bounding-set=-all").arg(&this)),
        Circumstances::NothingInstalled => drop(command.env("PATH", Path::new("/nowhere"))),
        Circumstances::Same => {}
    }
    command.args(["--ignored", "--exact", test]).env_remove("CI");
    if ci {
        command.env("CI", "true");
    }
    command.output().expect("it can be started")
}

#[derive(Clone, Copy, Debug)]
enum Circumstances {
    Same,
    Unprivileged,
    NothingInstalled,
}

#[test]
fn what_cannot_run_is_said_at_home_and_fails_in_ci() {
    use Circumstances::{NothingInstalled, Same, Unprivileged};
    if Namespace::for_test().is_none() || !has(&["setpriv"]) {
        return;
    }
    for (test, circumstances, missing) in [
        ("needs_a_program", Same, "no-such-program"),
        ("needs_a_namespace", Unprivileged, "permission to make network namespaces"),
        ("needs_a_namespace", NothingInstalled, "ip"),
    ] {
        let home = outcome(test, false, circumstances);
        let said = String::from_utf8_lossy(&home.stderr).into_owned();
        assert!(home.status.success(), "{test} {circumstances:?}: {said}");
        let line = format!("SKIPPED {test}: needs {missing}: ");
        assert_eq!(said.lines().filter(|said| said.starts_with(&line)).count(), 1, "{circumstances:?}: {said}");

        let ci = outcome(test, true, circumstances);
        let said = String::from_utf8_lossy(&ci.stdout).into_owned() + &String::from_utf8_lossy(&ci.stderr);
        assert!(!ci.status.success(), "{test} {circumstances:?} passes in CI: {said}");
        assert!(said.contains(&format!("{test} cannot run without {missing}: ")), "{circumstances:?}: {said}");
    }
    let runs = outcome("needs_a_namespace", true, Same);
    assert!(runs.status.success(), "{}", String::from_utf8_lossy(&runs.stdout));
    assert_eq!(String::from_utf8_lossy(&runs.stderr), "", "what can run is not skipped");
    // What the machine of CI is known not to have.
    for ci in [false, true] {
        let skipped = outcome("needs_ipvs", ci, Same);
        assert!(skipped.status.success(), "{}", String::from_utf8_lossy(&skipped.stdout));
        assert_eq!(String::from_utf8_lossy(&skipped.stderr), "SKIPPED needs_ipvs: needs IPVS: two lines; in one\n");
    }
}

#[test]
#[ignore = "run by what_cannot_run_is_said_at_home_and_fails_in_ci"]
fn needs_a_program() {
    assert!(!has(&["sh", "no-such-program"]));
}

#[test]
#[ignore = "run by what_cannot_run_is_said_at_home_and_fails_in_ci"]
fn needs_a_namespace() {
    in_namespace(|| assert!(Path::new("/proc/thread-self/ns/net").exists()));
}

#[test]
#[ignore = "run by what_cannot_run_is_said_at_home_and_fails_in_ci"]
fn needs_ipvs() {
    skip("IPVS", "two lines\nin one\n");
}
