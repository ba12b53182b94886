//! Where the API server and Consul are, for checks to keep away from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::forbidden::Forbidden;

/// How often their names are looked up again.
const LOOK_UP: Duration = Duration::from_mins(1);
/// How soon, while one of them has no address.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(5);
/// How long no check is run because one of them has no address yet. Then it may have none for good, as a
/// server that was taken down and is still listed: checks are not to end with it.
const PATIENCE: Duration = Duration::from_mins(1);
/// Most addresses that are remembered of one name.
const MOST_ADDRESSES: usize = 64;

/// A host, which is an address or a name, and a port.
pub type Api = (String, u16);

/// Keeps it known what is forbidden, until nobody asks any more. It is told for the first time once all of
/// them were found, or after [`PATIENCE`].
pub async fn follow(
    apis: Vec<Api>,
    allows_local: bool,
    forbidden: watch::Sender<Option<Arc<Forbidden>>>,
) {
    let began = Instant::now();
    let names = apis.clone();
    let known = apis.into_iter().map(|api| (api, Vec::new()));
    let mut known: Vec<(Api, Vec<SocketAddr>)> = known.collect();
    loop {
        let mut complete = true;
        for (api, addresses) in &mut known {
            let found = addresses_of(api).await;
            if found.is_empty() && addresses.is_empty() {
                complete = false;
                let (host, port) = api;
                tracing::warn!("checks cannot keep away from {host}:{port}, which has no address");
            }
            // What it had before may be one of several that take turns.
            for address in found {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            let surplus = addresses.len().saturating_sub(MOST_ADDRESSES);
            addresses.drain(..surplus);
        }
        let is_told = forbidden.borrow().is_some();
        if complete || is_told || allows_local || began.elapsed() >= PATIENCE {
            let all = known.iter().flat_map(|(_, addresses)| addresses);
            let now = Forbidden::new(allows_local, all.copied()).with_names(&names);
            if forbidden.send(Some(Arc::new(now))).is_err() {
                return;
            }
        } else if forbidden.is_closed() {
            return;
        }
        sleep(if complete { LOOK_UP } else { LOOK_UP_AGAIN }).await;
    }
}

async fn addresses_of((host, port): &Api) -> Vec<SocketAddr> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return vec![SocketAddr::new(ip, *port)];
    }
    match timeout(DEADLINE, lookup_host((bare, *port))).await {
        Ok(Ok(found)) => found.collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether something is told soon of these, one of which has no address.
    async fn is_told_soon(allows_local: bool) -> bool {
        let (sender, mut forbidden) = watch::channel(None);
        let apis = ["10.0.0.1", "nowhere.invalid"].map(|host| (host.to_owned(), 8500));
        let follows = tokio::spawn(follow(apis.to_vec(), allows_local, sender));
        let told = forbidden.wait_for(Option::is_some);
        let is_told = timeout(Duration::from_secs(1), told).await.is_ok();
        follows.abort();
        is_told
    }

    #[tokio::test]
    async fn nothing_is_asked_before_all_apis_were_found() {
        assert!(!is_told_soon(false).await);
        assert!(
            is_told_soon(true).await,
            "where all may be asked nothing waits"
        );
    }
}
