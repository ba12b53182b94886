//! Config entries: `/v1/config/...`.
//!
//! They are global: written in the primary datacenter and copied to the others. A client of another
//! one must be told of it: [`Client::read_entries_from`].
//!
//! Source: <https://developer.hashicorp.com/consul/api-docs/config>; observed on Consul 1.22.7.

use super::catalog::signal;
use super::kv::yes_or_no;
use super::wire::ConfigEntry;
use super::{Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Request, Watch};

/// How Consul says that there is none.
const NONE: &str = "Config entry not found";
/// Any JSON object would do for an entry; that it has a name shows that it is one.
const NAMELESS: &str = "an entry without a name";

impl Client {
    /// All entries of a kind, in the order of their names without case.
    ///
    /// Those that the token may not read are left out: [`Quality::Filtered`].
    pub async fn config_entries<E: ConfigEntry>(
        &self,
        consistency: Consistency,
    ) -> Result<Observed<Vec<E>>, ConsulError> {
        let request = self.read_entries::<E>(consistency);
        let answer = self.send(&request).await?.success()?;
        let entries: Vec<E> = answer.decode()?;
        if entries.iter().any(|entry| entry.name().is_empty()) {
            return Err(answer.malformed(NAMELESS));
        }
        Ok(answer.observed(entries))
    }

    /// An entry; `None` if it is not there. Its name may differ from this one in case.
    ///
    /// One that the token may not read is [`ErrorClass::AccessDenied`], whether it is there or not.
    pub async fn config_entry<E: ConfigEntry>(
        &self,
        name: &str,
        consistency: Consistency,
    ) -> Result<Observed<Option<E>>, ConsulError> {
        let request = named(self.read_entries::<E>(consistency), name)?;
        let answer = self.send(&request).await?;
        if answer.status != 404 {
            let answer = answer.success()?;
            let entry: E = answer.decode()?;
            if entry.name().is_empty() {
                return Err(answer.malformed(NAMELESS));
            }
            return Ok(answer.observed(Some(entry)));
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
        let request = self.read_entries::<E>(consistency);
        Watch::new(self.clone(), request, signal)
    }

    fn read_entries<E: ConfigEntry>(&self, consistency: Consistency) -> Request<'static> {
        let request = Request::get(E::ENDPOINT).consistency(consistency);
        match &*self.entries_from() {
            "" => request,
            datacenter => request.query("dc", datacenter.to_owned()),
        }
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
    use wiremock::matchers::any;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::super::wire::ServiceDefaults;
    use super::super::{ConsulConfig, ConsulSettings};
    use super::*;

    /// The classes of reading an entry, reading a query and writing an entry.
    async fn errors_of(answer: ResponseTemplate) -> [ErrorClass; 3] {
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(answer).mount(&server).await;
        let settings = ConsulSettings {
            addresses: server.uri(),
            ..ConsulSettings::default()
        };
        let client = Client::new(ConsulConfig::new(settings).unwrap()).unwrap();
        let read = Consistency::Consistent;
        let entry = client.config_entry::<ServiceDefaults>("a", read).await;
        let query = client.query("adf4238a", read).await;
        let write = client
            .put_config_entry(&ServiceDefaults::default(), 0)
            .await;
        [
            entry.unwrap_err().class(),
            query.unwrap_err().class(),
            write.unwrap_err().class(),
        ]
    }

    #[tokio::test]
    async fn what_is_not_consuls_own_says_nothing() {
        let malformed = [ErrorClass::Malformed; 3];
        let texts = [
            "Config entry not found for \"service-defaults\" / \"a\"",
            "Query not found",
        ];
        // The words without the headers, and the headers without the words.
        for text in texts {
            let answer = ResponseTemplate::new(404).set_body_string(text);
            assert_eq!(errors_of(answer).await[..2], malformed[..2], "{text}");
        }
        let answer = |status| {
            ResponseTemplate::new(status)
                .insert_header("X-Consul-Index", "7")
                .insert_header("X-Consul-KnownLeader", "true")
        };
        let page = answer(404).set_body_string("<html>404</html>");
        assert_eq!(errors_of(page).await, malformed);
        // Successes that are neither an entry, nor a query, nor `true` or `false`.
        let object = answer(200).set_body_string("{}");
        assert_eq!(errors_of(object).await, malformed);
        let list = answer(200).set_body_string("[{}]");
        assert_eq!(errors_of(list).await, malformed);
    }

    #[test]
    fn a_name_that_a_url_would_drop_is_refused() {
        for name in ["", ".", ".."] {
            let error = named(Request::delete("config/service-defaults"), name).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Refused);
        }
        assert!(named(Request::get("config/service-defaults"), "...").is_ok());
    }
}
