//! What Consul answered, and how far it can be trusted.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{DATE, HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;

use super::request::Request;
use super::{Consistency, ConsulError, Observed, Quality};

/// What Consul answered, whatever its status.
#[derive(Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
    /// `X-Consul-Index`, from a success only: errors carry a 1 that means nothing.
    pub index: Option<NonZeroU64>,
    /// `X-Consul-KnownLeader`, where given.
    pub known_leader: Option<bool>,
    /// `X-Consul-LastContact`: how long ago the server heard of its leader, where given.
    pub last_contact: Option<Duration>,
    /// `X-Consul-Results-Filtered-By-ACLs`.
    pub filtered_by_acls: bool,
    /// How far the answer can be trusted, seen the consistency that was asked for.
    pub quality: Quality,
    date: Option<HeaderValue>,
    method: &'static str,
    path: Box<str>,
}

/// The body is not shown: that of a login is a secret.
impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            index,
            quality,
            method,
            path,
            ..
        } = self;
        write!(f, "{method} {path}: {status}, index {index:?}, {quality:?}")
    }
}

impl Response {
    /// `verified`: whether the token that was sent is known to be one.
    ///
    /// Source: <https://developer.hashicorp.com/consul/api-docs/features/consistency>
    pub(super) fn new(
        request: &Request<'_>,
        status: u16,
        headers: &HeaderMap,
        body: Vec<u8>,
        verified: bool,
    ) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let known_leader = text("x-consul-knownleader").map(|value| value == "true");
        let filtered_by_acls = text("x-consul-results-filtered-by-acls") == Some("true");
        let effective = text("x-consul-effective-consistency");
        let last_contact = text("x-consul-lastcontact").and_then(|value| value.parse().ok());
        let index = text("x-consul-index").and_then(|value| value.parse::<NonZeroU64>().ok());
        // A query that is not there is an error inside of Consul, which loses what is known of the
        // leader and the index, although the leader was asked as always.
        let query_is_missing = status == 404 && request.endpoint == "query";
        let quality = if filtered_by_acls {
            Quality::Filtered
        } else if known_leader.is_none() || index.is_none() {
            // Observed on Consul 1.22.7: every read of a table has both, a 404 too; those of config
            // entries lack the effective consistency.
            Quality::Unidentified
        } else if !verified {
            Quality::Unverified
        } else if request.consistency == Consistency::Stale
            || (known_leader == Some(false) && !query_is_missing)
            // Servers can be told to answer so what asked for no consistency.
            || effective == Some("stale")
        {
            Quality::Stale
        } else if request.consistency == Consistency::Consistent {
            Quality::Authoritative
        } else {
            Quality::Leased
        };
        // A key or config entry that is not there is a 404, which is no error and has an index.
        let has_absences = request.endpoint == "kv" || request.endpoint.starts_with("config/");
        let indexed = (200..300).contains(&status) || (status == 404 && has_absences);
        Self {
            status,
            body,
            index: index.filter(|_| indexed),
            known_leader,
            last_contact: last_contact.map(Duration::from_millis),
            filtered_by_acls,
            quality,
            date: headers.get(DATE).cloned(),
            method: request.method.as_str(),
            path: request.shown().into(),
        }
    }

    /// What time it was for the server, in whole seconds, where it says so.
    #[must_use]
    pub fn date(&self) -> Option<Timestamp> {
        let date = self.date.as_ref()?.to_str().ok()?;
        rfc2822::DateTimeParser::new().parse_timestamp(date).ok()
    }

    /// The answer itself if it is a success, else what its status and text mean.
    pub fn success(self) -> Result<Self, ConsulError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        Err(ConsulError::answered(
            self.method,
            &self.path,
            self.status,
            &self.body,
        ))
    }

    /// The body of a success, decoded.
    pub fn json<T: DeserializeOwned>(self) -> Result<Observed<T>, ConsulError> {
        let this = self.success()?;
        let value = this.decode()?;
        Ok(this.observed(value))
    }

    /// The body, decoded whatever the status.
    pub(super) fn decode<T: DeserializeOwned>(&self) -> Result<T, ConsulError> {
        serde_json::from_slice(&self.body).map_err(|error| self.malformed(&error.to_string()))
    }

    /// A value that was made from this answer.
    pub(super) fn observed<T>(&self, value: T) -> Observed<T> {
        Observed {
            value,
            quality: self.quality,
            index: self.index,
        }
    }

    /// The answer is not what was asked for.
    pub(super) fn malformed(&self, why: &str) -> ConsulError {
        ConsulError::malformed(self.method, &self.path, self.status, why)
    }
}
