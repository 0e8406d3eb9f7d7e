//! The files that are made of the definition of the command line are in step with it: shell completions, and a man page
//! for each subcommand.
//!
//! `NFTPROXYD_UPDATE=1 cargo test --test cli` writes them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use nftproxyd::cli::Cli;

/// Path below the project's root, and contents.
type File = (PathBuf, Vec<u8>);

fn definition() -> clap::Command {
    <Cli as CommandFactory>::command()
}

fn completions() -> Vec<File> {
    let shells = [("nftproxyd.bash", Shell::Bash), ("_nftproxyd", Shell::Zsh), ("nftproxyd.fish", Shell::Fish)];
    let file = |(name, shell): (&str, Shell)| {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut definition(), "nftproxyd", &mut text);
        (Path::new("deploy/completions").join(name), text)
    };
    shells.into_iter().map(file).collect()
}

/// One for each subcommand: `nftproxyd(8)` itself is written by hand, and says what they have in common.
fn man_pages() -> Vec<File> {
    let mut command = definition();
    command.build();
    let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
    let page = |subcommand: &clap::Command| {
        let name = format!("nftproxyd-{}", subcommand.get_name());
        // As it is typed, but for the synopsis.
        let page = clap_mangen::Man::new(subcommand.clone().version(env!("CARGO_PKG_VERSION")))
            .title(name.to_uppercase())
            .section("8")
            .date("")
            .manual("nftproxyd");
        let mut text = Vec::new();
        page.render(&mut text).expect("a vector takes everything");
        (Path::new("man").join(format!("{name}.8")), text)
    };
    subcommands.map(page).collect()
}

fn check(files: Vec<File>) {
    assert!(!files.is_empty());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("NFTPROXYD_UPDATE").is_some();
    for (path, text) in files {
        let path = root.join(path);
        if update {
            fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
            fs::write(&path, &text).expect("it can be written");
        }
        let found = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8(text).expect("it is text");
        let in_step = found == text.as_bytes();
        assert!(in_step, "{} is out of step: NFTPROXYD_UPDATE=1 cargo test --test cli", path.display());
    }
}

#[test]
fn completions_are_in_step() {
    check(completions());
}

#[test]
fn man_pages_are_in_step() {
    check(man_pages());
}
