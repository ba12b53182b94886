//! The schema of a CRD: made laxer, as an older release may have had it, and put back.

use anyhow::Result;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::Scene;

fn crds(scene: &Scene) -> kube::Api<DynamicObject> {
    let kind = ApiResource::erase::<CustomResourceDefinition>(&());
    kube::Api::all_with(scene.client.clone(), &kind)
}

/// The versions of a CRD, with their schemas.
pub async fn versions(scene: &Scene, crd: &str) -> Result<Value> {
    Ok(crds(scene).get(crd).await?.data["spec"]["versions"].clone())
}

pub async fn set_versions(scene: &Scene, crd: &str, versions: &Value) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"versions": versions}}));
    let params = PatchParams::default();
    crds(scene).patch(crd, &params, &patch).await?;
    Ok(())
}

/// Takes all rules of these names out of a schema.
pub fn without_rules(schema: &mut Value, rules: &[&str]) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, _| !rules.contains(&name.as_str()));
            let inner = fields.values_mut();
            inner.for_each(|inner| without_rules(inner, rules));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|inner| without_rules(inner, rules)),
        _ => {}
    }
}
