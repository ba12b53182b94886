//! The exporter of traces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as Exporter};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::{Spans, TARGET};
use crate::app::told;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SERVICE: &str = "OTEL_SERVICE_NAME";

/// Begins to export to where the environment says; does nothing where it says nothing.
pub(super) fn start() -> anyhow::Result<Option<(SdkTracerProvider, Spans)>> {
    let Some(endpoint) = told(ENDPOINT) else {
        return Ok(None);
    };
    // Whoever came first, be it us or another client, has installed the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // It reads the variable itself, and appends the path of traces to it.
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(|error| {
            let why = if endpoint.contains('@') {
                "why is not told, since the address holds a password".to_owned()
            } else {
                error.to_string()
            };
            anyhow::anyhow!("{why}: look at {ENDPOINT} and the other OTEL_ variables")
        })?;
    let exporter = Telling {
        exporter,
        is_secret: endpoint.contains('@'),
        fails: AtomicBool::new(false),
    };
    let service = told(SERVICE).unwrap_or_else(|| "lictor".to_owned());
    let resource = Resource::builder().with_service_name(service).build();
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("lictor"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO));
    Ok(Some((provider, spans.boxed())))
}

/// Tells once that exports fail, and once that they do not any more.
#[derive(Debug)]
struct Telling {
    exporter: SpanExporter,
    /// Whether the address holds what is not to be told.
    is_secret: bool,
    fails: AtomicBool,
}

impl Exporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let done = self.exporter.export(batch).await;
        let failed = self.fails.swap(done.is_err(), Ordering::Relaxed);
        match &done {
            Err(error) if !failed => {
                let why = if self.is_secret {
                    "why is not told, since the address holds a password".to_owned()
                } else {
                    error.to_string()
                };
                tracing::warn!(
                    "traces are lost until they can be exported: {why}; look at {ENDPOINT}"
                );
            }
            Ok(()) if failed => tracing::info!("traces are exported again"),
            _ => {}
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
