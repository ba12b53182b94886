//! Sending a request and judging what came back.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{HOST, HeaderMap, HeaderName};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::time::timeout_at;

use super::config::{ConfigError, ConsulConfig};
use super::token::Token;
use super::transport::{Endpoint, Transport, chain};
use super::{Consistency, ConsulError, ErrorClass, Observed, Quality, TokenStanding};

/// Longest answer that is read, in bytes. A node with 8,000 instances is 6 MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Deadline of a read.
const READ: Duration = Duration::from_secs(30);
/// Deadline of a write; without a leader Consul itself holds it for up to 19 s before it answers.
const WRITE: Duration = Duration::from_secs(25);
/// What a blocking query may take beyond its wait and the sixteenth that Consul adds to it.
const BLOCKING_MARGIN: Duration = Duration::from_secs(10);
/// How long a token check is believed.
const STANDING: Duration = Duration::from_secs(15 * 60);

/// Is told of every request, for metrics.
pub trait Observer {
    /// A request to `endpoint` (one of a small fixed set, like `catalog/nodes`) ended after
    /// `elapsed`, with this HTTP status, or without any.
    fn observed(&self, endpoint: &'static str, code: Option<u16>, elapsed: Duration);
}

/// An observer that does not care.
impl Observer for () {
    fn observed(&self, _endpoint: &'static str, _code: Option<u16>, _elapsed: Duration) {}
}

/// A client of one Consul datacenter; clones share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    token: Token,
    /// `ns` and `partition`, where configured: Community Edition refuses them.
    tenancy: Vec<(&'static str, String)>,
    observer: Arc<dyn Observer + Send + Sync>,
    last_contact: Mutex<Option<Instant>>,
    standing: Mutex<Option<Standing>>,
}

struct Standing {
    generation: u64,
    since: Instant,
    standing: TokenStanding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Get,
    Put,
    Post,
    Delete,
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    method: Method,
    endpoint: &'static str,
    path: Vec<Cow<'a, str>>,
    query: Vec<(&'static str, Cow<'a, str>)>,
    body: Option<Vec<u8>>,
    consistency: Consistency,
    wait: Option<Duration>,
}

/// What Consul answered, whatever its status.
#[derive(Clone, Debug)]
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
    method: &'static str,
    path: Box<str>,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    fn of_http(self) -> reqwest::Method {
        match self {
            Self::Get => reqwest::Method::GET,
            Self::Put => reqwest::Method::PUT,
            Self::Post => reqwest::Method::POST,
            Self::Delete => reqwest::Method::DELETE,
        }
    }
}

impl<'a> Request<'a> {
    fn new(method: Method, endpoint: &'static str) -> Self {
        Self {
            method,
            endpoint,
            path: endpoint.split('/').map(Cow::Borrowed).collect(),
            query: Vec::new(),
            body: None,
            consistency: Consistency::Default,
            wait: None,
        }
    }

    /// A read of `/v1/<endpoint>`, which is also the label in metrics.
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
    pub fn path(mut self, path: &'a str) -> Self {
        self.path.extend(path.split('/').map(Cow::Borrowed));
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

    fn deadline(&self) -> Duration {
        match (self.method, self.wait) {
            (Method::Get, Some(wait)) => wait * 17 / 16 + BLOCKING_MARGIN,
            (Method::Get, None) => READ,
            _ => WRITE,
        }
    }

    /// The path for people: unencoded and without the query.
    fn shown(&self) -> String {
        self.path
            .iter()
            .fold("/v1".to_owned(), |path, segment| path + "/" + segment)
    }

    /// A body that cannot be written as JSON.
    pub(super) fn unencodable(&self, error: &serde_json::Error) -> ConsulError {
        self.error(ErrorClass::Refused, &error.to_string())
    }

    fn error(&self, class: ErrorClass, text: &str) -> ConsulError {
        ConsulError::without_answer(class, self.method.as_str(), &self.shown(), text)
    }
}

impl Response {
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
        match serde_json::from_slice(&this.body) {
            Ok(value) => Ok(Observed {
                value,
                quality: this.quality,
                index: this.index,
            }),
            Err(error) => Err(this.malformed(&error.to_string())),
        }
    }

    pub(super) fn malformed(&self, why: &str) -> ConsulError {
        ConsulError::malformed(self.method, &self.path, self.status, why)
    }
}

impl Client {
    /// A client that has connected to nothing yet.
    ///
    /// Fails where a file that the configuration names cannot be used.
    pub fn new(config: &ConsulConfig) -> Result<Self, ConfigError> {
        Self::with_observer(config, Arc::new(()))
    }

    /// The same, with an observer of every request.
    pub fn with_observer(
        config: &ConsulConfig,
        observer: Arc<dyn Observer + Send + Sync>,
    ) -> Result<Self, ConfigError> {
        let tenancy = [("ns", &config.namespace), ("partition", &config.partition)];
        let tenancy = tenancy
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect();
        let inner = Inner {
            transport: Transport::new(config)?,
            token: Token::new(config.token.clone())?,
            tenancy,
            observer,
            last_contact: Mutex::new(None),
            standing: Mutex::new(None),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// When Consul last answered anything but a failure of its own; `None` before the first time.
    #[must_use]
    pub fn last_contact(&self) -> Option<Instant> {
        *self
            .inner
            .last_contact
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses another token from now on, one from a login.
    pub fn set_token(&self, token: &SecretString) -> Result<(), ConfigError> {
        self.inner.token.replace(token)
    }

    /// Sends a request and returns whatever Consul answered.
    ///
    /// Addresses are tried in turn: a read goes to the next one after any failure on the way, a
    /// write only if it cannot have been sent. All of that within one deadline: 30 s for a read,
    /// 25 s for a write, `wait` * 17/16 + 10 s for a blocking query.
    pub async fn send(&self, request: &Request<'_>) -> Result<Response, ConsulError> {
        let began = Instant::now();
        let limit = request.deadline();
        let deadline = tokio::time::Instant::from_std(began) + limit;
        let transport = &self.inner.transport;
        let mut result = Err(request.error(ErrorClass::Unreachable, "no address"));
        for position in transport.order() {
            let endpoint = transport.endpoint(position);
            let attempt = timeout_at(deadline, self.attempt(endpoint, request)).await;
            let timed_out = attempt.is_err();
            result = attempt.unwrap_or_else(|_| {
                let text = format!("no answer within {} s", limit.as_secs());
                Err(request.error(ErrorClass::Ambiguous, &text))
            });
            match &result {
                Ok(_) => {
                    transport.prefer(position);
                    break;
                }
                Err(error) => {
                    transport.avoid(position);
                    let unsent = error.class() == ErrorClass::Unreachable;
                    if timed_out || !(unsent || request.method == Method::Get) {
                        break;
                    }
                }
            }
        }
        let code = result.as_ref().ok().map(|response| response.status);
        self.inner
            .observer
            .observed(request.endpoint, code, began.elapsed());
        result
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
    ) -> Result<Response, ConsulError> {
        let (token, generation) = self.inner.token.current();
        let mut http = endpoint
            .http
            .request(request.method.of_http(), self.url(endpoint, request));
        if let Some(host) = &endpoint.host {
            http = http.header(HOST, host.clone());
        }
        if let Some(token) = token {
            http = http.header(TOKEN, token);
        }
        if let Some(body) = &request.body {
            http = http.body(body.clone());
        }
        let on_the_way = |error: reqwest::Error| {
            let class = if error.is_connect() {
                ErrorClass::Unreachable
            } else {
                ErrorClass::Ambiguous
            };
            request.error(class, &chain(&error.without_url()))
        };
        let mut answer = http.send().await.map_err(on_the_way)?;
        let status = answer.status().as_u16();
        let too_long = || {
            let (method, path) = (request.method.as_str(), request.shown());
            ConsulError::malformed(method, &path, status, "the answer is longer than 64 MiB")
        };
        let mut body = Vec::new();
        if let Some(length) = answer.content_length() {
            let length = usize::try_from(length)
                .ok()
                .filter(|&length| length <= MAX_ANSWER)
                .ok_or_else(too_long)?;
            body.reserve_exact(length);
        }
        while let Some(chunk) = answer.chunk().await.map_err(on_the_way)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        if status < 500 {
            *self
                .inner
                .last_contact
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        let headers = answer.headers();
        let known_leader = text(headers, "x-consul-knownleader").map(|value| value == "true");
        let filtered_by_acls = text(headers, "x-consul-results-filtered-by-acls") == Some("true");
        let index = text(headers, "x-consul-index").and_then(|value| value.parse().ok());
        let last_contact =
            text(headers, "x-consul-lastcontact").and_then(|value| value.parse().ok());
        let effective = text(headers, "x-consul-effective-consistency");
        let quality = if filtered_by_acls {
            Quality::Filtered
        } else if !self.is_verified(generation) {
            Quality::Unverified
        } else if request.consistency == Consistency::Stale
            || known_leader == Some(false)
            || effective == Some("stale")
        {
            Quality::Stale
        } else if request.consistency == Consistency::Consistent {
            Quality::Authoritative
        } else {
            Quality::Leased
        };
        Ok(Response {
            status,
            body,
            // The store answers 404 for a key that is not there, and that index counts as well.
            index: index.filter(|_| {
                (200..300).contains(&status) || (status == 404 && request.endpoint == "kv")
            }),
            known_leader,
            last_contact: last_contact.map(Duration::from_millis),
            filtered_by_acls,
            quality,
            method: request.method.as_str(),
            path: request.shown().into(),
        })
    }

    fn url(&self, endpoint: &Endpoint, request: &Request<'_>) -> reqwest::Url {
        let mut url = endpoint.base.clone();
        // Never fails: the addresses are http or https, which have paths.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(&request.path);
        }
        {
            let mut query = url.query_pairs_mut();
            query
                .extend_pairs(&request.query)
                .extend_pairs(&self.inner.tenancy);
            match request.consistency {
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

    /// Whether the token of this generation was looked at, not long ago, and found to be one.
    fn is_verified(&self, generation: u64) -> bool {
        let standing = self
            .inner
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        standing.as_ref().is_some_and(|known| {
            known.generation == generation
                && known.since.elapsed() < STANDING
                && matches!(
                    known.standing,
                    TokenStanding::AclsOff | TokenStanding::Token { .. }
                )
        })
    }

    /// Remembers what Consul took the token of this generation for.
    pub(super) fn remember_standing(&self, generation: u64, standing: TokenStanding) {
        let known = Standing {
            generation,
            since: Instant::now(),
            standing,
        };
        *self
            .inner
            .standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// The generation of the token that is sent now.
    pub(super) fn token_generation(&self) -> u64 {
        self.inner.token.current().1
    }
}

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
