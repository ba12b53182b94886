//! Config entries: `/v1/config/...`.
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/config>; observed on Consul 1.22.7.

use super::catalog::signal;
use super::kv::yes_or_no;
use super::wire::ConfigEntry;
use super::{Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Request, Watch};

/// How Consul says that there is none.
const NONE: &str = "Config entry not found";

impl Client {
    /// All entries of a kind, in the order of their names without case.
    ///
    /// Those that the token may not read are left out: [`Quality::Filtered`].
    pub async fn config_entries<E: ConfigEntry>(
        &self,
        consistency: Consistency,
    ) -> Result<Observed<Vec<E>>, ConsulError> {
        let request = Request::get(E::ENDPOINT).consistency(consistency);
        self.send(&request).await?.json()
    }

    /// An entry; `None` if it is not there. Its name may differ from this one in case.
    ///
    /// One that the token may not read is [`ErrorClass::AccessDenied`], whether it is there or not.
    pub async fn config_entry<E: ConfigEntry>(
        &self,
        name: &str,
        consistency: Consistency,
    ) -> Result<Observed<Option<E>>, ConsulError> {
        let request = named(Request::get(E::ENDPOINT), name)?.consistency(consistency);
        let answer = self.send(&request).await?;
        if answer.status != 404 {
            return Ok(answer.json()?.map(Some));
        }
        // Any other 404, or this one without Consul's headers, is not Consul's.
        if answer.quality == Quality::Unidentified || !answer.body.starts_with(NONE.as_bytes()) {
            return Err(answer.malformed("a 404 that is not Consul's"));
        }
        Ok(answer.observed(None))
    }

    /// Writes an entry whole if its `ModifyIndex` is `cas` (0: if there is none); `false` if it is not.
    ///
    /// Two traps: what is refused is refused whatever `cas` says, and an entry that is **the same as
    /// the stored one is `true` whatever `cas` says**, without a write. Whoever must know that it was
    /// the one that wrote puts something of its own into the metadata.
    pub async fn put_config_entry<E: ConfigEntry>(
        &self,
        entry: &E,
        cas: u64,
    ) -> Result<bool, ConsulError> {
        let request = Request::put("config").query("cas", cas.to_string());
        self.send(&request.json(entry)?).await.and_then(yes_or_no)
    }

    /// Removes an entry if its `ModifyIndex` is `cas`; `false` if it is not. `true` also where there is
    /// none, and an entry whose name differs only in case is removed.
    ///
    /// Refused by Consul while others need it: a protocol while there are intentions with permissions.
    pub async fn delete_config_entry<E: ConfigEntry>(
        &self,
        name: &str,
        cas: u64,
    ) -> Result<bool, ConsulError> {
        let request = named(Request::delete(E::ENDPOINT), name)?.query("cas", cas.to_string());
        self.send(&request).await.and_then(yes_or_no)
    }

    /// Tells that some entry of a kind changed, appeared or went, without saying which.
    ///
    /// Each answer carries all of them (Consul filters few kinds, and holds back what a filter makes
    /// empty), but is not decoded. Its index is that of the entries of **all** kinds; writes of other
    /// kinds wake it only where they come between two queries. It sleeps through one change: an entry
    /// that is removed and written again with the same content while nobody was woken.
    #[must_use]
    pub fn watch_any_config_entry<E: ConfigEntry>(&self, consistency: Consistency) -> Watch<()> {
        let request = Request::get(E::ENDPOINT).consistency(consistency);
        Watch::new(self.clone(), request, signal)
    }
}

/// Adds a name to the path. An empty one would stand for the list, and URLs drop `.` and `..`.
fn named<'a>(request: Request<'a>, name: &'a str) -> Result<Request<'a>, ConsulError> {
    if matches!(name, "" | "." | "..") {
        return Err(request.error(ErrorClass::Refused, "not a name that a path can hold"));
    }
    Ok(request.segment(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_url_would_drop_is_refused() {
        for name in ["", ".", ".."] {
            let error = named(Request::delete("config/service-defaults"), name).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Refused);
        }
        assert!(named(Request::get("config/service-defaults"), "...").is_ok());
    }
}
