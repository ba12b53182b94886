//! Sources of intentions, and the marks by which a config entry says whose each of them is.

use std::collections::BTreeMap;
use std::fmt;

use super::marks;
use super::names::{ClusterName, is_object_name};
use super::owner::Owner;
use super::text::{Pairs, Text};

const SOURCES: &str = marks::SOURCES;
const JWT: &str = marks::JWT;
/// Meta key of `service-defaults`: the object that the entry is of.
const OWNER: &str = marks::OWNER;
/// Most pairs of meta that list sources. Consul takes 64 in all.
///
/// Source: `metaMaxKeyPairs` in Consul's `agent/structs/structs.go`; 65 are refused.
const MAX_LISTED: usize = 60;
/// Longest value of a pair, in bytes (Consul's limit).
const MAX_VALUE: usize = super::limits::MAX_META_VALUE_BYTES;

/// What a destination can have one of: a source, told from others as Consul does, or the `JWT`
/// requirement of the whole entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceName {
    /// A source of connections.
    Source {
        /// The service, or `*`.
        name: Text,
        /// The parts that are set beside the name, each with its letter: `ns`, `ap`, `peer`, `sg`.
        parts: Box<[(Part, Text)]>,
    },
    /// What every source must present.
    Jwt,
}

/// What a source is told by beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A namespace of Consul.
    Namespace,
    /// An admin partition.
    Partition,
    /// A peer.
    Peer,
    /// A sameness group.
    SamenessGroup,
}

impl Part {
    const ALL: [Self; 4] = [
        Self::Namespace,
        Self::Partition,
        Self::Peer,
        Self::SamenessGroup,
    ];

    fn letters(self) -> &'static str {
        match self {
            Self::Namespace => "ns",
            Self::Partition => "ap",
            Self::Peer => "peer",
            Self::SamenessGroup => "sg",
        }
    }
}

/// The name of a namespace or a partition of Enterprise, of which `default` is the same as none: the
/// Community Edition knows no other and takes none.
#[must_use]
pub fn without_default(name: Text) -> Text {
    if *name == *"default" {
        return Text::default();
    }
    name
}

impl SourceName {
    /// The source of this name, with its parts in the order namespace, partition, peer, sameness
    /// group; empty ones do not count.
    #[must_use]
    pub fn new(name: &str, parts: [&str; 4]) -> Self {
        let is_set = |(_, value): &(Part, &str)| !value.is_empty();
        let parts = Part::ALL.into_iter().zip(parts).filter(is_set);
        Self::Source {
            name: name.into(),
            parts: parts.map(|(part, value)| (part, value.into())).collect(),
        }
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == JWT_TEXT {
            return Some(Self::Jwt);
        }
        let mut pieces = text.split('|');
        let name = pieces.next().filter(|name| !name.is_empty())?;
        let mut values = [""; 4];
        for piece in pieces {
            let (letters, value) = piece.split_once(':')?;
            let part = Part::ALL
                .into_iter()
                .position(|part| part.letters() == letters)?;
            values[part] = value;
        }
        Some(Self::new(name, values))
    }
}

/// How [`SourceName::Jwt`] is written: no name of a service, since it holds a `|` and ends with it.
const JWT_TEXT: &str = "|jwt|";

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jwt => f.write_str(JWT_TEXT),
            Self::Source { name, parts } => {
                f.write_str(name)?;
                for (part, value) in parts {
                    write!(f, "|{}:{value}", part.letters())?;
                }
                Ok(())
            }
        }
    }
}

/// Whose each source of an entry is, as its Meta says; what it does not list is somebody else's.
pub type Owners = BTreeMap<SourceName, Owner>;

/// Too many sources for the Meta of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooManySources {
    /// How many pairs there are too many.
    pub surplus: usize,
    /// How many pairs each object takes.
    pub pairs: BTreeMap<Owner, usize>,
}

/// Reads whose the sources are. A pair that is not understood says nothing of any source.
#[must_use]
pub fn owners(meta: &Pairs) -> Owners {
    let mut owners = Owners::new();
    for (key, value) in meta.iter() {
        if key.starts_with(SOURCES)
            && let Some((object, listed)) = value.split_once('=')
            && let Some(owner) = object_of(object)
        {
            let sources = listed.split(',').filter_map(SourceName::parse);
            owners.extend(sources.map(|source| (source, owner.clone())));
        } else if **key == *JWT
            && let Some(owner) = object_of(value)
        {
            owners.insert(SourceName::Jwt, owner);
        }
    }
    owners
}

fn object_of(text: &str) -> Option<Owner> {
    let (namespace, name) = text.split_once('/')?;
    let whole = is_object_name(namespace) && is_object_name(name);
    whole.then(|| Owner::intention(&namespace.into(), &name.into()))
}

/// Whether a pair has room for this source of this object, were it the only one.
#[must_use]
pub fn has_room(owner: &Owner, source: &SourceName) -> bool {
    *source == SourceName::Jwt || head(owner).len() + source.to_string().len() <= MAX_VALUE
}

/// How a pair begins that lists sources of this object.
fn head(owner: &Owner) -> String {
    format!("{}/{}=", owner.namespace, owner.name)
}

/// The pairs that list the sources of each object.
fn listed(owners: &Owners) -> Vec<(&Owner, String)> {
    let mut by_owner: BTreeMap<&Owner, Vec<String>> = BTreeMap::new();
    for (source, owner) in owners {
        if *source != SourceName::Jwt {
            by_owner.entry(owner).or_default().push(source.to_string());
        }
    }
    let mut listed = Vec::new();
    for (owner, sources) in by_owner {
        let head = head(owner);
        let mut value = head.clone();
        for source in sources {
            if value.len() > head.len() && value.len() + 1 + source.len() > MAX_VALUE {
                listed.push((owner, std::mem::replace(&mut value, head.clone())));
            }
            if value.len() > head.len() {
                value.push(',');
            }
            value.push_str(&source);
        }
        listed.push((owner, value));
    }
    listed
}

/// How many pairs the marks of each object take that has sources.
#[must_use]
pub fn pairs(owners: &Owners) -> BTreeMap<Owner, usize> {
    let mut pairs = BTreeMap::new();
    for (owner, _) in listed(owners) {
        *pairs.entry(owner.clone()).or_default() += 1;
    }
    pairs
}

/// The Meta of an entry whose sources are these objects', with what else stands in it already. There is
/// room for each of them by itself: [`has_room`].
pub fn meta(
    cluster: &ClusterName,
    owners: &Owners,
    there: &Pairs,
) -> Result<Pairs, TooManySources> {
    let listed = listed(owners);
    let mut meta: Vec<(Text, Text)> = strangers(there);
    let others = meta.len() + 2 + usize::from(owners.contains_key(&SourceName::Jwt));
    let room = MAX_LISTED.min(marks::MAX_PAIRS.saturating_sub(others));
    if listed.len() > room {
        let surplus = listed.len() - room;
        let pairs = pairs(owners);
        return Err(TooManySources { surplus, pairs });
    }
    meta.push((marks::EXTERNAL_SOURCE.into(), marks::KUBERNETES.into()));
    meta.push((marks::CLUSTER.into(), cluster.as_ref().into()));
    let numbered = listed.into_iter().map(|(_, value)| value).enumerate();
    meta.extend(numbered.map(|(n, value)| (format!("{SOURCES}{n}").into(), value.into())));
    if let Some(owner) = owners.get(&SourceName::Jwt) {
        let object = format!("{}/{}", owner.namespace, owner.name);
        meta.push((JWT.into(), object.into()));
    }
    Ok(meta.into_iter().collect())
}

/// The Meta of an entry in which nothing is ours any more.
#[must_use]
pub fn without_marks(there: &Pairs) -> Pairs {
    strangers(there).into_iter().collect()
}

/// What is not ours. Keys of ours that a newer release wrote are kept with what is ours.
fn strangers(there: &Pairs) -> Vec<(Text, Text)> {
    let is_ours = |key: &str| {
        matches!(key, marks::EXTERNAL_SOURCE | marks::CLUSTER | JWT | OWNER)
            || key.starts_with(SOURCES)
    };
    let others = there.iter().filter(|(key, _)| !is_ours(key));
    others
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intention(name: &str) -> Owner {
        Owner::intention(&"shop".into(), &name.into())
    }

    fn name(text: &str) -> SourceName {
        SourceName::parse(text).unwrap()
    }

    fn cluster() -> ClusterName {
        "a".parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let owners: Owners = [
            ("web", "one"),
            ("*", "one"),
            ("web|ns:team|ap:p", "two"),
            ("api|peer:other", "two"),
            ("|jwt|", "two"),
        ]
        .into_iter()
        .map(|(source, owner)| (name(source), intention(owner)))
        .collect();
        let meta = meta(&cluster(), &owners, &Pairs::default()).unwrap();
        assert_eq!(super::owners(&meta), owners);
        assert_eq!(
            meta.get("lictor-src-0").map(|value| &**value),
            Some("shop/one=*,web")
        );
        assert_eq!(
            meta.get("lictor-jwt").map(|value| &**value),
            Some("shop/two")
        );
    }

    #[test]
    fn many_sources_go_on_in_further_pairs_and_too_many_are_told() {
        let owners = |count: usize| -> Owners {
            let sources = (0..count).map(|n| name(&format!("service-{n:050}")));
            sources.map(|source| (source, intention("many"))).collect()
        };
        let few = meta(&cluster(), &owners(256), &Pairs::default()).unwrap();
        assert!(few.iter().all(|(_, value)| value.len() <= MAX_VALUE));
        assert_eq!(super::owners(&few), owners(256));
        let many = meta(&cluster(), &owners(600), &Pairs::default());
        // Eight have room in a pair.
        let surplus = 600 / 8 - 60;
        assert_eq!(many.unwrap_err().surplus, surplus);
        let there: Pairs = (0..9)
            .map(|n| (Text::from(format!("k{n}")), Text::default()))
            .collect();
        let less = meta(&cluster(), &owners(600), &there).unwrap_err();
        assert_eq!(less.surplus, surplus + 7, "64 pairs are all that there are");
        assert_eq!(less.pairs, [(intention("many"), surplus + 60)].into());
    }

    #[test]
    fn what_others_wrote_stays() {
        let there: Pairs = [("team", "x"), ("lictor-src-7", "old/one=web")]
            .into_iter()
            .map(|(key, value)| (Text::from(key), Text::from(value)))
            .collect();
        let owners: Owners = [(name("web"), intention("one"))].into();
        let meta = meta(&cluster(), &owners, &there).unwrap();
        assert_eq!(meta.get("team").map(|value| &**value), Some("x"));
        assert_eq!(meta.get("lictor-src-7"), None);
        let left = without_marks(&meta);
        assert_eq!(left.iter().count(), 1);
    }

    #[test]
    fn marks_that_name_no_object_are_none() {
        for value in ["shop/one", "=web", "shop=web", "shop/a b=web", "/=web"] {
            let meta: Pairs = [(Text::from("lictor-src-0"), Text::from(value))]
                .into_iter()
                .collect();
            assert!(super::owners(&meta).is_empty(), "{value}");
        }
    }
}
