//! Where the API server and Consul are, for checks to keep away from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::forbidden::Forbidden;

/// How often their names are looked up again.
const LOOK_UP: Duration = Duration::from_mins(1);
/// How soon, while one of them has no address.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(5);
/// Most addresses that are remembered of one name.
const MOST_ADDRESSES: usize = 64;

/// A host, which is an address or a name, and a port.
pub type Api = (String, u16);

/// Keeps it known what is forbidden, until nobody asks any more.
pub async fn follow(
    apis: Vec<Api>,
    allows_local: bool,
    forbidden: watch::Sender<Option<Arc<Forbidden>>>,
) {
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
        let all = known.iter().flat_map(|(_, addresses)| addresses);
        let now = Arc::new(Forbidden::new(allows_local, all.copied()));
        if forbidden.send(Some(now)).is_err() {
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
