//! `lictor plan`.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use globset::GlobSet;
use serde_json::Value;
use tokio::time::Instant;

use super::Failure;
use super::consul::ConsulFlags;
use super::kubernetes::KubernetesFlags;
use super::run::{cluster, dead_after, globs};
use crate::access::Access;
use crate::consul::{Client, Consistency};
use crate::desired::esm::Runner;
use crate::desired::index::Index;
use crate::gc::{offline, read_all, verify_token};
use crate::k8s::{self, client::ClientOptions};
use crate::model::names::ClusterName;
use crate::observed::mirror::Mirror;
use crate::plan::guard::Limits;
use crate::plan::{DriftMode, Mode, Rules};
use crate::preview::show::Text;
use crate::preview::{Outcome, Preview, Scope, manifests, preview};
use crate::settings::{self, Reading, Settings, Values, critical_time};
use crate::telemetry::{self, LogFormat};

/// Exit code where something would change (`--detailed-exitcode`).
const CHANGES: u8 = 2;
/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: docs/plan.schema.json.
    Json,
}

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
    /// Namespaces that `lictor run` excludes; a glob, may be repeated
    #[arg(
        long = "exclude-namespace",
        env = "LICTOR_EXCLUDE_NAMESPACE",
        value_delimiter = ',',
        value_name = "GLOB"
    )]
    exclude_namespace: Vec<String>,
    /// What `lictor run` may write; what Consul's KV says of it counts, as it does there
    #[arg(
        long,
        env = "LICTOR_POLICY",
        default_value = "sync",
        value_name = "POLICY"
    )]
    policy: Mode,
    /// As of `lictor run`
    #[arg(
        long,
        env = "LICTOR_MAX_DELETE_PERCENT",
        default_value_t = Limits::default().percent,
        value_parser = clap::value_parser!(u8).range(0..=100),
        value_name = "PERCENT"
    )]
    max_delete_percent: u8,
    /// As of `lictor run`
    #[arg(
        long,
        env = "LICTOR_MAX_DELETE_FLOOR",
        default_value_t = Limits::default().floor,
        value_name = "COUNT"
    )]
    max_delete_floor: usize,
    /// As of `lictor run`
    #[arg(long, env = "LICTOR_DEAD_AFTER", value_parser = dead_after, value_name = "DURATION")]
    dead_after: Option<Duration>,
    /// As of `lictor run`
    #[arg(
        long,
        env = "LICTOR_SWEEP_CRITICAL_AFTER",
        value_parser = critical_time,
        value_name = "DURATION"
    )]
    sweep_critical_after: Option<Duration>,
    /// As of `lictor run`
    #[arg(
        long,
        env = "LICTOR_CHECKS",
        default_value = "lictor",
        value_name = "WHO"
    )]
    checks: Runner,
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
            policy: self.policy,
            drift: DriftMode::default(),
            drift_interval: Duration::from_secs(10),
            limits: Limits {
                percent: self.max_delete_percent,
                floor: self.max_delete_floor,
                ..Limits::default()
            },
            sweep_critical_after: self.sweep_critical_after,
            consul_write_rate: None,
        };
        let work = Work {
            excluded: globs(&self.exclude_namespace)?,
            cluster,
            files: self.filename,
            checks: self.checks,
            dead_after: self.dead_after,
            flags,
            kubernetes: self.kubernetes.options(),
        };
        let method = self.consul.auth_method()?;
        let consul = Client::new(self.consul.config()?).context("cannot set up Consul access")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let mut access = Access::new(consul.clone(), method);
        let done = runtime.block_on(async {
            access.log_in().await?;
            verify_token(&consul).await?;
            work.plan(&consul).await
        });
        runtime.block_on(access.log_out());
        let preview = done?;
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
    excluded: GlobSet,
    files: Vec<PathBuf>,
    checks: Runner,
    dead_after: Option<Duration>,
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
        let mirror = read_all(consul, &self.cluster).await?;
        let index = Index::new(self.cluster, self.excluded).with_runner(self.checks);
        if self.files.is_empty() {
            let kube = k8s::client::client(&self.kubernetes)
                .await
                .context("cannot set up Kubernetes access")?;
            let index = offline::listed(&kube, index).await?;
            let now = Instant::now();
            return Ok(preview(&index, &mirror, &mut rules, Scope::All, now));
        }
        of_manifests(&objects, index, &mirror, rules)
    }
}

fn of_manifests(
    objects: &[Value],
    mut index: Index,
    mirror: &Mirror,
    mut rules: Rules,
) -> anyhow::Result<Preview> {
    let manifests = manifests::claim(objects, &mut index, mirror)?;
    let scope = Scope::Of(&manifests.owners);
    let mut preview = preview(&index, mirror, &mut rules, scope, Instant::now());
    preview.add(manifests.rejected);
    preview.notes.extend(manifests.notes);
    Ok(preview)
}

/// The settings that hold: those in Consul's KV before the flags, as `lictor run` has them.
async fn in_force(consul: &Client, cluster: &ClusterName, flags: Values) -> anyhow::Result<Values> {
    let folder = settings::folder(cluster);
    let answer = consul.kv_list(&folder, Consistency::Consistent).await;
    let answer = answer.with_context(|| format!("cannot read {folder} in Consul"))?;
    let pairs = answer.authoritative();
    let pairs = pairs.with_context(|| {
        format!("Consul leaves out some of {folder}: give the token key_prefix \"lictor/v1/\" read")
    })?;
    let keys = pairs.into_iter().filter_map(|pair| {
        let name = pair.key.strip_prefix(&*folder)?;
        Some((name.into(), pair.value))
    });
    let reading = Reading {
        keys: keys.collect(),
        lost: false,
    };
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
            let mut text = String::new();
            stdin
                .take(LARGEST)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            objects.extend(manifests::parse(&text, "standard input")?);
            continue;
        }
        for file in found(path)? {
            let name = file.display();
            let size = std::fs::metadata(&file)
                .with_context(|| format!("cannot read {name}"))?
                .len();
            if size > LARGEST {
                bail!(
                    "{name} is larger than {} MiB: name the files that hold manifests",
                    LARGEST >> 20
                );
            }
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
            objects.extend(manifests::parse(&text, &name.to_string())?);
        }
    }
    Ok(objects)
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
