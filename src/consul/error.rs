//! What can go wrong between Lictor and Consul, in the classes that decide what to do next.

use std::fmt;

/// Longest text of Consul that an error keeps, in bytes.
const MAX_TEXT: usize = 1024;

/// What a failure means for the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    /// No connection: the request was not sent, so nothing was applied. Try again with back-off.
    Unreachable,
    /// The request was sent and its fate is unknown: it may have been applied. Read again first.
    Ambiguous,
    /// Consul asks for less: back off, all workers together. Nothing was applied.
    SlowDown,
    /// The servers have no leader, or cannot reach it. Nothing was applied.
    NoLeader,
    /// The token lacks a right, or the endpoint is closed to us.
    AccessDenied,
    /// Consul does not know the token: revoked, expired, or never valid. Log in again.
    TokenUnknown,
    /// Someone else was faster; read again and plan again.
    Conflict,
    /// What was to be read, changed or removed is not there.
    NotFound,
    /// Consul will never accept this as it is.
    Refused,
    /// The answer is not one of Consul, or cannot be understood. A write may have been applied.
    Malformed,
}

impl ErrorClass {
    /// A short name for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Ambiguous => "ambiguous",
            Self::SlowDown => "slow_down",
            Self::NoLeader => "no_leader",
            Self::AccessDenied => "access_denied",
            Self::TokenUnknown => "token_unknown",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
        }
    }

    /// Whether what ended so may go well when it is tried again a little later, once what was to be changed was
    /// read again.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        self.may_be_applied() || matches!(self, Self::Unreachable | Self::SlowDown | Self::NoLeader)
    }

    /// Whether a write that ended so may have been applied all the same.
    #[must_use]
    pub const fn may_be_applied(self) -> bool {
        matches!(self, Self::Ambiguous | Self::Malformed)
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that did not give what was asked for.
///
/// Holds what was asked (never the query string nor a header, where secrets could be) and what
/// Consul said, cut to 1 KiB.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{method} {path}: {}{}", Status(*.status), one_line(.text))]
pub struct ConsulError {
    class: ErrorClass,
    method: &'static str,
    path: Box<str>,
    status: Option<u16>,
    text: Box<str>,
}

/// A text of anyone's as part of one log line.
pub(super) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl ConsulError {
    /// What the failure means.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The HTTP status, where there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// What Consul said, or what happened on the way to it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The path that was asked, without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A failure without an answer.
    pub(super) fn without_answer(
        class: ErrorClass,
        method: &'static str,
        path: &str,
        text: &str,
    ) -> Self {
        Self {
            class,
            method,
            path: path.into(),
            status: None,
            text: cut(text).into(),
        }
    }

    /// An answer that says no.
    pub(super) fn answered(method: &'static str, path: &str, status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT)]);
        let text = cut(text.trim());
        Self {
            class: classify(status, text),
            method,
            path: path.into(),
            status: Some(status),
            text: text.into(),
        }
    }

    /// An answer that cannot be understood.
    pub(super) fn malformed(method: &'static str, path: &str, status: u16, why: &str) -> Self {
        let class = ErrorClass::Malformed;
        Self {
            class,
            method,
            path: path.into(),
            status: Some(status),
            text: cut(why).into(),
        }
    }
}

struct Status(Option<u16>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, "{status}: "),
            None => Ok(()),
        }
    }
}

/// At most [`MAX_TEXT`] bytes of `text`, cut between characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// The class of an answer that is not a success.
pub(super) fn classify(status: u16, text: &str) -> ErrorClass {
    let by_text = || {
        let own = unwrapped(text);
        let begins = BEGINNINGS.iter().find(|(start, _)| own.starts_with(start));
        let contains = || TEXTS.iter().find(|(part, _)| text.contains(part));
        begins.or_else(contains).map(|entry| entry.1)
    };
    match status {
        400 | 413 => ErrorClass::Refused,
        403 => by_text().unwrap_or(ErrorClass::AccessDenied),
        // Not every 404 is Consul's: a proxy without a route says the same in its own words.
        404 => by_text().unwrap_or(ErrorClass::Malformed),
        409 => ErrorClass::Conflict,
        429 | 503 => ErrorClass::SlowDown,
        // Unknown texts included: a proxy between us and Consul may have passed the request on.
        500.. => by_text().unwrap_or(ErrorClass::Ambiguous),
        // Consul uses no others on the endpoints in use here.
        _ => ErrorClass::Malformed,
    }
}

/// A text without what Consul puts before it on the way to and through the leader, and without the
/// number of errors that it lists.
pub(super) fn unwrapped(text: &str) -> &str {
    let mut rest = text;
    while let Some(inner) = WRAPPERS.iter().find_map(|outer| rest.strip_prefix(outer)) {
        rest = inner;
    }
    rest.trim_start_matches(|c: char| c.is_ascii_digit())
}

const WRAPPERS: [&str; 2] = ["rpc error making call: ", "raft apply failed: "];

/// Beginnings of texts that go on with what they refuse, in the words of whoever wrote it: a name that
/// reads like an outage must not look like one. They go before [`TEXTS`].
const BEGINNINGS: &[(&str, ErrorClass)] = &[
    ("Permission denied", ErrorClass::AccessDenied),
    ("Config entry not found", ErrorClass::NotFound),
    ("invalid session", ErrorClass::NotFound),
    // Someone else has the name, or an id that is like it.
    ("name '", ErrorClass::Conflict),
    // How Consul lists what a check of an object found wrong with it.
    (" error occurred:", ErrorClass::Refused),
    (" errors occurred:", ErrorClass::Refused),
    ("Sources[", ErrorClass::Refused),
    ("Invalid prepared query", ErrorClass::Refused),
    ("failed compiling template", ErrorClass::Refused),
    // The protocol of a service does not go together with what others wrote about it.
    ("service \"", ErrorClass::Refused),
    ("discovery chain \"", ErrorClass::Refused),
    ("Invalid MutualTLSMode", ErrorClass::Refused),
];

/// Texts by which Consul tells its failures apart, since almost all of them are a 500; the first
/// fragment that is found decides. What is not listed counts as [`ErrorClass::Ambiguous`].
///
/// Answers of Consul 1.22.7. `tests/consul_client` provokes those that a single server can be made
/// to give.
const TEXTS: &[(&str, ErrorClass)] = &[
    ("ACL not found", ErrorClass::TokenUnknown),
    ("Permission denied", ErrorClass::AccessDenied),
    // The API server does not know the token that was to be exchanged for one of Consul.
    ("lookup failed: [", ErrorClass::AccessDenied),
    // The leader that knew whether it was applied is gone.
    (
        "leadership lost while committing log",
        ErrorClass::Ambiguous,
    ),
    ("No cluster leader", ErrorClass::NoLeader),
    ("No known Consul servers", ErrorClass::NoLeader),
    (
        "Raft leader not found in server lookup mapping",
        ErrorClass::NoLeader,
    ),
    ("Not ready to serve consistent reads", ErrorClass::NoLeader),
    ("node is not the leader", ErrorClass::NoLeader),
    ("leadership transfer in progress", ErrorClass::NoLeader),
    ("rpc error getting client", ErrorClass::NoLeader),
    ("No path to datacenter", ErrorClass::NoLeader),
    ("rate limit exceeded", ErrorClass::SlowDown),
    // Someone was faster: took the name, or removed what was to be added to.
    (
        "template with an empty name already exists",
        ErrorClass::Conflict,
    ),
    ("Missing node registration", ErrorClass::Conflict),
    ("Missing service registration", ErrorClass::Conflict),
    ("Unknown service ID", ErrorClass::Conflict),
    // Things that are not there.
    ("Query not found", ErrorClass::NotFound),
    (
        "Cannot modify non-existent prepared query",
        ErrorClass::NotFound,
    ),
    ("Session id '", ErrorClass::NotFound),
    // Things that will never be accepted.
    ("Must provide", ErrorClass::Refused),
    ("Invalid service address", ErrorClass::Refused),
    ("Invalid Service Meta", ErrorClass::Refused),
    ("doesn't match register request node", ErrorClass::Refused),
    (
        "cannot register requests with PeerName",
        ErrorClass::Refused,
    ),
    ("Bad node ID", ErrorClass::Refused),
    (
        "Failed to create boolean expression evaluator",
        ErrorClass::Refused,
    ),
    ("filtering not supported", ErrorClass::Refused),
    ("strconv.ParseUint", ErrorClass::Refused),
    ("failed to parse and validate JWT", ErrorClass::Refused),
    ("Missing check '", ErrorClass::Refused),
    ("Session TTL", ErrorClass::Refused),
    ("failed prepared query lookup", ErrorClass::Refused),
    ("ID must be empty when creating", ErrorClass::Refused),
    ("invalid config entry kind", ErrorClass::Refused),
    ("Name is required", ErrorClass::Refused),
    ("and not a wildcard", ErrorClass::Refused),
    ("wildcard character '*'", ErrorClass::Refused),
    ("At least one source is required", ErrorClass::Refused),
    ("cannot set MutualTLSMode", ErrorClass::Refused),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_or_a_text_gives_the_class() {
        use ErrorClass as C;
        let cases = [
            (
                400,
                "Request decode failed: json: unknown field \"Ports\"",
                C::Refused,
            ),
            (
                413,
                "Request body(600000 bytes) too large, max size: 524288 bytes.",
                C::Refused,
            ),
            (
                403,
                "Permission denied: token with AccessorID 'x' lacks permission",
                C::AccessDenied,
            ),
            (
                403,
                "Endpoint is blocked by agent configuration",
                C::AccessDenied,
            ),
            (403, "token does not exist: ACL not found", C::TokenUnknown),
            (404, "Session id 'adf4238a' not found", C::NotFound),
            (404, "<html>404 Not Found</html>", C::Malformed),
            (405, "method GET not allowed", C::Malformed),
            (301, "", C::Malformed),
            (409, "", C::Conflict),
            (
                429,
                "rate limit exceeded, try again later or against a different server",
                C::SlowDown,
            ),
            (503, "<html>Service Unavailable</html>", C::SlowDown),
            (500, "No cluster leader", C::NoLeader),
            (
                500,
                "rpc error getting client: failed to get conn: dial tcp",
                C::NoLeader,
            ),
            (500, "rpc error making call: EOF", C::Ambiguous),
            (
                500,
                "raft apply failed: leadership lost while committing log",
                C::Ambiguous,
            ),
            (
                500,
                "raft apply failed: node is not the leader",
                C::NoLeader,
            ),
            (
                500,
                "raft apply failed: name 'Q1' aliases an existing query name",
                C::Conflict,
            ),
            (
                500,
                "rpc error making call: Permission denied: anonymous",
                C::AccessDenied,
            ),
            (
                500,
                "1 error occurred:\n\t* Cannot set both Port and Ports",
                C::Refused,
            ),
            (
                500,
                "rpc error making call: raft apply failed: name 'No cluster leader' aliases an \
                 existing query name",
                C::Conflict,
            ),
            (
                500,
                "Sources[1] defines \"rate limit exceeded\" more than once",
                C::Refused,
            ),
            (
                403,
                "Permission denied: token with AccessorID 'x' lacks permission \
                 'intention:write' on \"ACL not found\"",
                C::AccessDenied,
            ),
            (500, "something that nobody has seen before", C::Ambiguous),
            (502, "Bad Gateway", C::Ambiguous),
        ];
        for (status, text, class) in cases {
            assert_eq!(classify(status, text), class, "{status} {text}");
        }
    }

    #[test]
    fn a_write_that_may_be_applied_is_told_from_one_that_is_not() {
        assert!(ErrorClass::Ambiguous.may_be_applied());
        assert!(ErrorClass::Malformed.may_be_applied());
        assert!(!ErrorClass::Unreachable.may_be_applied());
        assert!(!ErrorClass::NoLeader.may_be_applied());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let body = "\u{e9}".repeat(MAX_TEXT);
        let error = ConsulError::answered("PUT", "/v1/txn", 500, body.as_bytes());
        assert_eq!(error.text().len(), MAX_TEXT);
        assert!(error.to_string().starts_with("PUT /v1/txn: 500: \u{e9}"));
        let odd = format!("a{body}");
        let error = ConsulError::answered("PUT", "/v1/txn", 500, odd.as_bytes());
        assert!(error.text().len() <= MAX_TEXT);
    }
}
