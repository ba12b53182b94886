//! Beside another tool that registers the same pods in the same Consul.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::plan::nothing_to_do;
use crate::support::{Annotated as _, Instance, Lictor, Scene, until};

/// The pods of a scene that both register, by name and address.
struct Pods<'a> {
    scene: &'a Scene,
    service: String,
    names: Vec<(&'static str, &'static str)>,
}

impl Pods<'_> {
    fn are<T: Tool>(&self, tool: &T, id: &str) -> bool {
        self.names.iter().any(|(pod, _)| tool.id(pod) == id)
    }
}

/// A tool that knows these pods.
trait Tool: Sized {
    fn pods(&self) -> &Pods<'_>;

    fn id(&self, pod: &str) -> String;

    /// Whether an instance in the catalog is of its.
    fn is_of_its(found: &Value) -> bool;

    /// One pass, as it makes them for ever. Returns the IDs that it took away.
    async fn pass(&self) -> Result<Vec<String>>;

    /// What the catalog has of its, indexes included.
    async fn theirs(&self) -> Result<Vec<Value>> {
        let Pods { scene, service, .. } = self.pods();
        let path = format!("/v1/catalog/service/{service}?consistent");
        let mut all = scene.consul.get(&path).await?;
        let all = all.as_array_mut().context("no list")?;
        all.retain(Self::is_of_its);
        Ok(all.clone())
    }

    /// Lictor registers the same pods, changes one, is started anew, and removes `web-1`, and neither moves
    /// anything of the other's. Returns the instance of `web-0` as it was at first, too.
    async fn stands_beside(&self) -> Result<(Lictor, Instance)> {
        let Pods {
            scene,
            service: web,
            names,
        } = self.pods();
        let nothing = Vec::<String>::new();
        assert_eq!(self.pass().await?, nothing);
        for (name, address) in names {
            let pod = scene.pod(name).ip(address).lictor("service", web);
            pod.create_ready(&scene.client).await?;
        }
        let lictor = scene.lictor().await?;
        let first = scene.status(web, "web-0", "passing").await?;
        scene.status(web, "web-1", "passing").await?;
        lictor.idle().await?;
        let theirs = until("theirs to be in the catalog", async || {
            let theirs = self.theirs().await?;
            ensure!(theirs.len() == names.len(), "{theirs:#?}");
            anyhow::Ok(theirs)
        })
        .await?;

        assert_eq!(self.pass().await?, nothing);
        scene.annotate("web-0", &[("tags", Some("v2"))]).await?;
        scene
            .instance(web, "web-0", |seen| seen.tags == ["v2"])
            .await?;
        lictor.stop().await?;
        assert_eq!(self.pass().await?, nothing);
        let lictor = scene.lictor().await?;
        lictor.idle().await?;
        assert_eq!(self.pass().await?, nothing);
        assert_eq!(self.theirs().await?, theirs);
        nothing_to_do(scene).await?;

        scene.pod("web-1").finish_deletion(&scene.client).await?;
        scene.gone(web, "web-1").await?;
        lictor.idle().await?;
        assert_eq!(self.theirs().await?, theirs);
        Ok((lictor, first))
    }
}

/// The tag by which the catalog sync of consul-k8s knows its instances (`-consul-k8s-tag`).
const TAG: &str = "k8s";
/// Its node (`-consul-node-name`).
const NODE: &str = "k8s-sync";

/// Makes the calls that the catalog sync makes (consul-k8s, `control-plane/catalog/to-consul/syncer.go`):
/// `syncFull` registers all that it knows on a node of its own, and `watchService` has deregistered what has
/// its tag under the name of a service, on whatever node, and is not known to it.
struct CatalogSync<'a>(Pods<'a>);

impl Tool for CatalogSync<'_> {
    fn pods(&self) -> &Pods<'_> {
        &self.0
    }

    fn id(&self, pod: &str) -> String {
        format!("{}-{pod}", self.0.service)
    }

    fn is_of_its(found: &Value) -> bool {
        found["Node"] == NODE
    }

    async fn pass(&self) -> Result<Vec<String>> {
        let Pods {
            scene,
            service,
            names,
        } = &self.0;
        for (pod, address) in names {
            let namespace = &scene.namespace;
            let entry = json!({
                "Node": NODE, "Address": "127.0.0.1", "SkipNodeUpdate": true,
                "NodeMeta": {"external-source": "kubernetes"},
                "Service": {"ID": self.id(pod), "Service": service, "Address": address, "Port": 8080,
                    "Tags": [TAG], "Meta": {"external-source": "kubernetes", "external-k8s-ns": namespace}},
            });
            scene.by_hand(&entry).await?;
        }
        let path = format!("/v1/catalog/service/{service}?tag={TAG}&consistent");
        let there = scene.consul.get(&path).await?;
        let mut reaped = Vec::new();
        for found in there.as_array().context("no list")? {
            let id = found["ServiceID"].as_str().context("no id")?.to_owned();
            if !self.0.are(self, &id) {
                let gone = json!({"Node": found["Node"], "ServiceID": id});
                scene.away_by_hand(&gone).await?;
                reaped.push(id);
            }
        }
        Ok(reaped)
    }
}

/// What the services of katalog-sync say in their meta (`ConsulSyncSourceName`, `ConsulSyncSourceValue`).
const KATALOG: (&str, &str) = ("external-sync-source", "katalog-sync");

/// Makes the calls that katalog-sync makes of the agent of a node (wish/katalog-sync, `pkg/daemon/daemon.go`,
/// `syncConsul`): it registers each pod with a check that it keeps alive, and deregisters what the agent has of
/// its own and no pod is there for.
struct KatalogSync<'a>(Pods<'a>);

impl Tool for KatalogSync<'_> {
    fn pods(&self) -> &Pods<'_> {
        &self.0
    }

    fn id(&self, pod: &str) -> String {
        [KATALOG.1, &self.0.service, &self.0.scene.namespace, pod].join("_")
    }

    fn is_of_its(found: &Value) -> bool {
        found["ServiceMeta"][KATALOG.0] == KATALOG.1
    }

    async fn pass(&self) -> Result<Vec<String>> {
        let Pods {
            scene,
            service: name,
            names,
        } = &self.0;
        let consul = &scene.consul;
        for (pod, address) in names {
            let id = self.id(pod);
            let service = json!({
                "ID": id, "Name": name, "Address": address, "Port": 8080, "Tags": ["a"],
                "Meta": {"external-source": "kubernetes", "external-k8s-ns": scene.namespace,
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
                && found["Service"] == name.as_str();
            if is_of_its && !self.0.are(self, id) {
                let path = format!("/v1/agent/service/deregister/{id}");
                consul.put(&path, &Value::Null).await?;
                gone.push(id.clone());
            }
        }
        Ok(gone)
    }
}

#[tokio::test]
async fn katalog_sync_and_lictor_leave_each_other_alone() -> Result<()> {
    let scene = Scene::new().await?;
    let web = scene.named("web");
    let mut sync = KatalogSync(Pods {
        scene: &scene,
        service: web.clone(),
        names: vec![("web-0", "10.250.12.1"), ("web-1", "10.250.12.2")],
    });
    let (lictor, first) = sync.stands_beside().await?;

    // Each takes its own away.
    sync.0.names.truncate(1);
    assert_eq!(sync.pass().await?, [sync.id("web-1")]);
    sync.0.names.clear();
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
    let mut sync = CatalogSync(Pods {
        scene: &scene,
        service: web.clone(),
        names: vec![("web-0", "10.250.11.1"), ("web-1", "10.250.11.2")],
    });
    let (lictor, first) = sync.stands_beside().await?;

    // Each takes its own away.
    sync.0.names.truncate(1);
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
    sync.0.names.clear();
    assert_eq!(sync.pass().await?, [sync.id("web-0")]);
    scene.status(&web, "web-0", "passing").await?;
    let path = format!("/v1/catalog/service/{web}?consistent");
    let all = scene.consul.get(&path).await?;
    ensure!(all.as_array().is_some_and(|all| all.len() == 1), "{all:#}");
    lictor.stop().await?;
    Ok(())
}
