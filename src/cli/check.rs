//! `lictor check`.

use std::io::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::Args;

use super::consul::ConsulFlags;
use super::election::ElectionFlags;
use super::kubernetes::KubernetesFlags;
use super::planning::dead_after;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, Output, runtime};
use crate::access::Access;
use crate::consul::Client;
use crate::leader::Election;
use crate::model::names::ClusterName;
use crate::preflight::{self, Settings, Status};
use crate::telemetry::{self, LogFormat};

#[derive(Args, Debug)]
pub(super) struct Check {
    /// The name that `lictor run` has, or is to have, for this Kubernetes cluster
    #[arg(long, env = "LICTOR_CLUSTER", value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,
    #[command(flatten)]
    scope: ScopeFlags,
    /// How the findings are shown
    #[arg(
        long,
        env = "LICTOR_OUTPUT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    output: Output,
    /// Ask for the right to write this service instead of all services, where the token is meant to be
    /// narrower; may be repeated
    #[arg(
        long = "service",
        env = "LICTOR_SERVICE",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    services: Vec<String>,
    #[command(flatten)]
    election: ElectionFlags,
    /// As of `lictor run`: it needs the right to patch pods/status
    #[arg(long, env = "LICTOR_READINESS_GATE")]
    readiness_gate: bool,
    /// As of `lictor run`: it needs Consul 1.21 or later
    #[arg(long, env = "LICTOR_DEAD_AFTER", value_parser = dead_after, value_name = "DURATION")]
    dead_after: Option<Duration>,
    /// As of `lictor run`: whose cluster name is to be taken over
    #[arg(long, env = "LICTOR_TAKE_OVER", value_name = "UID")]
    take_over: Option<String>,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Check {
    pub(super) fn execute(self) -> Result<(), Failure> {
        telemetry::start("warn", LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let by_lease = self.election.leader_election == Election::Lease;
        let settings = Settings {
            lease: by_lease.then(|| self.election.lease(&self.cluster)),
            cluster: self.cluster,
            scope: self.scope.scope()?,
            readiness_gate: self.readiness_gate,
            dead_after: self.dead_after,
            take_over: self.take_over,
            services: self.services,
        };
        let options = self.kubernetes.options();
        let method = self.consul.auth_method()?;
        let client = Client::new(self.consul.config()?).map_err(|error| error.to_string());
        let mut access = client
            .as_ref()
            .ok()
            .map(|client| Access::new(client.clone(), method));
        let facts = runtime()?.block_on(async {
            let consul = match (&client, &mut access) {
                (Ok(client), Some(access)) => Ok((client, access)),
                (Err(why), _) => Err(why.clone()),
                (Ok(_), None) => Err("there is no client".to_owned()),
            };
            let facts = Box::pin(preflight::gather(&settings, &options, consul)).await;
            if let Some(access) = &mut access {
                access.log_out().await;
            }
            facts
        });
        let report = preflight::judge(&settings, &facts);
        let shown = match self.output {
            Output::Json => report.json()? + "\n",
            Output::Text => report.text(paint),
        };
        // It takes the colours out where nobody would see them.
        anstream::stdout().write_all(shown.as_bytes())?;
        if report.is_ok() {
            Ok(())
        } else {
            Err(Failure::Told)
        }
    }
}

fn paint(status: Status, word: &str) -> String {
    let colour = match status {
        Status::Ok => AnsiColor::Green.on_default(),
        Status::Warning => AnsiColor::Yellow.on_default(),
        Status::Error => AnsiColor::Red.on_default().bold(),
        Status::Skipped => Style::new().dimmed(),
    };
    format!("{colour}{word}{colour:#}")
}
