//! What `lictor gc` shows, and what became of it.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use anstyle::{AnsiColor, Color, Style};
use schemars::JsonSchema;
use serde::Serialize;

use super::entries::DoomedEntry;
use super::handed::HandedOver;
use super::handover::HandOver;
use super::remove::Removed;
use super::{Doomed, dead::Estate, offline};
use crate::model::gc::HeldEntry;
use crate::model::key::Key;
use crate::model::names::ClusterName;
use crate::model::owner::Owner;
use crate::overview::show::table;
use crate::preview::show::plain;

/// Why something goes that no object claims.
pub const UNCLAIMED: &str = "no object claims it";
/// Why something of a dead cluster goes.
pub const DEAD: &str = "its cluster is dead";

/// All that `lictor gc` found, and what it did about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Findings {
    /// The cluster whose it is.
    pub cluster: String,
    /// The process that holds it and would remove it; absent where `lictor gc` itself would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The name that the cluster has now, which is given what a dead cluster left; absent without `--hand-to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hand_to: Option<String>,
    /// What would become that one's where it stands.
    pub handed: Vec<Row>,
    /// What would go: exactly this, and nothing that is found later.
    pub goes: Vec<Row>,
    /// What stays although it looks like the cluster's.
    pub stays: Vec<Stay>,
    /// How many entries of others are on nodes of a dead cluster. They stay.
    pub foreign: usize,
    /// What was done; absent where it was only shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<Deed>,
}

/// Something that would go, or become another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Row {
    /// `instance`, `intention`, `query`, `service-defaults`, `node` or `key`.
    pub kind: String,
    /// Its name in Consul; of an instance, its ID.
    pub name: String,
    /// The node in Consul that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whose it was: `Kind/namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// For how many seconds it has been held, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Why it would go, what it waits for, or why it is held.
    pub why: String,
}

/// Something that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Stay {
    /// Its name in Consul.
    pub name: String,
    /// Why.
    pub why: String,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Deed {
    /// How much the process that holds it removes from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<usize>,
    /// How much was found after it was shown, and stays held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_meanwhile: Option<usize>,
    /// How much was handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handed: Option<HandedOver>,
    /// How much `lictor gc` itself removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<Removed>,
    /// What was shown and stayed, each with the reason.
    pub stayed: Vec<String>,
}

impl Findings {
    /// Nothing yet.
    #[must_use]
    pub fn of(cluster: &ClusterName) -> Self {
        Self {
            cluster: cluster.to_string(),
            ..Self::default()
        }
    }

    /// Adds what a process that writes says to hold.
    pub fn add_held(&mut self, held: &[HeldEntry]) {
        self.goes.extend(held.iter().map(|held| {
            let (node, name) = match held.key.split_once('/') {
                Some((node, id)) if held.kind == "instance" => (Some(node.to_owned()), id),
                _ => (None, &*held.key),
            };
            Row {
                kind: held.kind.clone(),
                name: name.to_owned(),
                node,
                owner: Some(held.owner.clone()).filter(|owner| !owner.is_empty()),
                seconds: held.seconds,
                why: held.why.clone(),
            }
        }));
    }

    /// Adds what nothing in Kubernetes claims.
    pub fn add_unclaimed(&mut self, cluster: &ClusterName, found: &offline::Found) {
        self.add(cluster, &found.instances, &found.entries, UNCLAIMED);
    }

    /// Adds what a dead cluster left.
    pub fn add_estate(&mut self, cluster: &ClusterName, estate: &Estate) {
        self.add(cluster, &estate.instances, &estate.entries, DEAD);
        let nodes = estate.nodes.iter();
        self.goes
            .extend(nodes.map(|name| bare("node", name.to_string(), DEAD)));
        let keys = estate.keys.iter();
        self.goes
            .extend(keys.map(|(key, _)| bare("key", key.clone(), DEAD)));
        self.stays
            .extend(estate.kept.iter().map(|(name, why)| Stay {
                name: name.clone(),
                why: why.clone(),
            }));
        self.foreign = estate.foreign;
    }

    /// Adds what a cluster left that was renamed, and what becomes of it.
    pub fn add_handover(&mut self, cluster: &ClusterName, handover: &HandOver) {
        let estate = &handover.estate;
        self.add_estate(cluster, estate);
        let instances = self.goes.iter_mut().zip(&estate.instances);
        for (row, doomed) in instances {
            if let Some((copy, health)) = handover.copy_of(doomed) {
                row.why = health.tell(&copy);
            }
        }
        self.hand_to = Some(handover.to.to_string());
        let why = format!("becomes {}'s where it stands", handover.to);
        for handed in &handover.handed {
            let parts = handed.parts.iter();
            self.handed.extend(parts.map(|part| of_owner(part, &why)));
            if handed.parts.is_empty() {
                let key = &handed.key;
                self.handed.push(bare(key.kind(), key.to_string(), &why));
            }
        }
    }

    fn add(
        &mut self,
        cluster: &ClusterName,
        instances: &[Doomed],
        entries: &[DoomedEntry],
        why: &str,
    ) {
        let instances = instances.iter();
        self.goes.extend(instances.map(|doomed| Row {
            node: Some(doomed.key.node.to_string()),
            owner: Some(doomed.owner.to_string()),
            ..bare("instance", doomed.key.id.to_string(), why)
        }));
        for doomed in entries {
            let gone = doomed.gone.iter();
            self.goes.extend(gone.map(|gone| of_owner(gone, why)));
            let ledger = doomed.ledger(cluster);
            self.goes.extend(ledger.map(|key| bare("key", key, why)));
        }
    }

    /// Whether there is nothing to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.goes.is_empty() && self.handed.is_empty()
    }

    /// Whether all that this has was shown by another: only that may go.
    #[must_use]
    pub fn is_within(&self, shown: &Self) -> bool {
        let known: BTreeSet<_> = shown.goes.iter().map(Row::identity).collect();
        let mut goes = self.goes.iter();
        goes.all(|row| known.contains(&row.identity()))
    }
}

impl Row {
    /// What it is, without what may be told otherwise a moment later.
    fn identity(&self) -> impl Ord + use<'_> {
        (&self.kind, &self.name, &self.node, &self.owner)
    }
}

fn bare(kind: &str, name: String, why: &str) -> Row {
    Row {
        kind: kind.to_owned(),
        name,
        node: None,
        owner: None,
        seconds: None,
        why: why.to_owned(),
    }
}

fn of_owner((key, owner): &(Key, Owner), why: &str) -> Row {
    Row {
        owner: Some(owner.to_string()),
        ..bare(key.kind(), key.to_string(), why)
    }
}

/// Findings as a table, with colours: whoever prints it where there are none takes them out.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a Findings);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Findings {
            handed,
            goes,
            stays,
            foreign,
            ..
        } = self.0;
        let is_aged = goes.iter().any(|row| row.seconds.is_some());
        let mut header = vec!["KIND", "NAME", "NODE", "OWNER"];
        header.extend(is_aged.then_some("HELD FOR"));
        header.push("WHY");
        let or_none = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".to_owned());
        let rows = handed.iter().map(|row| {
            let owner = or_none(row.owner.as_ref());
            vec![row.kind.clone(), row.name.clone(), owner, row.why.clone()]
        });
        let columns = ["KIND", "NAME", "OWNER", "WHY"];
        lines(f, &columns, rows, ('~', AnsiColor::Yellow))?;
        let rows = goes.iter().map(|row| {
            let mut cells = vec![
                row.kind.clone(),
                row.name.clone(),
                or_none(row.node.as_ref()),
                or_none(row.owner.as_ref()),
            ];
            if is_aged {
                cells.push(or_none(row.seconds.map(age).as_ref()));
            }
            cells.push(row.why.clone());
            cells
        });
        lines(f, &header, rows, ('-', AnsiColor::Red))?;
        let rows = stays
            .iter()
            .map(|stay| vec![stay.name.clone(), format!("stays: {}", plain(&stay.why))]);
        lines(f, &["NAME", "WHY"], rows, ('=', AnsiColor::Yellow))?;
        if *foreign > 0 {
            writeln!(f, "{foreign} entries of others on its nodes stay")?;
        }
        Ok(())
    }
}

/// A table, each line of it with a sign in front; nothing where there is no row.
fn lines(
    f: &mut Formatter<'_>,
    header: &[&str],
    rows: impl ExactSizeIterator<Item = Vec<String>>,
    (sign, colour): (char, AnsiColor),
) -> fmt::Result {
    if rows.len() == 0 {
        return Ok(());
    }
    let style = Style::new().fg_color(Some(Color::Ansi(colour)));
    for (number, line) in table(header, rows).trim_fmt().lines().enumerate() {
        match number {
            0 => writeln!(f, "  {line}")?,
            _ => writeln!(f, "{style}{sign}{style:#} {line}")?,
        }
    }
    Ok(())
}

/// A time in the largest unit of which it has at least two.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(kind: &str, key: &str, seconds: Option<u64>) -> HeldEntry {
        HeldEntry {
            kind: kind.to_owned(),
            key: key.to_owned(),
            owner: "Pod/shop/web-1".to_owned(),
            why: "kept, because 12 of 14 entries would go".to_owned(),
            seconds,
        }
    }

    fn findings(held: &[HeldEntry]) -> Findings {
        let mut findings = Findings::of(&"a".parse().unwrap());
        findings.add_held(held);
        findings
    }

    #[test]
    fn a_table_says_what_where_whose_since_when_and_why() {
        let mut findings = findings(&[
            held("instance", "lictor-a--n1/a.shop.web.web-1", Some(150)),
            held("query", "query/near\u{1b}[2J", None),
        ]);
        findings.stays.push(Stay {
            name: "lictor-a--n2".to_owned(),
            why: "1 entries that stay are on it".to_owned(),
        });
        findings.foreign = 1;
        let text = anstream::adapter::strip_str(&Text(&findings).to_string()).to_string();
        let why = "kept, because 12 of 14 entries would go";
        let expected = format!(
            "  KIND      NAME              NODE          OWNER           HELD FOR  WHY\n\
             - instance  a.shop.web.web-1  lictor-a--n1  Pod/shop/web-1  2m        {why}\n\
             - query     query/near\u{fffd}[2J    -             Pod/shop/web-1  -         {why}\n\
             \x20 NAME          WHY\n\
             = lictor-a--n2  stays: 1 entries that stay are on it\n\
             1 entries of others on its nodes stay\n"
        );
        assert_eq!(text, expected);
        let coloured = Text(&findings).to_string();
        assert!(coloured.contains("\u{1b}[31m-\u{1b}[0m "), "{coloured:?}");
    }

    #[test]
    fn what_is_within_was_shown() {
        let (one, two) = (
            held("query", "query/1", None),
            held("query", "query/2", Some(1)),
        );
        let shown = findings(&[one.clone(), two.clone()]);
        let later = HeldEntry {
            why: "kept, because 1 of 14".to_owned(),
            seconds: Some(70),
            ..two
        };
        assert!(findings(&[later]).is_within(&shown));
        assert!(findings(&[]).is_within(&shown));
        let other = held("query", "query/3", None);
        assert!(!findings(&[one, other]).is_within(&shown));
    }

    #[test]
    fn ages_are_short() {
        let shown = [0, 119, 120, 7_199, 7_200, 172_800].map(age);
        assert_eq!(shown, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
