//! What is taken of servers, and what is said of the rest.

use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;

use super::*;
use crate::source::kube::connect::access::Origin;
use crate::testing::certificates::{CLIENT, ED25519, P256, P384, P521, Pair, RSA_1024, RSA_2048, SERVER};

fn der(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("PEM")
}

fn verifier(authorities: &[&Pair]) -> Verifier {
    let certificates = authorities.iter().map(|pair| der(pair)).collect();
    Verifier::new(&Authorities::Of(certificates, Origin::File("/ca.crt".into())))
}

/// What becomes of a server's certificate in so many seconds.
fn checked(verifier: &Verifier, server: &Pair, name: &str, seconds: i64) -> Result<(), String> {
    let now = UnixTime::now().as_secs().checked_add_signed(seconds).expect("a time");
    let name = ServerName::try_from(name).expect("a name");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    verifier
        .verify_server_cert(&der(server), &[], &name, &[], now)
        .map(drop)
        .map_err(|error| words(&error).expect("it is explained"))
}

#[test]
fn every_kind_of_key_is_taken() {
    for key in [P256, P384, P521, ED25519, RSA_2048] {
        let authority = Pair::authority("ca", key);
        let server = authority.signs("server", key, SERVER);
        assert_eq!(checked(&verifier(&[&authority]), &server, "127.0.0.1", 0), Ok(()), "{key:?}");
    }
}

#[test]
fn a_certificate_that_is_itself_among_the_authorities_is_taken() {
    let other = Pair::authority("other", P256);
    for extensions in [SERVER, &["basicConstraints=critical,CA:true", SERVER[1]]] {
        let server = Pair::alone("server", P256, extensions);
        let verifier = verifier(&[&other, &server]);
        assert_eq!(checked(&verifier, &server, "127.0.0.1", 0), Ok(()));
        let later = checked(&verifier, &server, "127.0.0.1", 9_999_999).expect_err("it has expired");
        assert!(later.contains("has expired at"), "{later}");
        let before = checked(&verifier, &server, "127.0.0.1", -9_999_999).expect_err("it is not valid yet");
        assert!(before.contains("is not valid before"), "{before}");
        let elsewhere = checked(&verifier, &server, "10.0.0.1", 0).expect_err("it has another name");
        assert!(elsewhere.contains("is not for 10.0.0.1"), "{elsewhere}");
    }
    let client = Pair::alone("client", P256, &[CLIENT[0], CLIENT[1], SERVER[1]]);
    let wrong = checked(&verifier(&[&client]), &client, "127.0.0.1", 0).expect_err("it is for a client");
    assert!(wrong.contains("needs serverAuth"), "{wrong}");
}

#[test]
fn what_is_refused_is_named_with_its_property_and_what_to_do() {
    let authority = Pair::authority("kubernetes", P256);
    let known = verifier(&[&authority]);
    let server = authority.signs("kube-apiserver", P256, SERVER);
    let weak = Pair::authority("weak-ca", RSA_1024);
    let weakly_signed = weak.signs("kube-apiserver", P256, SERVER);
    let nameless = authority.signs("localhost", P256, &SERVER[..1]);
    let of_authority = authority.signs("kube-apiserver", P256, &["basicConstraints=critical,CA:true", SERVER[1]]);
    let for_client = authority.signs("kube-apiserver", P256, &[CLIENT[0], CLIENT[1], SERVER[1]]);
    let sha_1 = authority.signs("kube-apiserver", &[P256, &["-sha1"]].concat(), SERVER);
    let prefix = "the certificate of the API server (CN=kube-apiserver) ";
    for (verifier, server, name, seconds, expected) in [
        (&known, &server, "127.0.0.1", 9_999_999, "has expired at 20"),
        (&known, &server, "127.0.0.1", -9_999_999, "is not valid before 20"),
        (
            &verifier(&[&weak]),
            &server,
            "127.0.0.1",
            0,
            "is signed by CN=kubernetes, which is not known to the authority of file /ca.crt: add it there",
        ),
        (
            &known,
            &server,
            "api.example",
            0,
            "is not for api.example, but for localhost, 127.0.0.1, 192.0.2.1, 192.0.2.10: use one of these as server, \
             or as tls-server-name",
        ),
        (&known, &nameless, "localhost", 0, "names no host or address as subjectAltName (its CN does not count)"),
        (&known, &of_authority, "127.0.0.1", 0, "is that of an authority (CA:TRUE): give the server one with CA:FALSE"),
        (&known, &for_client, "127.0.0.1", 0, "is not for servers: its extendedKeyUsage needs serverAuth"),
        (&known, &sha_1, "127.0.0.1", 0, "is signed in a way that is not taken, such as with SHA-1"),
        (
            &verifier(&[&weak]),
            &weakly_signed,
            "127.0.0.1",
            0,
            "is signed by CN=weak-ca, which has a key of RSA with 1024 bits: 2048 or more are needed",
        ),
        (&known, &authority.signs_version_1("kube-apiserver"), "127.0.0.1", 0, "is of X.509 version 1"),
    ] {
        let said = checked(verifier, server, name, seconds).expect_err(expected);
        let prefix = if server.certificate == nameless.certificate {
            prefix.replace("kube-apiserver", "localhost")
        } else {
            prefix.to_owned()
        };
        assert!(said.starts_with(&prefix) && said.contains(expected), "{expected}: {said}");
        assert!(said.lines().count() == 1 && said.len() < 280, "{said}");
    }
    // That a key is too weak is seen when it is used.
    let weak = authority.signs("kube-apiserver", RSA_1024, SERVER);
    let wrong = Error::InvalidCertificate(CertificateError::BadSignature);
    let said = words(&known.explained(wrong, &der(&weak), &[]));
    assert_eq!(said, Some(format!("{prefix}has a key of RSA with 1024 bits: 2048 or more are needed")));
}

#[test]
fn without_an_authority_nothing_is_taken() {
    let server = Pair::alone("server", P256, SERVER);
    let said = checked(&verifier(&[]), &server, "127.0.0.1", 0).expect_err("nobody is trusted");
    assert!(said.contains("is not known to"), "{said}");
}
