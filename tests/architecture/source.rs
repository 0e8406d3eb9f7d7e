//! Files of source code, and what a rule asks of them.

use std::fs;
use std::path::Path;

use crate::TEST_FILES;
use crate::rust::{Token, tokens, without_comments_and_text, without_tests};

/// A file of Rust code.
pub(crate) struct SourceFile {
    /// From the top of the repository: `src/model/mod.rs`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// The words and signs of its code, without comments, texts and tests.
    pub(crate) tokens: Vec<Token>,
    /// How many of its lines are tests.
    pub(crate) test_lines: usize,
}

impl SourceFile {
    pub(crate) fn new(path: &str, text: &str) -> SourceFile {
        let all = tokens(&without_comments_and_text(text));
        let (tokens, test_lines) =
            if is_for_tests(path) { (Vec::new(), text.lines().count()) } else { without_tests(all) };
        SourceFile { path: path.to_owned(), text: text.to_owned(), tokens, test_lines }
    }

    /// The module below the crate that the file belongs to; `lib` or `main` for the roots.
    pub(crate) fn top_module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split(['/', '.']).next().unwrap_or(inside)
    }

    /// How far the file's module is below the crate: 0 for `src/lib.rs`, 2 for `src/model/node.rs`.
    fn depth(&self) -> usize {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        match inside {
            "lib.rs" | "main.rs" => 0,
            _ if inside.ends_with("/mod.rs") => inside.matches('/').count(),
            _ => inside.matches('/').count() + 1,
        }
    }

    pub(crate) fn is_under(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// The crate's modules that the code names, with lines: by `crate::`, or by enough `super::`.
    pub(crate) fn modules_used(&self) -> Vec<(usize, &str)> {
        let mut used = Vec::new();
        for start in 0..self.tokens.len() {
            if start > 0 && self.tokens[start - 1].is("::") {
                continue;
            }
            // `after` is behind the last `::` of the part that leads to the crate's root.
            let after = if self.is_path_step(start, "crate") {
                start + 2
            } else {
                let supers = (0_usize..).take_while(|&step| self.is_path_step(start + 2 * step, "super")).count();
                if supers == 0 || supers != self.depth() {
                    continue;
                }
                start + 2 * supers
            };
            used.extend(self.heads(after));
        }
        used
    }

    /// Whether there is `word::` at a position.
    fn is_path_step(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(word))
            && self.tokens.get(at + 1).is_some_and(|token| token.is("::"))
    }

    /// The first word of a path, or of every path in braces.
    fn heads(&self, at: usize) -> Vec<(usize, &str)> {
        let rest = self.tokens.get(at..).unwrap_or_default();
        if !matches!(rest, [first, ..] if first.is("{")) {
            return rest.first().map(|token| (token.line, token.text.as_str())).into_iter().collect();
        }
        let mut heads = Vec::new();
        let mut braces = 0_usize;
        let mut at_head = false;
        for token in rest {
            match token.text.as_str() {
                "{" => {
                    braces += 1;
                    at_head = braces == 1;
                }
                "}" if braces == 1 => break,
                "}" => braces -= 1,
                "," if braces == 1 => at_head = true,
                word if at_head => {
                    heads.push((token.line, word));
                    at_head = false;
                }
                _ => {}
            }
        }
        heads
    }

    /// A complaint for each place where a path (`std::fs`, `unsafe`) is mentioned.
    pub(crate) fn mentions(&self, path: &str, verdict: &str) -> Vec<String> {
        let lines = lines_with(&self.tokens, path);
        lines.into_iter().map(|line| format!("{}:{line}: `{path}` {verdict}", self.path)).collect()
    }
}

/// Where a path or other code is.
pub(crate) fn lines_with(code: &[Token], path: &str) -> Vec<usize> {
    let wanted = tokens(path);
    code.windows(wanted.len())
        .filter(|window| window.iter().zip(&wanted).all(|(token, wanted)| token.text == wanted.text))
        .map(|window| window[0].line)
        .collect()
}

pub(crate) fn is_for_tests(path: &str) -> bool {
    TEST_FILES.iter().any(|part| path.contains(part))
}

/// All Rust files below a folder of the repository, sorted by path.
pub(crate) fn source_files(folder: &str) -> Vec<SourceFile> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: String| {
        let text = fs::read_to_string(top.join(&path)).expect("source code is text");
        SourceFile::new(&path, &text)
    };
    let files: Vec<SourceFile> = files_below(folder, "rs").into_iter().map(read).collect();
    assert!(!files.is_empty(), "there is no code in {folder}");
    files
}

/// The paths of all files of a kind below a folder of the repository, sorted.
pub(crate) fn files_below(folder: &str, extension: &str) -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path.strip_prefix(top).expect("it is below the top").display().to_string());
            }
        }
    }
    files.sort();
    files
}
