//! Certificates and keys, made by openssl.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "this is the interface for tests, though no crate can reach it")]

use std::path::Path;
use std::process::{Command, Output};

/// Kinds of keys, as `openssl req` takes them.
pub const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const P384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
pub const P521: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"];
pub const ED25519: &[&str] = &["-newkey", "ed25519"];
pub const RSA_1024: &[&str] = &["-newkey", "rsa:1024"];
pub const RSA_2048: &[&str] = &["-newkey", "rsa:2048"];

/// Extensions of a server's certificate.
pub const SERVER: &[&str] =
    &["basicConstraints=critical,CA:false", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:192.0.2.1,IP:192.0.2.10"];
/// Extensions of a client's certificate.
pub const CLIENT: &[&str] = &["basicConstraints=critical,CA:false", "extendedKeyUsage=clientAuth"];

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    /// Of an authority.
    pub fn authority(name: &str, key: &[&str]) -> Pair {
        make(None, name, key, &["keyUsage=critical,keyCertSign"])
    }

    /// A certificate that it signs.
    pub fn signs(&self, name: &str, key: &[&str], extensions: &[&str]) -> Pair {
        make(Some(self), name, key, extensions)
    }

    /// One that is signed by itself.
    pub fn alone(name: &str, key: &[&str], extensions: &[&str]) -> Pair {
        make(None, name, key, extensions)
    }

    /// A certificate of X.509 version 1 that it signs.
    pub fn signs_version_1(&self, name: &str) -> Pair {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        write(&path("ca"), &self.certificate);
        write(&path("ca.key"), &self.key);
        write(&path("config"), "[req]\ndistinguished_name = name\n[name]\n");
        let (subject, key, request) = (format!("/CN={name}"), path("key"), path("request"));
        let (out, config, ca, ca_key) = (path("out"), path("config"), path("ca"), path("ca.key"));
        let new = ["req", "-config", &config, "-nodes", "-subj", &subject, "-keyout", &key];
        let signed = ["-CA", &ca, "-CAkey", &ca_key, "-days", "2", "-out", &out];
        // Before OpenSSL 3.3 there is no such option, but what has no extensions is of version 1.
        if !succeeds(&[&new, P256, &["-x509v1"], &signed]) {
            openssl(&[&new, P256, &["-new", "-out", &request]]);
            openssl(&[&["x509", "-req", "-in", &request], &signed]);
        }
        Pair { certificate: read(out), key: read(key) }
    }
}

fn make(by: Option<&Pair>, name: &str, key: &[&str], extensions: &[&str]) -> Pair {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (subject, out, out_key) = (format!("/CN={name}"), path("out"), path("key"));
    let mut arguments =
        vec!["req", "-x509", "-nodes", "-days", "2", "-subj", &subject, "-out", &out, "-keyout", &out_key];
    arguments.extend(extensions.iter().flat_map(|extension| ["-addext", extension]));
    let (ca, ca_key) = (path("ca"), path("ca.key"));
    if let Some(by) = by {
        write(&ca, &by.certificate);
        write(&ca_key, &by.key);
        arguments.extend(["-CA", &ca, "-CAkey", &ca_key]);
    }
    openssl(&[&arguments, key]);
    Pair { certificate: read(&out), key: read(&out_key) }
}

fn openssl(arguments: &[&[&str]]) {
    let output = run(arguments);
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn succeeds(arguments: &[&[&str]]) -> bool {
    run(arguments).status.success()
}

fn run(arguments: &[&[&str]]) -> Output {
    let output = Command::new("openssl").args(arguments.concat()).output();
    output.expect("openssl is installed: see deploy/setup-debian")
}

fn write(path: &str, text: &str) {
    std::fs::write(path, text).expect("a file can be written");
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).expect("openssl has written it")
}
