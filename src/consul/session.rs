//! Sessions: `/v1/session/...`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/session>

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::wire::null_is_default;
use super::{Client, Consistency, ConsulError, ErrorClass, Observed, Request};
use crate::model::text::Text;

/// Deadline of a renewal, which can be asked for again.
const RENEWAL: Duration = Duration::from_secs(4);

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Session {
    /// Its id.
    #[serde(rename = "ID", deserialize_with = "null_is_default")]
    pub id: Text,
    /// Its name, by which checks of the type `session` on its node follow it.
    #[serde(deserialize_with = "null_is_default")]
    pub name: Text,
    /// The node that it is on.
    #[serde(deserialize_with = "null_is_default")]
    pub node: Text,
    /// How long it lives without being renewed, as Go writes durations; empty for ever.
    #[serde(rename = "TTL", deserialize_with = "null_is_default")]
    pub ttl: Text,
    /// Raft index of the creation.
    pub create_index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CreateBody<'a> {
    node: &'a str,
    name: &'a str,
    #[serde(rename = "TTL")]
    ttl: String,
    lock_delay: String,
    behavior: &'a str,
    // By default it would depend on the check of an agent, which these nodes have not.
    checks: [&'a str; 0],
    node_checks: [&'a str; 0],
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    #[serde(rename = "ID")]
    id: Text,
}

impl Client {
    /// All sessions, as far as the token may read them.
    pub async fn sessions(&self) -> Result<Observed<Vec<Session>>, ConsulError> {
        let request = Request::get("session/list").consistency(Consistency::Consistent);
        self.send(&request).await?.json()
    }

    /// A session; `None` where it is not there.
    pub async fn session(&self, id: &str) -> Result<Observed<Option<Session>>, ConsulError> {
        let request = Request::get("session/info").segment(id);
        let request = request.consistency(Consistency::Consistent);
        let found: Observed<Option<Vec<Session>>> = self.send(&request).await?.json()?;
        Ok(found.map(|sessions| sessions.unwrap_or_default().into_iter().next()))
    }

    /// Creates a session on a node, that ends by itself once it was not renewed for `ttl`, 10 s to a day,
    /// or up to twice as long, and takes the keys that it holds with it; for `lock_delay` nobody else can
    /// lock these then. It depends on no check. Returns its id.
    pub async fn create_session(
        &self,
        node: &str,
        name: &str,
        ttl: Duration,
        lock_delay: Duration,
    ) -> Result<Text, ConsulError> {
        let body = CreateBody {
            node,
            name,
            ttl: format!("{}s", ttl.as_secs()),
            lock_delay: format!("{}s", lock_delay.as_secs()),
            behavior: "delete",
            checks: [],
            node_checks: [],
        };
        let request = Request::put("session/create").json(&body)?;
        let created: Observed<Created> = self.send(&request).await?.json()?;
        Ok(created.value.id)
    }

    /// Renews a session; `false` where it is not there any more.
    pub async fn renew_session(&self, id: &str) -> Result<bool, ConsulError> {
        // Less than the shortest session lives: whoever hangs must not keep it from the next attempt.
        let request = Request::put("session/renew").segment(id).within(RENEWAL);
        let renewed = self.send(&request).await;
        match renewed?.success() {
            Ok(_) => Ok(true),
            Err(error) if error.class() == ErrorClass::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends a session. Succeeds also where it is not there.
    pub async fn destroy_session(&self, id: &str) -> Result<(), ConsulError> {
        let request = Request::put("session/destroy").segment(id);
        self.send(&request).await?.success()?;
        Ok(())
    }
}
