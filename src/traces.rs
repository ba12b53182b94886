//! Traces: a span for each flush of writes and for each request to Consul. They are exported by OTLP where the
//! feature `otel` is on and `OTEL_EXPORTER_OTLP_ENDPOINT` says to where; else they cost nothing.
//!
//! Spans hold names of endpoints, counts and codes: no key, no value, no token.

#[cfg(feature = "otel")]
mod export;

#[cfg(feature = "otel")]
use std::time::Duration;

use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_subscriber::{Layer, Registry};

use crate::consul::ConsulError;

/// The target of all spans, by which logs leave them out.
pub const TARGET: &str = "traces";
/// How long the last spans may take to be exported when the process ends.
#[cfg(feature = "otel")]
const LAST: Duration = Duration::from_secs(2);

/// What exports traces, if anything does.
#[derive(Debug, Default)]
pub struct Traces {
    #[cfg(feature = "otel")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// What hands spans to the exporter.
pub(crate) type Spans = Box<dyn Layer<Registry> + Send + Sync>;

impl Traces {
    /// Begins to export, if there is where to.
    ///
    /// # Errors
    ///
    /// The variables of the environment say something that cannot be used.
    #[cfg(feature = "otel")]
    pub(crate) fn start() -> anyhow::Result<(Self, Option<Spans>)> {
        let (provider, spans) = export::start()?.unzip();
        Ok((Self { provider }, spans))
    }

    /// Without the feature there is nothing to export with.
    #[cfg(not(feature = "otel"))]
    #[expect(clippy::unnecessary_wraps, reason = "it is so with the feature")]
    pub(crate) fn start() -> anyhow::Result<(Self, Option<Spans>)> {
        Ok((Self::default(), None))
    }

    /// Exports what is left, within two seconds. What cannot be exported by then is lost.
    #[cfg(feature = "otel")]
    pub fn end(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(LAST)
        {
            tracing::warn!("the last traces are lost: {error}");
        }
    }

    /// Without the feature there is nothing left.
    #[cfg(not(feature = "otel"))]
    pub fn end(self) {}
}

/// The span of a flush: so many entries in one transaction, or one that is in none.
#[must_use]
pub fn flush(keys: usize) -> Span {
    info_span!(target: TARGET, "flush", keys)
}

/// The span of a request to Consul.
#[must_use]
pub fn request(method: &'static str, endpoint: &'static str, blocking: bool) -> Span {
    info_span!(
        target: TARGET,
        "consul",
        otel.name = %format_args!("{method} {endpoint}"),
        otel.kind = "client",
        otel.status_code = Empty,
        "error.type" = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        consul.endpoint = endpoint,
        consul.blocking = blocking,
    )
}

/// Notes how a request ended: with a status, or why without one. Its text is not noted: it may name what is
/// nobody's business.
pub fn answered(span: &Span, answer: Result<u16, &ConsulError>) {
    if span.is_disabled() {
        return;
    }
    let failure = match answer {
        Ok(status) => {
            span.record("http.response.status_code", status);
            (status >= 400).then(|| status.to_string())
        }
        Err(error) => Some(error.class().as_str().to_owned()),
    };
    if let Some(failure) = failure {
        span.record("error.type", failure);
        span.record("otel.status_code", "ERROR");
    }
}
