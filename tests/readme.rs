//! The documentation names every field, flag, metric and endpoint of kube-proxy, each in the place where it is looked
//! for; the pictures show what was measured and what was printed; links lead somewhere; and the front page stays short.

#[path = "support/broken.rs"]
mod broken;
#[path = "bench/picture.rs"]
mod picture;
#[path = "support/terminal.rs"]
mod terminal;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nftproxyd::config::{FLAGS, field_paths};
use nftproxyd::metrics::TABLE;
use serde_yaml::Value;

/// Whoever has five minutes reads no more.
const MAX_LINES: usize = 250;

/// Bytes of a picture of a terminal.
const MAX_PICTURE: usize = 30_000;

const README: &str = include_str!("../README.md");
const BENCHMARK: &str = include_str!("bench/README.md");
const COMMAND: &str = include_str!("../man/nftproxyd.8");
const CONFIGURATION: &str = include_str!("../man/nftproxyd.yaml.5");
const OBSERVABILITY: &str = include_str!("../deploy/observability.md");

/// Paths of kube-proxy's two ports.
const ENDPOINTS: [&str; 12] = [
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/healthz/ping",
    "/configz",
    "/statusz",
    "/flagz",
    "/debug/pprof",
    "/debug/flags",
    "/debug/flags/v",
];

/// Flags that the command line has a meaning of its own for, beside those in [`FLAGS`], which set no field.
const OWN_FLAGS: [&str; 7] = ["config", "master", "write-config-to", "init-only", "cleanup", "version", "help"];

// --- man pages -----------------------------------------------------------------------------------------------------

/// The flags in a line of a man page, with whether a dagger marks each.
fn flags_in(line: &str) -> Vec<(String, bool)> {
    let flag = |text: &str| {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        (name.trim_start_matches("\\-").replace("\\-", "-"), rest.starts_with("No \\(dg"))
    };
    line.split(" Fl ").skip(1).map(flag).collect()
}

/// The first words of the entries of the configuration's manual: paths of fields, with their flags.
fn fields_described() -> BTreeSet<(String, Option<(String, bool)>)> {
    let entries = CONFIGURATION.lines().filter_map(|line| line.strip_prefix(".It Va "));
    entries
        .flat_map(|entry| {
            let field = entry.split(' ').next().unwrap_or_default().to_owned();
            let flags: Vec<_> = flags_in(entry).into_iter().map(Some).collect();
            let flags = if flags.is_empty() { vec![None] } else { flags };
            flags.into_iter().map(move |flag| (field.clone(), flag))
        })
        .collect()
}

#[test]
fn the_manual_has_every_field_with_its_flags() {
    let path = |field: &str| field_paths().find(|path| field == *path || field.starts_with(&format!("{path}.")));
    let mut known = BTreeSet::from([("hostnameOverride".to_owned(), Some(("hostname-override".to_owned(), true)))]);
    for flag in FLAGS {
        for field in flag.fields {
            let path = path(field).unwrap_or_else(|| panic!("--{}: there is no field {field}", flag.name));
            known.insert((path.to_owned(), Some((flag.name.to_owned(), flag.beats_file))));
        }
    }
    let with_flags: BTreeSet<String> = known.iter().map(|(field, _)| field.clone()).collect();
    known.extend(field_paths().filter(|path| !with_flags.contains(*path)).map(|path| (path.to_owned(), None)));
    let described = fields_described();
    let missing: Vec<_> = known.difference(&described).collect();
    let unknown: Vec<_> = described.difference(&known).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "nftproxyd.yaml(5): missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn the_manual_has_every_flag_without_a_field() {
    let (_, section) = COMMAND.split_once("\n.Sh FLAGS OF KUBE-PROXY\n").expect("a section about flags");
    let (section, _) = section.split_once("\n.Sh ").expect("the section ends");
    let entries = section.lines().filter(|line| line.starts_with(".It Fl "));
    let described: BTreeSet<String> = entries.flat_map(flags_in).map(|(name, _)| name).collect();
    let without_field = FLAGS.iter().filter(|flag| flag.fields.is_empty()).map(|flag| flag.name);
    let known: BTreeSet<String> = without_field.chain(OWN_FLAGS).map(str::to_owned).collect();
    assert_eq!(described, known);
}

// --- tables --------------------------------------------------------------------------------------------------------

/// The rows of a table, found by the beginning of its heading.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let table = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn it_is_said_what_becomes_of_every_metric_of_kube_proxy() {
    let metrics: Value = serde_yaml::from_str(include_str!("../testdata/metrics/kube-proxy.yaml")).expect("YAML");
    let names = |parts: &[&str]| -> BTreeSet<String> {
        let items = parts.iter().flat_map(|part| metrics[*part].as_sequence().expect("a list"));
        items.map(|item| item.as_str().or(item["name"].as_str()).expect("a name").to_owned()).collect()
    };
    let said = |heading: &str| -> BTreeSet<String> {
        let rows = rows(OBSERVABILITY, heading);
        let cells = rows.iter().map(|row| row[0]).filter(|cell| !cell.contains('*'));
        cells.map(|cell| cell.trim_matches('`').to_owned()).collect()
    };
    let exported: BTreeSet<String> = TABLE.iter().map(|metric| metric.name.to_owned()).collect();
    let theirs = names(&["own", "client", "process", "slis"]);
    assert_eq!(theirs.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "not exported");
    let documented = said("| Metric | Type |");
    assert_eq!(theirs.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new(), "not documented");

    let others = names(&["others"]);
    assert_eq!(said("| Metric of kube-proxy | Why"), others);
    assert_eq!(others.intersection(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "exported nevertheless");
}

#[test]
fn it_is_said_what_becomes_of_every_endpoint_of_kube_proxy() {
    let rows = rows(OBSERVABILITY, "| Endpoint | What");
    for path in ENDPOINTS {
        let is_there = rows.iter().any(|row| row[0].contains(&format!("`{path}`")));
        assert!(is_there, "{path} is not in deploy/observability.md");
    }
}

#[test]
fn the_numbers_of_the_front_page_were_measured() {
    let measured = rows(BENCHMARK, "| Services x endpoints |");
    let shown = rows(README, "| 10,000 Services x 10 endpoints |");
    assert!(shown.len() >= 3, "{shown:?}");
    for row in shown {
        let [what, ours, theirs] = row[..] else { panic!("{row:?}: three cells") };
        let found = measured.iter().find(|cells| cells[0] == what);
        let found = found.unwrap_or_else(|| panic!("{what} is not in the table of tests/bench/README.md"));
        assert_eq!((ours, theirs), (found[1], found[3]), "{what}");
    }
}

// --- pictures -----------------------------------------------------------------------------------------------------

/// As the tables write a time: `0.24 ms`, `5.0 s`.
fn milliseconds(cell: &str) -> f64 {
    let (number, unit) =
        cell.trim_matches('*').split_once(' ').unwrap_or_else(|| panic!("{cell}: a number and a unit"));
    let number: f64 = number.parse().unwrap_or_else(|error| panic!("{cell}: {error}"));
    match unit {
        "ms" => number,
        "s" => number * 1e3,
        _ => panic!("{cell}: an unknown unit"),
    }
}

/// `NFTPROXYD_UPDATE=1 cargo test --test readme` draws it.
#[test]
fn the_picture_shows_what_was_measured() {
    let drawn = |cells: &Vec<&str>| {
        let what = cells[0].strip_suffix(": API answer to packets, p50")?.to_owned();
        Some(picture::Row { what, nftproxyd: milliseconds(cells[1]), kube_proxy: milliseconds(cells[3]) })
    };
    let rows: Vec<picture::Row> =
        rows(BENCHMARK, "| Services x endpoints | 10,000 x 10 |").iter().filter_map(drawn).collect();
    assert_eq!(rows.len(), 5);
    let measured = BENCHMARK.lines().find_map(|line| line.strip_prefix("Measured: ")).expect("when it was measured");
    let picture = picture::Picture { services: 10_000, endpoints: 10, circumstances: measured.to_owned(), rows };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/changes.svg");
    if std::env::var_os("NFTPROXYD_UPDATE").is_some() {
        fs::write(&path, picture.svg()).expect("it can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == picture.svg(), "deploy/changes.svg is out of step: NFTPROXYD_UPDATE=1 cargo test --test readme");
}

#[test]
fn pictures_have_room_for_every_time() {
    let row = |what: &str, nftproxyd, kube_proxy| picture::Row { what: what.to_owned(), nftproxyd, kube_proxy };
    let svg = |rows| {
        picture::Picture { services: 1_234, endpoints: 1, circumstances: "today & <here>".to_owned(), rows }.svg()
    };
    let text = svg(vec![row("slow", 0.15, 5_000.0), row("as fast", 2.0, 2.0), row("slower", 300.0, 40.0)]);
    for part in
        ["1,234 Services", "today &amp; &lt;here&gt;", ">0.15 ms<", ">5.0 s<", ">33,000 ×<", ">1.0 ×<", ">0.1 ×<"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // Two labels at one place: the one is above the line, the other below.
    assert_eq!(text.matches(">2.0 ms<").count(), 2);
    let places = text.lines().filter(|line| line.contains(">2.0 ms<")).collect::<BTreeSet<_>>();
    assert_eq!(places.len(), 2, "{places:?}");
    // From 0.1 ms to 10 s.
    for tick in ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s"] {
        assert!(text.contains(&format!(">{tick}</text>")), "{tick} is not in {text}");
    }
    assert!(!text.contains(">0.01 ms<") && !text.contains(">100 s<"), "{text}");
    // One time only, and that on a mark: there is a scale nevertheless, and no place that is not a number.
    let text = svg(vec![row("the same", 1.0, 1.0)]);
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}

/// What the program has printed, by the name of the file in `testdata/terminal`, and for those who cannot see it. That it prints
/// that still, `tests/it/shown.rs` sees to.
const TERMINALS: [(&str, &str); 2] = [
    (
        "explain-dropped",
        "nftproxyd explain: of three endpoints of a Service, one is behind a rule of another table that drops",
    ),
    (
        "status-watch",
        "nftproxyd status --watch: addresses of Services by new connections a second, and the last changes",
    ),
];

/// `NFTPROXYD_UPDATE=1 cargo test --test readme` draws them.
#[test]
fn the_pictures_of_terminals_show_what_was_printed() {
    for (name, title) in TERMINALS {
        let printed = root().join("testdata/terminal").join(name).with_extension("txt");
        let printed = fs::read_to_string(&printed).unwrap_or_else(|error| panic!("{}: {error}", printed.display()));
        let svg = terminal::svg(title, &printed);
        assert!(svg.len() < MAX_PICTURE, "{name}: {} bytes", svg.len());
        let path = root().join("deploy").join(name).with_extension("svg");
        if std::env::var_os("NFTPROXYD_UPDATE").is_some() {
            fs::write(&path, &svg).expect("it can be written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == svg, "{} is out of step: NFTPROXYD_UPDATE=1 cargo test --test readme", path.display());
        assert!(README.contains(&format!("](deploy/{name}.svg)")), "{name} is not on the front page");
    }
}

#[test]
fn terminals_are_drawn_as_they_are() {
    let long = format!("=> DROPPED: {}", "x".repeat(broken::COLUMNS));
    let svg =
        terminal::svg("a & b", &format!("# typed <it>\n\n  NAME    SHARE\n  é-1     50.0%\n{long}\n=> REACHED\n\n"));
    let texts: Vec<&str> = svg.lines().filter(|line| line.starts_with("<text")).collect();
    let [typed, name, share, pod, half, dropped, goes_on, reached] = &texts[..] else { panic!("{texts:#?}") };
    assert!(svg.contains("<title id=\"title\">a &amp; b</title>"), "{svg}");
    assert!(typed.contains("class=\"typed\"") && typed.contains("># typed &lt;it&gt;</text>"), "{typed}");
    let x = |text: &str| text.split_once(" x=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(x, _)| x.to_owned());
    assert!(name.contains("heading") && name.contains(">NAME<") && share.contains(">SHARE<"), "{name} {share}");
    assert_eq!((x(name), x(share)), (x(pod), x(half)), "columns are straight");
    assert_ne!(x(name), x(share));
    assert!(dropped.contains("\"bad\"") && dropped.contains(">=&gt; DROPPED:<"), "{dropped}");
    assert!(goes_on.contains("\"bad\"") && goes_on.contains(&"x".repeat(broken::COLUMNS)), "{goes_on}");
    assert!(reached.contains("\"good\"") && svg.ends_with("</text>\n</svg>\n"), "{reached}");
}

#[test]
fn long_lines_are_broken_at_blanks() {
    let columns = broken::COLUMNS;
    let fits = "é".repeat(columns);
    assert_eq!(broken::broken(&fits), [&*fits]);
    assert_eq!(broken::broken(""), [""]);
    let words = format!("{} b c", "a".repeat(columns - 2));
    assert_eq!(broken::broken(&words), [&words[..columns], "c"]);
    let word = "a".repeat(2 * columns + 1);
    assert_eq!(broken::broken(&word), [&word[..columns], &word[..columns], "a"]);
    // Nothing but the blanks that it begins with is before the word.
    let indented = format!("   {word}");
    assert_eq!(broken::broken(&indented)[0], &indented[..columns]);
}

// --- pages ---------------------------------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Markdown files that people read, by path from the top of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    for folder in [".github", "deploy", "deploy/kubernetes/kubeadm", "tests/bench", "testdata/scenarios"] {
        let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let paths = names.map(|name| Path::new(folder).join(name));
        pages.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// Where the links and pictures of a page lead, without code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut code = false;
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        let prose = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        if !code {
            let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
            let sources = prose.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"'));
            links.extend(sources.map(|(source, _)| source.to_owned()));
        }
    }
    links
}

/// The names of a page's headings in links: in lower case, spaces as hyphens, without punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings.map(|heading| heading.chars().filter_map(kept).collect()).collect()
}

/// What is wrong with the links of a page, if anything.
fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let folder = page.parent().expect("a file is in a folder");
    let is_dead = |link: &String| {
        if link.contains("://") {
            return false;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let path = root().join(folder).join(file);
        let target = if file.is_empty() { Some(text.to_owned()) } else { fs::read_to_string(&path).ok() };
        let is_there = file.is_empty() || path.exists();
        !is_there || !anchor.is_empty() && !target.is_some_and(|target| anchors(&target).contains(anchor))
    };
    links(text).into_iter().filter(is_dead).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_are_there() {
    let mut found = 0;
    for page in pages() {
        let text = fs::read_to_string(root().join(&page)).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert_eq!(dead_links(&page, &text), Vec::<String>::new(), "{}", page.display());
        found += links(&text).len();
    }
    assert!(found > 30, "only {found} links were found");
}

#[test]
fn dead_links_are_found() {
    let dead = |text: &str| dead_links(Path::new("deploy/some.md"), text);
    let none = Vec::<String>::new();
    assert_eq!(dead("[a](MIGRATION.md) [b](../LICENSE) [c](kubernetes) [d](https://example.org/x)"), none);
    assert_eq!(dead("[a](MIGRATION.md#back) [b](#here-and-now)\n## Here, and now"), none);
    assert_eq!(dead("`[a](b)`\n```\n[c](d)\n```"), none);
    assert_eq!(dead("[a](README.md)"), ["README.md"]);
    assert_eq!(dead("[a](MIGRATION.md#nowhere) [b](#there)"), ["MIGRATION.md#nowhere", "#there"]);
    assert_eq!(dead("![a](none.svg) <img src=\"none.png\">"), ["none.svg", "none.png"]);
}

#[test]
fn the_front_page_is_short() {
    let lines = README.lines().count();
    assert!(lines <= MAX_LINES, "README.md has {lines} lines, more than {MAX_LINES}");
}

#[test]
fn the_front_page_says_first_how_mature_it_is() {
    let third = README.lines().nth(2).unwrap_or_default();
    assert!(third.starts_with(&format!("**{}, not released yet", env!("CARGO_PKG_VERSION"))), "{third}");
}
