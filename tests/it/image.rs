//! The root of the container image: whether it has all that the program needs, and no more; and the archive that is made of
//! it, read back by the rules of the OCI image layout.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

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
    let program = folder.path().join("nftproxyd");
    // As packages and images have it; and it is packed sooner.
    output(Command::new("strip").arg("-o").args([&program, Path::new(env!("CARGO_BIN_EXE_nftproxyd"))]));
    output(Command::new(Path::new(REPOSITORY).join("deploy/image-root")).args([&program, &root]));

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

    let file = folder.path().join("image.tar");
    let said = output(&mut image_archive(&file, &[(machine(), &root)]));
    for command in ["ctr --namespace k8s.io images import", "kind load image-archive", "podman load --input"] {
        assert!(said.contains(&format!("{command} image.tar")), "{said}");
    }
    let image = Image::read(&file, &folder.path().join("layout"));
    let [(_, config, layer)] = &image.images[..] else { panic!("one architecture") };
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).expect("a folder");
    output(Command::new("tar").args(["--extract", "--gzip", "--file"]).arg(layer).arg("--directory").arg(&unpacked));
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/local/bin/nftproxyd"]));
    assert_eq!(listing(&unpacked), listing(&root));

    let manifests = Path::new(REPOSITORY).join("testdata/demo");
    let arguments = ["--mount", "sh", "-c", START, "sh"].map(Path::new);
    let arguments: Vec<&Path> = arguments.into_iter().chain([unpacked.as_path(), &manifests]).collect();
    let mut daemon = Daemon::start_program(&world, "unshare", &arguments).expect("it can be started");
    daemon.wait_for_log(|line| line.contains("in sync"), PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    let healthz = http::get(&world, (Ipv4Addr::LOCALHOST, 10256).into(), "/healthz");
    assert_eq!(healthz, Answer::Status(200), "{}", daemon.log());
    let listing = world.nft(&["list", "map", "ip", "nftproxyd", "service-ips"], "").expect("the map is there");
    assert!(listing.contains("shop/web"), "{listing}");
    assert!(daemon.terminate(PATIENCE).expect("it ends").success(), "{}", daemon.log());
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The architecture of this machine, as images name it.
fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn image_archive(file: &Path, roots: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(Path::new(REPOSITORY).join("deploy/image-archive"));
    command.arg(file);
    command.args(roots.iter().map(|(architecture, root)| format!("{architecture}={}", root.display())));
    command
}

/// Every path below a folder, with its kind and rights, and where links lead.
fn listing(folder: &Path) -> String {
    output(Command::new("find").arg(".").args(["-printf", "%P %y %#m %l\n"]).current_dir(folder).env("LC_ALL", "C"))
        .lines()
        .filter(|line| !line.starts_with(' '))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
        .join("\n")
}

fn sha256(file: &Path) -> String {
    let printed = output(Command::new("sha256sum").arg(file));
    printed.split(' ').next().expect("a sum").to_owned()
}

/// An archive that has been read: every descriptor in it tells the truth about what it refers to.
struct Image {
    folder: PathBuf,
    /// What container runtimes call it.
    name: String,
    /// Architecture, configuration and the file with the one layer of each.
    images: Vec<(String, Value, PathBuf)>,
}

impl Image {
    fn read(file: &Path, folder: &Path) -> Image {
        fs::create_dir(folder).expect("a folder");
        output(Command::new("tar").arg("--extract").arg("--file").arg(file).arg("--directory").arg(folder));
        let json = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON") };
        assert_eq!(json(&folder.join("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
        let blob = |descriptor: &Value, media_type: &str| {
            assert_eq!(descriptor["mediaType"], media_type, "{descriptor}");
            let sum =
                descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
            let path = folder.join("blobs/sha256").join(sum);
            assert_eq!(sha256(&path), sum);
            assert_eq!(descriptor["size"], fs::metadata(&path).expect("it is there").len());
            path
        };
        let (index, manifest) =
            ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json");
        let top = json(&folder.join("index.json"));
        let [entry] = &top["manifests"].as_array().expect("a list")[..] else { panic!("one image") };
        let mut images = Vec::new();
        for entry in json(&blob(entry, index))["manifests"].as_array().expect("a list") {
            let manifest = json(&blob(entry, manifest));
            let config = json(&blob(&manifest["config"], "application/vnd.oci.image.config.v1+json"));
            let [layer] = &manifest["layers"].as_array().expect("layers")[..] else { panic!("one layer") };
            let layer = blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip");
            for field in ["architecture", "os"] {
                assert_eq!(config[field], entry["platform"][field], "{field}");
            }
            let plain = folder.join("plain");
            fs::write(&plain, Command::new("gzip").arg("-dc").arg(&layer).output().expect("gzip").stdout)
                .expect("written");
            assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&plain))]));
            images.push((config["architecture"].as_str().expect("text").to_owned(), config, layer));
        }
        // The same for Docker's own reader.
        let for_docker = json(&folder.join("manifest.json"));
        let name = entry["annotations"]["io.containerd.image.name"].as_str().expect("a name").to_owned();
        assert_eq!(for_docker[0]["RepoTags"], json!([name]));
        assert_eq!(json(&folder.join(for_docker[0]["Config"].as_str().expect("a path"))), images[0].1);
        assert_eq!(folder.join(for_docker[0]["Layers"][0].as_str().expect("a path")), images[0].2);
        Image { folder: folder.to_owned(), name, images }
    }
}

/// Roots with something in them.
fn small_roots(folder: &Path) -> [PathBuf; 2] {
    ["one", "two"].map(|name| {
        let root = folder.join(name);
        fs::create_dir_all(root.join("usr/bin")).expect("folders");
        fs::write(root.join("usr/bin/program"), name).expect("written");
        fs::write(root.join("etc"), "").expect("written");
        std::os::unix::fs::symlink("usr/bin", root.join("bin")).expect("a link");
        root
    })
}

#[test]
fn an_archive_holds_one_image_for_each_architecture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [one, two] = small_roots(folder.path());
    let file = folder.path().join("image.tar");
    output(&mut image_archive(&file, &[("amd64", &one), ("arm64", &two)]));
    let image = Image::read(&file, &folder.path().join("layout"));
    let architectures: Vec<_> = image.images.iter().map(|(architecture, ..)| architecture.as_str()).collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    assert_eq!(image.name, concat!("docker.io/library/nftproxyd:", env!("CARGO_PKG_VERSION")));
    for ((_, _, layer), content) in image.images.iter().zip(["one", "two"]) {
        let mut read = Command::new("tar");
        read.args(["--extract", "--gzip", "--to-stdout", "--file"]).arg(layer).arg("usr/bin/program");
        assert_eq!(output(&mut read), content);
    }
    // What `kubectl exec` runs without a path, and the labels of the other way to build it.
    let containerfile = fs::read_to_string(Path::new(REPOSITORY).join("deploy/Containerfile")).expect("a file");
    let config = &image.images[0].1["config"];
    assert!(containerfile.contains(&format!("\nENV {}\n", config["Env"][0].as_str().expect("a variable"))));
    assert!(containerfile.contains(&format!("\nENTRYPOINT {}\n", config["Entrypoint"])));
    let labels = config["Labels"].as_object().expect("labels");
    for (name, value) in labels.iter().filter(|(name, _)| !name.ends_with(".version")) {
        assert!(containerfile.contains(&format!("{name}={value}")), "{name}={value}");
    }
    assert!(labels.len() > 3, "{labels:?}");
    // Nothing but what is referred to: index, manifests, configurations, layers.
    assert_eq!(fs::read_dir(image.folder.join("blobs/sha256")).expect("a folder").count(), 1 + 3 * 2);
}

#[test]
fn the_same_root_gives_the_same_archive() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archives = ["first", "second"].map(|name| {
        let [root, _] = small_roots(&folder.path().join(name));
        let file = folder.path().join(name).join("image.tar");
        let mut command = image_archive(&file, &[("amd64", &root)]);
        if name == "second" {
            // At another time, by somebody else, somewhere else.
            output(Command::new("touch").args(["-d", "2001-01-01"]).arg(root.join("etc")));
            output(Command::new("chmod").arg("700").arg(root.join("usr")));
            output(Command::new("chown").arg("1").arg(root.join("usr/bin/program")));
            command.env("TZ", "Asia/Tokyo").env("LC_ALL", "C.UTF-8").current_dir("/");
        }
        output(&mut command);
        fs::read(&file).expect("it is there")
    });
    assert!(archives[0] == archives[1], "they differ");
}
