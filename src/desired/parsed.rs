//! An object of one of our kinds, parsed once.

use super::annotations::{DOMAIN, PAUSED};
use crate::api::object::Object;
use crate::model::owner::{Owner, OwnerKind};
use crate::model::text::Text;

/// What objects of a kind ask for.
pub trait Asked: Sized {
    /// The kind.
    const KIND: OwnerKind;
}

/// An object of one of our kinds as the index holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<C> {
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
    /// Its uid.
    pub uid: Text,
    /// `metadata.creationTimestamp`, seconds since the epoch: the older of two holds a key.
    pub created: i64,
    /// `metadata.generation`, told back in the status.
    pub generation: i64,
    /// What it asks for.
    pub content: Content<C>,
}

/// What an object asks for, or why that cannot be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Content<C> {
    /// It was understood.
    Valid(C),
    /// `lictor.io/paused` holds it.
    Paused {
        /// What it says, where that is understood.
        claims: Option<C>,
        /// What is wrong with the annotation: a value that is not understood pauses too.
        problem: Option<String>,
    },
    /// It could not be decoded, or says what no entry can be made of: what it held is kept.
    Invalid(String),
}

impl<C: Asked> Parsed<C> {
    /// Reads an object; what cannot be understood becomes [`Content::Invalid`].
    #[must_use]
    pub fn read<S, T>(
        object: &Object<S, T>,
        claims: impl FnOnce(&str, &S) -> Result<C, String>,
    ) -> Self {
        let claims = match &object.spec {
            Ok(spec) => claims(&object.name, spec),
            Err(problem) => Err(format!("the object cannot be decoded: {problem}")),
        };
        let content = match paused(object) {
            Ok(false) => claims.map_or_else(Content::Invalid, Content::Valid),
            paused => Content::Paused {
                claims: claims.ok(),
                problem: paused.err(),
            },
        };
        Self {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: object.uid.clone(),
            created: object.created,
            generation: object.generation,
            content,
        }
    }

    /// The object as an owner of entries.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            kind: C::KIND,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// What it claims, unless it is paused or invalid.
    #[must_use]
    pub fn claims(&self) -> Option<&C> {
        match &self.content {
            Content::Valid(claims) => Some(claims),
            Content::Paused { .. } | Content::Invalid(_) => None,
        }
    }

    /// What it says, also while it is paused and claims nothing.
    #[must_use]
    pub fn understood(&self) -> Option<&C> {
        match &self.content {
            Content::Valid(claims) => Some(claims),
            Content::Paused { claims, .. } => claims.as_ref(),
            Content::Invalid(_) => None,
        }
    }

    /// What is wrong with it as such.
    #[must_use]
    pub fn problem(&self) -> Option<&String> {
        match &self.content {
            Content::Valid(_) => None,
            Content::Paused { problem, .. } => problem.as_ref(),
            Content::Invalid(problem) => Some(problem),
        }
    }

    /// Sorts by seniority: the least holds what several claim.
    #[must_use]
    pub fn seniority(&self) -> (i64, &Text) {
        (self.created, &self.uid)
    }
}

fn paused<S, T>(object: &Object<S, T>) -> Result<bool, String> {
    let value = object.annotations.get(&format!("{DOMAIN}{PAUSED}"));
    match value.map(|value| value.trim()) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!(
            "{DOMAIN}{PAUSED}: {other:?} is neither \"true\" nor \"false\"; the object is held as if \
             paused"
        )),
    }
}
