//! Playing the kubelet: pods and nodes whose status a test writes.
//!
//! Each change of status is one call of the API. What is written is what a kubelet writes:
//! conditions, container statuses and addresses that fit each other.

mod node;
mod pod;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;

pub use node::TestNode;
pub use pod::TestPod;

/// Creates pods and makes them running and ready, two calls each and as many pods at a time as
/// `concurrency` says. Stops at the first failure.
pub async fn create_all(
    client: &Client,
    pods: impl IntoIterator<Item = TestPod>,
    concurrency: usize,
) -> Result<()> {
    for_each(pods, concurrency, async |pod| {
        pod.create_ready(client).await.map(drop)
    })
    .await
}

/// Does something to each item, as many at a time as `concurrency` says. Stops at the first failure.
pub async fn for_each<T>(
    items: impl IntoIterator<Item = T>,
    concurrency: usize,
    act: impl AsyncFn(T) -> Result<()>,
) -> Result<()> {
    stream::iter(items.into_iter().map(|item| act(item)))
        .buffer_unordered(concurrency)
        .try_collect()
        .await
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
