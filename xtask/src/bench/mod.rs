//! `cargo xtask bench`: how fast and how small `lictor run` is, on real servers.
//!
//! ```text
//!  cargo xtask bench ──▶ builds lictor and xtask with --release, and goes on in the latter
//!        │
//!        ▼
//!  one row, one bed:  Scene (servers, nodes, pods) ◀── Subject (lictor or the floor, a process)
//!        │                     ▲
//!        ▼                     └── Expected: Consul's catalog compared with what must be there
//!  report: table on standard output, JSON on request
//! ```

mod checks;
mod entries;
mod expected;
mod floor;
mod plan;
mod propagate;
mod report;
mod rows;
mod scene;
mod subject;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lictor_testbed::tools::{self, Progress};
use serde_json::Value;

use crate::cargo;
use report::Report;

/// Measure `lictor run` (release build) on test beds of its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure; by default everything.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Smaller and shorter: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Also with 10,000 pods, which takes minutes to set up.
    #[arg(long)]
    large: bool,
    /// How often each row is measured, each time on a new bed.
    #[arg(long, default_value_t = 1, value_name = "TIMES")]
    repeat: u32,
    /// Also write the results to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail if a goal is missed.
    #[arg(long)]
    check: bool,
    /// The lictor to measure, instead of a build of this tree; then the caller's own build of xtask
    /// measures.
    #[arg(long, hide = true, value_name = "BINARY")]
    lictor: Option<PathBuf>,
    /// Be the floor: write to Consul what one service's pod is, on each event.
    #[arg(long, hide = true, value_name = "SERVICE")]
    floor_of: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// One pod's readiness flips: time until Consul shows it, beside the floor.
    Propagate,
    /// 1,000 and 5,000 pods, an empty Consul.
    Cold,
    /// 500 of 1,000 pods are replaced.
    Churn,
    /// A restart with all in place.
    Warm,
    /// A minute without a change.
    Idle,
    /// An entry is removed or altered by hand.
    Drift,
    /// 200 of 1,000 pods were deleted while lictor was dead.
    Restart,
    /// 2,000 `Intention`s and 500 `PreparedQuery`s.
    Entries,
    /// 5,000 checks every 10 s, of which nothing changes.
    Checks,
    /// `lictor plan` with 5,000 pods.
    Plan,
    /// Resident memory.
    Memory,
}

/// What all rows are measured with.
#[derive(Debug, Clone)]
struct Setup {
    lictor: PathBuf,
    quick: bool,
    large: bool,
}

impl Args {
    /// Measures, and fails with `--check` if a goal is missed.
    pub async fn run(self) -> Result<ExitCode> {
        if let Some(service) = &self.floor_of {
            floor::run(service).await?;
            return Ok(ExitCode::SUCCESS);
        }
        match &self.lictor {
            None => in_release().await,
            Some(lictor) => self.measure(lictor).await,
        }
    }

    async fn measure(&self, lictor: &Path) -> Result<ExitCode> {
        let setup = Setup {
            lictor: std::path::absolute(lictor)?,
            quick: self.quick,
            large: self.large,
        };
        let rows = if self.rows.is_empty() {
            Row::value_variants()
        } else {
            &self.rows
        };
        let mut report = Report::new(self.quick);
        for round in 1..=self.repeat.max(1) {
            for row in rows {
                let began = Instant::now();
                eprintln!("bench: {row:?}, round {round} of {}", self.repeat.max(1));
                row.measure(&setup, &mut report)
                    .await
                    .with_context(|| format!("cannot measure {row:?}"))?;
                eprintln!("bench: {row:?} took {:.0} s", began.elapsed().as_secs_f64());
                if let Some(file) = &self.json {
                    report.write(file)?;
                }
            }
        }
        print!("{report}");
        Ok(if self.check && report.misses() > 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

impl Row {
    async fn measure(self, setup: &Setup, report: &mut Report) -> Result<()> {
        match self {
            Self::Propagate => propagate::measure(setup, report).await,
            Self::Cold => rows::cold(setup, report).await,
            Self::Churn => rows::churn(setup, report).await,
            Self::Warm => rows::warm(setup, report).await,
            Self::Idle => rows::idle(setup, report).await,
            Self::Drift => rows::drift(setup, report).await,
            Self::Restart => rows::restart(setup, report).await,
            Self::Entries => entries::measure(setup, report).await,
            Self::Checks => checks::measure(setup, report).await,
            Self::Plan => plan::measure(setup, report).await,
            Self::Memory => rows::memory(setup, report).await,
        }
    }
}

/// Builds what is measured and what measures as a release, and goes on there: a debug build of the
/// floor, or of the clock, would flatter the subject.
async fn in_release() -> Result<ExitCode> {
    let tools = tools::ensure(Progress::Stderr).await?;
    let lictor = build("lictor")?;
    let xtask = build("xtask")?;
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let status = tokio::process::Command::new(xtask)
        .args(args)
        .arg("--lictor")
        .arg(lictor)
        .env("LICTOR_TESTBED_BIN", tools.bin)
        .status()
        .await
        .context("cannot run the release build of xtask")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Builds the binary of a package, and gives its path.
fn build(package: &str) -> Result<PathBuf> {
    let output = cargo::command()
        .args(["build", "--release", "--package", package, "--bin", package])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cannot build {package}");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == package)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no binary of {package}"))
}
