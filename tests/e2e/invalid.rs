//! Bad input: nothing wrong is registered, the last good registration is kept, and all else goes on.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::{Annotated as _, Instance, Scene, condition};

/// A pod with bad annotations.
struct Bad {
    pod: &'static str,
    annotations: Vec<(&'static str, String)>,
    /// What the Event says; empty where there is none.
    told: &'static str,
}

impl Bad {
    fn one(pod: &'static str, key: &'static str, value: &str, told: &'static str) -> Self {
        let annotations = vec![(key, value.to_owned())];
        Self {
            pod,
            annotations,
            told,
        }
    }
}

fn bad() -> Vec<Bad> {
    let pairs: Vec<_> = (0..65).map(|n| format!("k{n}=v")).collect();
    let long_name = format!("web,{}", "a".repeat(64));
    let mut host_port = Bad::one("host-port", "address", "HostIP", "has no hostPort");
    host_port.annotations.push(("port", "http".to_owned()));
    vec![
        Bad::one("port-range", "port", "70000", "is not within 1..65535"),
        Bad::one("port-zero", "port", "0", "is not within 1..65535"),
        Bad::one(
            "port-unknown",
            "port",
            "no-such",
            "no container port is called \"no-such\"",
        ),
        Bad::one(
            "port-form",
            "port",
            "no such port",
            "nor the name of a port",
        ),
        Bad::one(
            "meta-reserved",
            "meta",
            "lictor-owner=me",
            "\"lictor-owner\" is reserved",
        ),
        Bad::one(
            "meta-managed",
            "meta",
            "managed-by=me",
            "\"managed-by\" is reserved",
        ),
        Bad::one(
            "meta-form",
            "meta",
            "novalue",
            "\"novalue\" is not of the form key=value",
        ),
        Bad::one("meta-key", "meta", "a/b=c", "key \"a/b\""),
        Bad::one(
            "meta-many",
            "meta",
            &pairs.join(","),
            "65 pairs are given, at most 48",
        ),
        Bad::one(
            "comma",
            "tags",
            "${pod.annotations['example.com/csv']}",
            "\"a,b\" has a comma",
        ),
        Bad::one("variable", "tags", "${pod.nope}", "unknown variable \""),
        Bad::one("dollar", "meta", "price=5$", "write \"$$\""),
        Bad::one(
            "weight",
            "weight",
            "0",
            "\"0\" is not a number within 1..65535",
        ),
        Bad::one(
            "weight-nan",
            "weight-warning",
            "NaN",
            "\"NaN\" is not a number",
        ),
        Bad::one("address", "address", "podip", "neither PodIP nor HostIP"),
        host_port,
        Bad::one(
            "not-ready",
            "not-ready",
            "Deregister",
            "neither Critical nor Warning",
        ),
        Bad::one(
            "terminating",
            "terminating",
            "Passing",
            "none of Critical, Warning, Deregister",
        ),
        Bad::one("name", "service", "web,Not_A_Label", "\"Not_A_Label\""),
        Bad::one("name-long", "service", &long_name, "aaaa"),
        Bad::one("no-name", "service", " , ", "names no service"),
        Bad::one(
            "paused-what",
            "paused",
            "yes",
            "neither \"true\" nor \"false\"",
        ),
        Bad::one("paused", "paused", "true", ""),
    ]
}

/// Of a list with one bad name, the good ones are registered.
fn has_good_name(pod: &str) -> bool {
    matches!(pod, "name" | "name-long")
}

#[tokio::test]
async fn bad_annotations_keep_what_was_last_good() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let mut rows = bad();
    rows.retain(|row| !has_good_name(row.pod));
    let mut before = Vec::new();
    for row in &rows {
        let pod = scene
            .pod(row.pod)
            .annotation("example.com/csv", "a,b")
            .lictor("service", "web")
            .lictor("tags", "v1")
            .lictor("meta", "m=1")
            .lictor("weight", "4");
        pod.create_ready(&scene.client).await?;
        before.push(scene.status("web", row.pod, "passing").await?);
    }

    // With what is bad comes something good, which waits as well.
    for row in &rows {
        let mut edit = vec![("port", Some("4711")), ("weight", Some("9"))];
        edit.retain(|(key, _)| row.annotations.iter().all(|(bad, _)| bad != key));
        edit.extend(
            row.annotations
                .iter()
                .map(|(key, value)| (*key, Some(&**value))),
        );
        scene.annotate(row.pod, &edit).await?;
    }
    for row in rows.iter().filter(|row| !row.told.is_empty()) {
        let event = scene.event("InvalidAnnotation", row.pod, row.told).await?;
        assert_eq!(event.type_.as_deref(), Some("Warning"), "{}", row.pod);
    }
    scene.barrier().await?;
    lictor.idle().await?;
    let kept = async |what: &str| -> Result<()> {
        for before in &before {
            let now = scene.find_id("web", &before.id).await?;
            let now = now.with_context(|| format!("{} is not registered {what}", before.id))?;
            assert_eq!(now.raw["Service"], before.raw["Service"], "{what}");
        }
        Ok(())
    };
    kept("after the edit").await?;
    let events = scene.events("paused").await?;
    ensure!(
        events
            .iter()
            .all(|event| event.type_.as_deref() != Some("Warning")),
        "{events:?}"
    );
    let rejections = lictor.metric("lictor_rejections", &[]).await?;
    // All but the one that is paused.
    ensure!(
        rejections >= f64::from(u32::try_from(rows.len() - 1)?),
        "{rejections}"
    );

    // Health goes on.
    for row in &rows {
        scene.pod(row.pod).not_ready(&scene.client, "app").await?;
        let seen = scene.status("web", row.pod, "critical").await?;
        ensure!(seen.output.contains("app"), "{seen:#?}");
    }
    kept("when not ready").await?;

    // It is kept over a restart as well, from what Consul holds.
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    scene.barrier().await?;
    lictor.idle().await?;
    kept("after a restart").await?;

    // So go on the address, the end, and all once it is mended.
    for (number, row) in rows.iter().enumerate() {
        match number % 3 {
            0 => is_followed_to_its_end(&scene, row.pod).await?,
            1 => {
                scene.pod(row.pod).phase(&scene.client, "Succeeded").await?;
                scene.gone("web", row.pod).await?;
            }
            _ => is_mended(&scene, row.pod).await?,
        }
    }
    Ok(())
}

async fn is_followed_to_its_end(scene: &Scene, name: &str) -> Result<()> {
    let pod = scene.pod(name);
    // Where the host's address is asked for, that of the pod says nothing.
    if name != "host-port" {
        pod.set_ips(&scene.client, &["10.99.0.1"]).await?;
        let is = |seen: &Instance| seen.address == "10.99.0.1";
        let seen = scene.instance("web", name, is).await?;
        assert_eq!((&*seen.tags, seen.weights.0), (&["v1".to_owned()][..], 4));
    }
    pod.delete(&scene.client).await?;
    let is = |seen: &Instance| seen.output.contains("terminating");
    scene.instance("web", name, is).await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", name).await
}

async fn is_mended(scene: &Scene, name: &str) -> Result<()> {
    let mut mended = vec![
        ("service", Some("web")),
        ("port", Some("4711")),
        ("tags", Some("v2")),
        ("weight", Some("9")),
    ];
    let others = [
        "meta",
        "weight-warning",
        "address",
        "not-ready",
        "terminating",
        "paused",
    ];
    mended.extend(others.map(|key| (key, None)));
    scene.annotate(name, &mended).await?;
    let seen = scene
        .instance("web", name, |seen| seen.tags == ["v2"])
        .await?;
    assert_eq!((seen.port, seen.weights.0), (4711, 9));
    Ok(())
}

#[tokio::test]
async fn what_was_never_good_is_not_registered_and_harms_nobody() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let rows = bad();
    for row in &rows {
        let pod = scene
            .pod(row.pod)
            .annotation("example.com/csv", "a,b")
            .lictor("service", "web");
        let pod = row
            .annotations
            .iter()
            .fold(pod, |pod, (key, value)| pod.lictor(key, value));
        pod.create_ready(&scene.client).await?;
    }
    for row in rows.iter().filter(|row| !row.told.is_empty()) {
        scene.event("InvalidAnnotation", row.pod, row.told).await?;
    }
    scene
        .pod("good")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "good", "passing").await?;
    scene.barrier().await?;
    lictor.idle().await?;
    for row in &rows {
        let found = scene.find("web", row.pod).await?;
        // Of a list with one bad name, the good ones are registered.
        let has_good_name = matches!(row.pod, "name" | "name-long");
        assert_eq!(found.is_some(), has_good_name, "{}: {found:#?}", row.pod);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_bad_for_one_service_freezes_that_one_only() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let pod = scene
        .pod("web-0")
        .lictor("service", "web,api")
        .lictor("tags", "v1");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    let api = scene.status("api", "web-0", "passing").await?;
    scene
        .annotate(
            "web-0",
            &[("port.api", Some("70000")), ("tags", Some("v2"))],
        )
        .await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v2"])
        .await?;
    scene
        .event("InvalidAnnotation", "web-0", "lictor.io/port.api: ")
        .await?;
    lictor.idle().await?;
    let now = scene.find("api", "web-0").await?.context("api is gone")?;
    assert_eq!(now.raw["Service"], api.raw["Service"]);

    // An annotation for a service that the pod does not have holds nothing of the others.
    let edit = [
        ("port.api", None),
        ("tags.apy", Some("typo")),
        ("tags", Some("v3")),
    ];
    scene.annotate("web-0", &edit).await?;
    scene
        .event(
            "InvalidAnnotation",
            "web-0",
            "the pod has no service \"apy\"",
        )
        .await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v3"])
        .await?;
    scene
        .instance("api", "web-0", |seen| seen.tags == ["v3"])
        .await?;
    // A bad name among the services holds what is not named any more, and no good name.
    let edit = [
        ("tags.apy", None),
        ("service", Some("web,A_P_I")),
        ("tags", Some("v4")),
    ];
    scene.annotate("web-0", &edit).await?;
    scene
        .event("InvalidAnnotation", "web-0", "\"A_P_I\"")
        .await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v4"])
        .await?;
    let held = scene.find("api", "web-0").await?.context("api is gone")?;
    assert_eq!(held.tags, ["v3"]);
    scene.annotate("web-0", &[("service", Some("web"))]).await?;
    scene.gone("api", "web-0").await?;
    // One that nobody knows is told, and harmless.
    scene
        .annotate("web-0", &[("tag", Some("typo")), ("tags", Some("v5"))])
        .await?;
    scene
        .event("InvalidAnnotation", "web-0", "lictor.io/tag")
        .await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["v5"])
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_paused_pod_is_held_until_it_is_not() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    let pod = scene
        .pod("web-0")
        .lictor("service", "web")
        .lictor("tags", "v1");
    pod.create_ready(&scene.client).await?;
    scene
        .pod("web-1")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    scene.status("web", "web-1", "passing").await?;
    scene.annotate("web-0", &[("paused", Some("true"))]).await?;
    scene
        .annotate("web-0", &[("tags", Some("v2")), ("service", None)])
        .await?;
    // A change by hand stays meanwhile; one beside it, made later, is repaired.
    scene.barrier().await?;
    let mut service = seen.raw["Service"].clone();
    service["Tags"] = json!(["by-hand"]);
    scene
        .by_hand(&json!({"Node": seen.node, "SkipNodeUpdate": true, "Service": service}))
        .await?;
    let id = scene.id("web", "web-1");
    scene
        .away_by_hand(&json!({"Node": seen.node, "ServiceID": id}))
        .await?;
    scene.status("web", "web-1", "passing").await?;
    lictor.idle().await?;
    scene
        .instance("web", "web-0", |seen| seen.tags == ["by-hand"])
        .await?;
    pod.not_ready(&scene.client, "app").await?;
    let held = scene.status("web", "web-0", "critical").await?;
    assert_eq!(held.tags, ["by-hand"]);

    scene
        .annotate("web-0", &[("paused", None), ("service", Some("web"))])
        .await?;
    let free = scene
        .instance("web", "web-0", |seen| seen.tags == ["v2"])
        .await?;
    assert_eq!(free.create_index, seen.create_index);
    Ok(())
}

#[tokio::test]
async fn a_paused_registration_is_held_until_it_is_not() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let stays = scene.pod("stays");
    let goes = scene.pod("goes");
    for pod in [&stays, &goes] {
        pod.create_ready(&scene.client).await?;
    }
    scene
        .register("web", json!({"selector": {}, "tags": ["v1"]}))
        .await?;
    let done = |status: &Value| status["instances"]["summary"] == "2/2";
    scene.registration("web", done).await?;
    let paused = |value: Value| json!({"metadata": {"annotations": {"lictor.io/paused": value}}});
    scene.edit("web", paused(json!("true"))).await?;
    let why = |status: &Value| condition(status, "Ready").1.to_owned();
    scene
        .registration("web", |status| why(status) == "Paused")
        .await?;
    scene
        .edit("web", json!({"spec": {"tags": ["v2"], "port": 9999}}))
        .await?;
    let late = scene.pod("late");
    late.create_ready(&scene.client).await?;
    scene
        .registration("web", |status| why(status) == "Paused")
        .await?;
    stays.not_ready(&scene.client, "app").await?;
    let seen = scene.status("web", "stays", "critical").await?;
    assert_eq!((&*seen.tags, seen.port), (&["v1".to_owned()][..], 8080));
    goes.finish_deletion(&scene.client).await?;
    scene.gone("web", "goes").await?;
    scene.barrier().await?;
    ensure!(scene.find("web", "late").await?.is_none());

    lictor.stop().await?;
    let _lictor = scene.lictor().await?;
    scene.barrier().await?;
    let seen = scene
        .find("web", "stays")
        .await?
        .context("it went with the restart")?;
    assert_eq!(seen.tags, ["v1"]);

    scene.edit("web", paused(Value::Null)).await?;
    let free = scene
        .instance("web", "stays", |seen| seen.tags == ["v2"])
        .await?;
    assert_eq!((free.port, free.create_index), (9999, seen.create_index));
    scene
        .instance("web", "late", |seen| seen.port == 9999)
        .await?;
    Ok(())
}

#[tokio::test]
async fn paused_pods_that_end_are_removed_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let _lictor = scene.lictor().await?;
    let of = |number: usize| {
        let pod = scene.pod(&format!("job-{number}"));
        let pod = pod.lictor("service", "job");
        pod.lictor("terminating", "Deregister")
    };
    // More than a third of them end: were that found and not seen, it would be held.
    for number in 0..30 {
        of(number).create_ready(&scene.client).await?;
    }
    for number in 0..30 {
        let name = format!("job-{number}");
        scene.status("job", &name, "passing").await?;
        scene.annotate(&name, &[("paused", Some("true"))]).await?;
    }
    for number in 0..12 {
        let phase = if number % 2 == 0 {
            "Succeeded"
        } else {
            "Failed"
        };
        of(number).phase(&scene.client, phase).await?;
    }
    for number in 12..14 {
        of(number).delete(&scene.client).await?;
    }
    for number in 0..14 {
        scene.gone("job", &format!("job-{number}")).await?;
    }
    for number in 14..30 {
        let name = format!("job-{number}");
        let left = scene.find("job", &name).await?;
        ensure!(
            left.is_some_and(|left| left.status == "passing"),
            "{name} went"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_mistake_of_a_registration_is_told_to_it_once() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    for name in ["web-0", "web-1", "web-2"] {
        scene.pod(name).create_ready(&scene.client).await?;
    }
    let own = scene.pod("own").lictor("weight", "0");
    own.create_ready(&scene.client).await?;
    let spec = json!({"selector": {}, "tags": ["${pod.nope}"], "health": {"notReady": "Warning"}});
    scene.register("web", spec).await?;
    scene
        .event("InvalidAnnotation", "web", "(and 2 more)")
        .await?;
    scene
        .event("InvalidAnnotation", "own", "lictor.io/weight")
        .await?;
    lictor.idle().await?;
    let warnings = async |object: &str| -> Result<usize> {
        let mut events = scene.events(object).await?;
        events.retain(|event| event.type_.as_deref() == Some("Warning"));
        Ok(events.len())
    };
    for (object, expected) in [("web", 1), ("web-0", 0), ("web-1", 0), ("web-2", 0)] {
        assert_eq!(warnings(object).await?, expected, "{object}");
    }

    // Mended; then a word that is not understood pauses it, and the health of its pods goes on.
    scene.edit("web", json!({"spec": {"tags": ["v1"]}})).await?;
    let seen = scene.status("web", "web-0", "passing").await?;
    scene.pod("web-1").not_ready(&scene.client, "app").await?;
    scene.status("web", "web-1", "warning").await?;
    let paused = json!({"metadata": {"annotations": {"lictor.io/paused": "yes"}}});
    scene.edit("web", paused).await?;
    scene
        .event(
            "InvalidAnnotation",
            "web",
            "\"yes\" is neither \"true\" nor \"false\"",
        )
        .await?;
    scene.edit("web", json!({"spec": {"tags": ["v2"]}})).await?;
    let status = scene
        .registration("web", |status| condition(status, "Ready").1 == "Invalid")
        .await?;
    assert_eq!(status["service"], "web");
    scene.pod("web-0").not_ready(&scene.client, "app").await?;
    let held = scene.status("web", "web-0", "warning").await?;
    assert_eq!(held.tags, seen.tags);
    scene.status("web", "web-1", "warning").await?;
    Ok(())
}
