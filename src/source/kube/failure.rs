//! Why a list or a watch failed.

use std::time::Duration;

use kube::core::Status;

use crate::{errors, printable};

/// Characters of a reason in the log: a gateway may answer with a page of HTML.
const MAX_REASON: usize = 300;

/// Why a list or a watch failed. As a text: one line that is not too long, whatever stands before the server answers.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("a list or an event without metadata.resourceVersion")]
    NoVersion,
    #[error("its version {now} is behind {known}, the one last seen")]
    WentBack { known: String, now: String },
    #[error("{object} has version {now} there{}, and had {known}", if *is_gone { " and was gone" } else { "" })]
    AnotherStore { object: String, known: String, now: String, is_gone: bool },
    #[error("{0} is not there, and never went")]
    Vanished(String),
    #[error("its store is another one, as another kind has shown")]
    OtherKind,
    #[error("the watch ends after {} ms without an event", .0.as_millis())]
    EndsAtOnce(Duration),
    /// A page has more bytes than are kept.
    #[error("a page of {} objects has more than {limit} bytes", objects.unwrap_or_default())]
    TooLong { objects: Option<u32>, limit: usize },
    /// What was sent is not what was asked for.
    #[error("{}", one_line(.0))]
    Unreadable(String),
    /// The server, or what stands before it, refuses.
    #[error("{}", refusal(.status))]
    Refused {
        status: Box<Status>,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No request could be made, as for want of credentials.
    #[error("{}", one_line(&errors::text(.0)))]
    NotAsked(kube::Error),
    /// There was no answer.
    #[error("{}", one_line(&errors::text(.0)))]
    NoAnswer(kube::Error),
    /// The answer broke off.
    #[error("the answer breaks off: {}", one_line(&errors::text(.0)))]
    Broken(kube::Error),
}

/// Whom a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Everybody: there was no answer.
    Silent,
    /// Everybody: the server, or what stands before it, says that it cannot answer at the moment.
    Server,
    /// This kind, so far as it can be known.
    Kind,
}

impl Failure {
    /// Whom it concerns.
    pub(super) fn scope(&self) -> Scope {
        match self {
            Failure::Late(_) | Failure::NoAnswer(_) | Failure::NotAsked(_) => Scope::Silent,
            Failure::Refused { status, .. }
                if matches!(status.code, 401 | 408 | 429 | 500..600) && !self.is_stale() =>
            {
                Scope::Server
            }
            _ => Scope::Kind,
        }
    }

    /// How long to wait at least, as the server says.
    pub(super) fn retry_after(&self) -> Duration {
        let Failure::Refused { retry_after, .. } = self else { return Duration::ZERO };
        retry_after.unwrap_or_default()
    }

    /// Whether the server does not have the version asked for: no longer (410), or not yet, as a server that went back
    /// (`NewTooLargeResourceVersionError` in apiserver's `storage/errors.go`).
    pub(super) fn is_stale(&self) -> bool {
        let status = match self {
            _ if self.is_another_store() => return true,
            Failure::OtherKind | Failure::Vanished(_) => return true,
            Failure::Refused { status, .. } => status,
            _ => return false,
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 410
            || causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
            || status.message.starts_with("Too large resource version")
    }

    /// Whether it shows that the server's store is another one than that which was read before.
    pub(super) fn is_another_store(&self) -> bool {
        matches!(self, Failure::WentBack { .. } | Failure::AnotherStore { .. })
    }

    /// Whether a list came and is of no use.
    pub(super) fn is_useless_list(&self) -> bool {
        matches!(self, Failure::NoVersion | Failure::TooLong { .. } | Failure::Unreadable(_))
    }

    /// The status that the server answered, where it refused.
    pub(super) fn status(&self) -> Option<u16> {
        let Failure::Refused { status, .. } = self else { return None };
        Some(status.code)
    }
}

fn refusal(status: &Status) -> String {
    let Status { code, reason, message, .. } = status;
    // Many say the same twice.
    one_line(&if message == reason { format!("{code} {reason}") } else { format!("{code} {reason}: {message}") })
}

fn one_line(text: &str) -> String {
    // What libraries say of where an error came through, and where to read about it.
    let words =
        text.split_whitespace().filter(|word| *word != "ServiceError:" && !word.starts_with("https://docs.rs/"));
    printable::one_line(words, MAX_REASON)
}
