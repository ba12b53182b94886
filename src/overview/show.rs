//! An overview as text for people.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use comfy_table::{Table, presets};

use super::{Entry, Instance, Matter, Overview, Service, Tally, Writer};
use crate::preview::show::plain;

/// An overview as text, with colours: whoever prints it where there are none takes them out.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// What is shown.
    pub overview: &'a Overview,
    /// Whether each instance and each entry has a line of its own.
    pub wide: bool,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let overview = self.overview;
        writeln!(f, "{}: {}", overview.cluster, overview.writer)?;
        for note in &overview.notes {
            writeln!(f, "note: {}", plain(note))?;
        }
        if !overview.services.is_empty() {
            let table = if self.wide {
                instances(&overview.services)
            } else {
                services(&overview.services)
            };
            writeln!(f, "\n{}", table.trim_fmt())?;
        }
        if !overview.others.is_empty() {
            let table = if self.wide {
                entries(&overview.others)
            } else {
                kinds(&overview.others)
            };
            writeln!(f, "\n{}", table.trim_fmt())?;
        }
        matters(overview, f)?;
        write!(f, "\n{}", Summary(overview.summary))
    }
}

impl Display for Writer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => write!(f, "{} writes", plain(holder))?,
            None => f.write_str("no process ever wrote")?,
        }
        match (&self.leader, self.seen_seconds_ago) {
            (Some(leader), Some(seconds)) => {
                write!(f, ", {} leads and was seen {seconds} s ago", plain(leader))
            }
            (Some(leader), None) => write!(f, ", {} leads", plain(leader)),
            (None, _) => Ok(()),
        }
    }
}

struct Summary(Tally);

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Tally {
            owned,
            critical,
            drift,
            held,
            conflicts,
            rejected,
            ..
        } = self.0;
        write!(f, "{owned} in Consul, {critical} critical; ")?;
        if self.0.is_settled() {
            return f.write_str("all is as it should be");
        }
        write!(
            f,
            "{drift} differ, {held} held, {conflicts} in conflict, {rejected} rejected"
        )
    }
}

/// Rows in columns, without rules; nothing in a cell can steer a terminal.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn services(services: &[Service]) -> Table {
    let header = [
        "SERVICE",
        "INSTANCES",
        "PASSING",
        "WARNING",
        "CRITICAL",
        "DIFFER",
        "HELD",
        "CONFLICT",
        "REJECTED",
        "OWNERS",
    ];
    let rows = services.iter().map(|service| {
        let Tally {
            owned,
            passing,
            warning,
            critical,
            drift,
            held,
            conflicts,
            rejected,
        } = service.tally;
        let numbers = [
            owned, passing, warning, critical, drift, held, conflicts, rejected,
        ];
        let owners = service.owners.iter().cloned().collect::<Vec<_>>();
        let mut row = vec![service.name.clone()];
        row.extend(numbers.map(|number| number.to_string()));
        row.push(owners.join(", "));
        row
    });
    table(&header, rows)
}

fn instances(services: &[Service]) -> Table {
    let header = ["SERVICE", "INSTANCE", "ADDRESS", "HEALTH", "STATE", "OWNER"];
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let rows = services.iter().flat_map(|service| {
        service.instances.iter().map(move |instance| {
            let Instance {
                key,
                address,
                health,
                owner,
                matters,
            } = instance;
            vec![
                service.name.clone(),
                key.clone(),
                or_none(address.as_deref()),
                or_none(*health),
                state(matters),
                or_none(owner.as_deref()),
            ]
        })
    });
    table(&header, rows)
}

fn entries(entries: &[Entry]) -> Table {
    let header = ["KIND", "KEY", "STATE", "OWNER"];
    let rows = entries.iter().map(|entry| {
        vec![
            entry.kind.clone(),
            entry.key.clone(),
            state(&entry.matters),
            entry.owner.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    table(&header, rows)
}

fn kinds(entries: &[Entry]) -> Table {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for entry in entries {
        let (all, open) = kinds.entry(&entry.kind).or_default();
        *all += 1;
        *open += usize::from(!entry.matters.is_empty());
    }
    let rows = kinds
        .into_iter()
        .map(|(kind, (all, open))| vec![kind.to_owned(), all.to_string(), open.to_string()]);
    table(&["KIND", "ENTRIES", "NOT AS THEY SHOULD BE"], rows)
}

/// How something stands, in words of a plan.
fn state(matters: &[Matter]) -> String {
    if matters.is_empty() {
        return "ok".to_owned();
    }
    let actions = matters.iter().map(|matter| matter.action.as_str());
    actions.collect::<Vec<_>>().join(", ")
}

/// All that is the matter, a line each.
fn matters(overview: &Overview, f: &mut Formatter<'_>) -> fmt::Result {
    let instances = overview.services.iter().flat_map(|it| &it.instances);
    let instances = instances.map(|it| ("instance", &it.key, &it.matters));
    let entries = overview.others.iter().chain(&overview.objects);
    let entries = entries.map(|it| (&*it.kind, &it.key, &it.matters));
    let mut first = true;
    for (kind, key, matters) in instances.chain(entries) {
        for matter in matters {
            if std::mem::take(&mut first) {
                writeln!(f)?;
            }
            let Matter {
                action,
                objects,
                message,
            } = matter;
            let (style, sign, word) = (action.style(), action.sign(), action.as_str());
            write!(f, "{style}{sign} {word}{style:#} {kind} {}", plain(key))?;
            if !objects.is_empty() && (objects.len() > 1 || objects.first() != Some(key)) {
                write!(f, " ({})", plain(&objects.join(", ")))?;
            }
            writeln!(f, ": {}", plain(message))?;
        }
    }
    Ok(())
}
