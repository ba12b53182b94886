//! Objects of Lictor's kinds, of any of them.

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use lictor::api::{Intention, PreparedQuery, ServiceRegistration};
use serde_json::{Value, json};

use super::{Scene, until};

/// A kind that has a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ServiceRegistration,
    Intention,
    PreparedQuery,
}

impl Kind {
    fn resource(self) -> ApiResource {
        match self {
            Self::ServiceRegistration => ApiResource::erase::<ServiceRegistration>(&()),
            Self::Intention => ApiResource::erase::<Intention>(&()),
            Self::PreparedQuery => ApiResource::erase::<PreparedQuery>(&()),
        }
    }
}

impl Scene {
    /// The objects of a kind in its namespace.
    pub fn objects(&self, kind: Kind) -> Api<DynamicObject> {
        self.objects_in(kind, &self.namespace)
    }

    /// The objects of a kind in a namespace.
    pub fn objects_in(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// Creates an object.
    pub async fn create(&self, kind: Kind, name: &str, spec: Value) -> Result<DynamicObject> {
        let object = DynamicObject::new(name, &kind.resource()).data(json!({"spec": spec}));
        let api = self.objects(kind);
        Ok(api.create(&PostParams::default(), &object).await?)
    }

    /// Lays a patch over an object.
    pub async fn change(&self, kind: Kind, name: &str, patch: Value) -> Result<()> {
        let patch = Patch::Merge(patch);
        let changed = self
            .objects(kind)
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        drop(changed);
        Ok(())
    }

    /// Deletes an object.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<()> {
        self.objects(kind)
            .delete(name, &DeleteParams::default())
            .await?;
        Ok(())
    }

    /// Waits until the status of an object is about its present generation and as it should be.
    pub async fn shown(
        &self,
        kind: Kind,
        name: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(
            &format!("the status of {name} to be as wanted"),
            async || {
                let object = self.objects(kind).get(name).await?;
                let status = object.data["status"].clone();
                let current = status["observedGeneration"].as_i64() == object.metadata.generation;
                ensure!(current && is(&status), "{status:#}");
                Ok(status)
            },
        )
        .await
    }

    /// A name of a service or a query that no other test uses.
    pub fn named(&self, name: &str) -> String {
        format!("{name}-{}", self.namespace)
    }

    /// A config entry; `null` where there is none.
    pub async fn config_entry(&self, kind: &str, name: &str) -> Result<Value> {
        let all = self
            .consul
            .get(&format!("/v1/config/{kind}?consistent"))
            .await?;
        let all = all.as_array().context("not a list")?;
        let found = all.iter().find(|entry| entry["Name"] == name);
        Ok(found.cloned().unwrap_or_default())
    }

    /// Waits until a config entry is as it should be; `null` where there is none.
    pub async fn config_entry_is(
        &self,
        kind: &str,
        name: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(&format!("{kind} of {name} to be as wanted"), async || {
            let found = self.config_entry(kind, name).await?;
            ensure!(is(&found), "{found:#}");
            Ok(found)
        })
        .await
    }

    /// The sources of a destination with their action, sorted.
    pub async fn sources_are(&self, destination: &str, sources: &[&str]) -> Result<Value> {
        let is = |entry: &Value| sources_of(entry) == sources;
        self.config_entry_is("service-intentions", destination, is)
            .await
    }

    /// The prepared query of a name; `null` where there is none.
    pub async fn query_named(&self, name: &str) -> Result<Value> {
        let all = self.consul.get("/v1/query?consistent").await?;
        let all = all.as_array().context("not a list")?;
        let is_it = |query: &&Value| {
            let known = query["Name"].as_str();
            known.is_some_and(|known| known.eq_ignore_ascii_case(name))
        };
        Ok(all.iter().find(is_it).cloned().unwrap_or_default())
    }

    /// Waits until a prepared query is as it should be; `null` where there is none.
    pub async fn query_is(&self, name: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        until(&format!("the query {name} to be as wanted"), async || {
            let found = self.query_named(name).await?;
            ensure!(is(&found), "{found:#}");
            Ok(found)
        })
        .await
    }
}

/// The sources of an entry with their action, sorted.
pub fn sources_of(entry: &Value) -> Vec<String> {
    let sources = entry["Sources"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |source: &Value| {
        let action = text(&source["Action"]);
        let action = if action.is_empty() {
            "rules".to_owned()
        } else {
            action
        };
        format!("{} {action}", text(&source["Name"]))
    };
    let mut sources: Vec<String> = sources.iter().map(one).collect();
    sources.sort();
    sources
}
