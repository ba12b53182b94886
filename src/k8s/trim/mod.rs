//! From the bytes of the API server to facts, in one step: what Lictor does not use is skipped while
//! it is read, and never held.

mod lease;
mod lenient;
mod namespace;
mod node;
mod object;
mod pod;
mod texts;

use std::fmt;
use std::marker::PhantomData;

use jiff::Timestamp;
use kube::core::Status;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use self::lenient::{Int, Map, Obj, Str};
pub use self::texts::Texts;
use crate::model::text::{Pairs, Text};

/// An object that is kept trimmed.
pub trait Trim: Sized + Send + 'static {
    /// What is watched, for its path in the API.
    type Resource: kube::Resource<DynamicType = ()>;
    /// What is read of `spec`.
    type Spec<'de>: Deserialize<'de> + Default;
    /// What is read of `status`.
    type Status<'de>: Deserialize<'de> + Default;

    /// The object, from what was read of it.
    fn trim(
        meta: &Meta<'_>,
        spec: Self::Spec<'_>,
        status: Self::Status<'_>,
        texts: &mut Texts,
    ) -> Self;
}

/// What is read of `metadata`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta<'a> {
    #[serde(borrow)]
    namespace: Str<'a>,
    #[serde(borrow)]
    name: Str<'a>,
    #[serde(borrow)]
    uid: Str<'a>,
    #[serde(borrow)]
    resource_version: Str<'a>,
    #[serde(borrow)]
    creation_timestamp: Str<'a>,
    #[serde(borrow)]
    deletion_timestamp: Str<'a>,
    generation: Int,
    #[serde(borrow)]
    labels: Map<'a>,
    #[serde(borrow)]
    annotations: Map<'a>,
}

impl Meta<'_> {
    fn created(&self) -> i64 {
        self.creation_timestamp
            .0
            .parse::<Timestamp>()
            .map_or(0, Timestamp::as_second)
    }

    fn deleting(&self) -> bool {
        self.deletion_timestamp.some().is_some()
    }

    /// The annotations whose key and value `keep` turns into what is kept of the value.
    fn annotations(&self, keep: impl Fn(&str, &str) -> Option<usize>, texts: &mut Texts) -> Pairs {
        let kept = self.annotations.0.iter().filter_map(|(key, value)| {
            let limit = keep(key, value)?;
            let value = &value[..value.ceil_char_boundary(limit)];
            Some((texts.share(key), texts.share(value)))
        });
        kept.collect()
    }
}

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The version of the whole list.
    pub resource_version: Text,
    /// How to ask for the next page, if there is one.
    pub continue_token: Option<String>,
}

/// A line of a watch.
#[derive(Debug)]
pub enum Line<T> {
    /// An object was added or changed.
    Applied(T),
    /// An object was deleted.
    Deleted(T),
    /// Nothing happened up to this version.
    Bookmark,
    /// The watch cannot go on.
    Error(Box<Status>),
}

/// Decodes the answer to a list. What is no list is an error, never an empty list.
pub fn page<T: Trim>(body: &[u8], texts: &mut Texts) -> serde_json::Result<Page<T>> {
    let list: RawList<'_, Raw<'_, T>> = serde_json::from_slice(body)?;
    let ListMeta {
        resource_version,
        r#continue,
    } = list.metadata;
    let Some(resource_version) = resource_version.some() else {
        return Err(serde_json::Error::custom(
            "a list without a resourceVersion",
        ));
    };
    let items = list.items.unwrap_or_default();
    Ok(Page {
        items: items
            .into_iter()
            .map(|raw| raw.trim(texts))
            .collect::<Result<_, _>>()?,
        resource_version: resource_version.into(),
        continue_token: r#continue.some().map(str::to_owned),
    })
}

/// Decodes a line of a watch, and the version that it brings the watcher to.
pub fn line<T: Trim>(
    line: &[u8],
    texts: &mut Texts,
) -> serde_json::Result<(Line<T>, Option<Text>)> {
    let raw: RawLine<'_, T> = serde_json::from_slice(line)?;
    let version = |meta: &Meta<'_>| match meta.resource_version.some() {
        Some(version) => Ok(Some(Text::from(version))),
        None => Err(serde_json::Error::custom(
            "an event without a resourceVersion",
        )),
    };
    Ok(match raw {
        RawLine::Applied(object) => {
            let version = version(&object.metadata.0)?;
            (Line::Applied(object.trim(texts)?), version)
        }
        RawLine::Deleted(object) => {
            let version = version(&object.metadata.0)?;
            (Line::Deleted(object.trim(texts)?), version)
        }
        RawLine::Bookmark(object) => (Line::Bookmark, version(&object.metadata.0)?),
        RawLine::Error(status) => (Line::Error(status), None),
    })
}

#[derive(serde::Deserialize)]
struct RawList<'a, R> {
    #[serde(borrow)]
    metadata: ListMeta<'a>,
    // Go writes an empty list as null where it was never allocated.
    items: Option<Vec<R>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta<'a> {
    #[serde(borrow)]
    resource_version: Str<'a>,
    #[serde(borrow)]
    r#continue: Str<'a>,
}

struct Raw<'a, T: Trim> {
    metadata: Obj<Meta<'a>>,
    spec: T::Spec<'a>,
    status: T::Status<'a>,
}

// By hand, since the derive cannot see that `T::Spec<'de>` borrows no longer than `'de`.
impl<'de, T: Trim> Deserialize<'de> for Raw<'de, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape<T>(PhantomData<T>);
        impl<'de, T: Trim> Visitor<'de> for Shape<T> {
            type Value = Raw<'de, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of the API")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut metadata, mut spec, mut status) = Default::default();
                while let Some(Str(key)) = map.next_key()? {
                    match &*key {
                        "metadata" => metadata = map.next_value()?,
                        "spec" => spec = map.next_value()?,
                        "status" => status = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Raw {
                    metadata,
                    spec,
                    status,
                })
            }
        }
        from.deserialize_map(Shape(PhantomData))
    }
}

impl<T: Trim> Raw<'_, T> {
    /// An object without identity cannot be told from another: that is no object of an API server.
    fn trim(self, texts: &mut Texts) -> serde_json::Result<T> {
        let meta = &self.metadata.0;
        if meta.name.some().is_none() || meta.uid.some().is_none() {
            return Err(serde_json::Error::custom(
                "an object without a name or a uid",
            ));
        }
        Ok(T::trim(meta, self.spec, self.status, texts))
    }
}

enum RawLine<'a, T: Trim> {
    Applied(Raw<'a, T>),
    Deleted(Raw<'a, T>),
    Bookmark(Raw<'a, T>),
    Error(Box<Status>),
}

impl<'de, T: Trim> Deserialize<'de> for RawLine<'de, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Shape<T>(PhantomData<T>);
        impl<'de, T: Trim> Visitor<'de> for Shape<T> {
            type Value = RawLine<'de, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event of a watch")
            }

            // The API server writes the type first, so that the object can be read at once.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut event, mut line) = (Str::default(), None);
                while let Some(Str(key)) = map.next_key()? {
                    match &*key {
                        "type" => event = map.next_value()?,
                        "object" => {
                            line = Some(match &*event.0 {
                                "ADDED" | "MODIFIED" => RawLine::Applied(map.next_value()?),
                                "DELETED" => RawLine::Deleted(map.next_value()?),
                                "BOOKMARK" => RawLine::Bookmark(map.next_value()?),
                                "ERROR" => RawLine::Error(map.next_value()?),
                                other => {
                                    return Err(A::Error::custom(format_args!(
                                        "an event of type {other:?}"
                                    )));
                                }
                            });
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                line.ok_or_else(|| A::Error::missing_field("object"))
            }
        }
        from.deserialize_map(Shape(PhantomData))
    }
}

#[cfg(test)]
mod tests;
