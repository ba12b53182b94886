//! A preview as text for people.

use std::fmt::{self, Display, Formatter};

use anstyle::{AnsiColor, Color, Style};
use serde_json::Value;

use super::{Action, Field, Item, Preview};

/// How long a value may be in a line.
const LONGEST: usize = 120;

/// A preview as text, with colours: whoever prints it where there are none takes them out.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a Preview);

impl Action {
    pub(crate) fn sign(self) -> char {
        match self {
            Self::Create => '+',
            Self::Update => '~',
            Self::Delete => '-',
            Self::Held => '!',
            Self::Conflict | Self::Rejected => 'x',
        }
    }

    /// The action in a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Held => "held",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
        }
    }

    pub(crate) fn style(self) -> Style {
        let colour = match self {
            Self::Create => AnsiColor::Green,
            Self::Update | Self::Held => AnsiColor::Yellow,
            Self::Delete | Self::Conflict | Self::Rejected => AnsiColor::Red,
        };
        Style::new().fg_color(Some(Color::Ansi(colour)))
    }
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for item in &self.0.items {
            show(item, f)?;
        }
        if !self.0.items.is_empty() {
            writeln!(f)?;
        }
        for note in &self.0.notes {
            writeln!(f, "note: {note}")?;
        }
        let count = |action| self.0.count(action);
        write!(
            f,
            "{}: {} to create, {} to update, {} to delete, {} held, {} in conflict, {} rejected",
            self.0.cluster,
            count(Action::Create),
            count(Action::Update),
            count(Action::Delete),
            count(Action::Held),
            count(Action::Conflict),
            count(Action::Rejected),
        )
    }
}

fn show(item: &Item, f: &mut Formatter<'_>) -> fmt::Result {
    let Item {
        action,
        kind,
        key,
        service: _,
        owners,
        fields,
        message,
    } = item;
    let (style, sign, word) = (action.style(), action.sign(), action.as_str());
    write!(f, "{style}{sign} {word}{style:#} {kind} {}", plain(key))?;
    if !owners.is_empty() && (owners.len() > 1 || owners.first() != Some(key)) {
        write!(f, "  ({})", plain(&owners.join(", ")))?;
    }
    writeln!(f)?;
    if let Some(message) = message {
        writeln!(f, "    {}", plain(message))?;
    }
    for field in fields {
        let Field {
            name,
            before,
            after,
        } = field;
        let name = plain(name);
        match (before, after) {
            (None, Some(after)) => writeln!(f, "    {name}: {}", short(after))?,
            (Some(before), None) => writeln!(f, "    {name}: {} -> nothing", short(before))?,
            (Some(before), Some(after)) => {
                writeln!(f, "    {name}: {} -> {}", short(before), short(after))?;
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// A value in one line, cut where it is long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return plain(&text);
    }
    let cut: String = text.chars().take(LONGEST).collect();
    format!("{}…", plain(&cut))
}

/// Text without what a terminal would take for commands: some of it comes from other hands.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
