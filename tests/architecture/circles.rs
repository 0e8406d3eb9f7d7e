//! Circles: files, or rooms, of which each can only be understood with all the others.
//!
//! A path is followed to the file that defines what it names: through `use`, through what a `mod.rs` passes on with
//! `pub use`, and through names that the file has imported. Between a file and the module files above it there are no
//! arrows: a `mod.rs` and what is in its folder are one room.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::rust::{Token, is_word};
use crate::source::{SourceFile, is_for_tests};

/// A path from the crate's root: `["model", "service", "Service"]`.
type Path = Vec<String>;

/// A path that a file mentions.
struct Mention {
    line: usize,
    path: Path,
}

/// That one file needs another.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Arrow<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    /// Where it first does.
    line: usize,
    /// The path that it mentions there.
    path: String,
}

impl fmt::Display for Arrow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} uses {} by `{}`", self.from, self.line, self.to, self.path)
    }
}

/// A complaint for each circle of files.
pub(crate) fn between_files(files: &[SourceFile]) -> Vec<String> {
    complaints("files", &arrows(files), |file| file)
}

/// A complaint for each circle of rooms: the modules right below the crate.
pub(crate) fn between_rooms(files: &[SourceFile]) -> Vec<String> {
    let mut arrows = arrows(files);
    arrows.retain(|arrow| room(arrow.from) != room(arrow.to));
    complaints("rooms", &arrows, room)
}

/// The room that a file belongs to.
fn room(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// All arrows between the files of the crate. `main.rs` is another crate, and nobody's room.
pub(crate) fn arrows(files: &[SourceFile]) -> Vec<Arrow<'_>> {
    let files = files.iter().filter(|file| file.path != "src/main.rs" && !is_for_tests(&file.path));
    let modules: BTreeMap<Path, &SourceFile> = files.map(|file| (module(&file.path), file)).collect();
    let mut names = Names { modules: &modules, imported: BTreeMap::new() };
    let mut mentioned = Vec::new();
    for (module, file) in &modules {
        let (imported, mentions) = mentions(file, module, &modules);
        names.imported.insert(module, imported);
        mentioned.push((module, *file, mentions));
    }
    let mut arrows = Vec::new();
    for (module, file, mentions) in mentioned {
        let mut used = BTreeSet::new();
        for Mention { line, path } in mentions {
            let Some(home) = names.home(&path) else { continue };
            let to = &modules[home].path;
            if !home.starts_with(module) && !module.starts_with(home) && used.insert(to) {
                arrows.push(Arrow { from: &file.path, to, line, path: path.join("::") });
            }
        }
    }
    arrows
}

/// The module that a file is.
fn module(path: &str) -> Path {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let inside = inside.strip_suffix(".rs").unwrap_or(inside);
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    if inside == "lib" { Path::new() } else { inside.split('/').map(str::to_owned).collect() }
}

/// Where names lead.
struct Names<'a> {
    modules: &'a BTreeMap<Path, &'a SourceFile>,
    /// What each module imports, or passes on, under which name.
    imported: BTreeMap<&'a Path, BTreeMap<String, Path>>,
}

impl Names<'_> {
    /// The module whose file defines what a path names.
    fn home(&self, path: &[String]) -> Option<&Path> {
        let mut path = path.to_vec();
        // With more steps than there are modules it would go round for ever.
        for _ in 0..=self.modules.len() {
            let (module, _) = (0..=path.len()).rev().find_map(|length| self.modules.get_key_value(&path[..length]))?;
            let next = path.get(module.len()).and_then(|name| self.imported.get(module)?.get(name));
            let Some(next) = next else { return Some(module) };
            path = [next.as_slice(), &path[module.len() + 1..]].concat();
        }
        None
    }
}

/// What a file imports under which name, and every path in it that leads into the crate.
fn mentions(
    file: &SourceFile,
    module: &Path,
    modules: &BTreeMap<Path, &SourceFile>,
) -> (BTreeMap<String, Path>, Vec<Mention>) {
    let mut imported = BTreeMap::new();
    let mut found = Vec::new();
    // Modules in braces that the position is in, with the depth of each.
    let mut inner: Vec<(usize, String)> = Vec::new();
    let mut braces = 0_usize;
    let mut rest = &file.tokens[..];
    let mut before = "";
    while let [first, behind @ ..] = rest {
        let here: Path = module.iter().chain(inner.iter().map(|(_, name)| name)).cloned().collect();
        let mut next = behind;
        match first.text.as_str() {
            "use" => {
                let end = behind.iter().position(|token| token.is(";")).unwrap_or(behind.len());
                for (line, path, name) in leaves(&behind[..end], &[]) {
                    let Some(path) = absolute(&path, &here, modules, &BTreeMap::new()) else { continue };
                    if inner.is_empty() {
                        imported.insert(name, path.clone());
                    }
                    found.push(Mention { line, path });
                }
                next = &behind[end..];
            }
            "mod" if matches!(behind, [_, brace, ..] if brace.is("{")) => inner.push((braces, behind[0].text.clone())),
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                inner.retain(|(depth, _)| *depth < braces);
            }
            word if before != "::" && word.chars().all(is_word) => {
                let path = straight(rest);
                if path.len() > 1 {
                    next = &rest[2 * path.len() - 1..];
                    let path = absolute(&path, &here, modules, &imported);
                    found.extend(path.map(|path| Mention { line: first.line, path }));
                }
            }
            _ => {}
        }
        before = &rest[rest.len() - next.len() - 1].text;
        rest = next;
    }
    (imported, found)
}

/// The path `a::b::c` that the tokens begin with.
fn straight(tokens: &[Token]) -> Path {
    let is_in_path =
        |(at, token): &(usize, &Token)| if at % 2 == 0 { token.text.chars().all(is_word) } else { token.is("::") };
    let mut path: Vec<&Token> = tokens.iter().enumerate().take_while(is_in_path).map(|(_, token)| token).collect();
    // `Vec::<u8>`
    path.truncate(path.len() - (path.len() + 1) % 2);
    path.into_iter().step_by(2).map(|token| token.text.clone()).collect()
}

/// The paths of what stands behind `use`, each with the name that it gets.
fn leaves(tokens: &[Token], before: &[String]) -> Vec<(usize, Path, String)> {
    let mut path = before.to_vec();
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "::" => {}
            "{" => return branches(&tokens[at + 1..]).into_iter().flat_map(|branch| leaves(branch, &path)).collect(),
            "as" => {
                let name = tokens.get(at + 1).map(|token| token.text.clone()).unwrap_or_default();
                return vec![(token.line, path, name)];
            }
            // The module itself, and everything of it.
            "self" if at == 0 && !before.is_empty() => {}
            "*" => {}
            word => path.push(word.to_owned()),
        }
    }
    let Some(first) = tokens.first() else { return Vec::new() };
    let name = if tokens.last().is_some_and(|last| last.is("*")) { "*" } else { path.last().map_or("", |it| it) };
    vec![(first.line, path.clone(), name.to_owned())]
}

/// The parts of a list in braces, up to the brace that closes it.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let mut branches = Vec::new();
    let (mut begin, mut braces) = (0, 0_usize);
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => braces += 1,
            "}" if braces == 0 => {
                branches.push(&tokens[begin..at]);
                break;
            }
            "}" => braces -= 1,
            "," if braces == 0 => {
                branches.push(&tokens[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    branches
}

/// The same path from the crate's root, if it leads into the crate.
fn absolute(
    path: &[String],
    here: &Path,
    modules: &BTreeMap<Path, &SourceFile>,
    imported: &BTreeMap<String, Path>,
) -> Option<Path> {
    let (first, rest) = path.split_first()?;
    let child = || [here.as_slice(), std::slice::from_ref(first)].concat();
    let (base, rest) = match first.as_str() {
        "crate" => (Path::new(), rest),
        "self" => (here.clone(), rest),
        "super" => {
            let up = path.iter().take_while(|word| *word == "super").count();
            (here[..here.len().checked_sub(up)?].to_vec(), &path[up..])
        }
        _ if modules.contains_key(&child()) => (child(), rest),
        name => (imported.get(name)?.clone(), rest),
    };
    Some([base.as_slice(), rest].concat())
}

/// Says which nodes form circles, and by which arrows. `node` tells what node a file is part of.
fn complaints(what: &str, arrows: &[Arrow<'_>], node: impl Fn(&str) -> &str) -> Vec<String> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in arrows {
        next.entry(node(arrow.from)).or_default().insert(node(arrow.to));
    }
    let within = |circle: &BTreeSet<&str>| {
        let inside = |arrow: &&Arrow<'_>| circle.contains(node(arrow.from)) && circle.contains(node(arrow.to));
        arrows.iter().filter(inside).map(|arrow| format!("\n    {arrow}")).collect::<String>()
    };
    circles(&next).iter().map(|circle| format!("a circle of {} {what}:{}", circle.len(), within(circle))).collect()
}

/// The sets of more than one node in which each reaches all the others.
fn circles<'a>(next: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<BTreeSet<&'a str>> {
    let reached = |start: &'a str| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            open.extend(next.get(node).into_iter().flatten().filter(|node| reached.insert(**node)));
        }
        reached
    };
    let from: BTreeMap<&str, BTreeSet<&str>> = next.keys().map(|node| (*node, reached(node))).collect();
    let back = |node: &'a str| {
        let mutual = |other: &&&'a str| from.get(*other).is_some_and(|reached| reached.contains(node));
        from[node].iter().filter(mutual).copied().collect::<BTreeSet<_>>()
    };
    next.keys().map(|node| back(node)).filter(|circle| circle.len() > 1).collect()
}
