//! What was found, for people and for programs.

use serde::Serialize;

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// `lictor run` would not do all that it is asked to.
    Error,
    /// It could not be looked at; the message says why.
    Skipped,
}

impl Status {
    /// As it is shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it stands.
    pub status: Status,
    /// What was looked at: one of a fixed set, such as `consul.right`.
    pub name: &'static str,
    /// Which one, where there are several: a right, a CRD, a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was seen.
    pub message: String,
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn new(status: Status, name: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            name,
            subject: None,
            message: message.into(),
            remedy: None,
        }
    }

    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(Status::Ok, name, message)
    }

    pub(super) fn warning(name: &'static str, message: impl Into<String>) -> Flaw {
        Flaw(Self::new(Status::Warning, name, message))
    }

    pub(super) fn error(name: &'static str, message: impl Into<String>) -> Flaw {
        Flaw(Self::new(Status::Error, name, message))
    }

    pub(super) fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self::new(Status::Skipped, name, why)
    }

    /// The same about this one.
    #[must_use]
    pub(super) fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

/// What is not as it should be, before it was said what to do about it: none is told without.
#[derive(Debug)]
#[must_use]
pub(super) struct Flaw(Finding);

impl Flaw {
    /// The same with what to do.
    pub(super) fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding {
            remedy: Some(remedy.into()),
            ..self.0
        }
    }
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The cluster.
    pub cluster: String,
    /// In a fixed order.
    pub findings: Vec<Finding>,
}

/// The form of the JSON; more fields may come under the same number.
const FORM: u32 = 1;

#[derive(Serialize)]
struct Json<'a> {
    form: u32,
    version: &'static str,
    cluster: &'a str,
    ok: bool,
    findings: &'a [Finding],
}

impl Report {
    /// Whether there is no error.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.count(Status::Error) == 0
    }

    fn count(&self, status: Status) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.status == status).count()
    }

    /// As JSON, described in `docs/check.md`.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Json {
            form: FORM,
            version: env!("CARGO_PKG_VERSION"),
            cluster: &self.cluster,
            ok: self.is_ok(),
            findings: &self.findings,
        })
    }

    /// As lines for people. `paint` may colour the word for a status, whose width it keeps.
    #[must_use]
    pub fn text(&self, paint: impl Fn(Status, &str) -> String) -> String {
        const INDENT: &str = "         ";
        let mut lines = Vec::new();
        for finding in &self.findings {
            let status = paint(finding.status, &format!("{:<7}", finding.status.as_str()));
            let subject = finding.subject.as_deref();
            let subject = subject.map_or(String::new(), |subject| format!(" {subject}"));
            // What servers say is of any length and form.
            let message = one_line(&finding.message);
            lines.push(format!("{status}  {}{subject}: {message}", finding.name));
            if let Some(remedy) = &finding.remedy {
                lines.push(format!("{INDENT}{}", one_line(remedy)));
            }
        }
        let counted = |status: Status, what: &str| match self.count(status) {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let errors = counted(Status::Error, "error");
        let warnings = counted(Status::Warning, "warning");
        let skipped = self.count(Status::Skipped);
        lines.push(format!("{errors}, {warnings}, {skipped} skipped\n"));
        lines.join("\n")
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
