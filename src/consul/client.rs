//! Sending requests: which address, which token, how long, and who is told.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{HOST, HeaderName};
use secrecy::SecretString;
use tokio::time::timeout_at;
use tracing::Instrument as _;

use super::config::{ConfigError, ConsulConfig, Tenancy};
use super::error::classify;
use super::request::{Method, RequestToken};
use super::token::{FileStamp, LOOK, Token, token_header};
use super::transport::{Endpoint, Transport, chain};
use super::{ConsulError, ErrorClass, Request, Response, TokenStanding};
use crate::traces;

/// Longest answer that is read, in bytes. A node with 8,000 instances is 6 MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// How long a token check is believed.
const STANDING: Duration = Duration::from_mins(15);
const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
/// On every answer of Consul 1.22; `allow` where ACLs are off.
const DEFAULT_ACL_POLICY: HeaderName = HeaderName::from_static("x-consul-default-acl-policy");

/// Is told of every request, for metrics.
pub trait Observer {
    /// A request to `endpoint` (one of a small fixed set, like `catalog/nodes`) ended after
    /// `elapsed`, with this HTTP status, or without any.
    ///
    /// `blocking`: Consul was asked to hold the answer back until something changes.
    fn observed(
        &self,
        endpoint: &'static str,
        code: Option<u16>,
        elapsed: Duration,
        blocking: bool,
    );
}

/// An observer that does not care.
impl Observer for () {
    fn observed(
        &self,
        _endpoint: &'static str,
        _code: Option<u16>,
        _elapsed: Duration,
        _blocking: bool,
    ) {
    }
}

/// A client of one Consul datacenter; clones share everything but how long they wait.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    /// The longest that a request may take, unless it is a blocking query.
    limit: Option<Duration>,
}

struct Inner {
    config: ConsulConfig,
    transport: Mutex<Connections>,
    token: Token,
    observer: Arc<dyn Observer + Send + Sync>,
    last_contact: Mutex<Option<Instant>>,
    standing: Mutex<Option<Known>>,
    /// Where config entries are read; empty for where the request is answered.
    entries_from: Mutex<Box<str>>,
}

/// The connections in use, and the TLS files that they were made from.
struct Connections {
    transport: Arc<Transport>,
    looked: Instant,
    stamps: Vec<Option<FileStamp>>,
    /// Why the files that are there now cannot be used, as was told.
    unusable: Option<String>,
}

/// What Consul took the token of this generation for.
struct Known {
    generation: u64,
    since: Instant,
    standing: TokenStanding,
}

impl Client {
    /// A client that has connected to nothing yet.
    ///
    /// Fails where a file that the configuration names cannot be used.
    pub fn new(config: ConsulConfig) -> Result<Self, ConfigError> {
        Self::with_observer(config, Arc::new(()))
    }

    /// The same, with an observer of every request.
    pub fn with_observer(
        config: ConsulConfig,
        observer: Arc<dyn Observer + Send + Sync>,
    ) -> Result<Self, ConfigError> {
        let inner = Inner {
            transport: Mutex::new(Connections {
                stamps: stamps(&config),
                transport: Arc::new(Transport::new(&config)?),
                looked: Instant::now(),
                unusable: None,
            }),
            token: Token::new(config.token.clone())?,
            observer,
            last_contact: Mutex::new(None),
            standing: Mutex::new(None),
            entries_from: Mutex::default(),
            config,
        };
        Ok(Self {
            inner: Arc::new(inner),
            limit: None,
        })
    }

    /// The same, whose requests give up earlier than usual: no later than this after they are sent.
    /// Blocking queries wait as long as ever.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self {
            inner: self.inner.clone(),
            limit: Some(limit),
        }
    }

    /// When Consul last answered anything but a failure of its own; `None` before the first time.
    #[must_use]
    pub fn last_contact(&self) -> Option<Instant> {
        *lock(&self.inner.last_contact)
    }

    /// Uses another token from now on, one from a login.
    pub fn set_token(&self, token: &SecretString) -> Result<(), ConfigError> {
        self.inner.token.replace(token)
    }

    /// Reads config entries in this datacenter from now on, which is to be the primary one.
    ///
    /// Whoever is asked, Consul writes them there, and compares with the index that they have there.
    /// Other datacenters hold copies with indexes of their own, some seconds behind: a compare-and-set
    /// with one of those loses, or wins by chance. Observed on two datacenters of Consul 1.22.7.
    pub fn read_entries_from(&self, datacenter: &str) {
        *lock(&self.inner.entries_from) = datacenter.into();
    }

    /// Where config entries are read; empty for where the request is answered.
    pub(super) fn entries_from(&self) -> Box<str> {
        lock(&self.inner.entries_from).clone()
    }

    /// Sends a request and returns whatever Consul answered.
    ///
    /// Addresses are tried in turn: a read goes to the next one after any failure on the way, a
    /// write only if it cannot have been sent. All of that within one deadline: 30 s for a read,
    /// 25 s for a write, `wait` * 17/16 + 10 s for a blocking query, or what [`Request::within`]
    /// or [`Self::within`] says.
    pub async fn send(&self, request: &Request<'_>) -> Result<Response, ConsulError> {
        let (method, blocking) = (request.method.as_str(), request.wait.is_some());
        let span = traces::request(method, request.endpoint, blocking);
        let result = self.ask(request).instrument(span.clone()).await;
        let status = result.as_ref().map(|response| response.status);
        traces::answered(&span, status);
        result
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Response, ConsulError> {
        let began = Instant::now();
        let limit = self.limit.filter(|_| request.wait.is_none());
        let limit = limit.unwrap_or(Duration::MAX).min(request.deadline());
        let deadline = tokio::time::Instant::from_std(began) + limit;
        let transport = self.transport();
        let mut result = Err(request.error(ErrorClass::Unreachable, "no address"));
        for position in transport.order() {
            let attempt = self.attempt(transport.endpoint(position), request);
            let attempt = timeout_at(deadline, attempt).await;
            let timed_out = attempt.is_err();
            result = attempt.unwrap_or_else(|_| {
                let text = format!("no answer within {limit:?}");
                Err(request.error(ErrorClass::Ambiguous, &text))
            });
            match &result {
                // A server without a leader, or a proxy without a server, says so itself.
                Ok(answer) if answer.status >= 500 => {
                    transport.avoid(position);
                    break;
                }
                Ok(_) => {
                    transport.prefer(position);
                    break;
                }
                Err(error) => {
                    transport.avoid(position);
                    let repeatable = error.class() == ErrorClass::Unreachable
                        || (error.class() == ErrorClass::Ambiguous
                            && request.method == Method::Get);
                    if timed_out || !repeatable {
                        break;
                    }
                }
            }
        }
        let code = result.as_ref().ok().map(|response| response.status);
        self.inner.observer.observed(
            request.endpoint,
            code,
            began.elapsed(),
            request.wait.is_some(),
        );
        result
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
    ) -> Result<Response, ConsulError> {
        let inner = &self.inner;
        let (token, generation) = inner.token.current();
        let url = request.url(&endpoint.base, &inner.config.tenancy);
        let mut http = endpoint.http.request(request.method.into(), url);
        if let Some(host) = &endpoint.host {
            http = http.header(HOST, host.clone());
        }
        let token = match &request.token {
            RequestToken::OfClient => token,
            RequestToken::None => None,
            RequestToken::Other(token) => token_header(token).ok().flatten(),
        };
        if let Some(token) = token {
            http = http.header(TOKEN, token);
        }
        if let Some(body) = &request.body {
            http = http.body(body.clone());
        }
        let on_the_way = |error: reqwest::Error| {
            let unsent = error.is_connect() || error.is_builder();
            let class = if unsent {
                ErrorClass::Unreachable
            } else {
                ErrorClass::Ambiguous
            };
            request.error(class, &chain(&error.without_url()))
        };
        let mut answer = http.send().await.map_err(on_the_way)?;
        let status = answer.status().as_u16();
        let too_long = || {
            let text = "the answer is longer than 64 MiB";
            ConsulError::malformed(request.method.as_str(), &request.shown(), status, text)
        };
        let mut body = Vec::new();
        if let Some(length) = answer.content_length() {
            let length = usize::try_from(length)
                .ok()
                .filter(|&length| length <= MAX_ANSWER);
            body.reserve_exact(length.ok_or_else(too_long)?);
        }
        while let Some(chunk) = answer.chunk().await.map_err(on_the_way)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        if status < 500 {
            *lock(&inner.last_contact) = Some(Instant::now());
        }
        if status == 403 && matches!(request.token, RequestToken::OfClient) {
            self.doubt_standing(generation, &body);
        }
        let headers = answer.headers();
        let acls_on = headers
            .get(DEFAULT_ACL_POLICY)
            .is_some_and(|policy| policy == "deny");
        let verified = self.is_verified(generation, acls_on);
        Ok(Response::new(request, status, headers, body, verified))
    }

    /// The connections, made anew when a TLS file changed. As long as the files do not fit
    /// together, which is how they look while they are being replaced, the old ones stay.
    fn transport(&self) -> Arc<Transport> {
        let mut connections = lock(&self.inner.transport);
        if connections.looked.elapsed() >= LOOK {
            connections.looked = Instant::now();
            let stamps = stamps(&self.inner.config);
            if stamps != connections.stamps {
                match Transport::new(&self.inner.config) {
                    Ok(transport) => {
                        connections.transport = Arc::new(transport);
                        connections.stamps = stamps;
                        connections.unusable = None;
                        tracing::info!("TLS files changed; new connections use them");
                    }
                    Err(error) => {
                        let why = error.to_string();
                        if connections.unusable.as_ref() != Some(&why) {
                            tracing::warn!(
                                "TLS files changed and are not usable, the old ones stay in use: {why}"
                            );
                            connections.unusable = Some(why);
                        }
                    }
                }
            }
        }
        connections.transport.clone()
    }

    /// Whether the token that is sent now was looked at, not long ago, and found to be one. A changed
    /// token file makes it false until [`check_token`](Self::check_token) was asked again.
    #[must_use]
    pub fn is_token_verified(&self) -> bool {
        let (_, generation) = self.inner.token.current();
        self.is_verified(generation, false)
    }

    /// Whether the token of this generation was looked at, not long ago, and found to be one.
    /// `acls_on`: the answer itself says so, whatever was true when the token was looked at.
    fn is_verified(&self, generation: u64, acls_on: bool) -> bool {
        let standing = lock(&self.inner.standing);
        let Some(known) = standing.as_ref() else {
            return false;
        };
        let believed = known.generation == generation && known.since.elapsed() < STANDING;
        believed
            && match known.standing {
                TokenStanding::Token { .. } => true,
                TokenStanding::AclsOff => !acls_on,
                TokenStanding::Anonymous | TokenStanding::Unknown => false,
            }
    }

    /// Remembers what Consul took the token of this generation for.
    pub(super) fn remember_standing(&self, generation: u64, standing: TokenStanding) {
        let known = Known {
            generation,
            since: Instant::now(),
            standing,
        };
        *lock(&self.inner.standing) = Some(known);
    }

    /// A refusal that says that the token is none any more ends what was known of it, until
    /// [`check_token`](Self::check_token) was asked again.
    fn doubt_standing(&self, generation: u64, body: &[u8]) {
        if classify(403, &String::from_utf8_lossy(body)) == ErrorClass::TokenUnknown {
            let mut standing = lock(&self.inner.standing);
            let is_of = |known: &mut Known| known.generation == generation;
            drop(standing.take_if(is_of));
        }
    }

    /// Whether a token is sent, and its generation.
    pub(super) fn token_in_use(&self) -> (bool, u64) {
        let (header, generation) = self.inner.token.current();
        (header.is_some(), generation)
    }

    pub(super) fn tenancy(&self) -> &Tenancy {
        &self.inner.config.tenancy
    }
}

fn stamps(config: &ConsulConfig) -> Vec<Option<FileStamp>> {
    config
        .tls
        .files()
        .map(Path::new)
        .map(FileStamp::of)
        .collect()
}

/// What these locks guard is whole after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
