//! One run of a check.

use std::sync::{Arc, Mutex};

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::connect::{Resolver, connect};
use super::forbidden::Forbidden;
use super::tls;
use crate::api::conditions::cut;
use crate::desired::probe::{HttpQuestion, Probe, Question};
use crate::model::entry::{Check, Health};
use crate::model::text::Text;
use crate::plan::checks::ANSWER;

/// Most bytes of the head of an answer; the body is not read at all.
const MOST_HEAD_BYTES: usize = 64 * 1024;
/// Most header fields of an answer.
const MOST_HEADERS: usize = 128;
/// Most bytes of an answer of the health service of gRPC, which holds a number.
const MOST_GRPC_BYTES: usize = 4096;
/// Most bytes of its head.
const MOST_GRPC_HEAD_BYTES: u32 = 64 * 1024;
/// What of it may be on the way, in bytes: the least that HTTP/2 knows (RFC 9113, section 6.9.2).
const GRPC_WINDOW: u32 = 65_535;
/// Longest output, in bytes.
const MAX_OUTPUT_BYTES: usize = 1024;
const USER_AGENT: &str = concat!("lictor/", env!("CARGO_PKG_VERSION"));

/// What runs are made with.
pub struct Asker {
    forbidden: watch::Receiver<Option<Arc<Forbidden>>>,
    tls: Arc<ClientConfig>,
    resolver: Resolver,
}

/// What a run asks, and where.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address or host name.
    pub host: Text,
    /// Port.
    pub port: u16,
    /// What is asked.
    pub probe: Arc<Probe>,
}

/// Tasks of a connection over HTTP/2, which end with the run, whatever the other side does.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

struct EndWithRun(Tasks);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        if let Ok(mut tasks) = self.0.lock() {
            tasks.spawn(async move { drop(future.await) });
        }
    }
}

impl Drop for EndWithRun {
    fn drop(&mut self) {
        if let Ok(mut tasks) = self.0.0.lock() {
            tasks.abort_all();
        }
    }
}

/// How it is, or why that cannot be told.
type Answer = (Health, String);

impl Asker {
    /// Connects to nothing that is forbidden.
    pub fn new(forbidden: watch::Receiver<Option<Arc<Forbidden>>>) -> Result<Self, rustls::Error> {
        Ok(Self {
            forbidden,
            tls: Arc::new(tls::config()?),
            resolver: Resolver::default(),
        })
    }

    /// Asks once. The output has what was asked, the answer and the time that it took, and nothing that
    /// the other side wrote but its status.
    pub async fn ask(&self, target: &Target) -> Check {
        let began = Instant::now();
        let asked = timeout(target.probe.timeout, self.answer(target)).await;
        let (status, said) = asked.unwrap_or_else(|_| {
            let said = format!("no answer within {:?}", target.probe.timeout);
            (Health::Critical, said)
        });
        let took = began.elapsed().as_millis();
        let output = format!("{}{ANSWER}{said} ({took} ms)", question(target));
        Check {
            status,
            output: cut(output, MAX_OUTPUT_BYTES).into(),
        }
    }

    async fn answer(&self, target: &Target) -> Answer {
        let Some(forbidden) = self.forbidden.borrow().clone() else {
            return (
                Health::Critical,
                "not asked, before it is known what may be".to_owned(),
            );
        };
        let Target { host, port, .. } = target;
        let stream = match connect(host, *port, &self.resolver, &forbidden).await {
            Ok(stream) => stream,
            Err(why) => return (Health::Critical, why),
        };
        let answer = match &target.probe.question {
            Question::Tcp => return (Health::Passing, "connected".to_owned()),
            Question::Http(question) if question.tls => match self.encrypt(target, stream).await {
                Ok(stream) => http(target, question, stream).await,
                Err(why) => Err(why),
            },
            Question::Http(question) => http(target, question, stream).await,
            Question::Grpc(service) => grpc(target, service, stream).await,
            Question::Lease(_) => Err("nothing is asked for a Lease".to_owned()),
        };
        answer.unwrap_or_else(|why| (Health::Critical, why))
    }

    async fn encrypt(
        &self,
        target: &Target,
        stream: TcpStream,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, String> {
        let name = ServerName::try_from(target.host.to_string())
            .map_err(|_| format!("{} is no name for TLS", target.host))?;
        let connector = TlsConnector::from(self.tls.clone());
        let encrypted = connector.connect(name, stream).await;
        encrypted.map_err(|error| format!("no TLS: {error}"))
    }
}

async fn http<S>(target: &Target, question: &HttpQuestion, stream: S) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(MOST_HEAD_BYTES)
        .max_headers(MOST_HEADERS);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = request(target, question)?;
    let answer = sender.send_request(request).await;
    let status = answer.map_err(|error| told(&error))?.status();
    let health = match status {
        status if status.is_success() => Health::Passing,
        StatusCode::TOO_MANY_REQUESTS => Health::Warning,
        _ => Health::Critical,
    };
    Ok((health, status.to_string()))
}

fn request(target: &Target, question: &HttpQuestion) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::builder()
        .method(question.method)
        .uri(&*question.path)
        .body(Empty::new())
        .map_err(|error| format!("it cannot be asked: {error}"))?;
    let headers = request.headers_mut();
    let defaults = [
        (header::HOST, authority(target)),
        (header::USER_AGENT, USER_AGENT.to_owned()),
        (header::ACCEPT, "*/*".to_owned()),
        (header::CONNECTION, "close".to_owned()),
    ];
    let given = question.headers.iter();
    let given = given.map(|(name, value)| (name.parse(), value.to_string()));
    let defaults = defaults.map(|(name, value)| (Ok(name), value));
    for (name, value) in defaults.into_iter().chain(given) {
        let (Ok(name), Ok(value)) = (name, value.parse()) else {
            return Err("it cannot be asked: a header field is none".to_owned());
        };
        headers.insert(name, value);
    }
    Ok(request)
}

async fn grpc(target: &Target, service: &Text, stream: TcpStream) -> Result<Answer, String> {
    let tasks = Tasks::default();
    let _tasks = EndWithRun(tasks.clone());
    let mut builder = http2::Builder::new(tasks);
    builder
        .max_header_list_size(MOST_GRPC_HEAD_BYTES)
        .initial_stream_window_size(GRPC_WINDOW)
        .initial_connection_window_size(GRPC_WINDOW);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| told(&error))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let origin = Uri::builder()
        .scheme("http")
        .authority(authority(target))
        .path_and_query("/")
        .build()
        .map_err(|error| format!("it cannot be asked: {error}"))?;
    let channel = tower::service_fn(move |request| sender.clone().send_request(request));
    let mut client =
        HealthClient::with_origin(channel, origin).max_decoding_message_size(MOST_GRPC_BYTES);
    let request = HealthCheckRequest {
        service: service.to_string(),
    };
    match client.check(request).await {
        Ok(answer) => {
            let status = answer.into_inner().status();
            let health = match status {
                ServingStatus::Serving => Health::Passing,
                _ => Health::Critical,
            };
            Ok((health, status.as_str_name().to_owned()))
        }
        // What it says beside the code is its own, and not repeated.
        Err(status) => Ok((Health::Critical, named(status.code()))),
    }
}

fn named(code: Code) -> String {
    match code {
        Code::NotFound => "it does not know the service".to_owned(),
        Code::Unimplemented => "it has no health service".to_owned(),
        code => code.description().to_lowercase(),
    }
}

/// What is asked, for people: the output of the check begins with it.
#[must_use]
pub fn question(target: &Target) -> String {
    let authority = authority(target);
    match &target.probe.question {
        Question::Http(HttpQuestion {
            tls, method, path, ..
        }) => {
            let scheme = if *tls { "https" } else { "http" };
            format!("HTTP {method} {scheme}://{authority}{path}")
        }
        Question::Tcp => format!("TCP {authority}"),
        Question::Grpc(service) if service.is_empty() => format!("gRPC {authority}"),
        Question::Grpc(service) => format!("gRPC {authority}/{service}"),
        Question::Lease(heartbeat) => format!("Lease {}", heartbeat.lease),
    }
}

fn authority(target: &Target) -> String {
    let Target { host, port, .. } = target;
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// An error of a connection, with what it came from.
fn told(error: &hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
