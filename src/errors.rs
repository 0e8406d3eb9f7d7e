//! Errors as one line of text.

use std::error::Error;

/// An error with all its causes on one line, each told once: some errors name their cause in their own words already.
pub fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Step(&'static str, #[source] Option<Box<Step>>);

    #[test]
    fn every_cause_is_told_once() {
        let step = |text, cause| Step(text, Some(Box::new(cause)));
        assert_eq!(text(&Step("alone", None)), "alone");
        assert_eq!(
            text(&step("cannot start", step("cannot read f", Step("not found", None)))),
            "cannot start: cannot read f: not found"
        );
        assert_eq!(text(&step("cannot read f: not found", Step("not found", None))), "cannot read f: not found");
    }
}
