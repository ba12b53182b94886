//! What is seen over HTTP: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::consul::Client;
use crate::metrics::Metrics;
use crate::sync::engine::Readiness;

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

/// Serves until stopped.
pub async fn serve(
    listener: TcpListener,
    shown: Shown,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shown);
    let serving = axum::serve(listener, routes)
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    tokio::select! {
        result = serving => result,
        () = async { stop.cancelled().await; tokio::time::sleep(LAST_REQUESTS).await } => Ok(()),
    }
}

impl Shown {
    /// How long ago Consul answered last, or for how long it has not answered at all.
    fn consul_silence(&self) -> Duration {
        let since = self.consul.last_contact().unwrap_or(self.started);
        since.elapsed()
    }
}

async fn readyz(State(shown): State<Shown>) -> Response {
    let Readiness { ready, remarks } = shown.readiness.borrow().clone();
    let token = shown.token_problem.borrow().clone();
    let ready = ready && token.is_none();
    let silence = shown.consul_silence().as_secs();
    let silence = (silence > 0).then(|| format!("consul: last contact {silence} s ago"));
    let mut text = if ready { "ok\n" } else { "not ready\n" }.to_owned();
    for remark in remarks.into_iter().chain(token).chain(silence) {
        text.extend(["- ", &remark, "\n"]);
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
