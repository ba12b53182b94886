//! `lictor status`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use kube::Client as Kube;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::consul::ConsulFlags;
use super::election::ElectionFlags;
use super::kubernetes::KubernetesFlags;
use super::look::Look;
use super::planning::PlanningFlags;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, complain, print_json};
use crate::consul::{Client, Consistency};
use crate::k8s::{LeaseAccess, LeaseName};
use crate::leader::{Election, lock};
use crate::model::epoch;
use crate::model::names::ClusterName;
use crate::overview::show::Text;
use crate::overview::{Overview, Writer, overview};
use crate::sync::apply::sure;
use crate::sync::claim;
use crate::telemetry::{self, LogFormat};

/// How often it is looked again at least (`--watch`).
const AGAIN: Duration = Duration::from_secs(2);
/// A look takes no more than this share of the time, the other way round.
const REST: u32 = 4;
const LEASE_DEADLINE: Duration = Duration::from_secs(5);
/// Clears the screen of a terminal and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// How the overview is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for each service, in colours on a terminal
    Text,
    /// A line for each instance and each other entry
    Wide,
    /// One JSON object
    Json,
}

#[derive(Args, Debug)]
pub(super) struct Status {
    /// Name of this Kubernetes cluster, as `lictor run` has it
    #[arg(
        long,
        env = "LICTOR_CLUSTER",
        value_name = "NAME",
        value_parser = cluster,
        required_unless_present = "json_schema"
    )]
    cluster: Option<ClusterName>,
    /// How it is shown
    #[arg(
        long,
        env = "LICTOR_OUTPUT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    output: Format,
    /// Look again every two seconds, or less often where a look takes long, until stopped
    #[arg(long, short, env = "LICTOR_WATCH")]
    watch: bool,
    /// Print the JSON Schema of `--output json`, and look at nothing
    #[arg(long, env = "LICTOR_JSON_SCHEMA")]
    json_schema: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    planning: PlanningFlags,
    #[command(flatten)]
    election: ElectionFlags,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Status {
    pub(super) fn execute(self) -> Result<(), Failure> {
        if self.json_schema {
            print_json(&schemars::schema_for!(Overview)).context("cannot print the schema")?;
            return Ok(());
        }
        let cluster = super::given(self.cluster)?;
        telemetry::start("warn", LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let watcher = Watcher {
            election: self.election.leader_election,
            lease: self.election.lease(&cluster),
            look: Look::new(cluster, self.scope, self.planning, self.kubernetes)?,
        };
        let (output, watch) = (self.output, self.watch);
        let whole = self.consul.once(async |consul| {
            if !watch {
                let (overview, is_whole) = watcher.look(consul).await?;
                show(&overview, output)?;
                return Ok(is_whole);
            }
            let clears = output != Format::Json && std::io::stdout().is_terminal();
            loop {
                let began = Instant::now();
                let looked = watcher.look(consul).await;
                if clears {
                    write!(std::io::stdout(), "{CLEAR}")?;
                }
                match looked {
                    Ok((overview, _)) => show(&overview, output)?,
                    // It may be over the next time.
                    Err(error) => complain(&format!("{error:#}")),
                }
                sleep(AGAIN.max(began.elapsed() * REST)).await;
            }
        })?;
        if whole { Ok(()) } else { Err(Failure::Told) }
    }
}

fn show(overview: &Overview, output: Format) -> anyhow::Result<()> {
    let wide = output == Format::Wide;
    match output {
        Format::Json => print_json(overview),
        Format::Text | Format::Wide => {
            writeln!(anstream::stdout(), "{}", Text { overview, wide }).map_err(Into::into)
        }
    }
    .context("cannot print it")
}

/// Looks at the cluster, as often as it is asked.
struct Watcher {
    look: Look,
    election: Election,
    lease: LeaseName,
}

impl Watcher {
    /// Returns, too, whether all is known that is shown.
    async fn look(&self, consul: &Client) -> anyhow::Result<(Overview, bool)> {
        let cluster = &self.look.cluster;
        let mut found = self.look.at_consul(consul).await?;
        let mut notes = Vec::new();
        let kube = self.look.kubernetes().await;
        let planned = match &kube {
            Ok(kube) => self.look.plan(&mut found, kube).await,
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let plan = match planned {
            Ok(plan) => Some(plan),
            Err(error) => {
                notes.push(format!(
                    "what should be in Consul is not known, only what is there: {error:#}"
                ));
                None
            }
        };
        let is_whole = plan.is_some();
        let mut overview = overview(cluster.to_string(), &found.mirror, plan.as_ref());
        let key = epoch::key(cluster);
        let there = claim::read(consul, &key).await;
        let there = there.with_context(|| format!("cannot read {key} in Consul"))?;
        let holder = there.map(|there| there.epoch.holder);
        let leader = self.leader(consul, kube.as_ref().ok()).await;
        let leader = leader.unwrap_or_else(|error| {
            notes.push(format!("who leads is not known: {error:#}"));
            Writer::default()
        });
        overview.writer = Writer { holder, ..leader };
        overview.notes.extend(notes);
        overview
            .notes
            .extend(plan.into_iter().flat_map(|plan| plan.notes));
        Ok((overview, is_whole))
    }

    /// Who leads, by what it is agreed by.
    async fn leader(&self, consul: &Client, kube: Option<&Kube>) -> anyhow::Result<Writer> {
        match (self.election, kube) {
            (Election::Off, _) | (Election::Lease, None) => Ok(Writer::default()),
            (Election::Consul, _) => {
                let key = lock::key(&self.look.cluster);
                let pair = sure(consul.kv_get(&key, Consistency::Consistent).await)
                    .with_context(|| format!("cannot read {key} in Consul"))?;
                let held = pair.filter(|pair| !pair.session.is_empty());
                let value = held.and_then(|pair| serde_json::from_slice::<Value>(&pair.value).ok());
                let leader = value.and_then(|value| value["holder"].as_str().map(str::to_owned));
                Ok(Writer {
                    leader,
                    ..Writer::default()
                })
            }
            (Election::Lease, Some(kube)) => {
                let access = LeaseAccess::new(kube.clone(), self.lease.clone());
                let lease = access.get(LEASE_DEADLINE).await;
                let lease = lease.with_context(|| format!("cannot read {}", access.what()))?;
                let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
                let seen = spec.renew_time.filter(|_| spec.holder_identity.is_some());
                let now = Timestamp::now();
                Ok(Writer {
                    holder: None,
                    leader: spec.holder_identity.filter(|holder| !holder.is_empty()),
                    seen_seconds_ago: seen.map(|seen| now.duration_since(seen.0).as_secs()),
                })
            }
        }
    }
}
