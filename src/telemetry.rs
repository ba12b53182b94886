//! Logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// What was removed and why can be answered later, whatever the level.
const AUDIT: &str = "audit=info";
/// kube tells of every failed connection; the watches tell of the same once.
const KUBE_CONNECTIONS: &str = "kube_client::client::builder";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr.
///
/// `level` is a level (`info`) or a filter by target (`info,lictor::sync=debug`).
pub fn start(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .map_err(|error| anyhow::anyhow!("--log-level {level}: {error}"))?;
    let mut filter = filter.add_directive(AUDIT.parse()?);
    if !level.contains(KUBE_CONNECTIONS) {
        filter = filter.add_directive(format!("{KUBE_CONNECTIONS}=off").parse()?);
    }
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            logs.with_ansi(colours).try_init()
        }
        LogFormat::Json => logs
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
