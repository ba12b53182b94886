//! `lictor plan`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::consul::ConsulFlags;
use super::kubernetes::KubernetesFlags;
use super::planning::PlanningFlags;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, Output};
use crate::app::Scope;
use crate::consul::Client;
use crate::desired::esm::Runner;
use crate::gc::{offline, read_all};
use crate::k8s::{self, client::ClientOptions};
use crate::model::names::ClusterName;
use crate::plan::{DriftMode, Rules};
use crate::policy::ledger::{self, Ledger};
use crate::policy::{self, Admission};
use crate::preview::show::Text;
use crate::preview::{self, Outcome, Preview, manifests, preview};
use crate::settings::{self, Reading, Settings, Values};
use crate::sync::{live, names};
use crate::telemetry::{self, LogFormat};

/// Exit code where something would change (`--detailed-exitcode`).
const CHANGES: u8 = 2;
/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(super) struct Plan {
    /// Name of this Kubernetes cluster, as `lictor run` has it
    #[arg(
        long,
        env = "LICTOR_CLUSTER",
        value_name = "NAME",
        value_parser = cluster,
        required_unless_present = "json_schema"
    )]
    cluster: Option<ClusterName>,
    /// Plan from these manifests instead of the cluster, which is not asked then: a file, a folder (its
    /// *.yaml, *.yml and *.json, and those of its folders), or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE|DIR")]
    filename: Vec<PathBuf>,
    /// How the plan is printed
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    output: Output,
    /// Print the JSON Schema of `--output json`, and plan nothing
    #[arg(long, exclusive = true)]
    json_schema: bool,
    /// Exit with 2 where something would change or is held, and with 1 where something is rejected or in
    /// conflict; without it a plan that could be made exits with 0
    #[arg(long)]
    detailed_exitcode: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    planning: PlanningFlags,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Plan {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        if self.json_schema {
            print_json(&schemars::schema_for!(Preview)).context("cannot print the schema")?;
            return Ok(ExitCode::SUCCESS);
        }
        let cluster = self.cluster;
        let cluster = cluster.ok_or_else(|| Failure::Usage("--cluster is missing".to_owned()))?;
        telemetry::start("warn", LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let flags = Values {
            log_level: "warn".to_owned(),
            policy: self.planning.policy,
            drift: DriftMode::default(),
            drift_interval: Duration::from_secs(10),
            limits: self.planning.limits(),
            sweep_critical_after: self.planning.sweep_critical_after,
            consul_write_rate: None,
        };
        let scope = self.scope.scope()?;
        let work = Work {
            admission: self.planning.admission(&scope)?,
            scope,
            cluster,
            files: self.filename,
            checks: self.planning.checks,
            dead_after: self.planning.dead_after,
            flags,
            kubernetes: self.kubernetes.options(),
        };
        let preview = self.consul.once(async |consul| work.plan(consul).await)?;
        print(&preview, self.output).context("cannot print the plan")?;
        Ok(match preview.outcome() {
            Outcome::Settled => ExitCode::SUCCESS,
            _ if !self.detailed_exitcode => ExitCode::SUCCESS,
            Outcome::Changes => ExitCode::from(CHANGES),
            Outcome::Refused => ExitCode::FAILURE,
        })
    }
}

fn print(preview: &Preview, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Text => writeln!(anstream::stdout(), "{}", Text(preview))?,
        Output::Json => print_json(preview)?,
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    Ok(writeln!(out)?)
}

struct Work {
    cluster: ClusterName,
    scope: Scope,
    files: Vec<PathBuf>,
    checks: Runner,
    dead_after: Option<Duration>,
    admission: Admission,
    flags: Values,
    kubernetes: ClientOptions,
}

impl Work {
    async fn plan(self, consul: &Client) -> anyhow::Result<Preview> {
        // Before anybody is asked: what is wrong with a file is known at once.
        let objects = read(&self.files)?;
        let mut rules = Rules {
            dead_after: self.dead_after,
            ..Rules::default()
        };
        rules.obey(&in_force(consul, &self.cluster, self.flags).await?);
        let ledger = names_of(consul, &self.cluster, &self.admission).await?;
        let mirror = read_all(consul, &self.cluster).await?;
        let index = self
            .scope
            .index(self.cluster)
            .with_runner(self.checks)
            .with_admission(self.admission);
        if self.files.is_empty() {
            let kube = k8s::client::client(&self.kubernetes)
                .await
                .context("cannot set up Kubernetes access")?;
            let mut index = offline::listed(&kube, index).await?;
            let moment = names::moment(Instant::now());
            policy::there::settle(&mut index, &mirror, &ledger, moment);
            let all = preview::Scope::All;
            let mut preview = preview(&index, &mirror, &mut rules, all, moment.now);
            preview.notes.extend(index.admission.freeze().map(|why| {
                format!("nothing new may be claimed, and nothing is withdrawn for a policy: {why}")
            }));
            return Ok(preview);
        }
        let moment = names::moment(Instant::now());
        manifests::preview_of(&objects, index, &mirror, &ledger, rules, moment)
    }
}

/// What Consul keeps of whose names are, where that counts.
async fn names_of(
    consul: &Client,
    cluster: &ClusterName,
    admission: &Admission,
) -> anyhow::Result<Ledger> {
    if !admission.needs_ledger() {
        return Ok(Ledger::default());
    }
    let pairs = names::read_pairs(consul, cluster).await;
    let prefix = ledger::prefix(cluster);
    let pairs = pairs.with_context(|| format!("cannot read {prefix} in Consul"))?;
    let (ledger, garbled) = Ledger::of(cluster, &pairs);
    for line in garbled {
        super::complain(&line);
    }
    Ok(ledger)
}

/// The settings that hold: those in Consul's KV before the flags, as `lictor run` has them.
async fn in_force(consul: &Client, cluster: &ClusterName, flags: Values) -> anyhow::Result<Values> {
    let folder = settings::folder(cluster);
    let keys = live::read(consul, &folder).await;
    let keys = keys.with_context(|| format!("cannot read {folder} in Consul"))?;
    let reading = Reading { keys, lost: false };
    let mut settings = Settings::new(cluster, flags);
    settings.read(&reading);
    Ok(settings.values().clone())
}

/// All objects of the files.
fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                super::complain("reading manifests from standard input");
            }
            objects.extend(read_one(stdin, "standard input")?);
            continue;
        }
        for file in found(path)? {
            let name = file.display().to_string();
            let opened = File::open(&file).with_context(|| format!("cannot read {name}"))?;
            objects.extend(read_one(opened, &name)?);
        }
    }
    Ok(objects)
}

/// All objects of one file. A part of one would be taken for all that there is.
fn read_one(file: impl Read, name: &str) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    file.take(LARGEST + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > LARGEST {
        let most = LARGEST >> 20;
        bail!("{name} is larger than {most} MiB: name the files that hold manifests");
    }
    manifests::parse(&text, name)
}

/// A file itself; of a folder all that may be manifests, in the order of their names.
fn found(path: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut folders = vec![path.to_owned()];
    if !path.is_dir() {
        return Ok([path.to_owned()].into());
    }
    while let Some(folder) = folders.pop() {
        let name = folder.display();
        let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {name}"))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {name}"))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let extension = path.extension().and_then(|it| it.to_str());
            if kind.is_dir() {
                folders.push(path);
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                files.insert(path);
            }
        }
    }
    if files.is_empty() {
        let path = path.display();
        bail!("{path} has no *.yaml, *.yml or *.json");
    }
    Ok(files)
}
