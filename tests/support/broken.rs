//! Lines on a terminal.

/// Columns of the terminal that pictures and manual show.
pub(crate) const COLUMNS: usize = 100;

/// A line, in parts that fit. A part ends at a blank, if there is one; a character is a column: there are no wide ones.
pub(crate) fn broken(line: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = line;
    while let Some((end, _)) = rest.char_indices().nth(COLUMNS) {
        // A blank just behind is one to end at, too.
        let blank = rest[..=end].rfind(' ').filter(|at| !rest[..*at].trim().is_empty());
        let (part, next) = rest.split_at(blank.unwrap_or(end));
        parts.push(part);
        rest = next.strip_prefix(' ').unwrap_or(next);
    }
    parts.push(rest);
    parts
}
