//! Kubernetes fails, or shows less than there is.

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::ListParams;
use lictor_testbed::proxy::{Fault, Proxy};
use lictor_testbed::wait;
use serde_json::{Value, json};

use super::{Kept, LISTS, Turns, instances_go_on, is_ready, nothing_to_complain_about, settle, to};
use crate::faults::kubernetes::{admin, restoring};
use crate::faults::{alone, not_ready, ready_but};
use crate::support::{Kind, Scene, sources_of, until};

/// How many objects of a kind there are: more than `--max-delete-floor`.
const MANY: usize = 12;

/// So many objects of a kind, each with a source or a query of its own.
async fn create_many(scene: &Scene, kind: Kind) -> Result<()> {
    for number in 0..MANY {
        let name = format!("many-{number:02}");
        let spec = match kind {
            Kind::Intention => to(scene, &[&name], "allow"),
            Kind::PreparedQuery => json!({"name": scene.named(&name), "service": "payment"}),
            Kind::ServiceRegistration => bail!("{kind:?} has instances"),
        };
        scene.create(kind, &name, spec).await?;
    }
    Ok(())
}

async fn many_are_ready(scene: &Scene, kind: Kind) -> Result<()> {
    for number in 0..MANY {
        let name = format!("many-{number:02}");
        scene.shown(kind, &name, is_ready).await?;
    }
    Ok(())
}

/// What [`create_many`] leads to, in which not a byte changes.
async fn kept_of_many(scene: &Scene, kind: Kind) -> Result<Kept> {
    let payment = scene.named("payment");
    let names = (0..MANY).map(|number| format!("many-{number:02}"));
    let mut kept = Kept {
        sources: Vec::new(),
        queries: Vec::new(),
        foreign: Vec::new(),
    };
    match kind {
        Kind::Intention => {
            kept.sources = names.map(|name| (payment.clone(), name)).collect();
            let path = format!("/v1/config/service-intentions/{payment}?consistent");
            kept.foreign.push(path);
        }
        Kind::PreparedQuery => {
            kept.queries = names.map(|name| scene.named(&name)).collect();
            for name in &kept.queries {
                let query = scene.query_named(name).await?;
                let id = query["ID"].as_str().context("no id")?;
                kept.foreign.push(format!("/v1/query/{id}?consistent"));
            }
        }
        Kind::ServiceRegistration => bail!("{kind:?} has instances"),
    }
    Ok(kept)
}

/// With a CRD its objects go, and nobody asked for the removal of what they hold.
async fn a_crd_goes(kind: Kind, crd: &str) -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    create_many(&scene, kind).await?;
    many_are_ready(&scene, kind).await?;
    lictor.idle().await?;
    let oracle = kept_of_many(&scene, kind).await?.watch(&scene).await?;
    let crds = crate::support::run(&["crds"]).await?.1;
    scene.bed.kubectl(&["delete", "crd", crd]).await?;
    let without = async {
        not_ready(&lictor, "is its CRD installed").await?;
        instances_go_on(&scene, "web-0").await?;
        instances_go_on(&scene, "web-1").await
    };
    let without = without.await;
    scene.bed.kubectl_apply(&crds).await?;
    without?;
    // Now the kind is there and empty.
    lictor.shows("lictor_held_deletes", 12.0).await?;
    instances_go_on(&scene, "web-2").await?;
    until("the objects to be created", async || {
        scene.objects(kind).list(&ListParams::default()).await
    })
    .await?;
    create_many(&scene, kind).await?;
    many_are_ready(&scene, kind).await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    lictor.idle().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn intentions_whose_crd_is_deleted_stay() -> Result<()> {
    a_crd_goes(Kind::Intention, "intentions.lictor.io").await
}

#[tokio::test]
async fn queries_whose_crd_is_deleted_stay() -> Result<()> {
    a_crd_goes(Kind::PreparedQuery, "preparedqueries.lictor.io").await
}

/// Fewer than the guard holds: they wait, so that there is time to apply the objects again.
#[tokio::test]
async fn a_few_queries_whose_crd_is_deleted_wait_for_their_objects() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let mut lictor = scene.lictor().await?;
    lictor.bears_refusals();
    let mut kept = settle(&scene).await?;
    let names = ["few-0", "few-1", "few-2", "few-3", "stays"];
    let create = async |name: &str| {
        let spec = json!({"name": scene.named(name), "service": "payment"});
        scene.create(Kind::PreparedQuery, name, spec).await
    };
    for name in names {
        if name != "stays" {
            create(name).await?;
            kept.queries.push(scene.named(name));
        }
        scene.shown(Kind::PreparedQuery, name, is_ready).await?;
        let query = scene.query_named(&scene.named(name)).await?;
        let id = query["ID"].as_str().context("no id")?;
        kept.foreign.push(format!("/v1/query/{id}?consistent"));
    }
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let crds = crate::support::run(&["crds"]).await?.1;
    let crd = "preparedqueries.lictor.io";
    scene.bed.kubectl(&["delete", "crd", crd]).await?;
    let missing = not_ready(&lictor, "is its CRD installed").await;
    scene.bed.kubectl_apply(&crds).await?;
    missing?;
    lictor.shows("lictor_held_deletes", 5.0).await?;
    until("the objects to be created", async || {
        let api = scene.objects(Kind::PreparedQuery);
        api.list(&ListParams::default()).await
    })
    .await?;
    for name in names {
        create(name).await?;
    }
    for name in names {
        scene.shown(Kind::PreparedQuery, name, is_ready).await?;
    }
    lictor.shows("lictor_held_deletes", 0.0).await?;
    lictor.idle().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn an_intention_that_is_found_missing_goes_when_three_lists_agree() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let kept = settle(&scene).await?;
    let spec = to(&scene, &["goes"], "allow");
    scene.create(Kind::Intention, "goes", spec).await?;
    scene.shown(Kind::Intention, "goes", is_ready).await?;
    lictor.stop().await?;
    scene.delete(Kind::Intention, "goes").await?;
    let oracle = kept.watch(&scene).await?;
    let lictor = scene.lictor().await?;
    let rounds = || {
        let log = lictor.log();
        log.matches("everything is listed anew, to confirm").count()
    };
    let seen = wait::until("it to go", LISTS, async || {
        let before = rounds();
        let payment = scene.named("payment");
        let entry = scene.config_entry("service-intentions", &payment);
        let sources = sources_of(&entry.await?);
        ensure!(!sources.contains(&"goes allow".to_owned()), "{sources:?}");
        Ok::<_, anyhow::Error>(before)
    })
    .await?;
    ensure!(seen >= 2, "gone after {seen} further rounds of lists");
    Turns::beside(&scene).exact().await?;
    oracle.verdict().await
}

const ROLE: &str = "clusterrole/lictor";

#[tokio::test]
async fn rights_on_intentions_that_are_withdrawn_cost_nothing() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let mut lictor = scene.lictor_through(&kubernetes, &consul).await?;
    lictor.bears_refusals();
    let kept = settle(&scene).await?;
    let mut turns = Turns::beside(&scene);
    turns.turns(15).await?;
    turns.exact().await?;
    lictor.idle().await?;
    let oracle = kept.watch(&scene).await?;
    let role = scene.bed.kubectl(&["get", ROLE, "-o", "json"]).await?;
    let role: Value = serde_json::from_str(&role)?;
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().context("no rules")? {
        let resources = rule["resources"].as_array_mut().context("no resources")?;
        resources.retain(|resource| resource != "intentions");
    }
    let with = async |rules: &Value| {
        let patch = json!({"rules": rules}).to_string();
        let args = ["patch", ROLE, "--type=merge", "-p", &patch];
        scene.bed.kubectl(&args).await
    };
    let entry = async || {
        let payment = scene.named("payment");
        scene.config_entry("service-intentions", &payment).await
    };
    let before = entry().await?;
    with(&rules).await?;
    let without = async {
        // An open watch goes on; the next one is refused.
        kubernetes.set(Fault::Reset).await?;
        kubernetes.set(Fault::Pass).await?;
        ready_but(&lictor, "intentions: 403").await?;
        turns.turns(15).await?;
        instances_go_on(&scene, "web-0").await?;
        // Queries go on too.
        let last = turns.queries.keys().next_back().context("no query")?;
        let ttl = turns.queries[last].clone();
        scene
            .query_is(last, |query| query["DNS"]["TTL"] == *ttl)
            .await?;
        assert_eq!(entry().await?, before);
        ready_but(&lictor, "intentions: 403").await
    };
    let without = without.await;
    with(&role["rules"]).await?;
    without?;
    turns.exact().await?;
    nothing_to_complain_about(&lictor).await?;
    oracle.verdict().await
}

#[tokio::test]
async fn an_etcd_of_before_all_removes_no_intention_and_no_query() -> Result<()> {
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let lictor = scene.lictor_with(&[&admin(&scene)]).await?;
    let older = scene.bed.dir().join("saved-before-all-entries");
    scene.bed.save_kubernetes(&older).await?;
    let kept = settle(&scene).await?;
    let mut oracles = vec![kept.watch(&scene).await?];
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        create_many(&scene, kind).await?;
        many_are_ready(&scene, kind).await?;
    }
    lictor.idle().await?;
    for kind in [Kind::Intention, Kind::PreparedQuery] {
        oracles.push(kept_of_many(&scene, kind).await?.watch(&scene).await?);
    }
    let saved = scene.bed.dir().join("saved-with-all-entries");
    scene.bed.save_kubernetes(&saved).await?;
    restoring(installed, &saved, async {
        scene.bed.restore_kubernetes(&older).await?;
        lictor.shows("lictor_held_deletes", 27.0).await?;
        until("the guard to tell of it", async || {
            ensure!(lictor.log().contains("DeletesHeld"), "it is not told");
            Ok(())
        })
        .await?;
        scene.bed.restore_kubernetes(&saved).await
    })
    .await?;
    lictor.shows("lictor_held_deletes", 0.0).await?;
    for oracle in oracles {
        oracle.verdict().await?;
    }
    Ok(())
}
