//! What failed calls mean for a watch.

use std::time::Duration;

use kube::core::Status;

use super::client::CallError;
use super::home::UidError;
use super::kinds::{Broken, BrokenKind};
use super::machine::Failure;
use crate::model::text::Text;

pub(super) fn unanswered(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => refused(&status),
        kube::Error::HyperError(error) => unreachable(&error),
        kube::Error::Service(error) => unreachable(&*error),
        other => failed(&other),
    }
}

/// Whose the API server is cannot be known.
pub(super) fn unknown(error: UidError) -> Failure {
    let message = error.to_string();
    match error {
        UidError::Unread {
            source: CallError::Kube(kube::Error::Api(status)),
            ..
        } => Failure::Other {
            why: Broken {
                kind: match status.code {
                    401 | 403 => BrokenKind::Denied,
                    _ => BrokenKind::Failed,
                },
                message: message.into(),
            },
            pause: pause(&status),
        },
        UidError::Unread {
            source: CallError::Kube(error),
            ..
        } => unanswered(error),
        UidError::Unread {
            source: CallError::Deadline(_),
            ..
        } => other(BrokenKind::Unreachable, message),
        UidError::None(_) => other(BrokenKind::Failed, message),
    }
}

pub(super) fn refused(status: &Status) -> Failure {
    let kind = match status.code {
        410 => return Failure::Gone,
        // The API server says so in the stream of a watch, with another code.
        _ if status.reason == "Expired" || status.reason == "Gone" => return Failure::Gone,
        404 => BrokenKind::Missing,
        401 | 403 => BrokenKind::Denied,
        _ => BrokenKind::Failed,
    };
    let message = match kind {
        BrokenKind::Missing => {
            "the API server does not serve this kind: is its CRD installed?".into()
        }
        _ => Text::from(format!("{} {}", status.code, status.message)),
    };
    Failure::Other {
        why: Broken { kind, message },
        pause: pause(status),
    }
}

/// How long the API server asks to wait, if it does.
pub(super) fn pause(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

pub(super) fn other(kind: BrokenKind, message: impl Into<Text>) -> Failure {
    Failure::Other {
        why: Broken {
            kind,
            message: message.into(),
        },
        pause: None,
    }
}

pub(super) fn overdue(what: &str, deadline: Duration) -> Failure {
    other(
        BrokenKind::Unreachable,
        format!("no answer to {what} within {deadline:?}"),
    )
}

pub(super) fn endless(what: &str) -> Failure {
    other(
        BrokenKind::Failed,
        format!("the answer to {what} is longer than any that the API server gives"),
    )
}

pub(super) fn unreachable(error: &(dyn std::error::Error + 'static)) -> Failure {
    other(BrokenKind::Unreachable, chain(error))
}

pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    other(BrokenKind::Failed, chain(error))
}

pub(super) fn leaving() -> Failure {
    Failure::Leaving("its CRD is being deleted, or was made anew: what it had is kept".into())
}

pub(super) fn undecodable(error: &serde_json::Error) -> Failure {
    Failure::Undecodable(format!("the API server's answer cannot be understood: {error}").into())
}

/// An error with its causes; most say only together what happened.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
