//! The daemon `nftproxyd`: parses the command line, runs what is asked for, and turns an error into an exit status.

use std::process::ExitCode;

use clap::Parser;
use nftproxyd::cli::{Cli, with_hyphens};
use nftproxyd::{app, errors};

fn main() -> ExitCode {
    match app::main(Cli::parse_from(with_hyphens(std::env::args_os())).command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {}", errors::text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
