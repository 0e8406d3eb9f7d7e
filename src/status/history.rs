//! The last changes, asked of the daemon.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::daemon::ask_page;
use super::patient::Limits;
use super::{AskError, Filter};
use crate::metrics::history::{Change, Outcome, PATH};
use crate::printable::printable;

/// Of the memory of the daemon, which has 300 changes of some 400 bytes, where no reason of a failure is long.
const LIMITS: Limits = Limits { first: Duration::from_secs(2), whole: Duration::from_secs(5), longest: 4 << 20 };

/// Asks the daemon whose metrics port has this address for the last changes, the oldest first.
///
/// # Errors
/// See [`AskError`].
pub async fn ask_history(metrics: SocketAddr) -> Result<Vec<Change>, AskError> {
    ask_page(metrics, PATH, LIMITS).await
}

/// Those that concern what is asked for: a namespace, a Service, or all. Of an address the history knows nothing: `None`.
pub fn changes_of(changes: Vec<Change>, filter: &Filter) -> Option<Vec<Change>> {
    let is_wanted = |change: &Change| {
        let service = change.service.as_deref().unwrap_or_default();
        match filter {
            Filter::All => true,
            Filter::Namespace(namespace) => service.split_once('/').is_some_and(|(its, _)| its == namespace),
            Filter::Service(name, _) => service == name.as_str(),
            Filter::Address(_) | Filter::At(_) | Filter::NodePort(_) => false,
        }
    };
    let knows = !matches!(filter, Filter::Address(_) | Filter::At(_) | Filter::NodePort(_));
    knows.then(|| changes.into_iter().filter(is_wanted).collect())
}

/// A line for each, for people.
pub fn history_text(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let Change { at, kind, name, together, operations, transactions, bytes, .. } = change;
        let at = at.replace('T', " ").replace('Z', "");
        let gone = if change.gone { " is gone" } else { "" };
        let _ = write!(text, "{} {} {}{gone}: ", printable(&at), printable(kind), printable(name));
        let took = change.took_microseconds.map(|took| format!(" in {}", time(took))).unwrap_or_default();
        let _ = match change.result {
            Outcome::Nothing => write!(text, "nothing to write"),
            Outcome::Written => {
                let kernel = time(change.kernel_microseconds);
                write!(text, "written{took} ({operations} operations, {bytes} bytes, kernel {kernel}")
                    .and_then(
                        |()| if *transactions > 1 { write!(text, ", {transactions} transactions") } else { Ok(()) },
                    )
                    .and_then(|()| {
                        if *together > 1 { write!(text, ", {together} objects together)") } else { write!(text, ")") }
                    })
            }
            Outcome::Failed => {
                let reason = change.reason.as_deref().unwrap_or("for an unknown reason");
                write!(text, "FAILED{took}: {}", printable(reason))
            }
            Outcome::Unknown => write!(text, "?"),
        };
        text.push('\n');
    }
    text
}

/// A time in microseconds, with three digits at least.
#[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
fn time(micros: u64) -> String {
    match micros {
        0..10_000 => format!("{micros} us"),
        10_000..10_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, result: Outcome) -> Change {
        Change {
            at: "2026-11-30T12:00:00.123Z".to_owned(),
            kind: "EndpointSlice".to_owned(),
            name: format!("shop/{name}-x"),
            service: Some(format!("shop/{name}")),
            gone: false,
            together: 1,
            operations: 2,
            transactions: 1,
            bytes: 340,
            took_microseconds: Some(412),
            kernel_microseconds: 95,
            result,
            reason: None,
        }
    }

    #[test]
    fn a_line_says_what_became_of_a_change() {
        let many = Change {
            together: 3,
            transactions: 2,
            gone: true,
            took_microseconds: Some(45_000),
            ..change("b", Outcome::Written)
        };
        let nothing = Change { took_microseconds: None, operations: 0, ..change("c", Outcome::Nothing) };
        let failed = Change { reason: Some("no permission\n".to_owned()), ..change("d", Outcome::Failed) };
        let expected = "\
2026-11-30 12:00:00.123 EndpointSlice shop/a-x: written in 412 us (2 operations, 340 bytes, kernel 95 us)
2026-11-30 12:00:00.123 EndpointSlice shop/b-x is gone: written in 45.0 ms (2 operations, 340 bytes, kernel 95 us, 2 transactions, 3 objects together)
2026-11-30 12:00:00.123 EndpointSlice shop/c-x: nothing to write
2026-11-30 12:00:00.123 EndpointSlice shop/d-x: FAILED in 412 us: no permission\\n
";
        assert_eq!(history_text(&[change("a", Outcome::Written), many, nothing, failed]), expected);
    }

    #[test]
    fn those_of_a_service_are_found() {
        let all = || vec![change("web", Outcome::Written), change("webshop", Outcome::Written)];
        let found = |text: &str| {
            let changes = changes_of(all(), &Filter::parse(text).expect(text))?;
            Some(changes.into_iter().map(|change| change.name).collect::<Vec<_>>())
        };
        assert_eq!(found("shop/web"), Some(vec!["shop/web-x".to_owned()]));
        assert_eq!(found("shop").map(|all| all.len()), Some(2));
        assert_eq!(found("other"), Some(vec![]));
        assert_eq!(found("10.96.0.1"), None);
        assert_eq!(changes_of(all(), &Filter::All).map(|all| all.len()), Some(2));
    }
}
