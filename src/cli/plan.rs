//! `lictor plan`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use tokio::time::Instant;

use super::consul::ConsulFlags;
use super::kubernetes::KubernetesFlags;
use super::look::{Found, Look};
use super::planning::PlanningFlags;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, Output, print_json};
use crate::desired::index::take_out::TakenOut;
use crate::model::names::ClusterName;
use crate::preview::show::Text;
use crate::preview::{Outcome, Preview, manifests};
use crate::sync::names;
use crate::telemetry::{self, LogFormat};

/// Exit code where something would change (`--detailed-exitcode`).
const CHANGES: u8 = 2;

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
    /// *.yaml, *.yml and *.json, and those of its folders), or - for standard input; may be repeated, the
    /// variable names one
    #[arg(
        short,
        long = "filename",
        env = "LICTOR_FILENAME",
        value_name = "FILE|DIR"
    )]
    filename: Vec<PathBuf>,
    /// Show what the deletion of this would change in Consul, and only that: namespace/NAME with all that is in
    /// it, pod/NAMESPACE/NAME, serviceregistration/NAMESPACE/NAME, intention/NAMESPACE/NAME or
    /// preparedquery/NAMESPACE/NAME; may be repeated. Nothing is deleted
    #[arg(
        long,
        env = "LICTOR_WITHOUT",
        value_delimiter = ',',
        value_name = "OBJECT",
        conflicts_with = "filename"
    )]
    without: Vec<TakenOut>,
    /// How the plan is printed
    #[arg(
        long,
        env = "LICTOR_OUTPUT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    output: Output,
    /// Print the JSON Schema of `--output json`, and plan nothing
    #[arg(long, env = "LICTOR_JSON_SCHEMA")]
    json_schema: bool,
    /// Exit with 2 where something would change or is held, and with 1 where something is rejected or in
    /// conflict; without it a plan that could be made exits with 0
    #[arg(long, env = "LICTOR_DETAILED_EXITCODE")]
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
        let cluster = super::given(self.cluster)?;
        telemetry::start("warn", LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        // Before anybody is asked: what is wrong with a file is known at once.
        let objects = super::manifests::read(&self.filename)?;
        let from_cluster = self.filename.is_empty();
        let look = Look::new(cluster, self.scope, self.planning, self.kubernetes)?;
        let preview = self.consul.once(async |consul| {
            let mut found = look.at_consul(consul).await?;
            if from_cluster {
                let kube = look.kubernetes().await?;
                if self.without.is_empty() {
                    return look.plan(&mut found, &kube).await;
                }
                return look.plan_without(&mut found, &kube, &self.without).await;
            }
            let Found {
                mirror,
                ledger,
                rules,
                ..
            } = found;
            let moment = names::moment(Instant::now());
            manifests::preview_of(&objects, look.index(), &mirror, &ledger, rules, moment)
        })?;
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
