//! Logs, and where traces go.

use std::fmt;
use std::sync::Arc;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt as logs, registry, reload};

use crate::traces::{self, Spans, Traces};

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

/// Changes which lines are logged.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>);

impl LogLevel {
    /// From now on logs what `level` says, which is what `--log-level` may say.
    pub fn set(&self, level: &str) -> anyhow::Result<()> {
        (self.0)(whole_filter(level)?)
    }
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLevel")
    }
}

/// Starts logging to stderr. What is logged may be changed later by what this returns.
///
/// `level` is a level (`info`) or a filter by target (`info,lictor::sync=debug`).
pub fn start(level: &str, format: LogFormat) -> anyhow::Result<LogLevel> {
    start_with(level, format, None)
}

/// The same, and exports traces where the environment says to where.
pub fn start_traced(level: &str, format: LogFormat) -> anyhow::Result<(LogLevel, Traces)> {
    let started = Traces::start();
    let (traces, spans, wrong) = match started {
        Ok((traces, spans)) => (traces, spans, None),
        Err(error) => (Traces::default(), None, Some(error)),
    };
    let level = start_with(level, format, spans)?;
    if let Some(error) = wrong {
        tracing::warn!("no traces are exported, all else goes on: {error}");
    }
    Ok((level, traces))
}

fn start_with(level: &str, format: LogFormat, spans: Option<Spans>) -> anyhow::Result<LogLevel> {
    let filter =
        whole_filter(level).map_err(|error| anyhow::anyhow!("--log-level {level:?}: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let logs = logs::layer()
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE);
    let logs = match format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            logs.with_ansi(colours).boxed()
        }
        LogFormat::Json => {
            let logs = logs.json().flatten_event(true).with_current_span(false);
            logs.boxed()
        }
    };
    let mut layers = vec![logs.with_filter(filter).boxed()];
    layers.extend(spans);
    let started = registry().with(layers).try_init();
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))?;
    Ok(LogLevel(Arc::new(move |now| Ok(handle.reload(now)?))))
}

/// What is logged at this level, with what is so whatever the level.
fn whole_filter(level: &str) -> anyhow::Result<EnvFilter> {
    let mut filter = filter(level)?.add_directive(AUDIT.parse()?);
    if !level.contains(KUBE_CONNECTIONS) {
        filter = filter.add_directive(format!("{KUBE_CONNECTIONS}=off").parse()?);
    }
    // Spans are for traces, not for the start of each line.
    let target = traces::TARGET;
    Ok(filter.add_directive(format!("{target}=off").parse()?))
}

/// Reads a filter. A word alone must be a level: taken for a target, as `EnvFilter` does, a misspelt
/// level would silence everything else.
pub(crate) fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_misspelt = |part: &&str| match part.rsplit_once('=') {
        Some((_, level)) => !is_level(level),
        None => !is_level(part),
    };
    if let Some(part) = text.split(',').find(is_misspelt) {
        anyhow::bail!(
            "{part:?} is neither a level (error, warn, info, debug, trace, off) nor TARGET=LEVEL"
        );
    }
    Ok(EnvFilter::try_new(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_understood_and_misspelt_levels_refused() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,lictor::sync=debug",
            "info,audit=trace",
            "info,lictor[span{kind=1}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "warning",
            "loud",
            "info,",
            "lictor::sync",
            "lictor=",
            "lictor=loud",
        ] {
            assert!(filter(bad).is_err(), "{bad}");
        }
        let error = filter("info,warning").unwrap_err().to_string();
        assert!(error.starts_with("\"warning\" is neither"), "{error}");
    }
}
