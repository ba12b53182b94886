//! What is seen over HTTP: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::consul::Client;
use crate::metrics::Metrics;
use crate::sync::readiness::Readiness;

/// How long requests that are under way may take at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// What the server shows.
#[derive(Clone)]
pub struct Shown {
    /// How far the engine is.
    pub readiness: watch::Receiver<Readiness>,
    /// Where the metrics are registered.
    pub registry: Arc<Registry>,
    /// The metrics that are measured at a scrape.
    pub metrics: Metrics,
    /// Consul, for the age of the last contact.
    pub consul: Client,
    /// Why the token cannot be relied on, if it cannot.
    pub token_problem: watch::Receiver<Option<String>>,
    /// When the process started.
    pub started: Instant,
}

/// Connections at once; more wait to be taken. A few probes and a scrape are usual.
const CONNECTIONS: usize = 64;
/// How long a connection may last, which has one request: whoever is slower with it than any probe
/// holds no place for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a connection could not be taken, such as for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until stopped.
pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) {
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shown);
    serve_within(listener, routes, stop, PATIENCE).await;
}

async fn serve_within(
    listener: TcpListener,
    routes: Router,
    stop: CancellationToken,
    patience: Duration,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            taken = listener.accept(), if connections.len() < CONNECTIONS => match taken {
                Ok((stream, _)) => {
                    let answered = answer(stream, routes.clone());
                    connections.spawn(timeout(patience, answered));
                }
                Err(error) => {
                    tracing::debug!("cannot take a connection: {error}");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let last = async { while connections.join_next().await.is_some() {} };
    // Those that take longer end with the set.
    let _ = timeout(LAST_REQUESTS, last).await;
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, routes: Router) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().keep_alive(false);
    let service = TowerToHyperService::new(routes);
    let answered = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = answered.await {
        tracing::debug!("a connection failed: {error}");
    }
}

impl Shown {
    /// How long ago Consul answered last, or for how long it has not answered at all.
    fn consul_silence(&self) -> Duration {
        let since = self.consul.last_contact().unwrap_or(self.started);
        since.elapsed()
    }
}

async fn readyz(State(shown): State<Shown>, RawQuery(query): RawQuery) -> Response {
    let Readiness {
        ready,
        remarks,
        settings,
    } = shown.readiness.borrow().clone();
    let token = shown.token_problem.borrow().clone();
    let ready = ready && token.is_none();
    let silence = shown.consul_silence().as_secs();
    let silence = (silence > 0).then(|| format!("consul: last contact {silence} s ago"));
    let mut text = if ready { "ok\n" } else { "not ready\n" }.to_owned();
    for remark in remarks.into_iter().chain(token).chain(silence) {
        text.extend(["- ", &remark, "\n"]);
    }
    let asked = query.unwrap_or_default();
    if asked
        .split('&')
        .any(|asked| asked == "verbose" || asked.starts_with("verbose="))
    {
        text.push_str("settings in force:\n");
        for setting in settings {
            text.extend(["- ", &setting, "\n"]);
        }
    }
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, text).into_response()
}

async fn metrics(State(shown): State<Shown>) -> Response {
    shown.metrics.refresh(shown.consul_silence());
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shown.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Where the server listens, and what stops it.
    async fn served(patience: Duration) -> (std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/livez", get(async || "ok\n"));
        let stop = CancellationToken::new();
        tokio::spawn(serve_within(listener, routes, stop.clone(), patience));
        (address, stop)
    }

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nHost: l\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_connection_has_one_request() {
        let (address, _stop) = served(Duration::from_mins(1)).await;
        let answer = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\nok\n"));
    }

    #[tokio::test]
    async fn those_that_ask_nothing_hold_no_place_for_long() {
        let (address, stop) = served(Duration::from_secs(1)).await;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
            idle.push(stream);
        }
        let began = Instant::now();
        let answer = timeout(Duration::from_secs(10), ask(address)).await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 200 OK"));
        assert!(began.elapsed() > Duration::from_millis(500), "no limit");
        for mut stream in idle {
            let ended = stream.read(&mut [0; 16]).await;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        }
        stop.cancel();
    }
}
