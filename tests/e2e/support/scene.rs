//! The place where a test plays.

use std::collections::BTreeMap;
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use lictor::api::ServiceRegistration;
use lictor_testbed::{
    Bed, ConsulApi,
    kubelet::{TestNode, TestPod},
    proxy::Proxy,
};
use serde_json::{Value, json};

use super::{Annotated as _, Installed, Instance, Lictor, RELEASE, acl_policy, shared, until};

/// A namespace, a node and a cluster name that no other test uses.
pub struct Scene {
    pub bed: &'static Bed,
    pub client: Client,
    pub consul: ConsulApi,
    /// Its namespace; further ones begin with this name and a dash.
    pub namespace: String,
    /// `--cluster`.
    pub cluster: String,
    /// The Kubernetes node that its pods run on.
    pub node: String,
    code: String,
    kubeconfig: String,
    /// Tokens by `--cluster`.
    tokens: tokio::sync::Mutex<BTreeMap<String, String>>,
    /// Whether Consul has ACLs.
    pub acls: bool,
    count: AtomicUsize,
    /// Of its pods.
    names: Mutex<Vec<String>>,
}

impl Scene {
    /// On the shared bed.
    pub async fn new() -> Result<Self> {
        Self::on(shared().await?).await
    }

    pub async fn on(installed: &'static Installed) -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let letter = |number: usize| char::from(b'a' + u8::try_from(number % 26).unwrap());
        let code: String = [letter(number / 26), letter(number)].iter().collect();
        let this = Self {
            bed: &installed.bed,
            client: installed.bed.kube_client()?,
            consul: installed.bed.consul()?,
            namespace: format!("t-{code}"),
            cluster: format!("c-{code}"),
            node: format!("n-{code}"),
            kubeconfig: installed.kubeconfig.display().to_string(),
            tokens: tokio::sync::Mutex::default(),
            acls: installed.token.is_some(),
            code,
            count: AtomicUsize::new(0),
            names: Mutex::default(),
        };
        this.create_namespace(&this.namespace).await?;
        this.kubernetes_node().create(&this.client).await?;
        Installed::allow_lease(&this.client, &this.cluster).await?;
        Ok(this)
    }

    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let api = Api::<Namespace>::all(self.client.clone());
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Waits until an object is older than whatever is created from now on: seniority counts in seconds.
    pub async fn is_older(&self, object: &DynamicObject) -> Result<()> {
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let name = format!("{}-probe", self.namespace);
        let probe = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let api = Api::<Namespace>::all(self.client.clone());
        until("a second to be over", async || {
            let now = api
                .create(&params, &probe)
                .await?
                .metadata
                .creation_timestamp;
            ensure!(now > object.metadata.creation_timestamp, "it is the same");
            anyhow::Ok(())
        })
        .await
    }

    /// Its node, which exists.
    pub fn kubernetes_node(&self) -> TestNode {
        TestNode::new(&self.node)
            .address("InternalIP", "192.168.7.1")
            .label("topology.kubernetes.io/region", "north")
            .label("topology.kubernetes.io/zone", "north-1")
    }

    /// The Consul node of its node.
    pub fn consul_node(&self) -> String {
        format!("lictor-{}--{}", self.cluster, self.node)
    }

    /// The id of an instance of a pod in its namespace.
    pub fn id(&self, service: &str, pod: &str) -> String {
        format!("{}.{}.{service}.{pod}", self.cluster, self.namespace)
    }

    // === lictor ===

    /// The arguments that every `lictor` here has. It excludes the namespaces of all other tests.
    pub fn args(&self) -> Vec<String> {
        let mut code = self.code.chars();
        let (first, second) = (code.next().unwrap(), code.next().unwrap());
        [
            "run".to_owned(),
            format!("--cluster={}", self.cluster),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--kubeconfig={}", self.kubeconfig),
            format!("--consul-http-addr={}", self.bed.consul_addrs().join(",")),
            format!("--exclude-namespace=t-[!{first}]*"),
            format!("--exclude-namespace=t-?[!{second}]*"),
        ]
        .into()
    }

    /// Starts `lictor` and waits until it is ready.
    pub async fn lictor(&self) -> Result<Lictor> {
        self.lictor_with(&[]).await
    }

    /// The same with more arguments.
    pub async fn lictor_with(&self, more: &[&str]) -> Result<Lictor> {
        let mut lictor = self.spawn_lictor(more, &[]).await?;
        lictor.ready().await?;
        Ok(lictor)
    }

    /// The same for another `--cluster`.
    pub async fn lictor_with_cluster(&self, cluster: &str) -> Result<Lictor> {
        Installed::allow_lease(&self.client, cluster).await?;
        let mut args = self.args();
        args[1] = format!("--cluster={cluster}");
        let mut lictor = self.start(&args, &[]).await?;
        lictor.ready().await?;
        Ok(lictor)
    }

    /// The same with a proxy between it and each of its APIs.
    pub async fn lictor_through(&self, kubernetes: &Proxy, consul: &Proxy) -> Result<Lictor> {
        self.lictor_through_with(kubernetes, consul, &[]).await
    }

    /// The same with more arguments.
    pub async fn lictor_through_with(
        &self,
        kubernetes: &Proxy,
        consul: &Proxy,
        more: &[&str],
    ) -> Result<Lictor> {
        let kubeconfig = self.kubeconfig_through(kubernetes)?;
        let address = format!("--consul-http-addr={}", consul.url());
        let args = [&[&*kubeconfig, &*address], more].concat();
        self.lictor_with(&args).await
    }

    /// The argument by which it reaches the API server through a proxy.
    pub fn kubeconfig_through(&self, kubernetes: &Proxy) -> Result<String> {
        let kubeconfig = self
            .bed
            .kubeconfig_through(self.kubeconfig.as_ref(), &kubernetes.url())?;
        Ok(format!("--kubeconfig={}", kubeconfig.display()))
    }

    /// Starts `lictor` with more arguments and environment; it need not become ready.
    pub async fn spawn_lictor(&self, more: &[&str], env: &[(&str, &str)]) -> Result<Lictor> {
        let mut args = self.args();
        // What is given once takes the place of what all have.
        let flag = |arg: &str| arg.split_once('=').map(|(flag, _)| flag.to_owned());
        let repeats = |arg: &str| arg.starts_with("--exclude-namespace");
        args.retain(|arg| {
            repeats(arg)
                || !more
                    .iter()
                    .any(|more| flag(more) == flag(arg) && flag(arg).is_some())
        });
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        self.start(&args, env).await
    }

    /// The name of the pod that it runs as, where that is not given.
    pub fn pod_name(&self) -> String {
        format!("lictor-{}", self.code)
    }

    async fn start(&self, args: &[String], env: &[(&str, &str)]) -> Result<Lictor> {
        let mut args = args.to_vec();
        if !args.iter().any(|arg| arg.starts_with("--default-policy")) {
            // What policies allow is a matter of tests of their own.
            args.push("--default-policy=shared".to_owned());
        }
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let mut env: Vec<_> = env.iter().map(own).collect();
        env.push(("LICTOR_LEASE_NAMESPACE".to_owned(), RELEASE.to_owned()));
        // One that is started anew is a restarted container, and takes its own Lease back at once.
        if env.iter().all(|(name, _)| name != "POD_NAME") {
            env.push(("POD_NAME".to_owned(), self.pod_name()));
        }
        let given = args
            .iter()
            .any(|arg| arg.starts_with("--consul-http-token"));
        let method = args
            .iter()
            .any(|arg| arg.starts_with("--consul-auth-method"));
        let cluster = args.iter().find_map(|arg| arg.strip_prefix("--cluster="));
        if let Some(cluster) = cluster.filter(|_| self.acls && !given && !method) {
            let token = self.token_for(cluster).await?;
            env.push(("CONSUL_HTTP_TOKEN".to_owned(), token));
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let log = self
            .bed
            .dir()
            .join(format!("lictor-{}-{number}.log", self.code));
        Lictor::start(&log, &args, &env).await
    }

    /// A token with just the rights that `lictor acl-policy` prints for this cluster.
    pub async fn token_for(&self, cluster: &str) -> Result<String> {
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.get(cluster) {
            return Ok(token.clone());
        }
        let rules = acl_policy(cluster).await?;
        let token = self.consul.create_token(&rules).await?.secret;
        tokens.insert(cluster.to_owned(), token.clone());
        Ok(token)
    }

    /// Waits until the running `lictor` has worked off what Kubernetes told it until now: pods come
    /// in order, so a pod made now is registered after all that happened before.
    pub async fn barrier(&self) -> Result<()> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let name = format!("barrier-{number}");
        let pod = self.pod(&name).lictor("service", "barrier");
        pod.create_ready(&self.client).await?;
        self.instance("barrier", &name, |_| true).await?;
        Ok(())
    }

    // === Consul ===

    /// The instance of a pod under a service, if Consul has it.
    pub async fn find(&self, service: &str, pod: &str) -> Result<Option<Instance>> {
        self.find_id(service, &self.id(service, pod)).await
    }

    pub async fn find_id(&self, service: &str, id: &str) -> Result<Option<Instance>> {
        let all = self.consul.health(service).await?;
        let found = all.iter().find(|instance| instance["Service"]["ID"] == id);
        Ok(found.map(Instance::of))
    }

    /// Waits until the instance of a pod is as it should be.
    pub async fn instance(
        &self,
        service: &str,
        pod: &str,
        is: impl Fn(&Instance) -> bool,
    ) -> Result<Instance> {
        self.instance_id(service, &self.id(service, pod), is).await
    }

    pub async fn instance_id(
        &self,
        service: &str,
        id: &str,
        is: impl Fn(&Instance) -> bool,
    ) -> Result<Instance> {
        until(&format!("{id} to be as wanted"), async || {
            let found = self.find_id(service, id).await?;
            let found = found.context("it is not registered")?;
            ensure!(is(&found), "{found:#?}");
            Ok(found)
        })
        .await
    }

    /// Waits until the instance of a pod has this status.
    pub async fn status(&self, service: &str, pod: &str, status: &str) -> Result<Instance> {
        self.instance(service, pod, |seen| seen.status == status)
            .await
    }

    /// Waits until Consul has no instance of the pod.
    pub async fn gone(&self, service: &str, pod: &str) -> Result<()> {
        self.gone_id(service, &self.id(service, pod)).await
    }

    pub async fn gone_id(&self, service: &str, id: &str) -> Result<()> {
        until(&format!("{id} to be removed"), async || {
            let found = self.find_id(service, id).await?;
            ensure!(found.is_none(), "{found:#?}");
            Ok(())
        })
        .await
    }

    /// All that Consul holds on the nodes of this cluster, indexes included.
    pub async fn dump(&self) -> Result<Value> {
        let nodes = self.consul.get("/v1/catalog/nodes?consistent").await?;
        let mut dump = Vec::new();
        for node in nodes.as_array().context("not a list")? {
            let name = node["Node"].as_str().context("a node without a name")?;
            let external = format!("lictor-{}-external", self.cluster);
            if name.starts_with(&format!("lictor-{}--", self.cluster)) || name == external {
                dump.push(
                    self.consul
                        .get(&format!("/v1/catalog/node/{name}?consistent"))
                        .await?,
                );
                dump.push(
                    self.consul
                        .get(&format!("/v1/health/node/{name}?consistent"))
                        .await?,
                );
            }
        }
        Ok(Value::from(dump))
    }

    /// Registers something by hand.
    pub async fn by_hand(&self, entry: &Value) -> Result<()> {
        self.consul.put("/v1/catalog/register", entry).await?;
        Ok(())
    }

    /// Deregisters something by hand.
    pub async fn away_by_hand(&self, entry: &Value) -> Result<()> {
        self.consul.put("/v1/catalog/deregister", entry).await?;
        Ok(())
    }

    // === Kubernetes ===

    /// A pod of its namespace and node, with one port, `http` 8080, and an address of its own, which
    /// is the same each time that it is asked for by this name.
    pub fn pod(&self, name: &str) -> TestPod {
        let mut names = self.names.lock().unwrap();
        let number = names
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            });
        TestPod::new(&self.namespace, name)
            .node(&self.node)
            .ip(&self.address(number))
            .port("http", 8080)
    }

    /// The address of a pod by its number: no other scene's has it.
    fn address(&self, number: usize) -> String {
        let [.., first, second] = self.code.as_bytes() else {
            unreachable!("codes have two letters")
        };
        let scene = usize::from(first - b'a') * 26 + usize::from(second - b'a');
        let (net, host) = (number / 250, number % 250 + 1);
        format!("10.{}.{}.{host}", 10 + scene % 240, scene / 240 * 80 + net)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Changes annotations `lictor.io/KEY` of a pod; `None` removes.
    pub async fn annotate(&self, pod: &str, pairs: &[(&str, Option<&str>)]) -> Result<()> {
        let patch = json!({"metadata": {"annotations": annotations(pairs)}});
        self.pods()
            .patch(pod, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Changes a label of a pod; `None` removes it.
    pub async fn label(&self, pod: &str, key: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"labels": {key: value}}});
        self.pods()
            .patch(pod, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    pub async fn uid(&self, pod: &str) -> Result<String> {
        self.pods()
            .get(pod)
            .await?
            .uid()
            .context("a pod without uid")
    }

    /// The objects `ServiceRegistration` of its namespace.
    pub fn registrations(&self) -> Api<DynamicObject> {
        service_registrations(&self.client, &self.namespace)
    }

    /// Creates a `ServiceRegistration`.
    pub async fn register(&self, name: &str, spec: Value) -> Result<DynamicObject> {
        let object = DynamicObject::new(name, &resource()).data(json!({"spec": spec}));
        Ok(self
            .registrations()
            .create(&PostParams::default(), &object)
            .await?)
    }

    /// Lays a patch over a `ServiceRegistration`, and returns its new generation.
    pub async fn edit(&self, name: &str, patch: Value) -> Result<i64> {
        let params = PatchParams::default();
        let object = self
            .registrations()
            .patch(name, &params, &Patch::Merge(patch))
            .await?;
        object
            .metadata
            .generation
            .context("an object without generation")
    }

    pub async fn unregister(&self, name: &str) -> Result<()> {
        self.registrations()
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Waits until the status of a `ServiceRegistration` is about its present generation and as it
    /// should be.
    pub async fn registration(&self, name: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        until(
            &format!("the status of {name} to be as wanted"),
            async || {
                let object = self.registrations().get(name).await?;
                let status = object.data["status"].clone();
                let current = status["observedGeneration"].as_i64() == object.metadata.generation;
                ensure!(current && is(&status), "{status:#}");
                Ok(status)
            },
        )
        .await
    }

    /// Waits for an Event about an object of its namespace whose note contains `text`.
    pub async fn event(&self, reason: &str, object: &str, text: &str) -> Result<Event> {
        until(
            &format!("an Event {reason} on {object} with \"{text}\""),
            async || {
                let events = self.events(object).await?;
                let is = |event: &&Event| {
                    event.reason.as_deref() == Some(reason)
                        && event
                            .note
                            .as_deref()
                            .is_some_and(|note| note.contains(text))
                };
                match events.iter().find(is) {
                    Some(event) => Ok(event.clone()),
                    None => bail!("{:?}", events.iter().map(told).collect::<Vec<_>>()),
                }
            },
        )
        .await
    }

    /// The Events about an object of its namespace.
    pub async fn events(&self, object: &str) -> Result<Vec<Event>> {
        let api = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        let mut events = api.list(&ListParams::default()).await?.items;
        events.retain(|event| {
            let regarding = event.regarding.as_ref();
            regarding.and_then(|regarding| regarding.name.as_deref()) == Some(object)
        });
        Ok(events)
    }
}

pub fn service_registrations(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource())
}

fn resource() -> ApiResource {
    ApiResource::erase::<ServiceRegistration>(&())
}

fn annotations(pairs: &[(&str, Option<&str>)]) -> Value {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (format!("lictor.io/{key}"), json!(value)))
        .collect()
}

fn told(event: &Event) -> String {
    format!(
        "{} {}: {}",
        event.type_.as_deref().unwrap_or_default(),
        event.reason.as_deref().unwrap_or_default(),
        event.note.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use lictor_testbed::proxy::Fault;

    use super::*;

    #[tokio::test]
    async fn lictor_works_through_proxies() -> Result<()> {
        let scene = Scene::new().await?;
        let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
        let consul = Proxy::start(&scene.bed.consul_addr())?;
        let _lictor = scene.lictor_through(&kubernetes, &consul).await?;
        let pod = scene.pod("web-0").lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", "web-0", "passing").await?;
        consul.set(Fault::Reset).await?;
        kubernetes.set(Fault::Refuse).await?;
        pod.not_ready(&scene.client, "app").await?;
        consul.set(Fault::Pass).await?;
        kubernetes.set(Fault::Pass).await?;
        scene.status("web", "web-0", "critical").await?;
        ensure!(kubernetes.accepted() > 1 && consul.accepted() > 1);
        Ok(())
    }
}
