//! Logs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
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
    let filter =
        filter(level).map_err(|error| anyhow::anyhow!("--log-level {level:?}: {error}"))?;
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

/// Reads a filter. A word alone must be a level: taken for a target, as `EnvFilter` does, a misspelt
/// level would silence everything else.
fn filter(text: &str) -> anyhow::Result<EnvFilter> {
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
