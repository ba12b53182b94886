//! The process itself: HTTP, signals, exit codes, logs, secrets.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lictor_testbed::proxy::{Answer, Fault, Proxy};
use lictor_testbed::wait;
use serde_json::json;
use tokio::time::sleep;

use crate::faults::alone;
use crate::support::{Annotated as _, Scene, json_lines, run, until};

#[tokio::test]
async fn it_tells_how_it_is() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--drift-interval=1s"]).await?;
    scene
        .pod("web-0")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    let bad = scene
        .pod("bad")
        .lictor("service", "web")
        .lictor("port", "70000");
    bad.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    scene.event("InvalidAnnotation", "bad", "70000").await?;
    let away = json!({"Node": scene.consul_node(), "ServiceID": scene.id("web", "web-0")});
    scene.away_by_hand(&away).await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;

    assert_eq!(lictor.http("/livez").await?.0, 200);
    let (status, text) = lictor.http("/readyz").await?;
    ensure!(status == 200 && text.starts_with("ok"), "{text}");
    assert_eq!(lictor.http("/nothing").await?.0, 404);

    let (status, text) = lictor.http("/metrics").await?;
    assert_eq!(status, 200);
    ensure!(text.ends_with("# EOF\n"), "no OpenMetrics: {text}");
    for name in [
        "lictor_owned",
        "lictor_operations_total",
        "lictor_propagation_seconds_bucket",
        "lictor_held_deletes",
        "lictor_conflicts",
        "lictor_rejections",
        "lictor_consul_requests_total",
        "lictor_consul_request_seconds_bucket",
        "lictor_consul_last_contact_seconds",
        "lictor_leader",
        "lictor_pending_keys",
        "lictor_audit_findings_total",
        "lictor_drift_total",
        "lictor_build_info",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        let has = text.lines().any(|line| line.starts_with(name));
        ensure!(has, "no sample of {name}:\n{text}");
    }
    let owned = lictor
        .metric("lictor_owned", &["kind=\"instance\""])
        .await?;
    assert!((owned - 1.0).abs() < f64::EPSILON, "{owned}");
    let rejected = lictor.metric("lictor_rejections", &[]).await?;
    assert!((rejected - 1.0).abs() < f64::EPSILON, "{rejected}");
    let found = lictor.metric("lictor_audit_findings_total", &[]).await?;
    ensure!(
        found == 0.0,
        "the total pass found what incremental ones had missed"
    );
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_soon_and_leaves_consul_as_it_is() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor().await?;
    scene
        .pod("web-0")
        .lictor("service", "web")
        .create_ready(&scene.client)
        .await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    let before = scene.dump().await?;
    let status = lictor.stop().await?;
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(scene.dump().await?, before);
    Ok(())
}

#[tokio::test]
async fn sigterm_ends_it_also_while_nothing_can_be_reached() -> Result<()> {
    let scene = Scene::new().await?;
    // Nobody listens there.
    let lictor = scene
        .spawn_lictor(&["--consul-http-addr=http://127.0.0.1:1"], &[])
        .await?;
    until("it to say that it is not ready", async || {
        let (status, text) = lictor.http("/readyz").await?;
        ensure!(
            status == 503 && text.contains("consul:"),
            "{status}: {text}"
        );
        Ok(())
    })
    .await?;
    assert_eq!(lictor.http("/livez").await?.0, 200);
    let status = lictor.stop().await?;
    assert_eq!(status.code(), Some(0), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_command_line_that_is_not_understood_ends_with_64() -> Result<()> {
    let cases: [(&[&str], &str); 20] = [
        (&["run"], "--cluster"),
        (&["run", "--cluster=Bad_Name"], "Bad_Name"),
        (&["run", "--cluster=a--b"], "a--b"),
        (
            &["run", "--cluster=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
            "32",
        ),
        (&["run", "--cluster=a", "--no-such-flag"], "--no-such-flag"),
        (&["run", "--cluster=a", "--listen=nowhere"], "nowhere"),
        (
            &["run", "--cluster=a", "--drift-interval=1ms"],
            "drift-interval",
        ),
        (
            &["run", "--cluster=a", "--exclude-namespace=["],
            "--exclude-namespace",
        ),
        (&["run", "--cluster=a", "--log-level=warning"], "warning"),
        (&["no-such-command"], "no-such-command"),
        (&["plan"], "--cluster"),
        (
            &["run", "--cluster=a", "--namespace=shop"],
            "--default-policy, which alone says who may claim which name then: give",
        ),
        (
            &[
                "run",
                "--cluster=a",
                "--namespace=shop",
                "--exclude-namespace=s*",
            ],
            "--namespace shop is excluded by --exclude-namespace: leave one",
        ),
        (
            &["gc", "--cluster=a", "--dead=a"],
            "--dead: the cluster that runs this is not dead: name another",
        ),
        (&["gc", "--cluster=a", "--dry-run", "--yes"], "--yes"),
        (&["gc", "--cluster=a", "--output=yaml"], "text, json"),
        (&["status", "--cluster=a", "--output=yaml"], "wide"),
        (
            &["check", "--cluster=a", "--consul-http-addr=ftp://a"],
            "CONSUL_HTTP_ADDR",
        ),
        (
            &["run", "--cluster=a", "--dead-after=1s"],
            "--dead-after <DURATION>': must be at least 1m",
        ),
        (
            &[
                "status",
                "--cluster=a",
                "--consul-http-token=t",
                "--consul-auth-method=m",
            ],
            "give one or the other",
        ),
    ];
    for (args, text) in cases {
        let (code, _, stderr) = run(args).await?;
        assert_eq!(code, Some(64), "{args:?}: {stderr}");
        ensure!(stderr.contains(text), "{args:?}: {stderr}");
    }
    // The schema is printed without all else, also where the environment gives it.
    for command in ["plan", "status", "gc"] {
        let (code, stdout, stderr) = run(&[command, "--json-schema", "--cluster=a"]).await?;
        ensure!(
            code == Some(0) && stdout.contains("$schema"),
            "{command}: {stderr}"
        );
    }
    let (code, stdout, _) = run(&["--help"]).await?;
    ensure!(code == Some(0) && stdout.contains("run"), "{stdout}");
    let (code, stdout, _) = run(&["crds"]).await?;
    ensure!(code == Some(0), "{stdout}");
    for name in ["serviceregistrations", "intentions", "preparedqueries"] {
        let line = format!("\n  name: {name}.lictor.io\n");
        ensure!(stdout.contains(&line), "{stdout}");
    }
    Ok(())
}

#[tokio::test]
async fn a_failure_to_start_ends_with_1() -> Result<()> {
    let args = [
        "run",
        "--cluster=a",
        "--listen=127.0.0.1:0",
        "--kubeconfig=/nonexistent/kubeconfig",
    ];
    let (code, _, stderr) = run(&args).await?;
    ensure!(
        code == Some(1) && stderr.contains("/nonexistent/kubeconfig"),
        "{code:?}: {stderr}"
    );
    Ok(())
}

#[tokio::test]
async fn logs_are_json_on_demand_and_every_removal_is_one_line() -> Result<()> {
    let scene = Scene::new().await?;
    let lictor = scene.lictor_with(&["--log-format=json"]).await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    pod.finish_deletion(&scene.client).await?;
    scene.gone("web", "web-0").await?;
    let line = until("the removal to be logged", async || {
        let lines = json_lines(&lictor.log())?;
        let removal = lines.into_iter().find(|line| line["target"] == "audit");
        removal.context("no line of the target audit")
    })
    .await?;
    let id = scene.id("web", "web-0");
    ensure!(
        line["key"].as_str().is_some_and(|key| key.contains(&id)),
        "{line}"
    );
    assert_eq!(line["kind"], "instance");
    assert_eq!(line["owner"], format!("Pod/{}/web-0", scene.namespace));
    assert_eq!(line["seen"], true);
    ensure!(line["why"].is_string() && line["index"].is_u64(), "{line}");
    ensure!(line["epoch"].as_u64() > Some(0), "{line}");
    let time = line["time"].as_str().unwrap_or_default();
    ensure!(time.ends_with('Z') && time.starts_with("20"), "{line}");
    let epoch = format!("/v1/kv/lictor/v1/{}/epoch", scene.cluster);
    let epoch = scene.consul.get(&epoch).await?;
    assert_eq!(line["epoch"], epoch[0]["ModifyIndex"]);
    Ok(())
}

/// With ACLs off Consul ignores a token; it is in no log, not even in the most verbose.
#[tokio::test]
async fn a_token_is_harmless_without_acls_and_never_shown() -> Result<()> {
    const SECRET: &str = "4ab1c9e2-0000-4000-8000-5ec4e75ec4e7";
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let file = scene.bed.dir().join(format!("token-{}", scene.cluster));
    std::fs::write(&file, format!("{SECRET}\n"))?;
    let file = format!("--consul-http-token-file={}", file.display());
    let flag = format!("--consul-http-token={SECRET}");
    let ways = [
        (vec![&*file], vec![]),
        (vec![&*flag], vec![]),
        (vec![], vec![("CONSUL_HTTP_TOKEN", SECRET)]),
    ];
    for (number, (mut args, env)) in ways.into_iter().enumerate() {
        args.push("--log-level=trace");
        let mut lictor = scene.spawn_lictor(&args, &env).await?;
        lictor.ready().await?;
        let name = format!("web-{number}");
        let pod = scene.pod(&name).lictor("service", "web");
        pod.create_ready(&scene.client).await?;
        scene.status("web", &name, "passing").await?;
        let log = lictor.log();
        ensure!(log.contains("TRACE"), "the log is not verbose");
        let (_, metrics) = lictor.http("/metrics").await?;
        let (_, readyz) = lictor.http("/readyz").await?;
        for text in [log, metrics, readyz] {
            ensure!(!text.contains(SECRET), "the token is shown");
        }
        lictor.stop().await?;
    }
    Ok(())
}

/// How long Consul fails in one way.
const OUTAGE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_consul_that_fails_for_a_minute_is_told_in_a_few_lines() -> Result<()> {
    let scene = Scene::new().await?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let through = format!("--consul-http-addr={}", consul.url());
    let lictor = scene.lictor_with(&[&through]).await?;
    for number in 0..30 {
        let pod = scene.pod(&format!("web-{number}"));
        let pod = pod.lictor("service", "web");
        pod.create_ready(&scene.client).await?;
    }
    scene.status("web", "web-29", "passing").await?;
    lictor.idle().await?;
    let before = lictor.log().lines().count();
    consul.set(Fault::Refuse).await?;
    // All of them want to be written meanwhile.
    for number in 0..30 {
        let name = format!("web-{number}");
        scene.annotate(&name, &[("tags", Some("v2"))]).await?;
    }
    sleep(OUTAGE).await;
    consul.set(Fault::Answer(Answer::new(500))).await?;
    sleep(OUTAGE).await;
    let log = lictor.log();
    let told: Vec<&str> = log.lines().skip(before).collect();
    ensure!(
        (1..=15).contains(&told.len()),
        "{} lines:\n{}",
        told.len(),
        told.join("\n")
    );
    consul.set(Fault::Pass).await?;
    scene
        .instance("web", "web-29", |seen| seen.tags == ["v2"])
        .await?;
    ensure!(lictor.log().contains("Consul answers again"), "not told");
    lictor.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_one_port_says_so() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let scene = Scene::new().await?;
    let mut args = scene.args();
    args.retain(|arg| !arg.starts_with("--listen"));
    args.push(format!("--listen={}", taken.local_addr()?));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = wait::until("it to end", Duration::from_secs(20), async || {
        run(&args).await
    })
    .await?;
    ensure!(
        ended.0 == Some(1) && ended.2.contains("cannot listen on"),
        "{ended:?}"
    );
    Ok(())
}
