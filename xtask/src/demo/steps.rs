//! The steps. Each does one thing to Kubernetes or Consul, waits until Consul shows what must come
//! of it, and shows it as both see it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use lictor_testbed::{Bed, kubelet::TestPod, wait};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    CLUSTER, NAMESPACE,
    kubelet::Kubelet,
    lictor::{Lictor, Setup},
    screen::{Screen, time},
    view::{Instance, View},
};

/// How long Consul may take to show a change. It takes milliseconds; this is for a machine that is
/// busy with something else.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long a change by another hand may last: it can hide behind a write of Lictor's own, and is
/// then found after the drift interval.
const REPAIR_DEADLINE: Duration = Duration::from_secs(25);
/// How long nothing is done: before a change by another hand, and to see that nothing happens.
const QUIET: Duration = Duration::from_secs(3);

/// The services of `examples/`.
pub const SERVICES: [&str; 3] = ["ledger-db", "payment", "web"];

/// What the steps work with.
pub struct Stage {
    pub screen: Screen,
    pub client: Client,
    pub view: View,
    pub setup: Setup,
    pub lictor: Option<Lictor>,
    pub examples: String,
    /// Last, so that Lictor ends before its servers do.
    pub bed: Bed,
}

impl Stage {
    /// All steps.
    pub async fn play(&mut self, kubelet: &mut Kubelet) -> Result<()> {
        let pods = self.ready(kubelet).await.context("step 1")?;
        self.canary().await.context("step 2")?;
        self.unready(pod(&pods, "web-0")?).await.context("step 3")?;
        self.deletion(pod(&pods, "payment-1")?)
            .await
            .context("step 4")?;
        self.repair().await.context("step 5")?;
        self.restart().await.context("step 6")
    }

    async fn ready(&self, kubelet: &mut Kubelet) -> Result<Vec<TestPod>> {
        let screen = self.screen;
        screen.step(1, "Pods that become ready");
        screen.command("kubectl apply --filename examples/");
        let apply = ["apply", "--filename", &self.examples];
        screen.output(&self.bed.kubectl(&apply).await?);
        let applied = Instant::now();
        let both = |shown: &[Instance]| shown.len() == 2;
        let what = "the two endpoints of ledger-db";
        let seen = self.view.until("ledger-db", what, DEADLINE, both).await?;
        screen.took(
            "The endpoints of ledger-db need no pod and were in Consul",
            seen.saturating_duration_since(applied),
        );

        let pods = kubelet.schedule(NAMESPACE).await?;
        ensure!(pods.len() == 4, "examples/ has {} pods", pods.len());
        screen.say("The pods are scheduled and start; the kubelet reports them ready, one by one.");
        for pod in &pods {
            pod.running_ready(&self.client).await?;
            let replied = Instant::now();
            let health = self.health(pod.name(), "passing", replied).await?;
            screen.took(&format!("{} is passing in Consul", pod.name()), health);
        }
        let counted = "--for=jsonpath={.status.instances.passing}=2";
        let wait = [
            "wait",
            "-n",
            NAMESPACE,
            counted,
            "--timeout=15s",
            "sreg/payment",
            "sreg/ledger-db",
        ];
        self.bed.kubectl(&wait).await?;
        self.kubectl(&["get", "pods", "-L", "version,track"])
            .await?;
        self.kubectl(&["get", "serviceregistrations"]).await?;
        self.consul(|_| true);
        Ok(pods)
    }

    async fn canary(&self) -> Result<()> {
        let screen = self.screen;
        screen.step(2, "An edit of a running pod: payment-0 becomes a canary");
        screen.say("Its ServiceRegistration has the tag ${pod.labels['track']}.");
        screen.command(&format!(
            "kubectl -n {NAMESPACE} label pod payment-0 track=canary"
        ));
        let label = json!({"metadata": {"labels": {"track": "canary"}}});
        self.patch("payment-0", &label).await?;
        let replied = Instant::now();
        let tagged = |shown: &[Instance]| {
            let tags = find(shown, "payment-0").map(|instance| &instance.tags);
            tags.is_some_and(|tags| tags.contains("canary"))
        };
        let what = "the tag canary on payment-0";
        let seen = self.view.until("payment", what, DEADLINE, tagged).await?;
        screen.took(
            "Consul has the tag, and nothing else changed",
            seen.saturating_duration_since(replied),
        );
        self.kubectl(&["get", "pods", "-l", "app=payment", "-L", "version,track"])
            .await?;
        self.consul(|instance| instance.service == "payment");
        Ok(())
    }

    async fn unready(&self, pod: &TestPod) -> Result<()> {
        let screen = self.screen;
        screen.step(3, "A pod that fails its readiness probe, and recovers");
        screen.say("The kubelet reports that the container web of web-0 is not ready.");
        pod.not_ready(&self.client, "web").await?;
        let replied = Instant::now();
        let took = self.health(pod.name(), "critical", replied).await?;
        screen.took("web-0 is critical in Consul: no client is sent to it", took);
        self.kubectl(&["get", "pods", "-l", "app=web"]).await?;
        self.consul(|instance| instance.service == "web");
        for instance in self.view.instances() {
            if instance.health == "critical" {
                screen.say(&format!("Its check says: {}", instance.output));
            }
        }
        pod.running_ready(&self.client).await?;
        let replied = Instant::now();
        let took = self.health(pod.name(), "passing", replied).await?;
        screen.took("Ready again, it is passing in Consul", took);
        Ok(())
    }

    async fn deletion(&self, pod: &TestPod) -> Result<()> {
        let screen = self.screen;
        screen.step(4, "A deletion");
        screen.command(&format!("kubectl -n {NAMESPACE} delete pod {}", pod.name()));
        pod.delete(&self.client).await?;
        let replied = Instant::now();
        let took = self.health(pod.name(), "critical", replied).await?;
        screen.took("While its containers end it is critical, not gone", took);
        self.kubectl(&["get", "pods", "-l", "app=payment"]).await?;
        self.consul(|instance| instance.service == "payment");
        pod.finish_deletion(&self.client).await?;
        let replied = Instant::now();
        let gone = |shown: &[Instance]| find(shown, pod.name()).is_none();
        let what = format!("{} to be gone", pod.name());
        let seen = self.view.until("payment", &what, DEADLINE, gone).await?;
        screen.took(
            "Its containers have ended and the pod is gone, from Consul too",
            seen.saturating_duration_since(replied),
        );
        self.kubectl(&["get", "pods", "-l", "app=payment"]).await?;
        self.consul(|instance| instance.service == "payment");
        Ok(())
    }

    async fn repair(&self) -> Result<()> {
        let screen = self.screen;
        screen.step(5, "A change made in Consul by hand");
        screen
            .say("Consul tells that something changed, not what: found at once in a quiet moment,");
        screen.say("and within --drift-interval (10 s) while Lictor writes itself.");
        sleep(QUIET).await;
        let before = self.view.instances();
        let before = find(&before, "web-0").context("web-0 is not in Consul")?;
        let target = json!({"Node": before.node, "ServiceID": before.id});
        screen.command(&format!(
            "curl -X PUT -d '{target}' {}/v1/catalog/deregister",
            self.bed.consul_addr()
        ));
        self.bed
            .consul()?
            .put("/v1/catalog/deregister", &target)
            .await?;
        let replied = Instant::now();
        let again = |shown: &[Instance]| {
            let now = find(shown, "web-0");
            now.is_some_and(|now| now.create_index > before.create_index && now.health == "passing")
        };
        let what = "web-0 to be registered again";
        let seen = self.view.until("web", what, REPAIR_DEADLINE, again).await?;
        screen.took(
            "web-0 was deregistered, and Lictor registered it again",
            seen.saturating_duration_since(replied),
        );
        let events = [
            "get",
            "events",
            "-n",
            NAMESPACE,
            "--field-selector=reason=DriftRepaired",
            "-o=custom-columns=TYPE:.type,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message",
        ];
        let told = wait::until("an Event that tells of it", DEADLINE, async || {
            let told = self.bed.kubectl(&events).await?;
            if told.contains("web-0") {
                Ok(told)
            } else {
                bail!("{told}")
            }
        })
        .await?;
        screen.command(&format!(
            "kubectl -n {NAMESPACE} get events --field-selector=reason=DriftRepaired"
        ));
        screen.output(&told);
        self.consul(|instance| instance.service == "web");
        Ok(())
    }

    async fn restart(&mut self) -> Result<()> {
        let screen = self.screen;
        screen.step(6, "Lictor stopped and started again");
        let before = self.catalog().await?;
        let lictor = self.lictor.take().context("lictor does not run")?;
        let took = lictor.stop().await?;
        screen.say(&format!("Stopped (SIGTERM) after {}.", time(took)));
        let stopped = self.catalog().await?;
        ensure!(
            stopped == before,
            "the stop changed Consul from {before:#} to {stopped:#}"
        );
        screen.say("Consul is as it was: a controller's outage is no service's outage.");
        let doing = screen.doing("starting it again");
        let lictor = Lictor::start(&self.setup).await?;
        doing.done();
        sleep(QUIET).await;
        let pending = lictor.metric("lictor_pending_keys").await?;
        let writes = lictor.metric("lictor_operations_total").await?;
        let owned = lictor.metric("lictor_owned").await?;
        self.lictor = Some(lictor);
        let restarted = self.catalog().await?;
        ensure!(
            restarted == before,
            "the restart changed Consul from {before:#} to {restarted:#}"
        );
        ensure!(pending < 1.0, "{pending} keys are still to be planned");
        ensure!(writes < 1.0, "the restarted Lictor made {writes} writes");
        screen.say(&format!(
            "{} s later: {owned} entries owned, {writes} writes; every entry has the ModifyIndex \
             that it had.",
            QUIET.as_secs()
        ));
        self.consul(|_| true);
        Ok(())
    }

    /// Waits until a pod's instance has a health, and returns how long after the reply that was.
    async fn health(&self, pod: &str, health: &str, replied: Instant) -> Result<Duration> {
        let service = pod.rsplit_once('-').map_or(pod, |(service, _)| service);
        let is = |shown: &[Instance]| find(shown, pod).is_some_and(|now| now.health == health);
        let what = format!("{pod} to be {health}");
        let seen = self.view.until(service, &what, DEADLINE, is).await?;
        Ok(seen.saturating_duration_since(replied))
    }

    async fn patch(&self, pod: &str, patch: &Value) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        pods.patch(pod, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Runs kubectl in the namespace of the examples and shows it.
    async fn kubectl(&self, args: &[&str]) -> Result<()> {
        self.screen
            .command(&format!("kubectl -n {NAMESPACE} {}", args.join(" ")));
        let args: Vec<_> = ["-n", NAMESPACE].iter().chain(args).copied().collect();
        self.screen.output(&self.bed.kubectl(&args).await?);
        Ok(())
    }

    /// Shows some of the instances as Consul's health API has them.
    fn consul(&self, which: impl Fn(&Instance) -> bool) {
        let mut instances = self.view.instances();
        instances.retain(which);
        let mut services: Vec<_> = instances.iter().map(|i| i.service.as_str()).collect();
        services.dedup();
        let services = match services[..] {
            [one] => one.to_owned(),
            _ => format!("{{{}}}", services.join(",")),
        };
        self.screen.command(&format!(
            "curl $CONSUL_HTTP_ADDR/v1/health/service/{services}"
        ));
        let rows = instances.into_iter().map(|instance| {
            let Instance {
                service,
                id,
                node,
                address,
                tags,
                health,
                ..
            } = instance;
            [service, id, node, address, health.to_owned(), tags]
        });
        self.screen.table(
            ["SERVICE", "INSTANCE", "NODE", "ADDRESS", "HEALTH", "TAGS"],
            &rows.collect::<Vec<_>>(),
        );
    }

    /// All of Lictor's nodes with their services and checks, and the index of each.
    async fn catalog(&self) -> Result<Value> {
        let consul = self.bed.consul()?;
        let nodes = consul.get("/v1/catalog/nodes?consistent").await?;
        let mut catalog = Vec::new();
        for node in nodes.as_array().context("no list of nodes")? {
            let name = node["Node"].as_str().unwrap_or_default();
            if name.starts_with(&format!("lictor-{CLUSTER}-")) {
                let services = format!("/v1/catalog/node-services/{name}?consistent");
                let checks = format!("/v1/health/node/{name}?consistent");
                catalog.push(json!([
                    node,
                    consul.get(&services).await?,
                    consul.get(&checks).await?
                ]));
            }
        }
        ensure!(!catalog.is_empty(), "Consul has no node of Lictor's");
        Ok(Value::Array(catalog))
    }
}

fn pod<'a>(pods: &'a [TestPod], name: &str) -> Result<&'a TestPod> {
    let found = pods.iter().find(|pod| pod.name() == name);
    found.with_context(|| format!("examples/ has no pod {name}"))
}

/// The instance of a pod.
fn find<'a>(instances: &'a [Instance], pod: &str) -> Option<&'a Instance> {
    instances.iter().find(|instance| {
        let id = instance.id.rsplit('.').next();
        id == Some(pod)
    })
}
