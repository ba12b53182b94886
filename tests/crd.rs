//! The Kubernetes edge on a real API server: what the CRDs accept and refuse, what the watches tell,
//! and what is written back.

#[path = "crd/asking.rs"]
mod asking;
#[path = "crd/checks.rs"]
mod checks;
#[path = "crd/intentions.rs"]
mod intentions;
#[path = "crd/mesh.rs"]
mod mesh;
#[path = "crd/queries.rs"]
mod queries;
#[path = "crd/rules.rs"]
mod rules;
#[path = "crd/told.rs"]
mod told;
#[path = "crd/watch.rs"]
mod watch;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lictor::api;
use lictor_testbed::{Bed, BedOptions, wait};

/// Longer than anything here takes, unless it never happens.
const SOON: Duration = Duration::from_mins(1);

/// One test, since a bed costs seconds: no part disturbs the next.
#[tokio::test]
async fn the_api_server_takes_the_crds_and_what_is_written() -> Result<()> {
    let bed = Bed::start(BedOptions::default()).await?;
    let client = bed.kube_client()?;
    install(&client, &api::crds()).await?;
    rules::good_objects_are_taken(&client).await?;
    rules::bad_objects_are_refused_with_what_to_do(&client).await?;
    rules::kubectl_tells_the_same(&bed).await?;
    intentions::consul_agrees_on_what_is_taken_and_refused(&bed, &client).await?;
    intentions::lengths_have_limits(&client).await?;
    intentions::a_manifest_of_consul_k8s_moves(&bed).await?;
    queries::consul_agrees_on_what_is_taken_and_refused(&bed, &client).await?;
    queries::lengths_have_limits(&client).await?;
    queries::a_registration_has_queries(&client).await?;
    queries::kubectl_shows_queries(&bed).await?;
    mesh::consul_agrees_on_upstreams(&bed, &client).await?;
    mesh::the_rest_is_judged(&client).await?;
    checks::checks_are_judged(&client).await?;
    told::status_is_written_and_shown(&bed, &client).await?;
    told::a_gate_opens_for_good_and_for_its_own_pod(&client).await?;
    told::events_are_written_and_counted(&bed, &client).await
}

/// Also proves that the YAML reads back as it was meant.
#[test]
fn the_committed_crds_are_current() -> Result<()> {
    for crd in api::crds() {
        let file = format!("crds/{}", api::crd_file_name(&crd));
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let committed = std::fs::read_to_string(path).with_context(|| file.clone())?;
        let read: serde_json::Value = serde_saphyr::from_str(&committed)?;
        let meant: CustomResourceDefinition = serde_json::from_value(read)?;
        ensure!(meant == crd, "{file} is old: run `cargo xtask gen`");
    }
    Ok(())
}

/// Installs CRDs, and waits until their objects can be created.
async fn install(client: &Client, crds: &[CustomResourceDefinition]) -> Result<()> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    for crd in crds {
        let name = crd
            .metadata
            .name
            .as_deref()
            .context("a CRD without a name")?;
        let params = PatchParams::apply("test").force();
        api.patch(name, &params, &Patch::Apply(crd))
            .await
            .with_context(|| format!("{name} is refused"))?;
        wait::until("the CRD to be served", SOON, async || {
            let path = format!(
                "/apis/{}/v1alpha1/{}",
                crd.spec.group, crd.spec.names.plural
            );
            let request = kube::core::Request::new(path).list(&kube::api::ListParams::default())?;
            client
                .request_text(request)
                .await
                .map(drop)
                .map_err(anyhow::Error::from)
        })
        .await?;
    }
    Ok(())
}
