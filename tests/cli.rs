//! The files that are made of the definition of the command line are in step with it: shell completions, and a man page
//! for each subcommand.
//!
//! `NFTPROXYD_UPDATE=1 cargo test --test cli` writes them.

#[path = "support/broken.rs"]
mod broken;

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

/// What subcommands have printed, by the name of the file in `testdata/terminal`, and what that is an example of. That they print
/// it still, `tests/it/shown.rs` sees to.
const EXAMPLES: [(&str, &str, &str); 5] = [
    ("explain", "explain-served", "A client outside of the cluster, and a cluster IP that is served:"),
    ("explain", "explain-dropped", "The same, where a table of somebody else drops what goes to one of the endpoints:"),
    ("explain", "explain-local", "externalTrafficPolicy Local, and no endpoint on this node:"),
    ("explain", "explain-node-port", "A node port on an address of the node that accepts none:"),
    ("status", "status-watch", "On a terminal with 100 columns, while connections are made; an endpoint has gone:"),
];

/// A line of a man page that shows this text.
fn roff(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    let is_request = escaped.starts_with('.');
    if is_request { format!("\\&{escaped}\n") } else { format!("{escaped}\n") }
}

/// The section of examples of a subcommand; empty if there are none.
fn examples(subcommand: &str) -> String {
    let mut section = String::new();
    for (_, file, caption) in EXAMPLES.iter().filter(|(of, ..)| *of == subcommand) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/terminal").join(file).with_extension("txt");
        let shown = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = shown.trim_end().lines().flat_map(broken::broken);
        let lines: String = lines.map(roff).collect();
        section += &format!(".PP\n{}.PP\n.nf\n{lines}.fi\n", roff(caption));
    }
    if section.is_empty() { section } else { format!(".SH EXAMPLES\n{section}") }
}

/// The page with the paragraphs of its section EXTRA, which is what the help ends with, kept as they are where they are tables
/// or were printed: those with columns. man(1) would fill their lines.
fn with_tables(page: &str) -> String {
    let (begin, end) = (".SH EXTRA\n", "\n.SH VERSION\n");
    let Some((before, rest)) = page.split_once(begin) else { return page.to_owned() };
    let (extra, after) = rest.split_once(end).expect("the version is last");
    let kept = |paragraph: &str| match paragraph.contains("  ") || paragraph.starts_with("# ") {
        true => format!(".nf\n{paragraph}\n.fi"),
        false => paragraph.to_owned(),
    };
    let paragraphs: Vec<String> = extra.split("\n\n").map(kept).collect();
    format!("{before}{begin}{}{end}{after}", paragraphs.join("\n.PP\n"))
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
        let text = with_tables(&String::from_utf8(text).expect("it is text"));
        let text = text.replace(".SH VERSION\n", &format!("{}.SH VERSION\n", examples(subcommand.get_name())));
        (Path::new("man").join(format!("{name}.8")), text.into_bytes())
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

/// Names in JSON are a part of the interface. The enum is read as text: it has nothing that lists it.
#[test]
fn the_help_of_explain_has_every_reason() {
    let source = include_str!("../src/explain/report.rs");
    let (_, rest) = source.split_once("pub enum Reason {").expect("the reasons");
    let (variants, _) = rest.split_once("\n}").expect("they end");
    let names =
        variants.lines().map(str::trim).filter_map(|line| line.strip_suffix(',')).filter(|line| !line.starts_with('/'));
    let kebab = |name: &str| {
        let word =
            |c: char| if c.is_ascii_uppercase() { format!("-{}", c.to_ascii_lowercase()) } else { c.to_string() };
        name.chars().map(word).collect::<String>().trim_start_matches('-').to_owned()
    };
    let reasons: Vec<String> = names.map(kebab).collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    let help = definition().find_subcommand("explain").and_then(|it| it.get_after_help()).expect("a help").to_string();
    let (_, list) = help.split_once("Reasons: ").expect("a list");
    let said: Vec<&str> =
        list.trim_end_matches('.').split([',', '\n', ' ']).filter(|word| !["", "and"].contains(word)).collect();
    assert_eq!(said, reasons, "src/cli.rs, VERDICTS");
}
