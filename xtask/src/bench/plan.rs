//! `lictor plan`, which is to be fast enough to be looked at before every change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Setup,
    expected::Expected,
    report::{Goal, Report},
    scene::Scene,
};

const NODES: usize = 100;
/// Nothing here takes longer, unless it fails.
const DEADLINE: Duration = Duration::from_mins(2);
/// Pods that are changed while nobody writes.
const CHANGED: usize = 100;
/// How often it is asked; the median counts.
const TRIES: usize = 5;

/// All is registered, and then nothing, or something, is to be done.
pub async fn measure(setup: &Setup, report: &mut Report) -> Result<()> {
    let size = if setup.quick { 500 } else { 5_000 };
    let row = format!("plan {size}");
    let scene = Scene::start(setup, NODES).await?;
    let instances = scene.instances(0..size);
    scene.create(&instances).await?;
    let lictor = scene.lictor()?;
    Expected::of(NODES, &instances)
        .wait(&scene.consul, DEADLINE)
        .await?;
    lictor.settled().await?;
    for _ in 0..TRIES {
        let (took, items) = plan(&scene).await?;
        ensure!(items == 0, "{items} changes where nothing is to be done");
        report.add(&row, "nothing to do", took, "s", Goal::Below(3.0));
    }
    lictor.kill().await?;

    let (gone, _) = instances.split_at(CHANGED / 2);
    scene.delete(gone).await?;
    let new = scene.instances(size..size + CHANGED / 2);
    scene.create(&new).await?;
    for _ in 0..TRIES {
        let (took, items) = plan(&scene).await?;
        ensure!(items == CHANGED, "{items} changes instead of {CHANGED}");
        let name = format!("{CHANGED} changes");
        report.add(&row, &name, took, "s", Goal::Below(3.0));
    }
    Ok(())
}

/// The seconds that a plan takes, from the start of the process to its end, and how many items it has.
async fn plan(scene: &Scene) -> Result<(f64, usize)> {
    let began = Instant::now();
    let output = scene.output("plan", &["--output=json"]).await?;
    let took = began.elapsed().as_secs_f64();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "lictor plan: {error}");
    let plan: Value = serde_json::from_slice(&output.stdout)?;
    let items = plan["items"].as_array().context("no items")?;
    Ok((took, items.len()))
}
