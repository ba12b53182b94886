//! One run of a check.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::connect::{Connection, Failure, connect};
use super::forbidden::Forbidden;
use super::resolver::Resolver;
use super::tls;
use crate::api::conditions::cut;
use crate::desired::probe::{AskedCall, Call, HttpQuestion};
use crate::model::entry::{Check, Health};
use crate::model::text::Text;
use crate::plan::checks::{ANSWER, taken};

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
/// Most bytes of a path, or of the name of a service, in the output of a check: what comes after it must not
/// be lost.
const MAX_NAMED_BYTES: usize = 400;
/// Most bytes of the answer there.
const MAX_ANSWER_BYTES: usize = 256;
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
    pub call: Arc<Call>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Target {
    /// What a check of an instance at this host asks.
    #[must_use]
    pub fn of(host: &Text, asked: &AskedCall) -> Self {
        Self {
            host: host.clone(),
            port: asked.port,
            call: asked.call.clone(),
            timeout: asked.probe.timeout,
        }
    }
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

/// How it is, and what was said.
type Answer = (Health, String);

/// Why a check was not run, for people: nothing was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun(pub String);

impl Asker {
    /// Connects to nothing that is forbidden.
    pub fn new(forbidden: watch::Receiver<Option<Arc<Forbidden>>>) -> Result<Self, rustls::Error> {
        Ok(Self {
            forbidden,
            tls: Arc::new(tls::config()?),
            resolver: Resolver::default(),
        })
    }

    /// Asks once, for a registration in this namespace. The output has what was asked, the answer and the
    /// time that it took, and nothing that the other side wrote but its status.
    pub async fn ask(&self, namespace: &Text, target: &Target) -> Result<Check, NotRun> {
        let Target { host, port, .. } = target;
        let turn = timeout(target.timeout, self.resolver.turn(namespace, host)).await;
        let turn = turn.map_err(|_| {
            NotRun(format!(
                "too many names of the namespace {namespace} are being looked up"
            ))
        })?;
        // What it waited for others is none of its own time.
        let began = Instant::now();
        let deadline = began + target.timeout;
        let addresses = timeout_at(deadline, self.resolver.addresses_of(turn, host, *port)).await;
        let answer = match addresses {
            // Who is to know the name does not answer, and not who has it.
            Err(_) => Err(Failure::NotAsked(format!(
                "{host} was not looked up within {:?}",
                target.timeout
            ))),
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(addresses)) => timeout_at(deadline, self.answer(target, &addresses))
                .await
                .unwrap_or_else(|_| {
                    let said = format!("no answer within {:?}", target.timeout);
                    Err(Failure::Found(said))
                }),
        };
        let (status, said) = match answer {
            Ok(answer) => answer,
            Err(Failure::Found(why)) => (Health::Critical, why),
            Err(Failure::NotAsked(why)) => return Err(NotRun(why)),
        };
        let took = began.elapsed().as_millis();
        let said = cut(said, MAX_ANSWER_BYTES);
        let output = format!("{}{ANSWER}{said}{}", question(target), taken(took));
        Ok(Check {
            status,
            output: output.into(),
        })
    }

    async fn answer(&self, target: &Target, addresses: &[SocketAddr]) -> Result<Answer, Failure> {
        let Some(forbidden) = self.forbidden.borrow().clone() else {
            let why = "it is not known yet where no check may connect to";
            return Err(Failure::NotAsked(why.to_owned()));
        };
        let stream = connect(&target.host, addresses, &forbidden).await?;
        let answer = match &*target.call {
            Call::Tcp => Ok((Health::Passing, "connected".to_owned())),
            Call::Http(question) if question.tls => match self.encrypt(target, stream).await {
                Ok(stream) => http(target, question, stream).await,
                Err(why) => Err(why),
            },
            Call::Http(question) => http(target, question, stream).await,
            Call::Grpc(service) => grpc(target, service, stream).await,
        };
        answer.map_err(Failure::Found)
    }

    async fn encrypt(
        &self,
        target: &Target,
        stream: Connection,
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

async fn grpc(target: &Target, service: &Text, stream: Connection) -> Result<Answer, String> {
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

/// What is asked, for people: the output of the check begins with it. Header fields, thresholds and the end
/// of a long path are no part of it.
#[must_use]
pub fn question(target: &Target) -> String {
    let authority = authority(target);
    match &*target.call {
        Call::Http(HttpQuestion {
            tls, method, path, ..
        }) => {
            let scheme = if *tls { "https" } else { "http" };
            let path = cut(path.to_string(), MAX_NAMED_BYTES);
            format!("HTTP {method} {scheme}://{authority}{path}")
        }
        Call::Tcp => format!("TCP {authority}"),
        Call::Grpc(service) if service.is_empty() => format!("gRPC {authority}"),
        Call::Grpc(service) => {
            let service = cut(service.to_string(), MAX_NAMED_BYTES);
            format!("gRPC {authority}/{service}")
        }
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::desired::probe::{self, Asked};
    use crate::plan::checks;

    /// One who asks, and is told by this where names lead.
    fn asker(resolver: Resolver) -> Asker {
        let forbidden = Some(Arc::new(Forbidden::new(true, [])));
        let asker = Asker::new(watch::channel(forbidden).1).unwrap();
        Asker { resolver, ..asker }
    }

    fn target(host: &str, port: u16, check: &Value) -> Target {
        let checks = serde_json::from_value::<Vec<_>>(json!([check])).unwrap();
        let probe = probe::of(&checks).unwrap()[0].clone();
        let lease = Text::default();
        let asked = Asked { probe, port, lease };
        Target::of(&host.into(), &asked.call().unwrap())
    }

    /// A server that says this again and again.
    async fn says(text: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 1024]).await;
                    while stream.write_all(text).await.is_ok() {}
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn answers_before_the_last_one_have_an_end() {
        let port = says(b"HTTP/1.1 100 Continue\r\n\r\n").await;
        let check = json!({"name": "api", "http": {}, "timeout": "1m"});
        let asker = asker(Resolver::default());
        let target = target("127.0.0.1", port, &check);
        let run = timeout(Duration::from_secs(20), asker.ask(&"shop".into(), &target)).await;
        let found = run.expect("it has an end").unwrap();
        assert_eq!(found.status, Health::Critical, "{}", found.output);
    }

    #[tokio::test]
    async fn names_that_hang_in_one_namespace_leave_time_for_the_checks_of_others() {
        let port = says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let asker = Arc::new(asker(Resolver::with(|host, port| {
            if host == "hangs" {
                std::thread::sleep(Duration::from_secs(2));
            }
            Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
        })));
        let check = json!({"name": "api", "http": {}, "timeout": "500ms"});
        let mut hanging = JoinSet::new();
        for _ in 0..40 {
            let (asker, target) = (asker.clone(), target("hangs", port, &check));
            hanging.spawn(async move { asker.ask(&"slow".into(), &target).await });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let found = asker.ask(&"shop".into(), &target("db", port, &check)).await;
        assert_eq!(found.unwrap().status, Health::Passing);
        // Those that were not looked up found nothing, whether it was their turn or not.
        while let Some(run) = hanging.join_next().await {
            assert!(run.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn however_long_a_path_is_the_output_has_the_answer() {
        let port = says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let path = format!("/{}", "a".repeat(1023));
        let check = json!({"name": "api", "http": {"path": path}});
        let target = target("127.0.0.1", port, &check);
        let asker = asker(Resolver::default());
        let found = asker.ask(&"shop".into(), &target).await.unwrap();
        assert!(found.output.contains("aaa: 200 OK ("), "{}", found.output);
        assert_eq!(checks::question(&found), Some(&*question(&target)));
    }
}
