//! A request in the making.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use super::config::Tenancy;
use super::{Consistency, ConsulError, ErrorClass};

/// Deadline of a read.
const READ: Duration = Duration::from_secs(30);
/// Deadline of a write; without a leader Consul itself holds it for up to 19 s before it answers.
const WRITE: Duration = Duration::from_secs(25);
/// What a blocking query may take beyond its wait and the sixteenth that Consul adds to it.
const BLOCKING_MARGIN: Duration = Duration::from_secs(10);
/// The name of the namespace, and of the partition, that there always are.
const DEFAULT_TENANCY: &str = "default";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

impl From<Method> for reqwest::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Put => Self::PUT,
            Method::Post => Self::POST,
            Method::Delete => Self::DELETE,
        }
    }
}

/// A request in the making.
#[derive(Clone)]
pub struct Request<'a> {
    pub(super) method: Method,
    /// The fixed part of the path, which is also the label in metrics.
    pub(super) endpoint: &'static str,
    /// Segments after the endpoint.
    path: Vec<Cow<'a, str>>,
    query: Vec<(&'static str, Cow<'a, str>)>,
    pub(super) body: Option<Vec<u8>>,
    pub(super) consistency: Consistency,
    pub(super) token: RequestToken,
    pub(super) wait: Option<Duration>,
    limit: Option<Duration>,
    /// Whether it asks of what is in the default namespace and partition, whatever the client's are.
    of_servers: bool,
}

/// Which token a request carries.
#[derive(Clone)]
pub(super) enum RequestToken {
    /// That of the client.
    OfClient,
    /// None: a login has none yet, and an outdated one could be refused.
    None,
    /// Another one.
    Other(SecretString),
}

/// Neither body nor query is shown, where secrets could be.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method.as_str(), self.shown())
    }
}

impl<'a> Request<'a> {
    fn new(method: Method, endpoint: &'static str) -> Self {
        Self {
            method,
            endpoint,
            path: Vec::new(),
            query: Vec::new(),
            body: None,
            consistency: Consistency::Default,
            token: RequestToken::OfClient,
            wait: None,
            limit: None,
            of_servers: false,
        }
    }

    /// A read of `/v1/<endpoint>`. The endpoint is also the label in metrics, so it holds no names.
    #[must_use]
    pub fn get(endpoint: &'static str) -> Self {
        Self::new(Method::Get, endpoint)
    }

    /// A `PUT` to `/v1/<endpoint>`.
    #[must_use]
    pub fn put(endpoint: &'static str) -> Self {
        Self::new(Method::Put, endpoint)
    }

    /// A `POST` to `/v1/<endpoint>`.
    #[must_use]
    pub fn post(endpoint: &'static str) -> Self {
        Self::new(Method::Post, endpoint)
    }

    /// A `DELETE` of `/v1/<endpoint>`.
    #[must_use]
    pub fn delete(endpoint: &'static str) -> Self {
        Self::new(Method::Delete, endpoint)
    }

    /// Adds one segment to the path, encoded whatever it holds.
    #[must_use]
    pub fn segment(mut self, segment: impl Into<Cow<'a, str>>) -> Self {
        self.path.push(segment.into());
        self
    }

    /// Adds the segments of a path whose parts are divided by `/`, like a key of the store.
    #[must_use]
    pub fn path(mut self, path: impl Into<Cow<'a, str>>) -> Self {
        match path.into() {
            Cow::Borrowed(path) => self.path.extend(path.split('/').map(Cow::Borrowed)),
            Cow::Owned(path) => {
                let segments = path.split('/').map(|segment| segment.to_owned().into());
                self.path.extend(segments);
            }
        }
        self
    }

    /// Adds a parameter to the query.
    #[must_use]
    pub fn query(mut self, name: &'static str, value: impl Into<Cow<'a, str>>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Sets the body, which is JSON nearly everywhere.
    #[must_use]
    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self
    }

    /// Sets the body to a value as JSON.
    pub fn json(self, value: &impl serde::Serialize) -> Result<Self, ConsulError> {
        match serde_json::to_vec(value) {
            Ok(body) => Ok(self.body(body)),
            Err(error) => Err(self.error(ErrorClass::Refused, &error.to_string())),
        }
    }

    /// Carries no token.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.token = RequestToken::None;
        self
    }

    /// Carries this token instead of the client's.
    #[must_use]
    pub fn token(mut self, token: SecretString) -> Self {
        self.token = RequestToken::Other(token);
        self
    }

    /// Asks for this consistency.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Makes it a blocking query that returns when the index is beyond `index`, or after `wait`.
    #[must_use]
    pub fn blocking(mut self, index: NonZeroU64, wait: Duration) -> Self {
        self.wait = Some(wait);
        self.query("index", index.to_string())
            .query("wait", format!("{}ms", wait.as_millis()))
    }

    /// Gives up earlier than usual: no later than this after it is sent.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Asks of Consul's own servers, which are in the default namespace and partition.
    #[must_use]
    pub fn of_servers(mut self) -> Self {
        self.of_servers = true;
        self
    }

    pub(super) fn deadline(&self) -> Duration {
        let usual = match (self.method, self.wait) {
            (Method::Get, Some(wait)) => wait * 17 / 16 + BLOCKING_MARGIN,
            (Method::Get, None) => READ,
            _ => WRITE,
        };
        self.limit.map_or(usual, |limit| limit.min(usual))
    }

    /// The URL at an address, with the tenancy (`ns`, `partition`) of the client, or of the servers where a
    /// client has one: what is not set there Consul takes from the token.
    pub(super) fn url(&self, base: &Url, tenancy: &Tenancy) -> Url {
        let mut url = base.clone();
        // Never fails: the addresses are http or https, which have paths.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1");
            path.extend(self.endpoint.split('/')).extend(&self.path);
        }
        {
            let mut query = url.query_pairs_mut();
            let of_servers = |(name, value)| {
                let value = if self.of_servers {
                    DEFAULT_TENANCY
                } else {
                    value
                };
                (name, value)
            };
            query
                .extend_pairs(&self.query)
                .extend_pairs(tenancy.query().map(of_servers));
            match self.consistency {
                Consistency::Default => {}
                Consistency::Consistent => drop(query.append_key_only("consistent")),
                Consistency::Stale => drop(query.append_key_only("stale")),
            }
        }
        if url.query() == Some("") {
            url.set_query(None);
        }
        url
    }

    /// The path for people: unencoded and without the query.
    pub(super) fn shown(&self) -> String {
        let start = format!("/v1/{}", self.endpoint);
        self.path
            .iter()
            .fold(start, |path, segment| path + "/" + segment)
    }

    pub(super) fn error(&self, class: ErrorClass, text: &str) -> ConsulError {
        ConsulError::without_answer(class, self.method.as_str(), &self.shown(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(request: &Request<'_>) -> String {
        let base = Url::parse("http://127.0.0.1:8500").unwrap();
        request.url(&base, &Tenancy::default()).to_string()
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_url() {
        let request = Request::get("catalog/node-services").segment("a/b?c#d e%2Fü");
        assert_eq!(
            url(&request),
            "http://127.0.0.1:8500/v1/catalog/node-services/a%2Fb%3Fc%23d%20e%252F%C3%BC"
        );
        let request = Request::get("catalog/nodes").query("filter", r#"Meta["k"] == "a&b=c+d""#);
        assert_eq!(
            url(&request),
            "http://127.0.0.1:8500/v1/catalog/nodes?filter=Meta%5B%22k%22%5D+%3D%3D+%22a%26b%3Dc%2Bd%22"
        );
    }

    #[test]
    fn keys_keep_their_slashes() {
        let request = Request::put("kv")
            .path("lictor/v1/c1/epoch")
            .query("cas", "7");
        assert_eq!(
            url(&request),
            "http://127.0.0.1:8500/v1/kv/lictor/v1/c1/epoch?cas=7"
        );
    }

    #[test]
    fn a_prefix_of_the_address_and_the_tenancy_are_kept() {
        let base = Url::parse("https://example.org/consul/").unwrap();
        let tenancy = Tenancy {
            namespace: Some("team".to_owned()),
            partition: None,
        };
        let request = Request::get("catalog/nodes").consistency(Consistency::Consistent);
        let url = request.url(&base, &tenancy);
        assert_eq!(
            url.as_str(),
            "https://example.org/consul/v1/catalog/nodes?ns=team&consistent"
        );
    }

    #[test]
    fn servers_are_asked_for_where_they_are() {
        let base = Url::parse("http://127.0.0.1:8500").unwrap();
        let request = Request::get("health/service").of_servers();
        let mut tenancy = Tenancy {
            namespace: Some("team".to_owned()),
            partition: None,
        };
        let at = |tenancy: &Tenancy| request.url(&base, tenancy).query().map(str::to_owned);
        assert_eq!(at(&tenancy).as_deref(), Some("ns=default"));
        tenancy.partition = Some("emea".to_owned());
        let both = Some("ns=default&partition=default");
        assert_eq!(at(&tenancy).as_deref(), both);
        assert_eq!(at(&Tenancy::default()), None);
    }

    #[test]
    fn a_blocking_query_may_take_longer_than_its_wait() {
        let wait = Duration::from_secs(48);
        let request = Request::get("catalog/nodes").blocking(NonZeroU64::MIN, wait);
        assert_eq!(
            url(&request),
            "http://127.0.0.1:8500/v1/catalog/nodes?index=1&wait=48000ms"
        );
        assert_eq!(request.deadline(), Duration::from_secs(48 + 3 + 10));
        assert_eq!(Request::get("kv").deadline(), Duration::from_secs(30));
        assert_eq!(Request::delete("kv").deadline(), Duration::from_secs(25));
        let limit = Duration::from_secs(3);
        assert_eq!(Request::put("kv").within(limit).deadline(), limit);
        assert_eq!(Request::get("kv").within(limit * 20).deadline(), limit * 10);
    }

    #[test]
    fn an_error_shows_the_path_and_not_the_query() {
        let request = Request::put("kv")
            .path("a/b")
            .query("acquire", "some-session");
        let error = request.error(ErrorClass::Unreachable, "connection refused");
        assert_eq!(error.to_string(), "PUT /v1/kv/a/b: connection refused");
    }
}
