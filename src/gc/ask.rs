//! Asking the process that writes, through a key in Consul's KV.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::sure;
use crate::consul::wire::KvPair;
use crate::consul::{Client, Consistency};
use crate::model::gc::{self, Answer, Exchange, Release, Request};
use crate::model::names::ClusterName;

/// How long to wait for the answer: a process that writes sees the question at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the question is put where others ask at the same time.
const ATTEMPTS: u32 = 5;

/// Asks what is held; what the answer to the question `after` had no room for, if one is named. `None` if
/// nobody answers.
pub async fn show(
    client: &Client,
    cluster: &ClusterName,
    after: Option<&Answer>,
) -> anyhow::Result<Option<Answer>> {
    let request = Request {
        after: after.map(|answer| answer.id.clone()),
        ..Request::default()
    };
    ask(client, cluster, request).await
}

/// Asks for the release of what was shown, up to this answer. `None` if nobody answers: then nothing is
/// released later either.
pub async fn release(
    client: &Client,
    cluster: &ClusterName,
    shown: &Answer,
) -> anyhow::Result<Option<Answer>> {
    let request = Request {
        release: Some(Release {
            shown: shown.id.clone(),
            holder: shown.holder.clone(),
            epoch: shown.epoch,
        }),
        ..Request::default()
    };
    ask(client, cluster, request).await
}

async fn ask(
    client: &Client,
    cluster: &ClusterName,
    request: Request,
) -> anyhow::Result<Option<Answer>> {
    let key = gc::key(cluster);
    let id = format!("{:032x}", rand::random::<u128>());
    let question = Exchange {
        request: Request {
            id: id.clone(),
            ..request
        },
        answer: None,
    };
    put(client, &key, &question).await?;
    let answer = tokio::time::timeout(PATIENCE, answered(client, &key, &id)).await;
    let late = withdraw(client, &key, &id).await;
    match answer {
        Ok(answer) => answer.map(Some),
        Err(_) => Ok(late),
    }
}

async fn put(client: &Client, key: &str, question: &Exchange) -> anyhow::Result<()> {
    let question = serde_json::to_vec(question)?;
    for _ in 0..ATTEMPTS {
        let there = sure(client.kv_get(key, Consistency::Consistent).await);
        let there = there.with_context(|| format!("cannot read {key} in Consul"))?;
        let index = there.map_or(0, |pair| pair.modify_index);
        let put = client.kv_put_cas(key, &question, index).await;
        if put.with_context(|| format!("cannot write {key} in Consul"))? {
            return Ok(());
        }
    }
    bail!("others write {key} in Consul all the time: is another lictor gc at work?")
}

async fn answered(client: &Client, key: &str, id: &str) -> anyhow::Result<Answer> {
    let mut watch = client.watch_kv(key);
    loop {
        // A failure is followed by another try, with a pause.
        let Ok(change) = watch.next().await else {
            continue;
        };
        match change.observed.value.first().and_then(|pair| of(pair, id)) {
            Some(exchange) => {
                if let Some(answer) = exchange.answered() {
                    return Ok(answer.clone());
                }
            }
            None => bail!("another lictor gc asks at the same time: try again"),
        }
    }
}

/// Takes the question out again, and never another's. Returns the answer that it has by then. What is
/// left behind all the same releases nothing, and is overwritten by the next question.
async fn withdraw(client: &Client, key: &str, id: &str) -> Option<Answer> {
    for _ in 0..ATTEMPTS {
        let there = sure(client.kv_get(key, Consistency::Consistent).await);
        let pair = there.ok().flatten()?;
        let exchange = of(&pair, id)?;
        if client.kv_delete_cas(key, pair.modify_index).await.ok()? {
            return exchange.answered().cloned();
        }
    }
    None
}

/// What stands there, if it is the question with this id.
fn of(pair: &KvPair, id: &str) -> Option<Exchange> {
    let exchange: Exchange = serde_json::from_slice(&pair.value).ok()?;
    (exchange.request.id == id).then_some(exchange)
}
