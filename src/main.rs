//! The daemon `nftproxyd`: parses the command line, runs what is asked for, and turns an error into an exit status.

use std::process::ExitCode;

use clap::Parser;
use nftproxyd::cli::{Cli, with_hyphens};
use nftproxyd::{app, errors};

fn main() -> ExitCode {
    let result = app::main(Cli::parse_from(with_hyphens(std::env::args_os())).command());
    app::end(result.as_ref().err().map(|error| errors::text(error.as_ref())).as_deref());
    result.unwrap_or(ExitCode::FAILURE)
}
