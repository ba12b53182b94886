//! Whether the API serves a kind of ours, or is about to take it away.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};

use super::client::{CallError, within};
use crate::model::text::Text;

const DEADLINE: Duration = Duration::from_secs(5);

/// Whether a CRD is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrdState {
    /// It is there, with this UID: one that was deleted and made anew under the same name is another,
    /// and the objects of the one before went with it.
    Present(Text),
    /// It is being deleted, and the API server deletes its objects one by one: nobody meant these.
    Terminating,
    /// It is not there.
    Missing,
}

/// What a CRD means for the objects that were listed under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is as it was: what happens to one of them happens to that one alone.
    Stay,
    /// It is being deleted, is gone, or is another one by now: they went with theirs.
    Go,
    /// It cannot be read, or could not be when they were listed.
    Unknown,
}

impl Fate {
    /// The CRD was `listed` before the objects were, and is so now.
    pub(super) fn of(listed: Option<&CrdState>, now: Option<&CrdState>) -> Self {
        match (listed, now) {
            (_, Some(CrdState::Terminating | CrdState::Missing)) => Self::Go,
            (Some(listed), Some(now)) if listed == now => Self::Stay,
            (Some(_), Some(_)) => Self::Go,
            (None, _) | (_, None) => Self::Unknown,
        }
    }
}

/// Asks for a CRD by its full name, such as `serviceregistrations.lictor.io`. Needs `get` on it.
pub async fn crd_state(client: &Client, name: &str) -> Result<CrdState, CallError> {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let crd = within(DEADLINE, crds.get_metadata_opt(name)).await?;
    Ok(match crd {
        None => CrdState::Missing,
        Some(crd) if crd.metadata.deletion_timestamp.is_some() => CrdState::Terminating,
        Some(crd) => CrdState::Present(crd.metadata.uid.unwrap_or_default().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_stay_only_with_the_very_crd_that_they_were_listed_under() {
        let present = |uid: &str| Some(CrdState::Present(uid.into()));
        let (terminating, missing) = (Some(CrdState::Terminating), Some(CrdState::Missing));
        let cases = [
            (present("a"), present("a"), Fate::Stay),
            (present("a"), present("b"), Fate::Go),
            (present("a"), terminating.clone(), Fate::Go),
            (present("a"), missing.clone(), Fate::Go),
            (present("a"), None, Fate::Unknown),
            (terminating.clone(), present("b"), Fate::Go),
            (missing.clone(), present("b"), Fate::Go),
            (None, present("b"), Fate::Unknown),
            (None, terminating, Fate::Go),
            (None, missing, Fate::Go),
            (None, None, Fate::Unknown),
        ];
        for (listed, now, fate) in cases {
            assert_eq!(
                Fate::of(listed.as_ref(), now.as_ref()),
                fate,
                "{listed:?} {now:?}"
            );
        }
    }
}
