//! `ServiceRegistration`s: what they select or list, their status, and whose is what.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Scene, condition, user_meta};

#[tokio::test]
async fn one_that_selects_registers_its_pods_and_counts_them() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    for (name, app) in [
        ("pay-0", "pay"),
        ("pay-1", "pay"),
        ("pay-2", "pay"),
        ("other", "other"),
    ] {
        let pod = scene.pod(name).label("app", app).label("version", "v3");
        pod.create_ready(&scene.client).await?;
    }
    let spec = json!({
        "service": "payment", "selector": {"matchLabels": {"app": "pay"}}, "port": "http",
        "tags": ["v2", "${pod.labels['version']}"], "meta": {"who": "${pod.name}"},
        "weights": {"passing": 10, "warning": 2},
        "health": {"notReady": "Warning", "terminating": "Deregister"},
    });
    let object = scene.register("pay", spec).await?;
    let status = scene
        .registration("pay", |status| status["instances"]["passing"] == 3)
        .await?;
    assert_eq!(
        status["instances"],
        json!({"desired": 3, "registered": 3, "passing": 3, "warning": 0, "critical": 0, "summary": "3/3"})
    );
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(condition(&status, "Reconciling").0, "False");
    assert_eq!(condition(&status, "Stalled").0, "False");
    assert_eq!(status["service"], "payment");
    assert_eq!(status["consul"]["datacenter"], "dc1");
    ensure!(
        status["consul"]["index"]
            .as_u64()
            .is_some_and(|index| index > 0),
        "{status:#}"
    );

    let seen = scene.status("payment", "pay-1", "passing").await?;
    assert_eq!((seen.port, seen.weights), (8080, (10, 2)));
    assert_eq!(seen.tags, ["v2", "v3"]);
    assert_eq!(user_meta(&seen), [("who", "pay-1")]);
    assert_eq!(seen.meta["external-k8s-ref-kind"], "Pod");
    assert_eq!(seen.meta["external-k8s-ref-name"], "pay-1");
    assert_eq!(
        seen.meta["lictor-owner"],
        format!("ServiceRegistration/{}/pay", scene.namespace)
    );
    assert_eq!(seen.meta["lictor-uid"], scene.uid("pay-1").await?);
    ensure!(object.metadata.uid.is_some());
    ensure!(scene.find("payment", "other").await?.is_none());

    let shown = scene
        .bed
        .kubectl(&["get", "sreg", "--namespace", &scene.namespace])
        .await?;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["NAME", "SERVICE", "READY", "INSTANCES", "PASSING", "AGE"]
    );
    assert_eq!(rows[1][..5], ["pay", "payment", "True", "3/3", "3"]);

    let pod = scene.pod("pay-0");
    pod.not_ready(&scene.client, "app").await?;
    scene.status("payment", "pay-0", "warning").await?;
    scene
        .registration("pay", |status| {
            status["instances"]["passing"] == 2 && status["instances"]["warning"] == 1
        })
        .await?;
    pod.delete(&scene.client).await?;
    scene.gone("payment", "pay-0").await?;
    let status = scene
        .registration("pay", |status| status["instances"]["desired"] == 2)
        .await?;
    // Whatever the health and the number: Consul equals what is claimed.
    assert_eq!(condition(&status, "Ready").0, "True");
    Ok(())
}

#[tokio::test]
async fn one_that_lists_endpoints_registers_them_outside_of_the_cluster() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let endpoint =
        |name: &str, address: &str| json!({"name": name, "address": address, "port": 5432});
    let mut first = endpoint("primary", "db.example.com");
    first["tags"] = json!(["rw"]);
    first["meta"] = json!({"role": "primary"});
    let spec = json!({
        "endpoints": [first, endpoint("replica", "10.20.0.2")], "tags": ["pg"],
        "meta": {"role": "any", "version": "17"},
    });
    let object = scene.register("ledger-db", spec).await?;
    let Scene {
        cluster, namespace, ..
    } = &scene;
    let id = |endpoint: &str| format!("{cluster}.{namespace}.ledger-db.ledger-db.{endpoint}");
    let seen = scene
        .instance_id("ledger-db", &id("primary"), |_| true)
        .await?;
    assert_eq!((&*seen.address, seen.port), ("db.example.com", 5432));
    assert_eq!(seen.tags, ["pg", "rw"]);
    assert_eq!(user_meta(&seen), [("role", "primary"), ("version", "17")]);
    let mark = |key: &str| &*seen.meta[key];
    assert_eq!(mark("external-k8s-ref-kind"), "ServiceRegistration");
    assert_eq!(mark("external-k8s-ref-name"), "ledger-db");
    assert_eq!(
        mark("lictor-owner"),
        format!("ServiceRegistration/{namespace}/ledger-db")
    );
    assert_eq!(Some(mark("lictor-uid")), object.metadata.uid.as_deref());
    let node = format!("lictor-{cluster}-external");
    assert_eq!((&*seen.node, mark("lictor-node")), (&*node, &*node));
    assert_eq!(seen.raw["Node"]["Address"], "127.0.0.1");
    let meta = json!({"external-source": "kubernetes", "lictor-cluster": cluster});
    assert_eq!(seen.raw["Node"]["Meta"], meta);
    let status = scene
        .registration("ledger-db", |status| {
            status["instances"]["summary"] == "2/2"
        })
        .await?;
    assert_eq!(condition(&status, "Ready").0, "True");

    let edit = json!({"spec": {"endpoints": [endpoint("replica", "10.20.0.3"), endpoint("new", "10.20.0.4")]}});
    scene.edit("ledger-db", edit).await?;
    scene.gone_id("ledger-db", &id("primary")).await?;
    scene
        .instance_id("ledger-db", &id("replica"), |seen| {
            seen.address == "10.20.0.3"
        })
        .await?;
    scene.instance_id("ledger-db", &id("new"), |_| true).await?;
    scene.unregister("ledger-db").await?;
    scene.gone_id("ledger-db", &id("replica")).await?;
    scene.gone_id("ledger-db", &id("new")).await?;
    Ok(())
}

#[tokio::test]
async fn an_edit_moves_its_instances() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    for (name, app) in [("a-0", "a"), ("b-0", "b")] {
        let pod = scene.pod(name).label("app", app).port("admin", 9090);
        pod.create_ready(&scene.client).await?;
    }
    scene
        .register("app", json!({"selector": {"matchLabels": {"app": "a"}}}))
        .await?;
    let first = scene.status("app", "a-0", "passing").await?;
    assert_eq!(first.port, 8080);

    scene
        .edit("app", json!({"spec": {"port": "admin"}}))
        .await?;
    let seen = scene
        .instance("app", "a-0", |seen| seen.port == 9090)
        .await?;
    assert_eq!(seen.create_index, first.create_index);
    scene.edit("app", json!({"spec": {"port": 7000}})).await?;
    scene
        .instance("app", "a-0", |seen| seen.port == 7000)
        .await?;

    scene
        .edit(
            "app",
            json!({"spec": {"selector": {"matchLabels": {"app": "b"}}}}),
        )
        .await?;
    scene.status("app", "b-0", "passing").await?;
    scene.gone("app", "a-0").await?;
    // A pod's labels decide as well.
    scene.label("a-0", "app", Some("b")).await?;
    scene.status("app", "a-0", "passing").await?;
    scene.label("a-0", "app", Some("a")).await?;
    scene.gone("app", "a-0").await?;

    scene
        .edit("app", json!({"spec": {"service": "renamed"}}))
        .await?;
    scene.status("renamed", "b-0", "passing").await?;
    scene.gone("app", "b-0").await?;
    let status = scene
        .registration("app", |status| status["instances"]["summary"] == "1/1")
        .await?;
    assert_eq!(status["service"], "renamed");

    scene.unregister("app").await?;
    scene.gone("renamed", "b-0").await?;
    Ok(())
}

#[tokio::test]
async fn of_two_in_conflict_the_older_holds_and_the_other_takes_over_in_place() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    scene
        .pod("web-0")
        .label("app", "web")
        .create_ready(&scene.client)
        .await?;
    let spec = |tag: &str| json!({"service": "web", "selector": {"matchLabels": {"app": "web"}}, "tags": [tag]});
    let first = scene.register("first", spec("first")).await?;
    let before = scene
        .instance("web", "web-0", |seen| seen.tags == ["first"])
        .await?;
    // Two objects of one second are told apart by their uid, which is chance: the younger is to lose.
    scene.is_older(&first).await?;
    scene.register("second", spec("second")).await?;
    let holder = format!("ServiceRegistration/{}/first", scene.namespace);
    let status = scene
        .registration("second", |status| {
            condition(status, "Ready").1 == "Conflict"
        })
        .await?;
    let (ready, _, message) = condition(&status, "Ready");
    ensure!(ready == "False" && message.contains(&holder), "{status:#}");
    assert_eq!(condition(&status, "Stalled").0, "True");
    assert_eq!(status["instances"]["summary"], "0/1");
    scene.event("Conflict", "second", &holder).await?;
    let status = scene.registration("first", |_| true).await?;
    assert_eq!(condition(&status, "Ready").0, "True");
    scene
        .instance("web", "web-0", |seen| seen.tags == ["first"])
        .await?;

    // Paused it claims nothing and keeps what it has, for another reason than its age.
    let paused = json!({"metadata": {"annotations": {"lictor.io/paused": "true"}}});
    scene.edit("first", paused).await?;
    scene
        .registration("second", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "Conflict" && message.contains("/first, which is paused or invalid, keeps")
        })
        .await?;

    scene.unregister("first").await?;
    let after = scene
        .instance("web", "web-0", |seen| seen.tags == ["second"])
        .await?;
    assert_eq!(
        after.create_index, before.create_index,
        "it was removed and created"
    );
    assert_eq!(
        after.meta["lictor-owner"],
        format!("ServiceRegistration/{}/second", scene.namespace)
    );
    scene
        .registration("second", |status| condition(status, "Ready").0 == "True")
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_registration_owns_and_the_annotations_of_the_pod_override() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .port("admin", 9090)
        .lictor("service", "web")
        .lictor("tags", "from-pod")
        .lictor("meta", "b=pod,c=pod");
    pod.create_ready(&scene.client).await?;
    let alone = scene.status("web", "web-0", "passing").await?;
    assert_eq!(
        alone.meta["lictor-owner"],
        format!("Pod/{}/web-0", scene.namespace)
    );

    let spec = json!({
        "service": "web", "selector": {}, "port": "admin", "tags": ["from-registration"],
        "meta": {"a": "registration", "b": "registration"}, "weights": {"passing": 5},
    });
    scene.register("web", spec).await?;
    let owner = format!("ServiceRegistration/{}/web", scene.namespace);
    let both = scene
        .instance("web", "web-0", |seen| seen.meta["lictor-owner"] == owner)
        .await?;
    assert_eq!(both.create_index, alone.create_index);
    assert_eq!((both.port, both.weights.0), (9090, 5));
    assert_eq!(both.tags, ["from-pod"]);
    assert_eq!(
        user_meta(&both),
        [("a", "registration"), ("b", "pod"), ("c", "pod")]
    );
    // There is one instance, not two.
    let all = scene.consul.health("web").await?;
    assert_eq!(
        all.iter()
            .filter(|one| one["Node"]["Node"] == *scene.consul_node())
            .count(),
        1
    );

    // Without lictor.io/service the pod is still registered, and its annotations still count.
    scene
        .annotate("web-0", &[("service", None), ("port", Some("http"))])
        .await?;
    scene
        .instance("web", "web-0", |seen| {
            seen.port == 8080 && seen.tags == ["from-pod"]
        })
        .await?;
    scene
        .annotate("web-0", &[("service", Some("web")), ("port", None)])
        .await?;
    scene
        .instance("web", "web-0", |seen| seen.port == 9090)
        .await?;

    scene.unregister("web").await?;
    let owner = format!("Pod/{}/web-0", scene.namespace);
    let last = scene
        .instance("web", "web-0", |seen| seen.meta["lictor-owner"] == owner)
        .await?;
    assert_eq!(last.create_index, alone.create_index);
    assert_eq!((last.port, last.weights.0), (8080, 1));
    Ok(())
}

#[tokio::test]
async fn with_tag_override_tags_are_written_at_creation_only() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene.pod("web-0").create_ready(&scene.client).await?;
    let spec =
        json!({"service": "web", "selector": {}, "tags": ["first"], "enableTagOverride": true});
    scene.register("web", spec).await?;
    let seen = scene
        .instance("web", "web-0", |seen| seen.tags == ["first"])
        .await?;
    assert_eq!(seen.raw["Service"]["EnableTagOverride"], true);
    let mut service = seen.raw["Service"].clone();
    service["Tags"] = json!(["by-hand"]);
    scene
        .by_hand(&json!({"Node": seen.node, "SkipNodeUpdate": true, "Service": service}))
        .await?;
    // Something else changes, and is written beside the tags of the other hand.
    scene.edit("web", json!({"spec": {"port": 9999}})).await?;
    let seen = scene
        .instance("web", "web-0", |seen| seen.port == 9999)
        .await?;
    assert_eq!(seen.tags, ["by-hand"]);
    Ok(())
}

/// What the API server itself refuses, with a text that tells what to do.
#[tokio::test]
async fn what_cannot_be_is_refused_at_apply() -> Result<()> {
    let scene = Scene::new().await?;
    let pairs: Value = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
    let pods = |more: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": "a"}}});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let cases = [
        (
            "both",
            pods(json!({"endpoints": []})),
            "exactly one of selector",
        ),
        (
            "neither",
            json!({"service": "a"}),
            "exactly one of selector",
        ),
        ("port", pods(json!({"port": 70000})), "1 to 65535"),
        (
            "name",
            pods(json!({"service": "Not_A_Label"})),
            "lower-case DNS label",
        ),
        ("comma", pods(json!({"tags": ["a,b"]})), "comma"),
        ("meta", pods(json!({"meta": pairs})), "48"),
        (
            "reserved",
            pods(json!({"meta": {"lictor-owner": "me"}})),
            "lictor-owner is reserved",
        ),
    ];
    for (name, spec, text) in cases {
        let object = json!({
            "apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
            "metadata": {"namespace": scene.namespace, "name": name}, "spec": spec,
        });
        let refused = scene.bed.kubectl_apply(&object.to_string()).await;
        let error = refused.err().with_context(|| format!("{name} was taken"))?;
        ensure!(format!("{error:#}").contains(text), "{name}: {error:#}");
    }
    Ok(())
}
