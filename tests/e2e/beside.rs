//! Beside another tool that registers the same pods in the same Consul.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::plan::{JSON, plan};
use crate::support::{Annotated as _, Scene, until};

/// The tag by which the catalog sync of consul-k8s knows its instances (`-consul-k8s-tag`).
const TAG: &str = "k8s";
/// Its node (`-consul-node-name`).
const NODE: &str = "k8s-sync";

/// Makes the calls that the catalog sync makes (consul-k8s, `control-plane/catalog/to-consul/syncer.go`):
/// `syncFull` registers all that it knows on a node of its own, and the reaper of a service
/// (`scheduleReapServiceLocked`) deregisters what has its tag under that name, on whatever node, and is not
/// known to it.
struct CatalogSync<'a> {
    scene: &'a Scene,
    service: String,
    pods: Vec<(&'static str, &'static str)>,
}

impl CatalogSync<'_> {
    fn id(&self, pod: &str) -> String {
        format!("{}-{pod}", self.service)
    }

    /// One pass of each. Returns the IDs that the reaper took.
    async fn pass(&self) -> Result<Vec<String>> {
        for (pod, address) in &self.pods {
            let namespace = &self.scene.namespace;
            let entry = json!({
                "Node": NODE, "Address": "127.0.0.1", "SkipNodeUpdate": true,
                "NodeMeta": {"external-source": "kubernetes"},
                "Service": {"ID": self.id(pod), "Service": self.service, "Address": address, "Port": 8080,
                    "Tags": [TAG], "Meta": {"external-source": "kubernetes", "external-k8s-ns": namespace}},
            });
            self.scene.by_hand(&entry).await?;
        }
        let path = format!("/v1/catalog/service/{}?tag={TAG}&consistent", self.service);
        let there = self.scene.consul.get(&path).await?;
        let mut reaped = Vec::new();
        for found in there.as_array().context("no list")? {
            let id = found["ServiceID"].as_str().context("no id")?.to_owned();
            if !self.pods.iter().any(|(pod, _)| self.id(pod) == id) {
                let gone = json!({"Node": found["Node"], "ServiceID": id});
                self.scene.away_by_hand(&gone).await?;
                reaped.push(id);
            }
        }
        Ok(reaped)
    }

    /// What is there of its, indexes included.
    async fn theirs(&self) -> Result<Vec<Value>> {
        let path = format!("/v1/catalog/service/{}?consistent", self.service);
        let mut all = self.scene.consul.get(&path).await?;
        let all = all.as_array_mut().context("no list")?;
        all.retain(|found| found["Node"] == NODE);
        Ok(all.clone())
    }
}

/// What the services of katalog-sync say in their meta (`ConsulSyncSourceName`, `ConsulSyncSourceValue`).
const KATALOG: (&str, &str) = ("external-sync-source", "katalog-sync");

/// Makes the calls that katalog-sync makes of the agent of a node (wish/katalog-sync, `pkg/daemon/daemon.go`,
/// `syncConsul`): it registers each pod with a check that it keeps alive, and deregisters what the agent has of
/// its own and no pod is there for.
struct KatalogSync<'a> {
    scene: &'a Scene,
    service: String,
    pods: Vec<(&'static str, &'static str)>,
}

impl KatalogSync<'_> {
    fn id(&self, pod: &str) -> String {
        let namespace = &self.scene.namespace;
        [KATALOG.1, &self.service, namespace, pod].join("_")
    }

    /// One pass. Returns the IDs that it took away.
    async fn pass(&self) -> Result<Vec<String>> {
        let consul = &self.scene.consul;
        for (pod, address) in &self.pods {
            let id = self.id(pod);
            let service = json!({
                "ID": id, "Name": self.service, "Address": address, "Port": 8080, "Tags": ["a"],
                "Meta": {"external-source": "kubernetes", "external-k8s-ns": self.scene.namespace,
                    (KATALOG.0): KATALOG.1, "external-k8s-link": pod},
                "Check": {"CheckID": id, "TTL": "30s", "Status": "passing"},
            });
            consul.put("/v1/agent/service/register", &service).await?;
            let alive = json!({"Status": "passing", "Output": "ready"});
            let path = format!("/v1/agent/check/update/{id}");
            consul.put(&path, &alive).await?;
        }
        let there = consul.get("/v1/agent/services").await?;
        let there = there.as_object().context("no services")?;
        let mut gone = Vec::new();
        for (id, found) in there {
            let is_of_its = found["Meta"][KATALOG.0] == KATALOG.1
                // Other scenes have the same agent.
                && found["Service"] == self.service.as_str();
            if is_of_its && !self.pods.iter().any(|(pod, _)| self.id(pod) == *id) {
                let path = format!("/v1/agent/service/deregister/{id}");
                consul.put(&path, &Value::Null).await?;
                gone.push(id.clone());
            }
        }
        Ok(gone)
    }

    /// What the catalog has of its.
    async fn theirs(&self) -> Result<Vec<Value>> {
        let path = format!("/v1/catalog/service/{}?consistent", self.service);
        let mut all = self.scene.consul.get(&path).await?;
        let all = all.as_array_mut().context("no list")?;
        all.retain(|found| {
            found["ServiceID"]
                .as_str()
                .is_some_and(|id| id.starts_with(KATALOG.1))
        });
        Ok(all.clone())
    }
}

#[tokio::test]
async fn katalog_sync_and_lictor_leave_each_other_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let web = scene.named("web");
    let pods = [("web-0", "10.250.12.1"), ("web-1", "10.250.12.2")];
    let mut sync = KatalogSync {
        scene: &scene,
        service: web.clone(),
        pods: pods.to_vec(),
    };
    let nothing = Vec::<String>::new();
    assert_eq!(sync.pass().await?, nothing);
    for (name, address) in pods {
        let pod = scene.pod(name).ip(address).lictor("service", &web);
        pod.create_ready(&scene.client).await?;
    }
    let lictor = scene.lictor().await?;
    let first = scene.status(&web, "web-0", "passing").await?;
    scene.status(&web, "web-1", "passing").await?;
    lictor.idle().await?;
    let theirs = until("the agent to have told the servers", async || {
        let theirs = sync.theirs().await?;
        ensure!(theirs.len() == 2, "{theirs:#?}");
        anyhow::Ok(theirs)
    })
    .await?;
    assert_eq!(sync.pass().await?, nothing);
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    scene
        .instance(&web, "web-0", |seen| seen.tags == ["v2"])
        .await?;
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    assert_eq!(sync.theirs().await?, theirs);
    let settled = plan(&scene, &JSON).await?;
    assert_eq!(
        (settled.code, settled.items()?),
        (Some(0), Vec::new()),
        "{}",
        settled.err
    );

    // A pod goes, and each takes its own away.
    scene.pod("web-1").finish_deletion(&scene.client).await?;
    scene.gone(&web, "web-1").await?;
    lictor.idle().await?;
    assert_eq!(sync.theirs().await?, theirs);
    sync.pods.truncate(1);
    assert_eq!(sync.pass().await?, [sync.id("web-1")]);
    sync.pods.clear();
    assert_eq!(sync.pass().await?, [sync.id("web-0")]);
    until("theirs to be gone", async || {
        let theirs = sync.theirs().await?;
        ensure!(theirs.is_empty(), "{theirs:#?}");
        anyhow::Ok(())
    })
    .await?;
    let seen = scene.status(&web, "web-0", "passing").await?;
    assert_eq!(seen.create_index, first.create_index);
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_catalog_sync_of_consul_k8s_and_lictor_leave_each_other_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let web = scene.named("web");
    let pods = [("web-0", "10.250.11.1"), ("web-1", "10.250.11.2")];
    let mut sync = CatalogSync {
        scene: &scene,
        service: web.clone(),
        pods: pods.to_vec(),
    };
    let nothing = Vec::<String>::new();
    assert_eq!(sync.pass().await?, nothing);
    for (name, address) in pods {
        let pod = scene.pod(name).ip(address).lictor("service", &web);
        pod.create_ready(&scene.client).await?;
    }
    let lictor = scene.lictor().await?;
    let first = scene.status(&web, "web-0", "passing").await?;
    scene.status(&web, "web-1", "passing").await?;
    lictor.idle().await?;

    // Neither a pass of theirs nor a change or a restart of ours moves anything of the other's.
    let theirs = sync.theirs().await?;
    ensure!(theirs.len() == 2, "{theirs:#?}");
    assert_eq!(sync.pass().await?, nothing);
    scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
    scene
        .instance(&web, "web-0", |seen| seen.tags == ["v2"])
        .await?;
    lictor.stop().await?;
    assert_eq!(sync.pass().await?, nothing);
    let lictor = scene.lictor().await?;
    lictor.idle().await?;
    assert_eq!(sync.theirs().await?, theirs);
    let settled = plan(&scene, &JSON).await?;
    assert_eq!(
        (settled.code, settled.items()?),
        (Some(0), Vec::new()),
        "{}",
        settled.err
    );

    // A pod goes, and each takes its own away.
    scene.pod("web-1").finish_deletion(&scene.client).await?;
    scene.gone(&web, "web-1").await?;
    lictor.idle().await?;
    assert_eq!(sync.theirs().await?, theirs);
    sync.pods.truncate(1);
    assert_eq!(sync.pass().await?, [sync.id("web-1")]);
    let seen = scene.find(&web, "web-0").await?.context("not there")?;
    assert_eq!(seen.create_index, first.create_index);

    // With its tag an instance is taken for the sync's, and put back: that is why it must not be used.
    scene.annotate("web-0", &[("tags", Some(TAG))]).await?;
    scene
        .instance(&web, "web-0", |seen| seen.tags == [TAG])
        .await?;
    assert_eq!(sync.pass().await?, [scene.id(&web, "web-0")]);
    scene
        .instance(&web, "web-0", |seen| {
            seen.create_index != first.create_index
        })
        .await?;
    scene.annotate("web-0", &[("tags", None)]).await?;
    scene
        .instance(&web, "web-0", |seen| seen.tags.is_empty())
        .await?;

    // Theirs is switched off, and ours stays.
    sync.pods.clear();
    assert_eq!(sync.pass().await?, [sync.id("web-0")]);
    scene.status(&web, "web-0", "passing").await?;
    let path = format!("/v1/catalog/service/{web}?consistent");
    let all = scene.consul.get(&path).await?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 1), "{all:#}");
    lictor.stop().await?;
    Ok(())
}
