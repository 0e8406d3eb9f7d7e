//! Kubeconfigs of all shapes: what is used, or the line that refuses them.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::ExecConfig;
use tempfile::TempDir;

use super::plugin::{Command, Plugin, pause_after};
use super::*;
use crate::testing::certificates::{CLIENT, ED25519, P256, P384, P521, Pair, RSA_1024, RSA_2048};

/// A folder with files for kubeconfigs to name.
struct Files(TempDir);

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().expect("a temporary folder"));
        let authority = Pair::authority("kubernetes", P256);
        let (client, other) = (authority.signs("node-a", P256, CLIENT), authority.signs("node-b", P256, CLIENT));
        let weak = authority.signs("weak", RSA_1024, CLIENT);
        for (name, text) in [
            ("ca.crt", &*authority.certificate),
            ("client.crt", &*client.certificate),
            ("client.key", &*client.key),
            ("other.key", &*other.key),
            ("weak.crt", &*weak.certificate),
            ("weak.key", &*weak.key),
            ("none.crt", "# nothing\n"),
            ("half.crt", &authority.certificate[..authority.certificate.len() / 2]),
            ("token", " the-token \r\n"),
            ("blank", " \n"),
        ] {
            files.write(name, text);
        }
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("it can be written");
    }

    fn base64(&self, name: &str) -> String {
        STANDARD.encode(std::fs::read(self.0.path().join(name)).expect("it was written"))
    }

    /// What is made of a text: lines that say what is used and what is remarkable, or why it is refused; with DIR in
    /// place of the folder.
    fn made_of(&self, text: &str) -> Result<(String, String), String> {
        self.made_of_bytes(text.as_bytes())
    }

    fn made_of_bytes(&self, text: &[u8]) -> Result<(String, String), String> {
        std::fs::write(self.0.path().join("kubeconfig"), text).expect("it can be written");
        let folder = self.0.path().display().to_string();
        let made = describe(&self.0.path().join("kubeconfig"), None);
        let bare = |text: String| text.replace(&folder, "DIR");
        made.map(|(lines, remarks)| (bare(lines[1..].join("\n")), bare(remarks.join("\n"))))
            .map_err(|error| bare(error.to_string()))
    }
}

/// A kubeconfig with these fields of cluster and user.
fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters:\n- name: k\n  cluster:\n    server: https://10.0.0.1:6443\n{}\nusers:\n- name: u\n  user:\n    as: \n{}\n",
        indented(cluster),
        indented(user)
    )
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Base64 as tools wrap it.
fn wrapped(text: &str, end: &str) -> String {
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    lines.join(end)
}

#[test]
fn kubeconfigs_that_are_taken() {
    let files = Files::new();
    let (ca, client, key) = (files.base64("ca.crt"), files.base64("client.crt"), files.base64("client.key"));
    let of_field = "proxy: none\nserver's certificate: the authority of certificate-authority-data of the kubeconfig";
    let of_file = "proxy: none\nserver's certificate: the authority of file DIR/ca.crt";
    let of_system = "proxy: none\nserver's certificate: the authorities that this machine trusts";
    let of_token_file = "credentials: token (file DIR/token)";
    let no_remark = "";
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ";
    for (cluster, user, expected, remark) in [
        ("", "", format!("{of_system}\ncredentials: none"), no_remark),
        // Data, however it is wrapped, and files.
        (&*format!("certificate-authority-data: {ca}"), "", format!("{of_field}\ncredentials: none"), no_remark),
        (
            &*format!("certificate-authority-data: |\n  {}", wrapped(&ca, "\n  ")),
            "",
            format!("{of_field}\ncredentials: none"),
            no_remark,
        ),
        (
            &*format!("certificate-authority-data: \"{}\"", wrapped(&ca, "\\r\\n  ")),
            "",
            format!("{of_field}\ncredentials: none"),
            no_remark,
        ),
        (
            &*format!("certificate-authority-data:\n  {}", wrapped(&ca, "\n  ")),
            "",
            format!("{of_field}\ncredentials: none"),
            no_remark,
        ),
        (
            "certificate-authority-data: \"\"\ncertificate-authority: ca.crt",
            "",
            format!("{of_file}\ncredentials: none"),
            no_remark,
        ),
        (
            &*format!("certificate-authority-data: {ca}\ncertificate-authority: missing"),
            "",
            format!("{of_field}\ncredentials: none"),
            "kubeconfig DIR/kubeconfig: certificate-authority has no effect beside certificate-authority-data",
        ),
        // Of what is there twice the last counts.
        (
            "certificate-authority: missing\ncertificate-authority: ca.crt",
            "",
            format!("{of_file}\ncredentials: none"),
            no_remark,
        ),
        (
            "insecure-skip-tls-verify: true",
            "",
            "proxy: none\nserver's certificate: not looked at (insecure-skip-tls-verify)\ncredentials: none".to_owned(),
            "kubeconfig DIR/kubeconfig: insecure-skip-tls-verify: whoever is between this node and the API server can \
             read and change all that is sent; give a certificate-authority instead",
        ),
        (
            "proxy-url: http://me:secret@10.0.0.9",
            "",
            format!(
                "{}\ncredentials: none",
                of_system.replace("proxy: none", "proxy: http://me:***@10.0.0.9:80/ (proxy-url)")
            ),
            no_remark,
        ),
        ("tls-server-name: kubernetes", "", format!("{of_system}\ncredentials: none"), no_remark),
        ("made-up: 1", "made-up: {}", format!("{of_system}\ncredentials: none"), no_remark),
        // Tokens.
        ("", "token: secret", format!("{of_system}\ncredentials: token (token of the kubeconfig)"), no_remark),
        ("", "tokenFile: token", format!("{of_system}\n{of_token_file}"), no_remark),
        ("", "token: secret\ntokenFile: token", format!("{of_system}\n{of_token_file}"), no_remark),
        ("", "token: \"\"\ntokenFile: token", format!("{of_system}\n{of_token_file}"), no_remark),
        (
            "",
            "token: secret\ntokenFile: missing",
            format!("{of_system}\ncredentials: token (token of the kubeconfig)"),
            "kubeconfig DIR/kubeconfig: tokenFile: file DIR/missing cannot be read: No such file or directory (os error \
             2); the token beside it is used",
        ),
        (
            "",
            "username: me\npassword: secret",
            format!("{of_system}\ncredentials: user and password of the kubeconfig"),
            no_remark,
        ),
        // Client certificates.
        (
            "",
            "client-certificate: client.crt\nclient-key: client.key",
            format!("{of_system}\ncredentials: client certificate CN=node-a (file DIR/client.crt)"),
            no_remark,
        ),
        (
            "",
            &*format!("client-certificate-data: {client}\nclient-key-data: {key}\ntokenFile: token"),
            format!(
                "{of_system}\ncredentials: client certificate CN=node-a (client-certificate-data of the kubeconfig) and \
                 token (file DIR/token)"
            ),
            no_remark,
        ),
        (
            "",
            "client-key: client.key\ntokenFile: token",
            format!("{of_system}\n{of_token_file}"),
            "kubeconfig DIR/kubeconfig: client-key has no effect without client-certificate",
        ),
        // Plugins.
        ("", &*format!("{exec}aws}}"), format!("{of_system}\ncredentials: plugin aws, which was not run"), no_remark),
        (
            "",
            &*format!("{exec}./bin/aws, interactiveMode: IfAvailable, env: [{{name: A, value: b}}]}}"),
            format!("{of_system}\ncredentials: plugin DIR/./bin/aws, which was not run"),
            no_remark,
        ),
        (
            "",
            &*format!("{exec}aws}}\ntokenFile: token"),
            format!("{of_system}\n{of_token_file}"),
            "kubeconfig DIR/kubeconfig: exec has no effect beside other credentials",
        ),
    ] {
        let made = files.made_of(&kubeconfig(cluster, user));
        assert_eq!(made, Ok((expected, remark.to_owned())), "{cluster}\n{user}");
    }
}

#[test]
fn kubeconfigs_that_are_refused() {
    let files = Files::new();
    let ca = files.base64("ca.crt");
    let exec = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ";
    for (cluster, user, expected) in [
        (
            "insecure-skip-tls-verify: true\ncertificate-authority: ca.crt",
            "",
            "cluster \"k\": insecure-skip-tls-verify and certificate-authority are both given: take out \
             insecure-skip-tls-verify to have the server's certificate checked",
        ),
        (
            &*format!("insecure-skip-tls-verify: true\ncertificate-authority-data: {ca}"),
            "",
            "cluster \"k\": insecure-skip-tls-verify and certificate-authority-data are both given: take out \
             insecure-skip-tls-verify to have the server's certificate checked",
        ),
        (
            "certificate-authority: none.crt",
            "",
            "cluster \"k\": certificate-authority: file DIR/none.crt: there is no certificate in it (PEM, -----BEGIN \
             CERTIFICATE-----)",
        ),
        (
            "certificate-authority: half.crt",
            "",
            "cluster \"k\": certificate-authority: file DIR/half.crt: its PEM is broken: it breaks off, or has no END",
        ),
        (
            "certificate-authority: client.key",
            "",
            "cluster \"k\": certificate-authority: file DIR/client.key: there is no certificate in it (PEM, -----BEGIN \
             CERTIFICATE-----)",
        ),
        (
            "certificate-authority: missing",
            "",
            "cluster \"k\": certificate-authority: file DIR/missing cannot be read: No such file or directory (os error \
             2)",
        ),
        ("certificate-authority-data: \"secret!\"", "", "cluster \"k\": certificate-authority-data: it is not base64"),
        ("tls-server-name: a b", "", "cluster \"k\": tls-server-name \"a b\" is neither a host name nor an address"),
        ("", "client-certificate: client.crt", "user \"u\": client-certificate is given without client-key: give both"),
        (
            "",
            "client-certificate: client.crt\nclient-key: other.key",
            "user \"u\": client-key: file DIR/other.key: it does not belong to the certificate (CN=node-a)",
        ),
        (
            "",
            "client-certificate: client.key\nclient-key: client.key",
            "user \"u\": client-certificate: file DIR/client.key: there is no certificate in it (PEM)",
        ),
        (
            "",
            "client-certificate: client.crt\nclient-key: client.crt",
            "user \"u\": client-key: file DIR/client.crt: there is no private key in it (PEM)",
        ),
        (
            "",
            "client-certificate: weak.crt\nclient-key: weak.key",
            "user \"u\": client-key: file DIR/weak.key: it is none of those that can be used: RSA of 2048 to 8192 bits, \
             ECDSA on P-256, P-384 or P-521, Ed25519; the certificate's is RSA of 1024 bits",
        ),
        (
            "",
            "tokenFile: missing",
            "user \"u\": tokenFile: file DIR/missing cannot be read: No such file or directory (os error 2)",
        ),
        ("", "tokenFile: blank", "user \"u\": tokenFile: file DIR/blank: it is empty"),
        ("", "token: \"sec\\nret\"", "user \"u\": token: it has a character in it that cannot be sent"),
        (
            "",
            "token: secret\nusername: me\npassword: secret",
            "user \"u\": both a password and a token are given: take out one of them",
        ),
        (
            "",
            "auth-provider: {name: gcp, config: {access-token: secret}}",
            "user \"u\": auth-provider \"gcp\" is not supported: use a token, a client certificate or exec",
        ),
        ("", "exec: {apiVersion: client.authentication.k8s.io/v1}", "user \"u\": exec: command is missing"),
        (
            "",
            "exec: {command: aws}",
            "user \"u\": exec: apiVersion \"\" is neither client.authentication.k8s.io/v1 nor v1beta1",
        ),
        (
            "",
            &*format!("{exec}aws, interactiveMode: Always}}"),
            "user \"u\": exec: interactiveMode Always needs a terminal, which a daemon does not have",
        ),
        ("", &*format!("{exec}aws, env: [{{value: b}}]}}"), "user \"u\": exec: a variable of env has no name"),
        ("", "as: \"a\\nb\"", "impersonation (as): HttpError: failed to parse header value"),
        ("", "as: \nas-groups: [a]", "user \"u\": as-uid, as-groups and as-user-extra need as"),
    ] {
        let made = files.made_of(&kubeconfig(cluster, user));
        assert_eq!(made, Err(format!("kubeconfig DIR/kubeconfig: {expected}")), "{cluster}\n{user}");
    }
    let whole = kubeconfig("", "");
    let check = " Check clientConnection.kubeconfig (or --kubeconfig); leave it empty to use the pod's service account";
    for (text, expected) in [
        (String::new(), "it is empty"),
        ("- a\n".to_owned(), "it is no mapping of fields"),
        (whole.replace("user: u", "user: v"), "there is no user \"v\", which context \"c\" names"),
        (whole.replace("cluster: k", "cluster: l"), "there is no cluster \"l\", which context \"c\" names"),
        (
            whole.replace("current-context: c", "current-context: d"),
            "there is no context \"d\", which current-context names",
        ),
        (whole.replace("current-context: c", ""), "current-context is not set: name one of its contexts there"),
        (
            whole.replace("kind: Config", "kind: KubeProxyConfiguration"),
            "it is no kubeconfig (kind Config), but has the kind \"KubeProxyConfiguration\"",
        ),
        (
            whole.replace("  user:\n    as: ", "  user: secret"),
            "users[0].user: invalid type: a text, expected struct AuthInfo",
        ),
    ] {
        let made = files.made_of(&text);
        assert_eq!(made, Err(format!("kubeconfig DIR/kubeconfig: {expected}.{check}")), "{text}");
    }
}

#[test]
fn yaml_is_read_in_all_its_forms() {
    let files = Files::new();
    let plain = kubeconfig("certificate-authority: ca.crt", "tokenFile: token");
    let expected = files.made_of(&plain);
    assert!(
        expected.as_ref().is_ok_and(|(lines, _)| lines.contains("ca.crt") && lines.contains("token")),
        "{expected:?}"
    );
    let json = serde_yaml::from_str::<serde_json::Value>(&plain).expect("it is YAML").to_string();
    let merged = "x: &more {certificate-authority: ca.crt, server: 'https://10.0.0.9'}\n".to_owned()
        + &kubeconfig("<<: [*more]", "tokenFile: token");
    for text in [
        json,
        plain.replace('\n', "\r\n"),
        format!("\u{feff}{plain}"),
        format!("# a comment\n---\n{plain}"),
        format!("---\n{plain}---\nkind: Other\n"),
        merged,
        plain.replace("tokenFile: token", "tokenFile: &t token").replace("token: secret", "token: *t"),
    ] {
        assert_eq!(files.made_of(&text), expected, "{text}");
    }
    for unit in [u16::to_le_bytes, u16::to_be_bytes] {
        let text: Vec<_> = format!("\u{feff}{plain}").encode_utf16().flat_map(unit).collect();
        assert_eq!(files.made_of_bytes(&text), expected);
        let broken = files.made_of_bytes(&text[..text.len() - 1]).expect_err("it ends in the middle of a character");
        assert!(broken.contains("it is no text"), "{broken}");
    }
}

#[test]
fn a_context_without_a_user_has_no_credentials() {
    let text = kubeconfig("", "token: secret").replace(", user: u", "");
    let (lines, _) = Files::new().made_of(&text).expect("it is taken");
    assert!(lines.ends_with("credentials: none"), "{lines}");
}

#[test]
fn client_certificates_with_every_kind_of_key_are_taken() {
    let authority = Pair::authority("kubernetes", P521);
    let mut pairs: Vec<_> =
        [P256, P384, P521, ED25519, RSA_2048].map(|key| authority.signs("node-a", key, CLIENT)).into();
    // The server decides about these.
    pairs.push(authority.signs_version_1("node-a"));
    for pair in pairs {
        let files = Files::new();
        files.write("client.crt", &format!("{}{}", pair.certificate, authority.certificate));
        files.write("client.key", &pair.key);
        let user = "client-certificate: client.crt\nclient-key: client.key";
        let (lines, _) = files.made_of(&kubeconfig("", user)).expect("it is taken");
        assert!(lines.ends_with("client certificate CN=node-a (file DIR/client.crt)"), "{lines}");
    }
}

#[test]
fn a_user_in_the_url_is_said_and_not_shown() {
    let files = Files::new();
    let text = kubeconfig("", "").replace("https://10.0.0.1", "https://me:secret@10.0.0.1");
    let (lines, remarks) = files.made_of(&text).expect("it is taken");
    assert!(!lines.contains("secret") && !remarks.contains("secret"), "{lines}\n{remarks}");
    assert!(remarks.contains("\"https://me:***@10.0.0.1:6443\" has a user in it, who is not used"), "{remarks}");
    let (lines, _) = describe(Path::new(""), Some("https://me:secret@10.0.0.1")).expect("it is taken");
    assert!(!lines.join("\n").contains("secret"), "{lines:?}");
}

/// A plugin that is this script.
fn plugin(files: &Files, script: &str) -> Plugin {
    let config = ExecConfig {
        api_version: Some("client.authentication.k8s.io/v1".to_owned()),
        command: Some("sh".to_owned()),
        args: Some(vec!["-c".to_owned(), script.to_owned(), "sh".to_owned(), files.0.path().display().to_string()]),
        ..ExecConfig::default()
    };
    Plugin::new(Command::new(&config, files.0.path(), None).expect("it can be run"))
}

#[tokio::test(start_paused = true)]
async fn a_plugin_that_does_not_end_is_killed_with_all_that_it_has_started() {
    let files = Files(tempfile::tempdir().expect("a temporary folder"));
    let plugin = plugin(&files, "echo $$ >$1/first; sh -c 'echo $$ >$1/second; sleep 600' sh $1; true");
    // The clock goes on where nothing else does: not before both are there.
    let started = async {
        while std::fs::read_to_string(files.0.path().join("second")).map_or(true, |text| text.is_empty()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
    };
    let (said, ()) = tokio::join!(plugin.issued(), started);
    assert_eq!(said.err().as_deref(), Some("exec plugin sh: it has not ended within 30 s and was killed"));
    for name in ["first", "second"] {
        let pid = std::fs::read_to_string(files.0.path().join(name)).expect("it was started").trim().to_owned();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // What nobody has waited for yet is dead too.
        let is_there = || !state().is_empty() && !state().contains(") Z ");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while is_there() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!is_there(), "{name}: {}", state());
    }
}

#[test]
fn the_pauses_of_a_plugin_that_fails_grow() {
    let mut pause = None;
    let pauses = std::iter::repeat_with(|| {
        pause = Some(pause_after(pause));
        pause.map(|pause| pause.as_secs())
    });
    let pauses: Vec<_> = pauses.flatten().take(8).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}
