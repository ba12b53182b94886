//! `lictor gc`.

mod handover;

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use kube::Client as Kube;
use tokio::time::Instant;

use super::consul::ConsulFlags;
use super::kubernetes::KubernetesFlags;
use super::run::cluster;
use super::scope::ScopeFlags;
use super::{Failure, Output, complain, print_json};
use crate::app::{self, Scope};
use crate::consul::{Client, Fence};
use crate::gc::findings::{Deed, Findings, Text, UNCLAIMED};
use crate::gc::offline::{self, Found};
use crate::gc::remark::HANDED;
use crate::gc::remove::{Removed, Remover};
use crate::gc::{ask, dead};
use crate::k8s;
use crate::k8s::home::{identity, uid_of};
use crate::model::epoch::{self, EpochKind};
use crate::model::gc::Answer;
use crate::model::names::ClusterName;
use crate::sync::claim::{Claimant, Mandate};
use crate::telemetry::{self, LogFormat};

/// How long an answer to a question may take before what was shown is looked at anew: the process that
/// holds it forgets within a minute what it showed.
const FRESH: Duration = Duration::from_secs(40);

#[derive(Args, Debug)]
pub(super) struct Gc {
    /// Name of this Kubernetes cluster, whose held removals are shown
    #[arg(
        long,
        env = "LICTOR_CLUSTER",
        value_name = "NAME",
        value_parser = cluster,
        required_unless_present = "json_schema"
    )]
    cluster: Option<ClusterName>,
    /// Shows what this other cluster left, which is dead: its instances, intentions, queries, nodes and keys
    #[arg(long, env = "LICTOR_DEAD", value_name = "NAME", value_parser = cluster)]
    dead: Option<ClusterName>,
    /// The name that the dead cluster has now: intentions, queries and protocols become this one's where they
    /// stand, and an instance goes once its copy passes
    #[arg(
        long,
        env = "LICTOR_HAND_TO",
        value_name = "NAME",
        value_parser = cluster,
        requires = "dead"
    )]
    hand_to: Option<ClusterName>,
    /// Only shows what would be removed, and asks nothing: the default where there is no terminal
    #[arg(long, env = "LICTOR_DRY_RUN", conflicts_with = "yes")]
    dry_run: bool,
    /// Removes what is shown, without asking
    #[arg(long, env = "LICTOR_YES")]
    yes: bool,
    /// How it is shown; with json nothing is asked
    #[arg(
        long,
        env = "LICTOR_OUTPUT",
        default_value = "text",
        value_name = "FORMAT"
    )]
    output: Output,
    /// Print the JSON Schema of `--output json`, and look at nothing
    #[arg(long, env = "LICTOR_JSON_SCHEMA")]
    json_schema: bool,
    #[command(flatten)]
    scope: ScopeFlags,
    #[command(flatten)]
    kubernetes: KubernetesFlags,
    #[command(flatten)]
    consul: ConsulFlags,
}

impl Gc {
    pub(super) fn execute(self) -> Result<(), Failure> {
        if self.json_schema {
            print_json(&schemars::schema_for!(Findings)).context("cannot print the schema")?;
            return Ok(());
        }
        // The audit lines are for whoever keeps them; what is shown goes to standard output.
        telemetry::start(&format!("warn,audit=info,{HANDED}=info"), LogFormat::Text)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let cluster = super::given(self.cluster)?;
        if self.dead.as_ref() == Some(&cluster) {
            let message = "--dead: the cluster that runs this is not dead: name another one";
            return Err(Failure::Usage(message.to_owned()));
        }
        if let Some(dead) = self.dead.as_ref().filter(|_| self.dead == self.hand_to) {
            let message = format!(
                "--hand-to: {dead} is the dead cluster itself: name the one that it is called now"
            );
            return Err(Failure::Usage(message));
        }
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let desk = Desk {
            output: self.output,
            next: Next::of(self.yes, self.dry_run, self.output, is_terminal),
        };
        let scope = self.scope.scope()?;
        self.consul.once(async |consul| {
            match (&self.dead, &self.hand_to) {
                (Some(dead), Some(to)) => return handover::hand_over(consul, dead, to, desk).await,
                (Some(dead), None) => return bury(consul, dead, desk).await,
                (None, _) => {}
            }
            let held = Held {
                cluster,
                scope,
                kubernetes: self.kubernetes.options(),
                desk,
            };
            held.handle(consul).await
        })
    }
}

/// What is done once it was shown what would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing.
    Stop,
    /// Someone is asked.
    Ask,
    /// It is removed.
    Remove,
}

impl Next {
    /// Nobody is asked where nobody could see what it is about, or answer.
    fn of(yes: bool, dry_run: bool, output: Output, is_terminal: bool) -> Self {
        match (yes, dry_run) {
            (true, false) => Self::Remove,
            (false, false) if is_terminal && output == Output::Text => Self::Ask,
            (_, true) | (false, false) => Self::Stop,
        }
    }
}

/// Whether it is a yes, and nothing else.
fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Where findings are shown, and people asked.
#[derive(Clone, Copy, Debug)]
struct Desk {
    output: Output,
    next: Next,
}

impl Desk {
    /// Says something to people.
    fn say(self, text: &str) -> anyhow::Result<()> {
        if self.output == Output::Text {
            // It takes the colours out where nobody would see them.
            writeln!(anstream::stdout(), "{text}").context("cannot print it")?;
        }
        Ok(())
    }

    /// Shows all that would go, and a line about it that ends with how it would.
    fn show(self, findings: &Findings, about: &str, how: &str) -> anyhow::Result<()> {
        let table = Text(findings).to_string();
        if !table.is_empty() {
            self.say(table.trim_end())?;
        }
        if self.next == Next::Stop && !findings.is_empty() {
            return self.say(&format!("{about}; --yes {how}"));
        }
        self.say(about)
    }

    /// Whether what was shown is to go.
    async fn agrees(self, question: &str) -> anyhow::Result<bool> {
        match self.next {
            Next::Stop => return Ok(false),
            Next::Remove => return Ok(true),
            Next::Ask => {}
        }
        let mut out = std::io::stdout();
        write!(out, "{question} [y/N] ")?;
        out.flush()?;
        // Beside the runtime, whose connections go on.
        let read = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose());
        let answer = read.await?.context("cannot read the answer")?;
        let agrees = answer.is_some_and(|answer| is_yes(&answer));
        if !agrees {
            self.say("nothing is removed")?;
        }
        Ok(agrees)
    }

    /// The last that is told of them.
    fn end(self, findings: &Findings) -> anyhow::Result<()> {
        match self.output {
            Output::Json => print_json(findings).context("cannot print it"),
            Output::Text => Ok(()),
        }
    }

    /// The same after a removal, which may have failed half-way.
    fn end_removed(
        self,
        findings: Findings,
        removed: Removed,
        stayed: Vec<String>,
        (of, done): (&str, anyhow::Result<()>),
    ) -> anyhow::Result<()> {
        let deed = Deed {
            removed: Some(removed),
            stayed,
            ..Deed::default()
        };
        self.end_done(findings, deed, (of, done), "look at why, and try again")
    }

    /// Tells what was done of all that was shown, and what to do about what stayed.
    fn end_done(
        self,
        mut findings: Findings,
        deed: Deed,
        (of, done): (&str, anyhow::Result<()>),
        remedy: &str,
    ) -> anyhow::Result<()> {
        if let (Some(handed), Some(to)) = (&deed.handed, &findings.hand_to) {
            self.say(&format!("handed over to {to}: {handed}"))?;
        }
        if let Some(removed) = &deed.removed {
            self.say(&format!("removed: {removed}{of}"))?;
        }
        for text in &deed.stayed {
            self.say(&format!("stayed: {text}"))?;
        }
        let count = deed.stayed.len();
        findings.done = Some(deed);
        self.end(&findings)?;
        done?;
        if count > 0 {
            bail!("{count} entries stayed: {remedy}");
        }
        Ok(())
    }
}

struct Held {
    cluster: ClusterName,
    scope: Scope,
    kubernetes: k8s::client::ClientOptions,
    desk: Desk,
}

impl Held {
    async fn handle(self, consul: &Client) -> anyhow::Result<()> {
        if let Some(answer) = ask::show(consul, &self.cluster, None).await? {
            return self.by_the_writer(consul, answer).await;
        }
        complain("no process of the cluster answers: looking by ourselves");
        self.by_ourselves(consul).await
    }

    /// All that the process that writes holds, and its last answer.
    async fn held(&self, consul: &Client, first: Answer) -> anyhow::Result<(Findings, Answer)> {
        let (holder, epoch) = (first.holder.clone(), first.epoch);
        let mut findings = Findings::of(&self.cluster);
        let mut shown = first;
        loop {
            findings.add_held(&shown.held);
            if shown.more == 0 || shown.held.is_empty() {
                break;
            }
            let next = ask::show(consul, &self.cluster, Some(&shown)).await?;
            shown =
                next.with_context(|| format!("{holder} does not answer any more: try again"))?;
            if (&shown.holder, shown.epoch) != (&holder, epoch) {
                bail!("{} writes now: try again", shown.holder);
            }
        }
        findings.holder = Some(holder);
        Ok((findings, shown))
    }

    async fn by_the_writer(self, consul: &Client, first: Answer) -> anyhow::Result<()> {
        let holder = first.holder.clone();
        let (mut findings, mut shown) = self.held(consul, first).await?;
        let began = Instant::now();
        let count = findings.goes.len();
        if count == 0 {
            self.desk.say(&format!("nothing is held ({holder})"))?;
            return self.desk.end(&findings);
        }
        let about = format!("{count} held by {holder}");
        self.desk.show(&findings, &about, "releases them")?;
        if !self.desk.agrees("Release them, to be removed?").await? {
            return self.desk.end(&findings);
        }
        if began.elapsed() > FRESH {
            shown = self.as_shown(consul, &findings).await?;
        }
        let Some(answer) = ask::release(consul, &self.cluster, &shown).await? else {
            bail!("{holder} does not answer any more, and releases nothing: try again");
        };
        if let Some(why) = answer.refused {
            bail!("{} releases nothing: {why}: try again", answer.holder);
        }
        let released = answer.released;
        self.desk
            .say(&format!("{released} released, {holder} removes them"))?;
        if released < count {
            let rest = count - released;
            self.desk
                .say(&format!("{rest} of those shown are not held any more"))?;
        }
        if answer.more > 0 {
            let more = answer.more;
            self.desk
                .say(&format!("{more} that were found meanwhile stay held"))?;
        }
        findings.done = Some(Deed {
            released: Some(released),
            found_meanwhile: Some(answer.more),
            ..Deed::default()
        });
        self.desk.end(&findings)
    }

    /// What is held now, if it is no more than what was shown.
    async fn as_shown(&self, consul: &Client, shown: &Findings) -> anyhow::Result<Answer> {
        let answer = ask::show(consul, &self.cluster, None).await?;
        let answer = answer.context("nobody answers any more: nothing is released; try again")?;
        let (now, answer) = self.held(consul, answer).await?;
        if !now.is_within(shown) {
            bail!("more is held by now than was shown: nothing is released; look at it again");
        }
        Ok(answer)
    }

    async fn by_ourselves(self, consul: &Client) -> anyhow::Result<()> {
        let kube = k8s::client::client(&self.kubernetes)
            .await
            .context("cannot set up Kubernetes access")?;
        // What is read before the epoch is ours may be changed by whoever has it.
        let epoch = match self.desk.next {
            Next::Remove => Some(claim(&kube, consul, &self.cluster, &self.scope).await?),
            Next::Ask | Next::Stop => None,
        };
        let found = self.find(&kube, consul).await?;
        let mut findings = Findings::of(&self.cluster);
        findings.add_unclaimed(&self.cluster, &found);
        if findings.goes.is_empty() {
            self.desk
                .say("nothing is in Consul that Kubernetes does not claim")?;
            return self.desk.end(&findings);
        }
        let (count, owned) = (found.count(), found.owned);
        let about = format!("{count} of {owned} are claimed by nothing");
        self.desk.show(&findings, &about, "removes them")?;
        if !self.desk.agrees("Remove them?").await? {
            return self.desk.end(&findings);
        }
        let (index, found, stayed) = if let Some(index) = epoch {
            (index, found, Vec::new())
        } else {
            let index = claim(&kube, consul, &self.cluster, &self.scope).await?;
            let (found, stayed) = self.find(&kube, consul).await?.as_shown(&found);
            (index, found, stayed)
        };
        let key = epoch::key(&self.cluster);
        let fence = Fence { key: &key, index };
        let mut remover = Remover::new(consul, fence, UNCLAIMED);
        remover.stayed = stayed;
        let done = async {
            remover.instances(&found.instances).await?;
            remover.entries(&self.cluster, &found.entries).await
        };
        let done = done.await;
        let Remover {
            removed, stayed, ..
        } = remover;
        self.desk.end_removed(findings, removed, stayed, ("", done))
    }

    async fn find(&self, kube: &Kube, consul: &Client) -> anyhow::Result<Found> {
        offline::find(kube, consul, &self.cluster, &self.scope).await
    }
}

async fn claim(
    kube: &Kube,
    consul: &Client,
    cluster: &ClusterName,
    scope: &Scope,
) -> anyhow::Result<u64> {
    let uid = uid_of(kube, &identity(&scope.namespaces))
        .await?
        .to_string();
    let claimant = Claimant {
        cluster: cluster.clone(),
        epoch: app::epoch_of(uid, scope.of_epoch(), EpochKind::Gc),
        take_over: None,
    };
    let mandate = Mandate::unopposed();
    Ok(claimant.claim(consul, None, &mandate).await?.index)
}

async fn bury(consul: &Client, dead: &ClusterName, desk: Desk) -> anyhow::Result<()> {
    let estate = dead::find(consul, dead).await?;
    let mut findings = Findings::of(dead);
    findings.add_estate(dead, &estate);
    let removed = estate.count();
    let of = format!(" of {dead}");
    if findings.goes.is_empty() {
        desk.show(&findings, &format!("nothing is left{of}"), "")?;
        return desk.end(&findings);
    }
    desk.show(&findings, &format!("{removed}{of}"), "removes them")?;
    if !desk.agrees("Remove them?").await? {
        return desk.end(&findings);
    }
    let epoch = dead::take_epoch(consul, dead, app::holder(), complain).await?;
    let (outcome, done) = estate.remove(consul, epoch).await;
    desk.end_removed(findings, outcome.removed, outcome.stayed, (&of, done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_on_a_terminal_alone_and_without_one_it_only_shows() {
        use Output::{Json, Text};
        for (yes, dry_run, output, is_terminal, next) in [
            (false, false, Text, true, Next::Ask),
            (false, false, Text, false, Next::Stop),
            (false, false, Json, true, Next::Stop),
            (false, true, Text, true, Next::Stop),
            (true, false, Text, true, Next::Remove),
            (true, false, Text, false, Next::Remove),
            (true, false, Json, false, Next::Remove),
            (true, true, Text, true, Next::Stop),
        ] {
            let case = (yes, dry_run, output, is_terminal);
            assert_eq!(
                Next::of(yes, dry_run, output, is_terminal),
                next,
                "{case:?}"
            );
        }
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for answer in ["y", "Y\n", " yes ", "YES\r\n"] {
            assert!(is_yes(answer), "{answer:?}");
        }
        for answer in ["", "\n", "n", "no", "yes please", "yy", "ja", "1"] {
            assert!(!is_yes(answer), "{answer:?}");
        }
    }
}
