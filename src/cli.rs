//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::LogFormat;

/// nftproxyd's command line. Without a subcommand it runs the proxy, since kube-proxy is called that way:
/// `nftproxyd --config=FILE`.
#[derive(Debug, Parser)]
#[command(name = "nftproxyd", version, about, long_about = None, args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit status: 0 on success, 1 on any error, 2 on a wrong command line.\nManual: nftproxyd(8).")]
pub struct Cli {
    /// What to do; `run` if absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `run`.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Proxy the Services of a cluster, or of a folder of manifests, until stopped; the rules stay when it stops
    Run(RunArgs),
    /// Print the nft script of what would be installed for a folder of manifests; needs no root
    Render(RenderArgs),
    /// Remove nftproxyd's tables from the kernel, and nothing else
    Cleanup,
}

/// Options of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Proxy what the manifests in DIR say (*.yaml, *.yml, *.json) and follow their changes, instead of a cluster
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Options that concern the node
    #[command(flatten)]
    pub node: NodeArgs,
    /// Options that concern the log
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options that concern the log. What is absent is as the configuration says.
#[derive(Debug, Clone, Default, Args)]
pub struct LogArgs {
    /// Say more in the log: 2 for each sync, 5 for each transaction as nft text; instead of logging.verbosity
    #[arg(short = 'v', long = "v", value_name = "LEVEL")]
    pub verbosity: Option<u32>,
    /// The form of the log, instead of logging.format
    #[arg(long = "logging-format", value_name = "FORMAT")]
    pub format: Option<LogFormat>,
}

/// Options that every subcommand with a configuration has.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeArgs {
    /// A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's name, instead of hostnameOverride in the configuration or the host name
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
}

/// Options of `render`.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// The folder of manifests
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Options that concern the node
    #[command(flatten)]
    pub node: NodeArgs,
}

impl Cli {
    /// The command that is meant.
    pub fn command(self) -> Command {
        self.command.unwrap_or(Command::Run(self.run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace()).expect("a valid command line").command()
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn it_can_be_called_as_kube_proxy_is() {
        let Command::Run(args) =
            parse("nftproxyd --config=/var/lib/kube-proxy/config.conf --hostname-override=n1 -v 2")
        else {
            panic!("no subcommand means run")
        };
        assert_eq!(args.node.config.as_deref(), Some("/var/lib/kube-proxy/config.conf".as_ref()));
        assert_eq!(args.node.hostname_override.as_deref(), Some("n1"));
        assert_eq!(args.log.verbosity, Some(2));
        assert_eq!(args.log.format, None);
        let Command::Run(args) = parse("nftproxyd --logging-format=json") else { panic!("no subcommand means run") };
        assert_eq!((args.log.verbosity, args.log.format), (None, Some(LogFormat::Json)));
        assert!(matches!(parse("nftproxyd"), Command::Run(_)));
        assert!(matches!(parse("nftproxyd run --manifests d"), Command::Run(RunArgs { manifests: Some(_), .. })));
        assert!(matches!(parse("nftproxyd cleanup"), Command::Cleanup));
        assert!(matches!(parse("nftproxyd render --manifests d"), Command::Render(_)));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in [
            "nftproxyd --confg=x",
            "nftproxyd run stray",
            "nftproxyd --logging-format=xml",
            "nftproxyd --config=x cleanup",
            "nftproxyd render",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
