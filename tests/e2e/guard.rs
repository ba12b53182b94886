//! What is found missing is judged together: much of it at once is held.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::{kubelet, wait};
use serde_json::json;

use crate::support::{Lictor, Oracle, SOON, Scene, condition, json_lines, until};

/// How long pairs of confirming lists are apart.
const SPACING: Duration = Duration::from_secs(30);

fn name(number: usize) -> String {
    format!("web-{number}")
}

/// Makes so many pods, which a registration selects; waits until Consul has all.
async fn settle(scene: &Scene, count: usize) -> Result<Vec<String>> {
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}});
    scene.register("web", spec).await?;
    create(scene, 0..count).await?;
    let all = format!("{count}/{count}");
    scene
        .registration("web", |status| status["instances"]["summary"] == *all)
        .await?;
    Ok((0..count).map(|n| scene.id("web", &name(n))).collect())
}

async fn create(scene: &Scene, numbers: impl IntoIterator<Item = usize>) -> Result<()> {
    let pods = numbers.into_iter();
    let pods = pods.map(|n| scene.pod(&name(n)).label("app", "web"));
    kubelet::create_all(&scene.client, pods, 8).await
}

async fn delete(scene: &Scene, numbers: impl IntoIterator<Item = usize>) -> Result<()> {
    let pods: Vec<_> = numbers.into_iter().map(|n| scene.pod(&name(n))).collect();
    kubelet::for_each(pods, 8, async |pod| {
        pod.finish_deletion(&scene.client).await
    })
    .await
}

/// How many instances Consul has of the service.
async fn count(scene: &Scene) -> Result<usize> {
    let all = scene.consul.health("web").await?;
    let ours = all
        .iter()
        .filter(|one| one["Node"]["Node"] == *scene.consul_node());
    Ok(ours.count())
}

/// Waits until Consul has so many.
async fn has(scene: &Scene, wanted: usize, deadline: Duration) -> Result<()> {
    wait::until(
        &format!("{wanted} instances to be left"),
        deadline,
        async || {
            let now = count(scene).await?;
            ensure!(now == wanted, "{now}");
            Ok(())
        },
    )
    .await
}

async fn held(lictor: &Lictor, wanted: u32) -> Result<()> {
    lictor.shows("lictor_held_deletes", f64::from(wanted)).await
}

#[tokio::test]
async fn much_that_is_found_missing_is_held_until_it_is_back() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, 14).await?;
    // The pod that lictor runs as hears of it as well.
    let own = scene.pod("lictor-0");
    own.create_ready(&scene.client).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    delete(&scene, 0..12).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &[]).await?;
    let before = scene.dump().await?;

    let uid = scene.uid("lictor-0").await?;
    let env = [
        ("POD_NAMESPACE", &*scene.namespace),
        ("POD_NAME", "lictor-0"),
        ("POD_UID", &*uid),
    ];
    let mut lictor = scene.spawn_lictor(&["--log-format=json"], &env).await?;
    lictor.ready().await?;
    held(&lictor, 12).await?;
    for about in ["web", "lictor-0"] {
        let event = scene
            .event("DeletesHeld", about, "12 of 14 entries would go")
            .await?;
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let note = event.note.unwrap();
        ensure!(note.contains("lictor gc --yes"), "{note}");
    }
    let status = scene
        .registration("web", |status| {
            let (ready, reason, message) = condition(status, "Ready");
            (ready, reason) == ("False", "Held") && message.contains("12 of 14")
        })
        .await?;
    assert_eq!(condition(&status, "Reconciling").0, "True");
    // The line says how much, the held ones say so each for themselves in the status.
    let lines = json_lines(&lictor.log())?;
    let lines: Vec<_> = lines
        .iter()
        .filter(|line| line["reason"] == "DeletesHeld")
        .collect();
    ensure!(lines.len() == 1 && lines[0]["held"] == 12, "{lines:#?}");
    let (code, text) = lictor.http("/readyz").await?;
    assert_eq!(code, 200, "{text}");
    assert_eq!(scene.dump().await?, before);

    // What else there is to do is done meanwhile, and what was seen going goes.
    create(&scene, [20]).await?;
    scene.status("web", &name(20), "passing").await?;
    delete(&scene, [20]).await?;
    scene.gone("web", &name(20)).await?;
    held(&lictor, 12).await?;

    // A further start finds the same.
    lictor.stop().await?;
    let lictor = scene.lictor().await?;
    held(&lictor, 12).await?;

    // They come back one after the other: that the rest would be within the limits releases nothing.
    create(&scene, 0..5).await?;
    held(&lictor, 7).await?;
    scene
        .registration("web", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "Held" && message.contains("until 3 lists agree")
        })
        .await?;
    create(&scene, 5..12).await?;
    held(&lictor, 0).await?;
    scene
        .registration("web", |status| {
            condition(status, "Ready").0 == "True" && status["instances"]["summary"] == "14/14"
        })
        .await?;
    oracle.verdict().await
}

/// Held is not in service where it would lead to another pod.
#[tokio::test]
async fn held_instances_whose_address_is_anothers_are_critical_and_stay_held() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    let ids = settle(&scene, 14).await?;
    lictor.idle().await?;
    let addresses = async |numbers: std::ops::Range<usize>| -> Result<Vec<String>> {
        let mut addresses = Vec::new();
        for number in numbers {
            let found = scene.find("web", &name(number)).await?;
            addresses.push(found.context("it is gone")?.address);
        }
        Ok(addresses)
    };
    let taken = addresses(0..6).await?;
    lictor.stop().await?;
    delete(&scene, 0..12).await?;
    let all = scene.consul.health("web").await?;
    let heir = |number: usize| format!("heir-{number}");
    for (number, address) in taken.iter().take(4).enumerate() {
        let pod = scene.pod(&heir(number)).ip(address);
        pod.create_ready(&scene.client).await?;
    }
    let lictor = scene.lictor().await?;
    // Some had new owners before the start, some get them now.
    for (number, address) in taken.iter().enumerate().skip(4) {
        let pod = scene.pod(&heir(number)).ip(address);
        pod.create_ready(&scene.client).await?;
    }
    for number in 0..6 {
        let seen = scene.status("web", &name(number), "critical").await?;
        let text = format!("belongs to Pod/{}/{}", scene.namespace, heir(number));
        ensure!(seen.output.contains(&text), "{}", seen.output);
    }
    held(&lictor, 12).await?;
    lictor.idle().await?;
    held(&lictor, 12).await?;
    let now = scene.consul.health("web").await?;
    for id in &ids {
        let of = |all: &[serde_json::Value]| -> Option<serde_json::Value> {
            let one = all.iter().find(|one| one["Service"]["ID"] == **id)?;
            Some(one["Service"].clone())
        };
        ensure!(of(&now) == of(&all), "{id} was changed or removed");
    }
    for number in 6..14 {
        scene.status("web", &name(number), "passing").await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_within_one_of_the_limits_goes_at_once() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    settle(&scene, 40).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    // 12 are more than the floor, but not more than 30 percent of 40.
    delete(&scene, 0..12).await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    has(&scene, 28, SOON / 2).await?;
    held(&lictor, 0).await?;
    let lines = json_lines(&lictor.log())?;
    let audit: Vec<_> = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .collect();
    assert_eq!(audit.len(), 12);
    for line in audit {
        assert_eq!(line["seen"], false);
        ensure!(line["epoch"].is_u64() && line["index"].is_u64(), "{line}");
    }
    lictor.stop().await?;
    // 10 of 28 are more than the percentage, but not more than the floor.
    delete(&scene, 12..22).await?;
    let lictor = scene.lictor().await?;
    has(&scene, 18, SOON / 2).await?;
    held(&lictor, 0).await
}

#[tokio::test]
async fn the_limits_are_flags() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    settle(&scene, 16).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    delete(&scene, [0]).await?;
    let strict = ["--max-delete-percent=0", "--max-delete-floor=0"];
    let lictor = scene.lictor_with(&strict).await?;
    held(&lictor, 1).await?;
    scene
        .registration("web", |status| condition(status, "Ready").1 == "Held")
        .await?;
    lictor.stop().await?;
    assert_eq!(count(&scene).await?, 16);
    delete(&scene, 1..13).await?;
    let _lictor = scene.lictor_with(&["--max-delete-percent=90"]).await?;
    has(&scene, 3, SOON / 2).await
}

#[tokio::test]
async fn what_was_seen_going_is_never_held() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    settle(&scene, 14).await?;
    delete(&scene, 0..14).await?;
    has(&scene, 0, SOON / 2).await?;
    let lines = json_lines(&lictor.log())?;
    let audit: Vec<_> = lines
        .iter()
        .filter(|line| line["target"] == "audit")
        .collect();
    assert_eq!(audit.len(), 14);
    ensure!(audit.iter().all(|line| line["seen"] == true), "{audit:#?}");
    held(&lictor, 0).await?;
    // The same by an edit that drops the claim of all.
    create(&scene, 0..12).await?;
    has(&scene, 12, SOON).await?;
    let other = json!({"spec": {"selector": {"matchLabels": {"app": "other"}}}});
    scene.edit("web", other).await?;
    has(&scene, 0, SOON / 2).await
}

#[tokio::test]
async fn all_of_a_few_go_when_three_lists_agree() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    settle(&scene, 3).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    delete(&scene, 0..3).await?;
    let started = Instant::now();
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    held(&lictor, 3).await?;
    scene
        .registration("web", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "Held" && message.contains("until 3 lists agree")
        })
        .await?;
    assert_eq!(count(&scene).await?, 3);
    has(&scene, 0, 2 * SPACING + SOON).await?;
    let took = started.elapsed();
    ensure!(took >= 2 * SPACING, "gone after {took:?}");
    held(&lictor, 0).await?;
    scene
        .registration("web", |status| condition(status, "Ready").0 == "True")
        .await?;
    let lines = json_lines(&lictor.log())?;
    let seen = |line: &serde_json::Value| line["target"] == "audit" && line["seen"] == false;
    assert_eq!(lines.iter().filter(|line| seen(line)).count(), 3);
    Ok(())
}

#[tokio::test]
async fn more_lists_can_be_asked_for() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    settle(&scene, 4).await?;
    lictor.idle().await?;
    lictor.stop().await?;
    delete(&scene, [0, 1]).await?;
    let started = Instant::now();
    let lictor = scene.lictor_with(&["--delete-confirm=2"]).await?;
    held(&lictor, 2).await?;
    scene
        .registration("web", |status| {
            let (_, reason, message) = condition(status, "Ready");
            reason == "Held" && message.contains("until 2 lists agree")
        })
        .await?;
    // One of them is back before they do.
    create(&scene, [1]).await?;
    held(&lictor, 1).await?;
    let kept = scene.find("web", &name(1)).await?.context("it is gone")?;
    has(&scene, 3, SPACING + SOON).await?;
    let took = started.elapsed();
    ensure!(took >= SPACING, "gone after {took:?}");
    until("the one that came back to stay", async || {
        let now = scene.find("web", &name(1)).await?.context("it is gone")?;
        ensure!(now.create_index == kept.create_index, "{now:#?}");
        Ok(())
    })
    .await
}

/// Puts entries there by hand that say that they are ours, and that nothing claims.
async fn strays(scene: &Scene, numbers: std::ops::Range<usize>) -> Result<()> {
    for number in numbers {
        let pod = format!("stray-{number}");
        let entry = json!({
            "Node": scene.consul_node(), "SkipNodeUpdate": true,
            "Service": {"ID": scene.id("web", &pod), "Service": "web", "Port": 1, "Meta": {
                "lictor-cluster": scene.cluster, "lictor-node": scene.consul_node(),
                "lictor-owner": format!("Pod/{}/{pod}", scene.namespace),
            }},
        });
        scene.by_hand(&entry).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_went_before_counts_with_what_is_found_now() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    settle(&scene, 20).await?;
    strays(&scene, 0..8).await?;
    has(&scene, 20, SOON).await?;
    lictor.idle().await?;
    // As many again, found together, would be within the limits by themselves.
    lictor.pause()?;
    strays(&scene, 8..16).await?;
    lictor.resume()?;
    held(&lictor, 8).await?;
    lictor.idle().await?;
    held(&lictor, 8).await?;
    assert_eq!(count(&scene).await?, 20 + 8);
    Ok(())
}
