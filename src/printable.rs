//! Texts of others, for one line of a log or a terminal.

use std::borrow::Cow;

/// The text with everything escaped that would end the line, or make a terminal do something else than show it.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_dangerous(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Words on one line, of which not more than so many characters are shown.
pub(crate) fn one_line<'a>(words: impl Iterator<Item = &'a str>, most: usize) -> String {
    let mut text = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// Controls, other ends of lines, and what turns the direction of writing around.
pub(crate) fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_a_line_or_speaks_to_a_terminal() {
        assert_eq!(printable("shop/web \"ä\" \\n"), "shop/web \"ä\" \\n");
        assert_eq!(
            printable("a\nb\r\t\0\u{1b}[2J\u{9b}\u{2028}\u{202e}"),
            "a\\nb\\r\\t\\u{0}\\u{1b}[2J\\u{9b}\\u{2028}\\u{202e}"
        );
    }
}
