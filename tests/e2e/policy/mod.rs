//! Who may claim which name: `RegistrationPolicy` and `--default-policy`.
//!
//! Policies are of the whole cluster, and where there are some that are not understood, or none any
//! more, everybody hears of it: so these tests have beds of their own, one after the other.

mod attacks;
mod changes;
mod holders;
mod leaders;
mod plan;

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use lictor::api::RegistrationPolicy;
use lictor_testbed::{kubelet::TestPod, wait};
use serde_json::{Value, json};
use tokio::sync::MutexGuard;

use crate::support::{Annotated as _, Installed, Kind, Lictor, Scene, Turns, condition, until};

const EXCLUSIVE: &str = "--default-policy=exclusive";
/// Within this, lists confirm what is not allowed.
const LISTS: Duration = Duration::from_mins(3);

/// A bed in which there are no policies, for one test at a time.
async fn bed() -> Result<(MutexGuard<'static, ()>, &'static Installed)> {
    static BEDS: Turns<2> = Turns::new();
    let (guard, installed) = BEDS.take(Installed::start).await?;
    let args = ["delete", "registrationpolicies", "--all"];
    installed.bed.kubectl(&args).await?;
    // There is one entry for all destinations, and who was here before wrote it.
    let all = "/v1/config/service-intentions/*";
    installed.bed.consul()?.delete(all).await?;
    Ok((guard, installed))
}

impl Scene {
    fn policies(&self) -> Api<DynamicObject> {
        let kind = ApiResource::erase::<RegistrationPolicy>(&());
        Api::all_with(self.client.clone(), &kind)
    }

    /// Writes a policy for the namespace of the scene, in the place of one of this name.
    async fn policy(&self, name: &str, more: Value) -> Result<()> {
        let labels = json!({"kubernetes.io/metadata.name": self.namespace});
        let mut spec = json!({"namespaceSelector": {"matchLabels": labels}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let kind = ApiResource::erase::<RegistrationPolicy>(&());
        let mut object = DynamicObject::new(name, &kind).data(json!({"spec": spec}));
        let there = self.policies().get_opt(name).await?;
        if let Some(there) = there {
            object.metadata.resource_version = there.metadata.resource_version;
            let params = PostParams::default();
            self.policies().replace(name, &params, &object).await?;
        } else {
            let params = PostParams::default();
            self.policies().create(&params, &object).await?;
        }
        Ok(())
    }

    async fn no_policy(&self, name: &str) -> Result<()> {
        let params = DeleteParams::default();
        self.policies().delete(name, &params).await?;
        Ok(())
    }

    /// A second namespace, and a pod in it.
    fn pod_of(&self, namespace: &str, name: &str, ip: &str) -> TestPod {
        TestPod::new(namespace, name)
            .node(&self.node)
            .ip(ip)
            .port("http", 8080)
    }

    /// Waits until what the pod held is gone because it may not be: lists that begin afterwards are needed.
    async fn withdrawn(&self, service: &str, pod: &str) -> Result<()> {
        wait::until(&format!("{pod} to be withdrawn"), LISTS, async || {
            let found = self.find_id(service, &self.id(service, pod)).await?;
            ensure!(found.is_none(), "{found:#?}");
            anyhow::Ok(())
        })
        .await
    }

    /// How many instances a service has in Consul.
    async fn instances_of(&self, service: &str) -> Result<usize> {
        Ok(self.consul.health(service).await?.len())
    }

    /// Waits until an object is ready.
    async fn allowed(&self, kind: Kind, name: &str) -> Result<Value> {
        self.shown(kind, name, |status| condition(status, "Ready").0 == "True")
            .await
    }

    /// Waits until an object is refused; why.
    async fn not_allowed(&self, kind: Kind, name: &str) -> Result<String> {
        let is = |status: &Value| {
            let (ready, why, _) = condition(status, "Ready");
            (ready, why) == ("False", "NotAllowed")
        };
        let status = self.shown(kind, name, is).await?;
        Ok(condition(&status, "Ready").2.to_owned())
    }

    /// The same of a registration.
    async fn refused_registration(&self, name: &str) -> Result<String> {
        let is = |status: &Value| condition(status, "Ready").1 == "NotAllowed";
        let status = self.registration(name, is).await?;
        Ok(condition(&status, "Ready").2.to_owned())
    }

    /// What is kept of a name.
    async fn kept(&self, name: &str) -> Result<Option<Value>> {
        let path = format!("/v1/kv/lictor/v1/{}/name/{name}?raw", self.cluster);
        self.consul.find(&path).await
    }

    /// A pod of the scene that claims a service is refused it.
    async fn pod_refused(&self, pod: &str, service: &str, text: &str) -> Result<()> {
        let pod_object = self.pod(pod).lictor("service", service);
        pod_object.create_ready(&self.client).await?;
        self.event("NotAllowed", pod, text).await?;
        ensure!(self.find(service, pod).await?.is_none(), "{pod} is there");
        Ok(())
    }
}

/// What was written since the start.
async fn operations(lictor: &Lictor) -> Result<f64> {
    lictor.metric("lictor_operations_total", &[]).await
}

#[tokio::test]
async fn the_crd_refuses_what_is_no_pattern() -> Result<()> {
    let (_guard, installed) = bed().await?;
    let scene = Scene::on(installed).await?;
    for (field, pattern) in [
        ("services", "{ns}-*"),
        ("destinations", "a b"),
        ("queries", ""),
        ("tags", "{x}"),
    ] {
        let error = scene.policy("bad", json!({field: [pattern]})).await;
        ensure!(error.is_err(), "{field}: {pattern:?} is taken");
    }
    let all =
        json!({"services": ["{namespace}-*"], "tags": ["v?", "{namespace}"], "checks": "Deny"});
    scene.policy("good", all).await?;
    until("it to be listed by its short name", async || {
        let shown = scene.bed.kubectl(&["get", "regpol"]).await?;
        ensure!(
            shown.contains("good") && shown.contains("{namespace}-*"),
            "{shown}"
        );
        anyhow::Ok(())
    })
    .await?;
    let there = scene.policies().list(&ListParams::default()).await?;
    ensure!(there.items.len() == 1, "{there:?}");
    Ok(())
}
