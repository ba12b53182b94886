//! Asking the process that writes, through a key in Consul's KV.

use std::time::Duration;

use anyhow::{Context as _, bail};

use super::sure;
use crate::consul::wire::KvPair;
use crate::consul::{Client, Consistency};
use crate::model::gc::{self, Answer, Exchange, Request};
use crate::model::names::ClusterName;

/// How long to wait for the answer: a process that writes sees the question at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the question is put where others ask at the same time.
const ATTEMPTS: u32 = 5;

/// Asks for what is held, or for its release. `None` if nobody answers.
pub async fn ask(
    client: &Client,
    cluster: &ClusterName,
    release: bool,
) -> anyhow::Result<Option<Answer>> {
    let key = gc::key(cluster);
    let id = format!("{:032x}", rand::random::<u128>());
    put(client, &key, &id, release).await?;
    let answer = tokio::time::timeout(PATIENCE, answered(client, &key, &id)).await;
    // What is left behind is overwritten by the next question.
    if let Ok(Some(pair)) = sure(client.kv_get(&key, Consistency::Consistent).await) {
        let _ = client.kv_delete_cas(&key, pair.modify_index).await;
    }
    answer.map_or(Ok(None), |answer| answer.map(Some))
}

async fn put(client: &Client, key: &str, id: &str, release: bool) -> anyhow::Result<()> {
    let question = Exchange {
        request: Request {
            id: id.to_owned(),
            release,
        },
        answer: None,
    };
    let question = serde_json::to_vec(&question)?;
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
        match change.observed.value.first().map(parsed) {
            Some(Some(Exchange { request, answer })) if request.id == id => {
                if let Some(answer) = answer.filter(|answer| answer.id == id) {
                    return Ok(answer);
                }
            }
            _ => bail!("another lictor gc asks at the same time: try again"),
        }
    }
}

fn parsed(pair: &KvPair) -> Option<Exchange> {
    serde_json::from_slice(&pair.value).ok()
}
