//! Traces by OTLP: only with the feature `otel`.

use std::time::Duration;

use anyhow::{Result, ensure};
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::faults::alone;
use crate::support::{Annotated as _, Scene, until};

const SECRET: &str = "4ab1c9e2-0000-4000-8000-5ec4e75ec4e7";

/// A collector, which takes all that comes.
async fn collector() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/traces"))
        .and(header("content-type", "application/x-protobuf"))
        .respond_with(ResponseTemplate::new(200))
        .mount(&server)
        .await;
    server
}

/// All that came: names are text in protobuf, too.
async fn came(server: &MockServer) -> String {
    let requests = server.received_requests().await.unwrap_or_default();
    let bodies = requests.iter().map(|it| String::from_utf8_lossy(&it.body));
    bodies.collect()
}

#[tokio::test]
async fn flushes_and_requests_are_exported_and_nothing_that_is_nobodys_business() -> Result<()> {
    let server = collector().await;
    let (_guard, installed) = alone().await?;
    let scene = Scene::on(installed).await?;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*server.uri()),
        ("OTEL_SERVICE_NAME", "lictor-of-the-test"),
    ];
    let token = format!("--consul-http-token={SECRET}");
    let mut lictor = scene.spawn_lictor(&[&token], &env).await?;
    lictor.ready().await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    lictor.idle().await?;
    ensure!(
        !lictor.log().contains("consul.endpoint"),
        "spans are in the log"
    );
    // The last spans are exported at the end.
    lictor.stop().await?;
    let spans = came(&server).await;
    for part in [
        "lictor-of-the-test",
        "flush",
        "keys",
        "PUT txn",
        "GET catalog/nodes",
        "http.response.status_code",
        "consul.endpoint",
    ] {
        ensure!(spans.contains(part), "no {part} in {} bytes", spans.len());
    }
    for private in [SECRET, "web-0", &scene.cluster] {
        ensure!(!spans.contains(private), "{private} is exported");
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_once_and_holds_nothing_up() -> Result<()> {
    let scene = Scene::new().await?;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let mut lictor = scene.spawn_lictor(&[], &env).await?;
    lictor.ready().await?;
    until("it to tell", async || {
        ensure!(lictor.log().contains("traces are lost"), "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let pod = scene.pod("web-0").lictor("service", "web");
    pod.create_ready(&scene.client).await?;
    scene.status("web", "web-0", "passing").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = lictor.log().matches("traces are lost").count();
    ensure!(told == 1, "told {told} times");
    // Within the time that all have.
    lictor.stop().await?;
    Ok(())
}
