//! What is written back: status and Events.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use lictor::api::conditions::{self, ConditionType, Verdict};
use lictor::api::service_registration::{ConsulState, Instances, QueryState};
use lictor::api::{
    LabelSelector, ServiceRegistration, ServiceRegistrationSpec, ServiceRegistrationStatus,
};
use lictor::k8s::events::EventWriter;
use lictor::k8s::status::StatusWriter;
use lictor::k8s::{EventReason, EventRecord, ObjectStatus, Regarding, StatusUpdate};
use lictor::model::facts::GateCondition;
use lictor_testbed::kubelet::TestPod;
use lictor_testbed::{Bed, wait};
use serde_json::Value;

use crate::SOON;

fn status(registered: u32) -> ServiceRegistrationStatus {
    let mut conditions = Vec::new();
    let verdict = Verdict {
        status: Some(registered == 3),
        reason: "Counted",
        message: format!("{registered} of 3 instances are registered"),
    };
    conditions::set(
        &mut conditions,
        ConditionType::Ready,
        verdict,
        Some(1),
        Timestamp::now(),
    );
    ServiceRegistrationStatus {
        observed_generation: Some(1),
        service: Some("payment".to_owned()),
        conditions,
        instances: Some(Instances {
            desired: 3,
            registered,
            passing: registered,
            summary: format!("{registered}/3"),
            ..Instances::default()
        }),
        queries: vec![QueryState {
            name: "nearest-payment".to_owned(),
            id: "0d4b1e7c".to_owned(),
        }],
        consul: Some(ConsulState {
            datacenter: Some("dc1".to_owned()),
            index: Some(u64::from(registered) << 40),
        }),
        last_error: (registered == 0).then(|| "nothing yet".to_owned()),
    }
}

pub async fn status_is_written_and_shown(bed: &Bed, client: &Client) -> Result<()> {
    let api = Api::<ServiceRegistration>::namespaced(client.clone(), "default");
    let spec = ServiceRegistrationSpec {
        selector: Some(LabelSelector::default()),
        ..ServiceRegistrationSpec::default()
    };
    let object = ServiceRegistration::new("payment", spec);
    let created = api.create(&PostParams::default(), &object).await?;
    let uid = created.uid().context("an object without a uid")?;
    let update = |name: &str, uid: &str, registered| StatusUpdate {
        namespace: "default".into(),
        name: name.into(),
        uid: uid.into(),
        status: ObjectStatus::Registration(status(registered)),
    };
    let (sender, writer) = StatusWriter::new(client.clone());
    let writer = tokio::spawn(writer.run());

    // To nobody, and to an earlier object of the name: neither holds up the others.
    sender.send(update("nobody", &uid, 1));
    sender.send(update("payment", "00000000-0000-4000-8000-000000000000", 1));
    let before = tokio::time::Instant::now();
    sender.send(update("payment", &uid, 0));
    let shown = async |name: &str, wanted: u32| {
        wait::until("the status", SOON, async || {
            let held = api.get(name).await?;
            let held = held.status.context("no status")?;
            ensure!(held == status_as(&held, wanted), "{held:?}");
            anyhow::Ok(())
        })
        .await
    };
    shown("payment", 0).await?;
    for registered in 1..=3 {
        sender.send(update("payment", &uid, registered));
    }
    shown("payment", 3).await?;
    ensure!(
        before.elapsed() >= std::time::Duration::from_secs(1),
        "two writes within {:?}",
        before.elapsed()
    );
    let held = api.get("payment").await?;
    let writers: Vec<_> = held
        .managed_fields()
        .iter()
        .filter(|fields| fields.subresource.is_some())
        .collect();
    ensure!(
        writers.len() == 1 && writers[0].manager.as_deref() == Some("lictor"),
        "{writers:?}"
    );

    let row = bed
        .kubectl(&["get", "sreg", "payment", "--no-headers"])
        .await?;
    let row: Vec<_> = row.split_whitespace().collect();
    ensure!(
        row.get(..5) == Some(&["payment", "payment", "True", "3/3", "3"]),
        "{row:?}"
    );
    let wide = bed
        .kubectl(&["get", "sreg", "payment", "-o", "wide"])
        .await?;
    ensure!(
        wide.contains("REASON") && wide.contains("Counted") && wide.contains("3 of 3 instances"),
        "{wide}"
    );

    // The same once more is no write: another object's second write shows that its time has come.
    let marker = api
        .create(
            &PostParams::default(),
            &ServiceRegistration::new("marker", object.spec),
        )
        .await?;
    let marker_uid = marker.uid().context("an object without a uid")?;
    sender.send(update("payment", &uid, 2));
    sender.send(StatusUpdate {
        status: ObjectStatus::Registration(held.status.clone().context("no status")?),
        ..update("payment", &uid, 3)
    });
    for registered in 1..=2 {
        sender.send(update("marker", &marker_uid, registered));
        shown("marker", registered).await?;
    }
    let version = held.resource_version();
    ensure!(
        api.get("payment").await?.resource_version() == version,
        "written again"
    );
    ensure!(!writer.is_finished(), "the writer ended");
    writer.abort();
    for name in ["payment", "marker"] {
        api.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// The status that is wanted, with the times that are held: they are those of the writer's clock.
fn status_as(held: &ServiceRegistrationStatus, registered: u32) -> ServiceRegistrationStatus {
    let mut wanted = status(registered);
    for (wanted, held) in wanted.conditions.iter_mut().zip(&held.conditions) {
        wanted.last_transition_time = held.last_transition_time.clone();
    }
    wanted
}

pub async fn a_gate_opens_for_good_and_for_its_own_pod(client: &Client) -> Result<()> {
    const GATE: &str = "lictor.io/registered";
    let pod = TestPod::new("default", "liquid-0")
        .node("n1")
        .ip("10.1.1.1");
    let pod = pod.readiness_gate(GATE).readiness_gate("example.com/lb");
    pod.create_ready(client).await?;
    pod.condition(client, "example.com/lb", "True").await?;
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    let before = api.get("liquid-0").await?;
    let uid = before.uid().context("a pod without a uid")?;
    let update = |uid: &str, open: bool, message: &str| StatusUpdate {
        namespace: "default".into(),
        name: "liquid-0".into(),
        uid: uid.into(),
        status: ObjectStatus::Pod(GateCondition {
            open,
            reason: "Because".into(),
            message: message.into(),
        }),
    };
    let shown = async || -> Result<Value> {
        let pod = serde_json::to_value(api.get("liquid-0").await?)?;
        let conditions = pod["status"]["conditions"].as_array().cloned();
        let mut conditions = conditions.unwrap_or_default().into_iter();
        Ok(conditions
            .find(|condition| condition["type"] == GATE)
            .unwrap_or_default())
    };
    let says = async |status: &str, message: &str| {
        wait::until("the gate", SOON, async || {
            let shown = shown().await?;
            let is = shown["status"] == *status && shown["message"] == *message;
            ensure!(is, "{shown}");
            anyhow::Ok(shown)
        })
        .await
    };
    let writer = || {
        let (sender, writer) = StatusWriter::new(client.clone());
        (sender, tokio::spawn(writer.run()))
    };
    // To an earlier pod of the name, whatever it is: this one does not get it.
    let (sender, first) = writer();
    for open in [true, false] {
        sender.send(update(
            "00000000-0000-4000-8000-000000000000",
            open,
            "of another",
        ));
        wait::until("the update to be dropped", SOON, async || {
            ensure!(sender.waiting() == 0, "it waits");
            anyhow::Ok(())
        })
        .await?;
        ensure!(shown().await?.is_null(), "another pod got it");
    }
    sender.send(update(&uid, false, "not yet"));
    let closed = says("False", "not yet").await?;
    sender.send(update(&uid, false, "still not"));
    let still = says("False", "still not").await?;
    ensure!(
        closed["lastTransitionTime"] == still["lastTransitionTime"],
        "{still}"
    );
    sender.send(update(&uid, true, "there it is"));
    says("True", "there it is").await?;
    first.abort();

    // Another process, which knows nothing of that, does not set it back.
    let version = api.get("liquid-0").await?.resource_version();
    let (sender, second) = writer();
    sender.send(update(&uid, false, "too late"));
    wait::until("the update to be dropped", SOON, async || {
        ensure!(sender.waiting() == 0, "it waits");
        anyhow::Ok(())
    })
    .await?;
    second.abort();
    let after = api.get("liquid-0").await?;
    ensure!(
        after.resource_version() == version,
        "it was written: {after:?}"
    );
    // All else is the kubelet's, and as it was.
    let others = |pod: &Pod| -> Result<Value> {
        let mut status = serde_json::to_value(&pod.status)?;
        let conditions = status["conditions"]
            .as_array_mut()
            .context("no conditions")?;
        conditions.retain(|condition| condition["type"] != GATE);
        Ok(status)
    };
    ensure!(others(&after)? == others(&before)?, "{after:?}");
    pod.finish_deletion(client).await
}

pub async fn events_are_written_and_counted(bed: &Bed, client: &Client) -> Result<()> {
    let pod: Pod = TestPod::new("default", "told").create(client).await?;
    let uid = pod.uid().context("a pod without a uid")?;
    let (sender, writer) = EventWriter::new(client.clone(), "lictor-0");
    let writer = tokio::spawn(writer.run());
    let send = |reason, note: &str| {
        let regarding = Regarding::pod("default".into(), "told".into(), uid.as_str().into());
        sender.send(EventRecord {
            regarding,
            reason,
            note: note.to_owned(),
        });
    };
    send(EventReason::Registered, &"registered ".repeat(200));
    send(EventReason::Conflict, "held by a");
    send(EventReason::Conflict, "held by a");
    send(EventReason::Conflict, "held by b");
    let api = Api::<Event>::namespaced(client.clone(), "default");
    let all = wait::until("three Events", SOON, async || {
        let all = api
            .list(&ListParams::default().fields("regarding.name=told"))
            .await?
            .items;
        let counted = all.iter().any(|event| {
            event
                .series
                .as_ref()
                .is_some_and(|series| series.count == 2)
        });
        ensure!(all.len() == 3 && counted, "{all:?}");
        anyhow::Ok(all)
    })
    .await?;
    for event in &all {
        let warning = event.reason.as_deref() == Some("Conflict");
        ensure!(
            event.type_.as_deref() == Some(if warning { "Warning" } else { "Normal" }),
            "{event:?}"
        );
    }
    let described = bed.kubectl(&["describe", "pod", "told"]).await?;
    for part in ["held by a", "held by b", "registered registered", "lictor"] {
        if !described.contains(part) {
            bail!("{part:?} is not in:\n{described}");
        }
    }
    ensure!(sender.dropped() == 0, "{} were dropped", sender.dropped());
    drop(sender);
    tokio::time::timeout(SOON, writer).await??;
    Ok(())
}
