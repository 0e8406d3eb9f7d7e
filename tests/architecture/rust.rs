//! Reading Rust: words and signs, without comments, texts and tests.

/// A word, `::`, or any other sign.
pub(crate) struct Token {
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

/// Whether a character can be part of a word.
pub(crate) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

pub(crate) fn tokens(code: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|character: char| !is_word(character)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, behind) = rest.split_at(length);
            tokens.push(Token { line: index + 1, text: text.to_owned() });
            rest = behind.trim_start();
        }
    }
    tokens
}

/// Takes out every item that is marked `#[cfg(test)]`; also says how many lines they have.
pub(crate) fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, usize) {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let is_marked =
        |rest: &[Token]| rest.len() >= mark.len() && rest.iter().zip(mark).all(|(token, word)| token.is(word));
    let mut kept = Vec::new();
    let mut lines = 0;
    let mut rest = tokens;
    while let Some(at) = (0..rest.len()).find(|at| is_marked(&rest[*at..])) {
        let marked = rest.split_off(at);
        kept.append(&mut rest);
        let end = mark.len() + end_of_item(&marked[mark.len()..]);
        lines += 1 + marked[end - 1].line - marked[0].line;
        rest = marked.into_iter().skip(end).collect();
    }
    kept.append(&mut rest);
    (kept, lines)
}

/// The position behind an item: behind its `;`, or behind the brace that closes its body.
fn end_of_item(tokens: &[Token]) -> usize {
    let mut braces = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            ";" if braces == 0 => return at + 1,
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if braces == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Code without comments and without what is inside of texts and characters; lines stay where they are.
pub(crate) fn without_comments_and_text(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let after_word = kept.chars().next_back().is_some_and(is_word);
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_text(rest).filter(|_| !after_word) {
            length
        } else if first == '"' {
            text(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped == 0 {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (gone, behind) = rest.split_at(skipped);
            kept.push(' ');
            kept.extend(gone.chars().filter(|character| *character == '\n'));
            rest = behind;
        }
    }
    kept
}

/// Length of the comment `/* ... */` that the code begins with; they can be nested.
fn block_comment(code: &str) -> usize {
    let mut open = 0_usize;
    let mut at = 0;
    while at < code.len() {
        let rest = &code.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            open += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            open -= 1;
            at += 2;
            if open == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    code.len()
}

/// Length of the raw text (`r"..."`, `r#"..."#`, `br"..."`, `cr"..."`) that the code begins with, if it does.
fn raw_text(code: &str) -> Option<usize> {
    let opening = code.strip_prefix(['b', 'c']).unwrap_or(code).strip_prefix('r')?;
    let quoted = opening.trim_start_matches('#');
    let hashes = opening.len() - quoted.len();
    let body = quoted.strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let begin = code.len() - body.len();
    Some(body.find(&closing).map_or(code.len(), |end| begin + end + closing.len()))
}

/// Length of the text that the code begins with.
fn text(code: &str) -> usize {
    quoted(code, b'"')
}

/// Length of the character that the code begins with; 0 where it is a lifetime.
fn character(code: &str) -> usize {
    let mut inside = code.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(code, b'\''),
        (Some(one), Some('\'')) => 2 + one.len_utf8(),
        _ => 0,
    }
}

/// Length from one quote to the next that has no backslash before it.
fn quoted(code: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in code.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    code.len()
}
