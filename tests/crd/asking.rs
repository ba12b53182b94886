//! Asking the API server, and Consul, what they would take.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Makes a part of an object, of some length.
pub type OfLength<'a> = &'a dyn Fn(usize) -> Value;

pub fn long(length: usize) -> String {
    "a".repeat(length)
}

pub fn pairs(count: usize) -> BTreeMap<String, String> {
    (0..count)
        .map(|n| (format!("k{n}"), "v".to_owned()))
        .collect()
}

pub fn yaml(text: &str) -> Result<Value> {
    serde_saphyr::from_str::<Value>(text).with_context(|| text.to_owned())
}

/// An object with these fields more, or instead.
pub fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// Asks the API server without leaving anything behind, and gives the spec as it would keep it.
async fn ask<K: Resource<DynamicType = ()>>(
    client: &Client,
    name: &str,
    spec: &Value,
) -> kube::Result<Value> {
    let kind = ApiResource::erase::<K>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), "default", &kind);
    let object = DynamicObject::new(name, &kind).data(json!({"spec": spec}));
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut kept = api.create(&dry_run, &object).await?;
    Ok(kept.data["spec"].take())
}

/// Fails unless the API server takes it; gives the spec as it would keep it.
pub async fn taken<K: Resource<DynamicType = ()>>(
    client: &Client,
    name: &str,
    spec: &Value,
) -> Result<Value> {
    ask::<K>(client, name, spec)
        .await
        .with_context(|| format!("refused: {spec}"))
}

/// Fails unless the API server refuses it with a message that has this in it.
pub async fn refused<K: Resource<DynamicType = ()>>(
    client: &Client,
    name: &str,
    spec: &Value,
    expected: &str,
) -> Result<()> {
    match ask::<K>(client, name, spec).await {
        Ok(_) => bail!("taken, but not for {expected:?}: {spec}"),
        Err(kube::Error::Api(status)) => {
            ensure!(status.is_invalid(), "{spec}: {status:?}");
            ensure!(
                status.message.contains(expected),
                "{spec}: expected {expected:?}, got {}",
                status.message
            );
            Ok(())
        }
        Err(other) => Err(other.into()),
    }
}

/// What the API server and Consul make of parts of an object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "At: DeserializeOwned + Default")]
struct Cases<At> {
    taken: Vec<Case<At>>,
    refused: Vec<Case<At>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "At: DeserializeOwned + Default")]
struct Case<At> {
    #[serde(default)]
    at: At,
    part: Value,
    #[serde(default)]
    says: String,
    #[serde(default)]
    consul: Consul,
}

/// What Consul makes of what the API server takes or refuses.
#[derive(Debug, Default, Deserialize)]
enum Consul {
    /// The same.
    #[default]
    Same,
    /// Its Community Edition refuses the fields, whatever they say.
    Enterprise,
    /// It takes what the API server refuses, which for this reason does.
    Takes(String),
}

impl Consul {
    fn judge(&self, takes: bool, answer: &Result<()>) -> Result<()> {
        match (self, answer) {
            (Self::Same, Ok(())) if !takes => bail!("Consul takes it"),
            (Self::Same, Err(why)) if takes => bail!("Consul refuses it: {why:#}"),
            (Self::Enterprise, Ok(())) => bail!("Consul takes it, and not as Enterprise alone"),
            (Self::Takes(why), Err(error)) => {
                bail!("Consul does not take it, whether or not {why}: {error:#}")
            }
            _ => Ok(()),
        }
    }
}

/// Goes through cases of a file: `object` makes a spec of each, and `offer` offers it to Consul, where
/// the API server takes it as it would be kept.
pub async fn judge<K, At>(
    client: &Client,
    cases: &str,
    object: impl Fn(At, Value) -> Value,
    offer: impl AsyncFn(&Value) -> Result<()>,
) -> Result<()>
where
    K: Resource<DynamicType = ()>,
    At: DeserializeOwned + Default,
{
    let cases: Cases<At> = serde_saphyr::from_str(cases)?;
    let mut wrong = String::new();
    for (case, takes) in (cases.taken.into_iter().map(|case| (case, true)))
        .chain(cases.refused.into_iter().map(|case| (case, false)))
    {
        let spec = object(case.at, case.part);
        let word = if takes {
            taken::<K>(client, "good", &spec).await
        } else {
            refused::<K>(client, "bad", &spec, &case.says)
                .await
                .map(|()| spec.clone())
        };
        let word = match word {
            Ok(spec) => case.consul.judge(takes, &offer(&spec).await),
            Err(why) => Err(why),
        };
        if let Err(why) = word {
            writeln!(wrong, "{spec}: {why:#}")?;
        }
    }
    ensure!(wrong.is_empty(), "\n{wrong}");
    Ok(())
}
