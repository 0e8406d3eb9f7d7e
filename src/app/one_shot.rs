//! What is over at once: subcommands and flags that print or write something and end.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{DoctorArgs, DoctorOutput};
use crate::config::{self, Config, Logging, Overrides, Source, effective};
use crate::leftovers::{self, Outcome, Remaining};
use crate::ruleset::names::TableName;
use crate::source::kube::{self, ConnectError};
use crate::{doctor, logging, yaml};

/// `nftproxyd cleanup` and `--cleanup`.
pub(super) fn cleanup(service_proxy_name: Option<&str>) -> anyhow::Result<()> {
    logging::init(Logging::default());
    super::cleanup::cleanup(super::table(service_proxy_name))
}

/// The bit of packets' marks that tables of ours will use where there are none yet: that of `masqueradeBit`'s default.
const USUAL_MARK: u32 = 1 << 14;

/// `nftproxyd cleanup --kube-proxy`.
pub(super) fn clean_up_after_kube_proxy() -> anyhow::Result<()> {
    logging::init(Logging::default());
    let mark = leftovers::installed_mark(TableName::NODE.as_str()).unwrap_or(USUAL_MARK);
    let Outcome { removed, kept, remains, dropping } = leftovers::remove(Path::new("/"), mark);
    let mut text: String = removed.iter().map(|what| format!("removed {what}\n")).collect();
    if removed.is_empty() && kept.is_empty() && remains.is_empty() {
        text.push_str("there is nothing of kube-proxy\n");
    }
    kept.iter().for_each(|Remaining { what, fix }| text.push_str(&format!("kept: {what}\n       {fix}\n")));
    let drops = |Remaining { what, fix }: &Remaining| text.push_str(&format!("check: {what}\n       fix: {fix}\n"));
    dropping.iter().for_each(drops);
    remains.iter().for_each(|Remaining { what, fix }| text.push_str(&format!("remains: {what}\n       fix: {fix}\n")));
    io::stdout().write_all(text.as_bytes()).context("cannot write")?;
    anyhow::ensure!(remains.is_empty(), "not everything could be removed");
    Ok(())
}

/// `--version`.
pub(super) fn version(raw: bool) -> anyhow::Result<()> {
    let mut text = format!("nftproxyd {}\n", env!("CARGO_PKG_VERSION"));
    if raw {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        text.push_str(&format!("platform {os}/{arch}\nconfiguration kubeproxy.config.k8s.io/v1alpha1 (1.36)\n"));
    }
    io::stdout().write_all(text.as_bytes()).context("cannot write")
}

/// `--write-config-to`.
pub(super) fn write_config(config: &Config, file: &Path) -> anyhow::Result<()> {
    let text = yaml::text(&effective(config));
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    tracing::info!("the configuration is in {}", file.display());
    Ok(())
}

/// `nftproxyd check-config`.
pub(super) fn check_config(file: &Path) -> anyhow::Result<()> {
    let loaded = config::load(Some(file), &Overrides::default())?;
    let mut text: String = loaded.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    if let Source::Api { kubeconfig, master } = &loaded.config.source {
        match kube::describe(kubeconfig, master.as_deref()) {
            Ok((lines, remarks)) => {
                remarks.iter().for_each(|remark| text.push_str(&format!("warning: {remark}\n")));
                lines.iter().for_each(|line| text.push_str(&format!("{line}\n")));
            }
            // It may be meant for pods elsewhere.
            Err(ConnectError::NotInCluster(reason)) => {
                text.push_str(&format!(
                    "API server: that of the pod's service account, which is not here ({reason})\n"
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    text.push_str(&format!("{} can be used\n", file.display()));
    io::stdout().write_all(text.as_bytes()).context("cannot write")
}

/// `nftproxyd doctor`. The exit status is that of the report.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let config = super::configuration(&args.node.0, None)?.config;
    if let Some(name) = &config.service_proxy_name {
        // What another proxy's rules are to it is no leftover.
        anyhow::bail!(
            "doctor looks at the proxy that serves the node; of one with a name: nftproxyd status --service-proxy-name {name}"
        );
    }
    let report = doctor::examine(Path::new("/"), &config);
    let text = match args.output {
        DoctorOutput::Text => report.text(),
        DoctorOutput::Json => serde_json::to_string_pretty(&report).context("cannot write JSON")? + "\n",
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write")?;
    Ok(report.exit_status.into())
}
