//! Config entries and prepared queries as Consul returned them, in the form in which they are compared.

use std::collections::BTreeMap;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use super::table::Owned;
use crate::consul::wire;
use crate::model::ledger::{self, Ledger};
use crate::model::marks;
use crate::model::names::{ClusterName, Destination, QueryName, ServiceName};
use crate::model::owner::{Owner, OwnerKind};
use crate::model::source::{self, Owners, SourceName};
use crate::model::text::{Pairs, Text};

/// Whose a config entry is, as its Meta says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Ours.
    Ours,
    /// Nobody's: it has no owner's mark of any kind.
    Nobody,
    /// Some of our marks are there, and not all: a copy of some, or what another hand left of ours. It
    /// is for who saw it whole to tell; here it is named for people.
    Incomplete(Text),
    /// Another's, who is named for people.
    Another(Text),
}

impl Holder {
    /// `names_owner` says whether the marks name an object, as all that we write do.
    fn of(cluster: &ClusterName, meta: &Pairs, names_owner: bool) -> Self {
        if marks::is_anothers(cluster, meta) {
            return Self::Another(marks::holder(cluster, meta));
        }
        // Each of the two is ours where it is there.
        let are_there = [marks::CLUSTER, marks::EXTERNAL_SOURCE].map(|key| meta.get(key).is_some());
        if are_there == [true, true] && names_owner {
            return Self::Ours;
        }
        if marks::is_unmarked(meta) {
            return Self::Nobody;
        }
        Self::Incomplete(marks::holder(cluster, meta))
    }
}

/// The intentions of one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedIntentions {
    /// The destination as it is spelt there.
    pub name: Text,
    /// Whose the entry is.
    pub holder: Holder,
    /// Whether this very entry was seen with our marks by this process, then or now.
    pub was_ours: bool,
    /// The sources.
    pub sources: BTreeMap<SourceName, wire::SourceIntention>,
    /// What every request must carry.
    pub jwt: Option<wire::IntentionJwt>,
    /// Whose each of them is; what is missing here is another's.
    pub owners: Owners,
    /// Whose those were whose mark another hand took away.
    pub lost: Owners,
    /// Metadata.
    pub meta: Pairs,
    /// What is not known here, kept.
    pub other: serde_json::Map<String, serde_json::Value>,
    /// `CreateIndex`: the same for as long as the entry was not removed.
    pub create_index: u64,
    /// `ModifyIndex`, for compare-and-set.
    pub modify_index: u64,
}

impl ObservedIntentions {
    /// Reads an entry.
    #[must_use]
    pub fn of(cluster: &ClusterName, entry: wire::ServiceIntentions) -> Self {
        let marked = source::owners(&entry.meta);
        let holder = Holder::of(cluster, &entry.meta, !marked.is_empty());
        let of = [&entry.namespace, &entry.partition];
        let sources = entry.sources.into_iter();
        let sources = sources.map(|source| canonical(source, of));
        let sources: BTreeMap<_, _> = sources
            .map(|source| (source_name(&source), source))
            .collect();
        let mut owners = match holder {
            Holder::Ours => marked,
            Holder::Nobody | Holder::Incomplete(_) | Holder::Another(_) => Owners::new(),
        };
        // A mark of what is not there any more says nothing.
        owners.retain(|name, _| is_among(name, &sources, entry.jwt.as_ref()));
        Self {
            name: entry.name,
            was_ours: holder == Holder::Ours,
            holder,
            sources,
            jwt: entry.jwt,
            owners,
            lost: Owners::new(),
            meta: entry.meta,
            other: entry.other,
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }

    /// What is known of the entry as it was: one of ours stays ours when another hand strips its marks,
    /// all or some, since it has the same `CreateIndex` then.
    pub fn recognise(&mut self, known: &Self) {
        let is_anothers = matches!(self.holder, Holder::Another(_));
        if is_anothers || !known.was_ours || known.create_index != self.create_index {
            return;
        }
        self.was_ours = true;
        let lost = known.lost.iter().chain(&known.owners);
        let lost = lost.filter(|(name, _)| {
            !self.owners.contains_key(name) && is_among(name, &self.sources, self.jwt.as_ref())
        });
        self.lost = lost
            .map(|(name, owner)| (name.clone(), owner.clone()))
            .collect();
    }

    /// This was written a moment ago in the place of what was there before, whatever stands there now.
    pub fn was_written(
        &mut self,
        cluster: &ClusterName,
        entry: &wire::ServiceIntentions,
        before: Option<&Self>,
    ) {
        let mut entry = entry.clone();
        entry.create_index = before.map_or(0, |before| before.create_index);
        self.recognise(&Self::of(cluster, entry));
    }

    /// All that it has, of ours or not.
    pub fn names(&self) -> impl Iterator<Item = SourceName> {
        let jwt = self.jwt.iter().map(|_| SourceName::Jwt);
        self.sources.keys().cloned().chain(jwt)
    }
}

fn is_among(
    name: &SourceName,
    sources: &BTreeMap<SourceName, wire::SourceIntention>,
    jwt: Option<&wire::IntentionJwt>,
) -> bool {
    match name {
        SourceName::Jwt => jwt.is_some(),
        SourceName::Source { .. } => sources.contains_key(name),
    }
}

/// The key under which intentions are planned.
#[must_use]
pub fn destination_of(entry: &wire::ServiceIntentions) -> Destination {
    Destination::new(&entry.name)
}

/// What a source is told from others by.
fn source_name(source: &wire::SourceIntention) -> SourceName {
    let wire::SourceIntention {
        name,
        namespace,
        partition,
        peer,
        sameness_group,
        ..
    } = source;
    SourceName::new(name, [namespace, partition, peer, sameness_group])
}

/// A source without what Consul works out itself: the precedence, and in Enterprise the namespace and
/// partition of its destination where it has none. One that is elsewhere has `default` then.
///
/// Source: `normalize` in Consul's `agent/structs/config_entry_intentions.go`.
fn canonical(mut source: wire::SourceIntention, of: [&Text; 2]) -> wire::SourceIntention {
    source.precedence = 0;
    let is_elsewhere = !source.peer.is_empty() || !source.sameness_group.is_empty();
    for (part, of) in [&mut source.namespace, &mut source.partition]
        .into_iter()
        .zip(of)
    {
        let inherited = match &**of {
            _ if is_elsewhere => "default",
            "" | "*" => "default",
            of => of,
        };
        if **part == *inherited {
            *part = Text::default();
        }
    }
    source
}

/// The defaults of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedDefaults {
    /// Whose they are.
    pub holder: Holder,
    /// The object that they are for, where they are ours and say so.
    pub owner: Option<Owner>,
    /// Whether this very entry was seen with our marks by this process, then or now.
    pub was_ours: bool,
    /// The entry.
    pub entry: wire::ServiceDefaults,
}

impl ObservedDefaults {
    /// Reads an entry; `None` where its name is no service that we could have written it for.
    #[must_use]
    pub fn of(cluster: &ClusterName, entry: wire::ServiceDefaults) -> Option<(ServiceName, Self)> {
        let service = entry.name.to_lowercase().parse().ok()?;
        let owner = entry.meta.get(marks::OWNER);
        let owner = owner.and_then(|owner| Owner::parse(owner));
        let owner = owner.filter(|owner| owner.kind == OwnerKind::ServiceRegistration);
        let holder = Holder::of(cluster, &entry.meta, owner.is_some());
        let there = Self {
            was_ours: holder == Holder::Ours,
            owner: owner.filter(|_| holder == Holder::Ours),
            holder,
            entry,
        };
        Some((service, there))
    }
}

impl ObservedDefaults {
    /// What is known of the entry as it was: one of ours stays ours when another hand strips its
    /// marks, all or some, since it has the same `CreateIndex` then.
    pub fn recognise(&mut self, known: &Self) {
        let same = known.entry.create_index == self.entry.create_index;
        let is_anothers = matches!(self.holder, Holder::Another(_));
        self.was_ours |= !is_anothers && same && known.was_ours;
    }

    /// This was written a moment ago in the place of what was there before, whatever stands there now.
    pub fn was_written(
        &mut self,
        cluster: &ClusterName,
        entry: &wire::ServiceDefaults,
        before: Option<&Self>,
    ) {
        let mut entry = entry.clone();
        entry.create_index = before.map_or(0, |before| before.entry.create_index);
        if let Some((_, wrote)) = Self::of(cluster, entry) {
            self.recognise(&wrote);
        }
    }
}

/// What Consul holds under the name of a query: the query, and what the ledger says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedQuery {
    /// The ledger's entry and its `ModifyIndex`; an entry that is not understood has no owner.
    pub ledger: Option<(Ledger, u64)>,
    /// The query that has the name.
    pub named: Option<wire::PreparedQuery>,
    /// Whether another ledger has the query of this name.
    pub elsewhere: Elsewhere,
    /// The query that has the id which the ledger says, where that has another name and is in no place
    /// of its own: somebody renamed it, or wrote the id of a stranger's into the ledger.
    pub renamed: Option<wire::PreparedQuery>,
    /// Whether another ledger has that one.
    pub renamed_elsewhere: Elsewhere,
    /// What this process last knew the ledger to say of a query that it saw as ours, then or now: the
    /// query stays ours when somebody removes or spoils its entry of the ledger.
    pub known: Option<Ledger>,
}

/// Whether a ledger has a query that is not the one of its name in this cluster's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Elsewhere {
    /// None does.
    #[default]
    No,
    /// The ledgers of other clusters cannot be read.
    Unknown,
    /// This cluster's does, under another name: which that is, for people.
    Here(Text),
    /// Another cluster's does: whose it is then, for people.
    Noted(Text),
}

impl ObservedQuery {
    /// The query that is ours.
    ///
    /// An id in the ledger makes no query ours by itself, since anybody may have written it there: the
    /// query must have the name too, or be the one that was noted in all but its name. Where another
    /// query has the noted id, or none, the one that this process knows is ours, or the one that has
    /// both the name and the noted definition: then it is the ledger that was spoilt.
    ///
    /// Without an id in the ledger, it was noted and perhaps created. Of two clusters that noted the
    /// same one, the one that did not create it finds the other's note, and takes it for the other's.
    #[must_use]
    pub fn ours(&self) -> Option<&wire::PreparedQuery> {
        self.ours_spelt("")
    }

    /// The query that is ours, where its name is spelt so, or as that of its object: a definition has the
    /// spelling in it, which is not to be found where somebody renamed the query.
    #[must_use]
    pub fn ours_spelt(&self, spelling: &str) -> Option<&wire::PreparedQuery> {
        let ledger = self.ledger.as_ref().map(|(ledger, _)| ledger);
        self.known_one(ledger)
            .or_else(|| self.noted_one(ledger?, spelling))
    }

    /// The query that this process knows.
    fn known_one(&self, ledger: Option<&Ledger>) -> Option<&wire::PreparedQuery> {
        let known = self.known.as_ref()?;
        let is_it = |query: &&wire::PreparedQuery| *query.id == *known.id;
        let is_said = ledger.is_some_and(|ledger| {
            ledger.owner().is_some() && (ledger.id.is_empty() || ledger.id == known.id)
        });
        let may_be = |elsewhere: &Elsewhere| is_said || !matches!(elsewhere, Elsewhere::Noted(_));
        let named = self.named.as_ref().filter(|_| may_be(&self.elsewhere));
        let renamed = self.renamed.as_ref();
        let renamed = renamed.filter(|_| may_be(&self.renamed_elsewhere));
        named.filter(is_it).or_else(|| renamed.filter(is_it))
    }

    /// The query that is ours by all that the ledger says.
    fn noted_one(&self, ledger: &Ledger, spelling: &str) -> Option<&wire::PreparedQuery> {
        // A hash knows of no token, and what is created here has none.
        let is_defined = |query: &wire::PreparedQuery, name: &str| {
            let definition = wire::PreparedQuery {
                name: name.into(),
                ..definition(query)
            };
            !query.token && hash(&definition) == ledger.hash
        };
        let named = self.named.as_ref();
        let named = named.filter(|_| !matches!(self.elsewhere, Elsewhere::Noted(_)));
        // Another id is a spoilt one for all that is known, unless that shows that ours was replaced.
        let may_differ =
            ledger.id.is_empty() || (self.known.is_none() && self.elsewhere != Elsewhere::Unknown);
        let as_noted = |named: &&wire::PreparedQuery| {
            self.says(named) || (may_differ && is_defined(named, &named.name))
        };
        named.filter(as_noted).or_else(|| {
            // Whatever was written into the ledger, this process knows which id it was.
            let said = self
                .known
                .as_ref()
                .is_none_or(|known| known.id == ledger.id);
            let renamed = self.renamed.as_ref();
            let renamed = renamed.filter(|query| said && self.says(query));
            let free = self.renamed_elsewhere == Elsewhere::No;
            let spelt = [spelling, &ledger.name];
            let as_noted =
                |query: &wire::PreparedQuery| spelt.into_iter().any(|name| is_defined(query, name));
            renamed.filter(|query| free && as_noted(query))
        })
    }

    /// Whether the ledger says the id of a query.
    #[must_use]
    pub fn says(&self, query: &wire::PreparedQuery) -> bool {
        let ledger = self.ledger.as_ref();
        ledger.is_some_and(|(ledger, _)| *ledger.id == *query.id)
    }

    /// What is noted of the query, by the ledger or, where that was removed or spoilt, by what this
    /// process knows of it; `None` where it names no object.
    #[must_use]
    pub fn note(&self) -> Option<&Ledger> {
        let ledger = self.ledger.as_ref().map(|(ledger, _)| ledger);
        if ledger.is_some_and(|ledger| ledger.owner().is_none()) && !self.is_spoilt() {
            return None;
        }
        let ledger = ledger.filter(|ledger| ledger.owner().is_some());
        let known = self.known.as_ref();
        let known = known.filter(|_| self.known_one(ledger).is_some());
        let is_said = |ledger: &&Ledger| {
            known.is_none_or(|known| ledger.id.is_empty() || ledger.id == known.id)
        };
        ledger.filter(is_said).or(known)
    }

    /// The object that the query is for.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        self.note()?.owner()
    }

    /// Whether the ledger's entry is none that any release wrote, and this process knows what it said.
    #[must_use]
    pub fn is_spoilt(&self) -> bool {
        let ledger = self.ledger.as_ref();
        ledger.is_some_and(|(ledger, _)| ledger.kind.is_empty()) && self.known.is_some()
    }

    /// Takes over from what was known before that the query of this name is ours.
    pub fn recognise(&mut self, before: Option<&Self>) {
        self.known = before.and_then(|before| before.known.clone());
        let Some(ours) = self.ours().map(|ours| ours.id.clone()) else {
            // What is not ours without an entry is not known any more; with one it may yet be told by
            // what this process knows that the entry was spoilt.
            self.known = self.known.take().filter(|_| self.ledger.is_some());
            return;
        };
        self.knows(&ours);
    }

    /// The query of this id is ours, as the ledger says, or said before it was spoilt.
    pub fn knows(&mut self, id: &str) {
        let said = self.ledger.as_ref().map(|(ledger, _)| ledger);
        let said = said.filter(|ledger| ledger.owner().is_some());
        let is_known = self.known.as_ref().is_some_and(|known| *known.id == *id);
        let is_later = |ledger: &&Ledger| !is_known || ledger.id.is_empty() || *ledger.id == *id;
        let said = said.filter(is_later).cloned();
        let note = said.or_else(|| self.known.take().filter(|_| is_known));
        self.known = note.map(|note| Ledger {
            id: id.to_owned(),
            ..note
        });
    }
}

impl Owned for ObservedIntentions {
    fn owned(&self) -> usize {
        self.owners.len()
    }
}

impl Owned for ObservedDefaults {
    fn owned(&self) -> usize {
        usize::from(self.holder == Holder::Ours)
    }
}

impl Owned for ObservedQuery {
    fn owned(&self) -> usize {
        usize::from(self.owner().is_some())
    }
}

/// The form of a query in which it is compared: without what Consul works out itself.
#[must_use]
pub fn definition(query: &wire::PreparedQuery) -> wire::PreparedQuery {
    wire::PreparedQuery {
        id: Text::default(),
        create_index: 0,
        modify_index: 0,
        ..query.clone()
    }
}

/// What tells a query that was to be created from one that someone else did: a hash of all that was
/// sent.
#[must_use]
pub fn hash(query: &wire::PreparedQuery) -> String {
    let sent = serde_json::to_vec(query).unwrap_or_default();
    let digest = Sha256::digest(sent);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest)
}

/// Puts queries and their ledgers together, by name.
///
/// `others` are the entries of the ledgers of other clusters; `None` where they cannot be read.
#[must_use]
pub fn queries(
    cluster: &ClusterName,
    queries: Vec<wire::PreparedQuery>,
    ledger: Vec<wire::KvPair>,
    others: Option<&[wire::KvPair]>,
) -> BTreeMap<QueryName, ObservedQuery> {
    let mut rows: BTreeMap<QueryName, ObservedQuery> = BTreeMap::new();
    let mut by_id: BTreeMap<Text, (QueryName, Option<Owner>)> = BTreeMap::new();
    let prefix = ledger::prefix(cluster);
    for pair in ledger {
        // Compare-and-set of a name in another spelling would be one of another key.
        let name = pair.key.strip_prefix(&*prefix).map(QueryName::new);
        let Some(name) = name.filter(|name| *ledger::key(cluster, name) == *pair.key) else {
            continue;
        };
        let entry: Ledger = serde_json::from_slice(&pair.value).unwrap_or_default();
        if !entry.id.is_empty() {
            let id = entry.id.as_str().into();
            by_id.insert(id, (name.clone(), entry.owner()));
        }
        rows.entry(name).or_default().ledger = Some((entry, pair.modify_index));
    }
    let others = others.map(Others::of);
    for query in queries {
        let name = QueryName::new(&query.name);
        let mut elsewhere = match &others {
            None => Elsewhere::Unknown,
            Some(others) => others.have(&name, &query),
        };
        let in_place = rows.get(&name).is_some_and(|row| row.says(&query));
        if !in_place
            && let Some((known_as, owner)) = by_id.get(&query.id)
            && let Some(row) = rows.get_mut(known_as)
        {
            row.renamed_elsewhere = elsewhere.clone();
            row.renamed = Some(query.clone());
            let whose = owner
                .as_ref()
                .map_or_else(String::new, |it| format!(", of {it}"));
            let whose = format!("this cluster's query {known_as}{whose}, which somebody renamed");
            if !matches!(elsewhere, Elsewhere::Noted(_)) {
                elsewhere = Elsewhere::Here(whose.into());
            }
        }
        // One without a name belongs to a session, and to nobody else.
        if !query.name.is_empty() {
            let row = rows.entry(name).or_default();
            row.named = Some(query);
            row.elsewhere = elsewhere;
        }
    }
    for row in rows.values_mut() {
        row.recognise(None);
    }
    rows
}

/// What the ledgers of other clusters say.
struct Others {
    by_id: BTreeMap<Text, Text>,
    /// Those that were noted and perhaps created.
    by_name: BTreeMap<QueryName, Vec<(String, Text)>>,
}

impl Others {
    fn of(pairs: &[wire::KvPair]) -> Self {
        let mut this = Self {
            by_id: BTreeMap::new(),
            by_name: BTreeMap::new(),
        };
        for pair in pairs {
            let Some((cluster, name)) = ledger::parse(&pair.key) else {
                continue;
            };
            let Ok(entry) = serde_json::from_slice::<Ledger>(&pair.value) else {
                continue;
            };
            let owner = entry.owner();
            let owner = owner.map_or_else(String::new, |owner| format!(", for {owner}"));
            let whose = Text::from(format!("Lictor of the cluster {cluster:?}{owner}"));
            if entry.id.is_empty() {
                let of = this.by_name.entry(name).or_default();
                of.push((entry.hash, whose));
            } else {
                this.by_id.insert(entry.id.as_str().into(), whose);
            }
        }
        this
    }

    fn have(&self, name: &QueryName, query: &wire::PreparedQuery) -> Elsewhere {
        let noted = || {
            let noted = self.by_name.get(name)?;
            let hash = hash(&definition(query));
            let found = noted.iter().find(|(noted, _)| *noted == hash);
            found.map(|(_, whose)| whose)
        };
        let whose = self.by_id.get(&query.id).or_else(noted);
        whose.map_or(Elsewhere::No, |whose| Elsewhere::Noted(whose.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Consul Enterprise gives a source the namespace and partition of its destination where it has
    /// none, and those of a peer `default`.
    #[test]
    fn what_a_source_has_of_its_destination_is_none() {
        let entry = json!({
            "Kind": "service-intentions", "Name": "payment", "Namespace": "team", "Partition": "p",
            "Sources": [
                {"Name": "web", "Namespace": "team", "Partition": "p", "Action": "allow"},
                {"Name": "web", "Namespace": "default", "Partition": "p", "Action": "deny"},
                {"Name": "web", "Namespace": "default", "Peer": "q", "Action": "deny"},
            ],
        });
        let entry: wire::ServiceIntentions = serde_json::from_value(entry).unwrap();
        let there = ObservedIntentions::of(&"a".parse().unwrap(), entry);
        let names: Vec<String> = there.names().map(|name| name.to_string()).collect();
        assert_eq!(names, ["web", "web|ns:default", "web|peer:q"]);
        let entry = json!({
            "Kind": "service-intentions", "Name": "payment", "Namespace": "default",
            "Sources": [{"Name": "web", "Namespace": "default", "Partition": "default"},
                        {"Name": "web", "Namespace": "team", "Partition": "default"}],
        });
        let entry: wire::ServiceIntentions = serde_json::from_value(entry).unwrap();
        let there = ObservedIntentions::of(&"a".parse().unwrap(), entry);
        let names: Vec<String> = there.names().map(|name| name.to_string()).collect();
        assert_eq!(names, ["web", "web|ns:team"]);
    }
}
