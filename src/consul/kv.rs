//! The key-value store: `/v1/kv/...`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/kv>

use serde::de::DeserializeOwned;

use super::wire::KvPair;
use super::{Client, Consistency, ConsulError, Observed, Quality, Request, Response, Watch};
use crate::model::text::Text;

impl Client {
    /// A key; `None` if it is not there.
    pub async fn kv_get(
        &self,
        key: &str,
        consistency: Consistency,
    ) -> Result<Observed<Option<KvPair>>, ConsulError> {
        let request = Request::get("kv").path(key).consistency(consistency);
        let found = self.send(&request).await.and_then(entries)?;
        Ok(found.map(|pairs| pairs.into_iter().next()))
    }

    /// All keys that begin with `prefix`, in order.
    pub async fn kv_list(
        &self,
        prefix: &str,
        consistency: Consistency,
    ) -> Result<Observed<Vec<KvPair>>, ConsulError> {
        let request = Request::get("kv").path(prefix).query("recurse", "");
        self.send(&request.consistency(consistency))
            .await
            .and_then(entries)
    }

    /// What is right in the folder `prefix`, which ends in a slash: keys, and folders as they begin,
    /// with a slash at their end.
    pub async fn kv_folders(
        &self,
        prefix: &str,
        consistency: Consistency,
    ) -> Result<Observed<Vec<Text>>, ConsulError> {
        let request = Request::get("kv").path(prefix);
        let request = request.query("keys", "").query("separator", "/");
        self.send(&request.consistency(consistency))
            .await
            .and_then(found)
    }

    /// Watches a key: an empty list while it is not there.
    #[must_use]
    pub fn watch_kv(&self, key: &str) -> Watch<Vec<KvPair>> {
        let request = Request::get("kv").path(key.to_owned());
        Watch::new(self.clone(), request, entries)
    }

    /// Watches all keys that begin with `prefix`.
    #[must_use]
    pub fn watch_kv_list(&self, prefix: &str) -> Watch<Vec<KvPair>> {
        let request = Request::get("kv")
            .path(prefix.to_owned())
            .query("recurse", "");
        Watch::new(self.clone(), request, entries)
    }

    /// Writes a key if its `ModifyIndex` is `index` (0: if it is not there); `false` if it is not.
    pub async fn kv_put_cas(
        &self,
        key: &str,
        value: &[u8],
        index: u64,
    ) -> Result<bool, ConsulError> {
        let request = Request::put("kv").path(key).query("cas", index.to_string());
        self.send(&request.body(value.to_vec()))
            .await
            .and_then(yes_or_no)
    }

    /// Locks a key for a session and writes it; `false` if another session holds it, or if it may not be
    /// locked yet after one that ended. Where the session holds it already it is only written.
    pub async fn kv_acquire(
        &self,
        key: &str,
        value: &[u8],
        session: &str,
    ) -> Result<bool, ConsulError> {
        let request = Request::put("kv").path(key).query("acquire", session);
        self.send(&request.body(value.to_vec()))
            .await
            .and_then(yes_or_no)
    }

    /// Unlocks a key that a session holds, and writes it; `false` if it does not.
    pub async fn kv_release(
        &self,
        key: &str,
        value: &[u8],
        session: &str,
    ) -> Result<bool, ConsulError> {
        let request = Request::put("kv").path(key).query("release", session);
        self.send(&request.body(value.to_vec()))
            .await
            .and_then(yes_or_no)
    }

    /// Removes a key if its `ModifyIndex` is `index`; `false` if it is not.
    pub async fn kv_delete_cas(&self, key: &str, index: u64) -> Result<bool, ConsulError> {
        let request = Request::delete("kv")
            .path(key)
            .query("cas", index.to_string());
        self.send(&request).await.and_then(yes_or_no)
    }
}

fn entries(answer: Response) -> Result<Observed<Vec<KvPair>>, ConsulError> {
    found(answer)
}

fn found<T: DeserializeOwned>(answer: Response) -> Result<Observed<Vec<T>>, ConsulError> {
    // "Not there" is a 404 without a body and with Consul's headers; any other 404 is not Consul's.
    let is_consuls = answer.quality != Quality::Unidentified;
    if answer.status == 404 && answer.body.is_empty() && is_consuls {
        return Ok(answer.observed(Vec::new()));
    }
    answer.json()
}

/// The body, not the status, says whether a compare-and-set won.
pub(super) fn yes_or_no(answer: Response) -> Result<bool, ConsulError> {
    Ok(answer.json()?.value)
}
