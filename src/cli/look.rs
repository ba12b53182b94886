//! What `lictor plan` and `lictor status` look at: Consul as it is, and what Kubernetes asks for.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::Client as Kube;
use tokio::time::Instant;

use super::Failure;
use super::kubernetes::KubernetesFlags;
use super::planning::{ClaimRule, PlanningFlags};
use super::scope::ScopeFlags;
use crate::app::Scope;
use crate::consul::Client;
use crate::desired::index::take_out::TakenOut;
use crate::desired::index::{Index, Touched};
use crate::gc::{offline, read_all};
use crate::k8s::{self, client::ClientOptions};
use crate::model::names::ClusterName;
use crate::observed::mirror::Mirror;
use crate::plan::{DriftMode, Rules, end_let_go};
use crate::policy::ledger::{self, Ledger};
use crate::policy::names::Moment;
use crate::policy::{self, Admission};
use crate::preview::{self, Preview, preview};
use crate::settings::{self, Reading, Settings, Values};
use crate::sync::{live, names};

/// What is looked at, and how it is judged.
pub(super) struct Look {
    pub(super) cluster: ClusterName,
    scope: Scope,
    planning: PlanningFlags,
    claims: ClaimRule,
    kubernetes: ClientOptions,
}

/// What was found in Consul, and how it is judged.
pub(super) struct Found {
    pub(super) mirror: Mirror,
    pub(super) ledger: Ledger,
    pub(super) rules: Rules,
    values: Values,
}

impl Look {
    pub(super) fn new(
        cluster: ClusterName,
        scope: ScopeFlags,
        planning: PlanningFlags,
        kubernetes: KubernetesFlags,
    ) -> Result<Self, Failure> {
        let scope = scope.scope()?;
        Ok(Self {
            claims: planning.claims(&scope)?,
            cluster,
            scope,
            planning,
            kubernetes: kubernetes.options(),
        })
    }

    /// Reads all that Consul has of the cluster.
    pub(super) async fn at_consul(&self, consul: &Client) -> anyhow::Result<Found> {
        let values = in_force(consul, &self.cluster, self.flags()).await?;
        let ledger = names_of(consul, &self.cluster, &self.claims.admission()).await?;
        let mirror = read_all(consul, &self.cluster).await?;
        Ok(Found {
            mirror,
            ledger,
            rules: self.rules(&values),
            values,
        })
    }

    /// The rules, as after a start.
    fn rules(&self, values: &Values) -> Rules {
        let mut rules = Rules {
            dead_after: self.planning.dead_after,
            ..Rules::default()
        };
        rules.obey(values);
        rules
    }

    /// An index that knows no object yet.
    pub(super) fn index(&self) -> Index {
        self.scope
            .index(self.cluster.clone())
            .with_runner(self.planning.checks)
            .with_admission(self.claims.admission())
    }

    /// The plan that `lictor run` would carry out, by what the cluster holds.
    pub(super) async fn plan(&self, found: &mut Found, kube: &Kube) -> anyhow::Result<Preview> {
        let moment = names::moment(Instant::now());
        let index = self.judged(found, kube, moment).await?;
        Ok(planned(&index, &found.mirror, &mut found.rules, moment))
    }

    /// What `lictor run` would do if these were deleted, beyond what it would do anyhow.
    pub(super) async fn plan_without(
        &self,
        found: &mut Found,
        kube: &Kube,
        without: &[TakenOut],
    ) -> anyhow::Result<Preview> {
        let moment = names::moment(Instant::now());
        let mut index = self.judged(found, kube, moment).await?;
        let before = planned(&index, &found.mirror, &mut found.rules, moment);
        let mut touched = Touched::default();
        for what in without {
            if !index.watches.covers(what.namespace()) {
                bail!("--without {what}: its namespace is not among those of --namespace");
            }
            if !index.take_out(what, &mut touched) {
                bail!("--without {what}: there is none in the cluster, see kubectl get");
            }
        }
        end_let_go(&touched, &mut index, &found.mirror);
        let mut rules = self.rules(&found.values);
        let mut preview = planned(&index, &found.mirror, &mut rules, moment);
        let known = preview.leave_out(&before);
        let names: Vec<String> = without.iter().map(ToString::to_string).collect();
        let mut note = format!("this is what the deletion of {} changes", names.join(", "));
        if known > 0 {
            let _ = write!(
                note,
                "; the plan has {known} more without it, which are not shown"
            );
        }
        preview.notes.push(note);
        Ok(preview)
    }

    /// What Kubernetes asks for, and what of it is allowed.
    async fn judged(&self, found: &Found, kube: &Kube, moment: Moment) -> anyhow::Result<Index> {
        let mut index = offline::listed(kube, self.index()).await?;
        policy::there::settle(&mut index, &found.mirror, &found.ledger, moment);
        Ok(index)
    }

    pub(super) async fn kubernetes(&self) -> anyhow::Result<Kube> {
        k8s::client::client(&self.kubernetes)
            .await
            .context("cannot set up Kubernetes access")
    }

    fn flags(&self) -> Values {
        Values {
            log_level: "warn".to_owned(),
            policy: self.planning.policy,
            drift: DriftMode::default(),
            drift_interval: Duration::from_secs(10),
            limits: self.planning.limits(),
            sweep_critical_after: self.planning.sweep_critical_after,
            consul_write_rate: None,
        }
    }
}

/// The plan by what is asked for, with what is to be said of all of it.
fn planned(index: &Index, mirror: &Mirror, rules: &mut Rules, moment: Moment) -> Preview {
    let mut preview = preview(index, mirror, rules, preview::Scope::All, moment.now);
    preview.notes.extend(index.admission.freeze().map(|why| {
        format!("nothing new may be claimed, and nothing is withdrawn for a policy: {why}")
    }));
    preview
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
