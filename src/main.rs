//! The daemon `nftproxyd`: parses the command line, runs what is asked for, and turns an error into an exit status.

use std::process::ExitCode;

use clap::Parser;
use nftproxyd::{app, cli::Cli};

fn main() -> ExitCode {
    match app::main(Cli::parse().command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
