//! `lictor gc` at a terminal: it asks, and only a yes removes anything.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::CONSUL_MANAGEMENT_TOKEN;
use rexpect::session::spawn_command;
use serde_json::json;

use crate::gc::much_is_gone;
use crate::support::{Scene, at_terminal, until};

/// How long `lictor gc` may take until it asks: it waits 10 s for a process that writes.
const PATIENCE: Duration = Duration::from_mins(1);

/// What someone at a terminal saw, and the exit code. Meanwhile they do something, before they answer.
async fn gc(
    scene: &Scene,
    answer: &'static str,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<(String, i32)> {
    let mut args = scene.args();
    "gc".clone_into(&mut args[0]);
    args.retain(|arg| !arg.starts_with("--listen"));
    args.push(format!("--consul-http-token={CONSUL_MANAGEMENT_TOKEN}"));
    let mut command: Command = at_terminal();
    command.args(args);
    let terminal = tokio::task::spawn_blocking(move || {
        let patience = u64::try_from(PATIENCE.as_millis())?;
        let mut terminal = spawn_command(command, Some(patience))?;
        let before = terminal.exp_string("[y/N] ")?;
        anyhow::Ok((terminal, before))
    });
    let (mut terminal, before) = terminal.await??;
    meanwhile().await?;
    let rest = tokio::task::spawn_blocking(move || {
        terminal.send_line(answer)?;
        let rest = terminal.exp_eof()?;
        let status = terminal.process().wait()?;
        let code = match status {
            rexpect::process::WaitStatus::Exited(_, code) => code,
            other => anyhow::bail!("it ended otherwise: {other:?}"),
        };
        anyhow::Ok((rest, code))
    });
    let (rest, code) = rest.await??;
    Ok((before + &rest, code))
}

#[tokio::test]
async fn what_is_held_is_released_by_a_yes_alone() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 14).await?;
    let lictor = scene.lictor().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;

    let (seen, code) = gc(&scene, "", async || Ok(())).await?;
    ensure!(code == 0 && seen.contains("nothing is removed"), "{seen}");
    ensure!(seen.contains(&scene.id("web", "web-7")), "{seen}");
    ensure!(
        seen.contains("\u{1b}[31m-"),
        "no colours at a terminal: {seen:?}"
    );
    lictor.idle().await?;
    lictor.shows("lictor_held_deletes", 12.0).await?;

    let (seen, code) = gc(&scene, "yes", async || Ok(())).await?;
    ensure!(code == 0 && seen.contains("12 released"), "{seen}");
    for number in 2..14 {
        scene.gone("web", &format!("web-{number}")).await?;
    }
    scene.status("web", "web-0", "passing").await?;
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn without_a_process_only_what_was_shown_goes_and_nothing_is_written_before() -> Result<()> {
    let scene = Scene::new().await?;
    much_is_gone(&scene, 4).await?;
    let epoch = format!("/v1/kv/lictor/v1/{}/epoch?consistent", scene.cluster);
    let before = scene.consul.get(&epoch).await?;

    let (seen, code) = gc(&scene, "no", async || Ok(())).await?;
    ensure!(code == 0 && seen.contains("nothing is removed"), "{seen}");
    assert_eq!(scene.consul.get(&epoch).await?, before);

    // While they think, one that was shown changes, and another one comes.
    let (changed, late) = (scene.id("web", "web-3"), scene.id("web", "late"));
    let entry = |id: &str, pod: &str, port: u16| {
        json!({
            "Node": scene.consul_node(), "Address": "192.168.7.1", "SkipNodeUpdate": true,
            "Service": {"ID": id, "Service": "web", "Port": port, "Meta": {
                "lictor-cluster": scene.cluster, "lictor-node": scene.consul_node(),
                "lictor-owner": format!("Pod/{}/{pod}", scene.namespace),
            }},
        })
    };
    let meanwhile = async || {
        scene.by_hand(&entry(&changed, "web-3", 77)).await?;
        scene.by_hand(&entry(&late, "late", 78)).await
    };
    let (seen, code) = gc(&scene, "y", meanwhile).await?;
    ensure!(seen.contains("removed: 1 instances"), "{seen}");
    let stayed = format!("{changed}: it changed since it was shown");
    ensure!(code == 1 && seen.contains(&stayed), "{seen}");
    ensure!(!seen.contains(&late), "{seen}");
    scene.gone("web", "web-2").await?;
    for id in [&changed, &late] {
        let there = scene.find_id("web", id).await?;
        there.with_context(|| format!("{id} went"))?;
    }
    until("the epoch to be that of gc", async || {
        let path = format!("/v1/kv/lictor/v1/{}/epoch?raw&consistent", scene.cluster);
        let epoch = scene.consul.get(&path).await?;
        ensure!(epoch["kind"] == "gc", "{epoch}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}
