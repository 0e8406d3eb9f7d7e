//! The flags of the command line with their values, as `/flagz` shows them.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::RunArgs;
use crate::config::{self, FLAGS, Overrides, effective};
use crate::secrets;

/// All flags: what was given, and of others what they are without. Kubernetes marks those with secrets; there is none among
/// them but a password in a URL, which is not shown.
pub(super) fn flags(args: &RunArgs) -> BTreeMap<String, String> {
    let text = |text: Option<String>| text.unwrap_or_default();
    let path = |path: &Option<std::path::PathBuf>| text(path.as_ref().map(|path| path.display().to_string()));
    let owner = args.table_owner.to_possible_value().map(|value| value.get_name().to_owned());
    let own = [
        ("cleanup", args.cleanup.to_string()),
        ("config", path(&args.node.config)),
        ("help", "false".to_owned()),
        ("hostname-override", text(args.node.hostname_override.clone())),
        ("init-only", args.init_only.to_string()),
        ("manifests", path(&args.manifests)),
        ("master", text(args.node.master.as_deref().map(secrets::shown))),
        ("table-owner", text(owner)),
        ("take-over", args.take_over.to_string()),
        ("version", args.version.clone().unwrap_or_else(|| "false".to_owned())),
        ("write-config-to", path(&args.write_config_to)),
    ];
    let defaults = defaults();
    let fields = FLAGS.iter().map(|flag| {
        let given = args.node.fields.0.iter().filter(|setting| setting.flag == flag.name);
        let given: Vec<&str> = given.map(|setting| setting.value.as_str()).collect();
        let field = flag.fields.first().and_then(|field| at(&defaults, field));
        let value = if given.is_empty() { field.map(shown).unwrap_or_default() } else { given.join(",") };
        (flag.name, value)
    });
    own.into_iter().chain(fields).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Every field of a configuration of which nothing is given.
fn defaults() -> Value {
    // Whatever the machine is called: the name is given.
    let overrides = Overrides { hostname_override: Some("node".to_owned()), ..Overrides::default() };
    config::load(None, &overrides).map(|loaded| effective(&loaded.config)).unwrap_or_default()
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, field| value.get(field))
}

/// As flags are written.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn flags_of(line: &str) -> BTreeMap<String, String> {
        match Cli::parse_from(line.split_whitespace()).command() {
            Command::Run(args) => flags(&args),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_flag_is_shown_with_its_value_and_no_secret() {
        let found = flags_of(
            "nftproxyd --config=/c --master=https://me:secret@h:6443 --kubeconfig=/etc/kubeconfig -v 2 \
             --nodeport-addresses=10.0.0.0/8 --nodeport-addresses=primary --take-over",
        );
        for (name, value) in [
            ("config", "/c"),
            ("master", "https://me:***@h:6443"),
            ("kubeconfig", "/etc/kubeconfig"),
            ("v", "2"),
            ("nodeport-addresses", "10.0.0.0/8,primary"),
            ("take-over", "true"),
            ("table-owner", "auto"),
            ("cleanup", "false"),
            ("help", "false"),
            ("proxy-mode", "nftables"),
            ("healthz-bind-address", "0.0.0.0:10256"),
            ("oom-score-adj", "-999"),
            ("feature-gates", "AllowServiceExternalIPs=true"),
            ("hostname-override", ""),
            ("scheduler", "random"),
            ("count-connections", "false"),
            ("cluster-cidr", ""),
        ] {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(found.values().all(|value| !value.contains("secret")));
        // Those that kube-proxy 1.36.2 shows, and ours.
        let theirs = include_str!("../../testdata/metrics/flagz.txt").lines().filter(|line| !line.starts_with('#'));
        let mut all: Vec<&str> = theirs
            .chain(["accounting", "count-connections", "manifests", "ping", "reset-connections", "scheduler"])
            .chain(["table-owner", "take-over"])
            .collect();
        all.sort_unstable();
        assert_eq!(found.keys().collect::<Vec<_>>(), all);
    }
}
