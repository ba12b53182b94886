//! The condition `lictor.io/registered` of a pod.
//!
//! All else in the status of a pod is the kubelet's: the condition is laid over it, for the very pod that it
//! is meant for. True is written as it is. False is written only onto a state of the pod that was read and
//! is not True: another process, or an earlier write of this one, may have let the pod through.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::params::{GetParams, Patch, PatchParams};
use kube::core::{Request, Status};
use kube::{Client, Resource as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::Outcome;
use super::{MANAGER, StatusUpdate, Told, WRITE_DEADLINE};
use crate::k8s::client::{CallError, within};
use crate::k8s::events::{EventReason, EventRecord, Regarding};
use crate::model::facts::{GateCondition, GateFacts};

/// The API server asks for patience.
const TOO_MANY_REQUESTS: u16 = 429;

/// Writes it; beside the outcome, why the API server does not allow that, if it does not.
///
/// `told` is what the log says already: thousands of pods may wait.
pub(super) async fn write(
    client: &Client,
    update: &StatusUpdate,
    condition: &GateCondition,
    told: &Told,
) -> (Outcome, Option<String>) {
    let StatusUpdate {
        namespace, name, ..
    } = update;
    match try_write(client, update, condition).await {
        Ok(outcome) => {
            told.denial.store(false, Ordering::Relaxed);
            (outcome, None)
        }
        Err(Failure::Call(error)) if is_gone(&error) => (Outcome::Gone, None),
        Err(Failure::Call(error)) => {
            let status = error.status();
            let why = status.filter(|status| is_refusal(status));
            let why = why.map(refusal);
            let known = why.is_some() && told.denial.swap(true, Ordering::Relaxed);
            let others = (!known).then(|| told.failures.lets(Instant::now()));
            if let Some(others) = others.flatten() {
                tracing::warn!(
                    %namespace, pod = %name, others, "the readiness gate was not written: {error}"
                );
            } else {
                tracing::debug!(%namespace, pod = %name, "the readiness gate was not written: {error}");
            }
            (Outcome::Failed, why)
        }
        Err(Failure::Unsendable(error)) => {
            tracing::error!(%namespace, pod = %name, "a readiness gate that cannot be sent: {error}");
            (Outcome::Gone, None)
        }
        Err(Failure::Garbled) => {
            tracing::warn!(%namespace, pod = %name, "the API server shows something else than the pod");
            (Outcome::Failed, None)
        }
    }
}

/// The Event for a pod whose condition may not be written.
pub(super) fn denied(update: &StatusUpdate, why: &str) -> EventRecord {
    let StatusUpdate {
        namespace,
        name,
        uid,
        ..
    } = update;
    EventRecord {
        regarding: Regarding::pod(namespace.clone(), name.clone(), uid.clone()),
        reason: EventReason::GateNotWritten,
        note: format!(
            "the readiness gate {} cannot be written: {why}",
            GateFacts::CONDITION
        ),
    }
}

enum Failure {
    Call(CallError),
    /// The request cannot be made.
    Unsendable(String),
    /// The answer is no pod.
    Garbled,
}

impl From<kube::core::request::Error> for Failure {
    fn from(error: kube::core::request::Error) -> Self {
        Self::Unsendable(error.to_string())
    }
}

async fn try_write(
    client: &Client,
    update: &StatusUpdate,
    condition: &GateCondition,
) -> Result<Outcome, Failure> {
    let StatusUpdate {
        namespace,
        name,
        uid,
        ..
    } = update;
    let pods = Request::new(Pod::url_path(&(), Some(namespace)));
    let mut metadata = json!({"uid": uid});
    let mut is_change = true;
    if !condition.open {
        let request = pods.get(name, &GetParams::default())?;
        let there: Value = match serde_json::from_str(&answer(client.request_text(request)).await?)
        {
            Ok(there) => there,
            Err(_) => return Err(Failure::Garbled),
        };
        let meta = &there["metadata"];
        if meta["uid"] != **uid || !meta["deletionTimestamp"].is_null() {
            return Ok(Outcome::Gone);
        }
        let conditions = there["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let shown = conditions.find(|shown| shown["type"] == GateFacts::CONDITION);
        if let Some(shown) = shown {
            let same =
                shown["reason"] == *condition.reason && shown["message"] == *condition.message;
            if shown["status"] == "True" || (shown["status"] == "False" && same) {
                return Ok(Outcome::Written);
            }
            is_change = shown["status"] != "False";
        }
        metadata["resourceVersion"] = meta["resourceVersion"].clone();
    }
    let mut shown = json!({
        "type": GateFacts::CONDITION,
        "status": if condition.open { "True" } else { "False" },
        "reason": condition.reason,
        "message": condition.message,
    });
    if is_change {
        // The API serves whole seconds.
        let now = Timestamp::now();
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        shown["lastTransitionTime"] = json!(now.to_string());
    }
    let patch = json!({"metadata": metadata, "status": {"conditions": [shown]}});
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let request = pods.patch_subresource("status", name, &params, &Patch::Strategic(&patch))?;
    answer(client.request_text(request)).await?;
    Ok(Outcome::Written)
}

async fn answer(call: impl Future<Output = kube::Result<String>>) -> Result<String, Failure> {
    within(WRITE_DEADLINE, call).await.map_err(Failure::Call)
}

/// Whether there is no such pod any more, or another one of its name.
/// Whether trying again helps nothing before somebody changes something, such as a webhook.
fn is_refusal(status: &Status) -> bool {
    (400..500).contains(&status.code) && !status.is_conflict() && status.code != TOO_MANY_REQUESTS
}

fn refusal(status: &Status) -> String {
    if status.is_forbidden() {
        format!(
            "Lictor needs the right to patch pods/status (chart: readinessGate): {}",
            status.message
        )
    } else {
        format!("the API server refuses it: {}", status.message)
    }
}

fn is_gone(error: &CallError) -> bool {
    error.status().is_some_and(|status| {
        let message = &status.message;
        let precondition = status.is_conflict() && message.contains("UID in the precondition");
        // Else the uid is compared like any other field that must not change.
        let field = status.is_invalid() && message.contains("metadata.uid");
        status.is_not_found() || precondition || field
    })
}
