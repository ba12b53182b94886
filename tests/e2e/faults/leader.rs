//! A leader that dies, hangs or is cut off, while another process stands by; and a Lease that others write.

mod cut;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{DeleteParams, PostParams};
use lictor_testbed::WallClock;
use serde_json::{Value, json};
use tokio::time::interval;

use super::{Churn, foreign, settle};
use crate::leader::{
    AFTER_KILL, AFTER_KILL_BY_LOCK, AFTER_STOP, epoch, follows, follows_since, holder,
    leads_within, lease, leases, pair, pod, stands_by, watched, watched_again, works, writer,
    wrote,
};
use crate::support::{Annotated as _, BY_LOCK, Oracle, Scene, until};

/// Pods that stay as they are.
const STAY: [&str; 3] = ["web-0", "web-1", "web-2"];

async fn follows_a_dead_one(more: &[&str], within: Duration) -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, more).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    // It dies at work.
    churn.turns(5).await?;
    let began = Instant::now();
    first.kill();
    churn.turns(10).await?;
    follows_since(&scene, "second", began, within).await?;
    churn.exact().await?;
    churn.turns(5).await?;
    churn.exact().await?;
    second.idle().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn by_a_lease_a_dead_leader_is_followed_within_twenty_seconds() -> Result<()> {
    follows_a_dead_one(&[], AFTER_KILL).await
}

#[tokio::test]
async fn by_a_lock_a_dead_leader_is_followed_within_fifty_seconds() -> Result<()> {
    follows_a_dead_one(&[BY_LOCK], AFTER_KILL_BY_LOCK).await
}

/// It stands still for so long that another one leads, and goes on.
#[tokio::test]
async fn one_that_stood_still_writes_nothing_when_it_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[]).await?;
    let oracle = watched(&scene).await?;
    let pod = scene.pod("changes").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "changes", "passing").await?;
    let selected = |name: &str| scene.pod(name).label("app", "sel");
    for name in ["sel-0", "sel-1"] {
        selected(name).create_ready(&scene.client).await?;
    }
    let spec = json!({"selector": {"matchLabels": {"app": "sel"}}});
    scene.register("sel", spec).await?;
    let counts = |text: &'static str| move |status: &Value| status["instances"]["summary"] == text;
    scene.registration("sel", counts("2/2")).await?;
    first.idle().await?;
    let before = wrote(&first).await?;
    let began = Instant::now();
    first.pause()?;
    pod.not_ready(&scene.client, "app").await?;
    follows_since(&scene, "second", began, AFTER_KILL).await?;
    scene.status("web", "changes", "critical").await?;
    let taken = epoch(&scene).await?;
    first.resume()?;
    stands_by(&first, "second").await?;
    works(&scene, "later").await?;
    for name in ["sel-0", "sel-1"] {
        selected(name).finish_deletion(&scene.client).await?;
    }
    selected("sel-2").create_ready(&scene.client).await?;
    scene.registration("sel", counts("1/1")).await?;
    second.idle().await?;
    let after = wrote(&first).await?;
    ensure!(
        after.to_bits() == before.to_bits(),
        "{after} writes after {before}"
    );
    assert_eq!(epoch(&scene).await?, taken);
    oracle.verdict().await?;
    // It leads again when the other one leaves.
    let oracle = watched_again(&scene).await?;
    second.terminate()?;
    follows(&scene, "first", AFTER_STOP).await?;
    scene.status("web", "changes", "critical").await?;
    pod.running_ready(&scene.client).await?;
    scene.status("web", "changes", "passing").await?;
    works(&scene, "last").await?;
    // What it knew when it led before is forgotten.
    scene.edit("sel", json!({"spec": {"tags": ["v2"]}})).await?;
    scene
        .instance("sel", "sel-2", |seen| seen.tags == ["v2"])
        .await?;
    first.idle().await?;
    scene.registration("sel", counts("1/1")).await?;
    oracle.verdict().await
}

#[tokio::test]
async fn a_lease_that_is_deleted_by_hand_is_made_anew_by_its_leader() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[]).await?;
    let oracle = watched(&scene).await?;
    let name = format!("lictor-{}", scene.cluster);
    leases(&scene)
        .delete(&name, &DeleteParams::default())
        .await?;
    until("the Lease to be there again", async || {
        let holder = holder(&scene).await?;
        ensure!(holder == "first", "{holder}");
        Ok(())
    })
    .await?;
    leads_within(&first, AFTER_STOP).await?;
    stands_by(&second, "first").await?;
    works(&scene, "later").await?;
    assert_eq!(writer(&scene).await?, "first");
    oracle.verdict().await
}

#[tokio::test]
async fn a_lock_that_is_removed_by_hand_is_taken_by_one_of_them() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[BY_LOCK]).await?;
    let oracle = watched(&scene).await?;
    let key = format!("/v1/kv/lictor/v1/{}/leader", scene.cluster);
    scene.consul.delete(&key).await?;
    until("one of them to lead, and one alone", async || {
        let lock = scene.consul.get(&format!("{key}?raw")).await?;
        let leads = [&first, &second].map(|it| it.metric("lictor_leader", &[]));
        let [first, second] = leads;
        let (first, second) = (first.await? > 0.5, second.await? > 0.5);
        ensure!(first != second, "{first}, {second}");
        let leader = if first { "first" } else { "second" };
        ensure!(lock["holder"] == leader, "{lock}");
        Ok(())
    })
    .await?;
    works(&scene, "later").await?;
    oracle.verdict().await
}

/// Waits until the leader has renewed its Lease so often.
async fn renewed(scene: &Scene, times: usize) -> Result<()> {
    let mut last = lease(scene).await?.renew_time;
    for _ in 0..times {
        last = until("the Lease to be renewed", async || {
            let now = lease(scene).await?.renew_time;
            ensure!(now != last, "{now:?}");
            Ok(now)
        })
        .await?;
    }
    Ok(())
}

/// The same by a lock, in the midst of its work: what it had to write is written by the other one.
#[tokio::test]
async fn by_a_lock_one_that_stood_still_writes_nothing_when_it_goes_on() -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, &[BY_LOCK]).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    churn.turns(10).await?;
    let began = Instant::now();
    first.pause()?;
    churn.turns(10).await?;
    follows_since(&scene, "second", began, AFTER_KILL_BY_LOCK).await?;
    churn.exact().await?;
    second.idle().await?;
    let (taken, before) = (epoch(&scene).await?, scene.dump().await?);
    first.resume()?;
    stands_by(&first, "second").await?;
    assert_eq!(scene.dump().await?, before);
    churn.turns(5).await?;
    churn.exact().await?;
    assert_eq!(epoch(&scene).await?, taken);
    oracle.verdict().await
}

/// A Lease of another process, whose clock is hours before or after ours.
async fn of_a_ghost(scene: &Scene, before: Option<Lease>, hours: i64) -> Result<Lease> {
    let mut lease = before.unwrap_or_default();
    lease.metadata.name = Some(format!("lictor-{}", scene.cluster));
    let time = Timestamp::now() + SignedDuration::from_hours(hours);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some("ghost".to_owned()),
        lease_duration_seconds: Some(15),
        renew_time: Some(MicroTime(time)),
        acquire_time: Some(MicroTime(time)),
        ..LeaseSpec::default()
    });
    let (api, params) = (leases(scene), PostParams::default());
    if lease.metadata.resource_version.is_some() {
        let name = format!("lictor-{}", scene.cluster);
        let lease = api.replace(&name, &params, &lease).await;
        return lease.context("it was taken while it was renewed");
    }
    Ok(api.create(&params, &lease).await?)
}

/// Only whether it changes counts, and our own clock.
#[tokio::test]
async fn a_lease_whose_times_are_hours_off_is_followed_when_it_is_not_renewed() -> Result<()> {
    for hours in [-5, 5] {
        let scene = Scene::new().await?;
        let mut ghost = of_a_ghost(&scene, None, hours).await?;
        let lictor = pod(&scene, "first", &[]).await?;
        stands_by(&lictor, "ghost").await?;
        // For longer than it would take if nobody renewed it; each fails where it was taken.
        let end = Instant::now() + AFTER_KILL;
        let mut beat = interval(Duration::from_secs(1));
        while Instant::now() < end {
            beat.tick().await;
            ghost = of_a_ghost(&scene, Some(ghost), hours).await?;
        }
        stands_by(&lictor, "ghost").await?;
        leads_within(&lictor, AFTER_KILL).await?;
        works(&scene, "web-0").await?;
    }
    Ok(())
}

/// Of both, by the hour, while pods change.
#[tokio::test]
async fn clocks_that_jump_change_nothing_about_who_leads() -> Result<()> {
    let scene = Scene::new().await?;
    let mut clocks = Vec::new();
    let mut both = Vec::new();
    for name in ["first", "second"] {
        let folder = format!("clock-{}-{name}", scene.cluster);
        let clock = WallClock::new(&scene.bed.dir().join(folder))?;
        let own = clock.env();
        let mut env = vec![("POD_NAME", name)];
        env.extend(own.iter().map(|(key, value)| (*key, &**value)));
        let mut lictor = scene.spawn_lictor(&[], &env).await?;
        lictor.ready().await?;
        clocks.push(clock);
        both.push(lictor);
    }
    stands_by(&both[1], "first").await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let taken = epoch(&scene).await?;
    for (ours, theirs) in [(5, 0), (-7, 30 * 24), (0, -3)] {
        clocks[0].set(ours * 3600)?;
        clocks[1].set(theirs * 3600)?;
        churn.turns(10).await?;
        churn.exact().await?;
        renewed(&scene, 2).await?;
        let spec = lease(&scene).await?;
        let time = spec.renew_time.context("no time of renewal")?.0;
        let off = time.duration_since(Timestamp::now()) - SignedDuration::from_hours(ours);
        ensure!(off.abs() < SignedDuration::from_mins(1), "{off} off");
        assert_eq!(spec.holder_identity.as_deref(), Some("first"));
        assert_eq!(spec.lease_transitions, Some(0));
        stands_by(&both[1], "first").await?;
    }
    assert_eq!(epoch(&scene).await?, taken);
    // Nor does it matter to the one that follows.
    clocks[1].set(-3600)?;
    both.remove(0).stop().await?;
    follows(&scene, "second", AFTER_STOP).await?;
    churn.turns(5).await?;
    churn.exact().await?;
    oracle.verdict().await
}

/// As a Deployment is updated: a new one comes up, and an old one goes once that is ready. Twice, while pods
/// change all the time.
async fn updated(more: &[&str]) -> Result<()> {
    let scene = Scene::new().await?;
    let (first, second) = pair(&scene, more).await?;
    let ids = settle(&scene, &STAY).await?;
    let mut churn = Churn::beside(&scene, &STAY);
    churn.turns(10).await?;
    churn.exact().await?;
    let oracle = Oracle::watch(&scene.consul, "web", &ids, &foreign(&scene)).await?;
    let done = AtomicBool::new(false);
    let updates = async {
        let mut running = vec![("first".to_owned(), first), ("second".to_owned(), second)];
        for number in 0..4 {
            let name = format!("new-{number}");
            let lictor = pod(&scene, &name, more).await?;
            running.push((name, lictor));
            let leader = writer(&scene).await?;
            let (name, lictor) = running.remove(0);
            let began = Instant::now();
            let status = lictor.stop().await?;
            ensure!(status.success(), "{name}: {status}");
            if name == leader {
                until("another one to write", async || {
                    let writer = writer(&scene).await?;
                    ensure!(writer != name, "{writer} does");
                    Ok(())
                })
                .await?;
                let took = began.elapsed();
                println!("{name} led, and was followed after {took:?}");
                ensure!(took <= AFTER_STOP, "{took:?}");
            }
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(running)
    };
    let changes = async {
        while !done.load(Ordering::Relaxed) {
            churn.turn().await?;
        }
        anyhow::Ok(())
    };
    let (_running, ()) = tokio::try_join!(updates, changes)?;
    churn.exact().await?;
    oracle.verdict().await
}

#[tokio::test]
async fn by_a_lease_two_rolling_updates_lose_nothing() -> Result<()> {
    updated(&[]).await
}

#[tokio::test]
async fn by_a_lock_two_rolling_updates_lose_nothing() -> Result<()> {
    updated(&[BY_LOCK]).await
}
