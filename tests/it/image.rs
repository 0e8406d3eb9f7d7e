//! The root of the container image: whether it has all that the program needs, and no more.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::http::{self, Answer};
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(30);
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// As a runtime starts it: a read-only root, `/proc`, a volume, and of all capabilities one, beside the one to get there.
const START: &str =
    "mount --bind \"$1\" \"$1\" && mount --bind \"$2\" \"$1/var/lib\" && mount -t proc proc \"$1/proc\" &&
    mount -o remount,bind,ro \"$1\" && cd / && exec env -i \"$(command -v setpriv)\" --no-new-privs \
    --bounding-set=-all,+net_admin,+sys_chroot \"$(command -v chroot)\" \"$1\" /usr/local/bin/kube-proxy \
    --manifests=/var/lib --hostname-override=node-1";

fn executables(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("it has a type");
        if kind.is_dir() {
            executables(&entry.path(), found);
        } else if kind.is_file() && entry.metadata().expect("it is there").permissions().mode() & 0o111 != 0 {
            found.push(entry.path());
        }
    }
}

#[test]
fn the_image_has_what_the_program_needs_and_no_shell() {
    let Some(world) = World::new(&[IpAddr::from([192, 0, 2, 10])], &[]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path().join("root");
    let made = Command::new(Path::new(REPOSITORY).join("deploy/image-root"))
        .args([Path::new(env!("CARGO_BIN_EXE_nftproxyd")), &root])
        .output()
        .expect("it can be started");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let mut found = Vec::new();
    executables(&root, &mut found);
    for path in &found {
        let name = path.file_name().and_then(|name| name.to_str()).expect("text");
        assert!(name == "nftproxyd" || name.starts_with("libc.so") || name.starts_with("ld-"), "{}", path.display());
    }
    let certificates = fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("they are there");
    assert!(certificates.matches("BEGIN CERTIFICATE").count() > 50);
    for package in ["nftproxyd", "libnftnl11", "libmnl0", "libc6"] {
        assert!(root.join("usr/share/doc").join(package).join("copyright").is_file(), "{package}");
    }
    // The texts of licences that these refer to are there, too; and which source belongs to what.
    let mut referred = 0;
    for package in fs::read_dir(root.join("usr/share/doc")).expect("a folder") {
        let path = package.expect("an entry").path().join("copyright");
        let copyright = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for after in copyright.split("/usr/share/common-licenses/").skip(1) {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.').unwrap_or(after.len());
            let licence = after[..end].trim_end_matches('.');
            let text = root.join("usr/share/common-licenses").join(licence);
            assert!(text.is_file(), "{}: there is no {}", path.display(), text.display());
            referred += 1;
        }
    }
    assert!(referred > 3, "only {referred} texts are referred to");
    let packages = fs::read_to_string(root.join("usr/share/doc/nftproxyd/packages")).expect("a list");
    assert!(packages.contains("libnftnl11 ") && packages.contains(": source package libnftnl "), "{packages}");

    let manifests = Path::new(REPOSITORY).join("testdata/demo");
    let arguments = ["--mount", "sh", "-c", START, "sh"].map(Path::new);
    let arguments: Vec<&Path> = arguments.into_iter().chain([root.as_path(), &manifests]).collect();
    let mut daemon = Daemon::start_program(&world, "unshare", &arguments).expect("it can be started");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    let healthz = http::get(&world, (Ipv4Addr::LOCALHOST, 10256).into(), "/healthz");
    assert_eq!(healthz, Answer::Status(200), "{}", daemon.log());
    let listing = world.nft(&["list", "map", "ip", "nftproxyd", "service-ips"], "").expect("the map is there");
    assert!(listing.contains("shop/web"), "{listing}");
    assert!(daemon.terminate(PATIENCE).expect("it ends").success(), "{}", daemon.log());
}
