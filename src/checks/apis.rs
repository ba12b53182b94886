//! Where the API server and Consul are, Consul's servers too, for checks to keep away from.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::forbidden::Forbidden;
use crate::consul::ConsulConfig;

/// How often their names are looked up again.
const LOOK_UP: Duration = Duration::from_mins(1);
/// How soon, while one of them has no address, or Consul's servers are not known.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(5);
/// How often it is read where Consul's servers are, once it was.
const READ_SERVERS: Duration = Duration::from_mins(10);
const DEADLINE: Duration = Duration::from_secs(5);
/// How long no check is run because one of them has no address yet. Then it may have none for good, as a
/// server that was taken down and is still listed: checks are not to end with it.
const PATIENCE: Duration = Duration::from_mins(1);
/// Most addresses that are remembered of one name, and of Consul's servers.
const MOST_ADDRESSES: usize = 64;

/// A host, which is an address or a name, and a port.
pub type Api = (String, u16);

/// The APIs, as Lictor itself reaches them.
#[derive(Clone, Debug, Default)]
pub struct Apis {
    /// The API server.
    pub kubernetes: Option<Api>,
    /// Consul, which may be known by several addresses.
    pub consul: Vec<Api>,
}

impl Apis {
    /// Those that this process uses.
    #[must_use]
    pub fn of(kubernetes: Option<Api>, consul: &ConsulConfig) -> Self {
        let consul = consul.hosts().collect();
        Self { kubernetes, consul }
    }
}

/// Keeps it known what is forbidden, until nobody asks any more. It is told for the first time once all of
/// them were found, or after [`PATIENCE`].
///
/// Behind an address of Consul may be others, which listen where that does: its servers are kept away from at
/// the ports of all of them.
///
/// `read` tells where Consul's servers are, as Consul knows it, or nothing where that cannot be read, and none
/// where it may not be: then what was read last holds.
pub async fn follow<F, R>(
    apis: Apis,
    read: F,
    allows_local: bool,
    forbidden: watch::Sender<Option<Arc<Forbidden>>>,
) where
    F: Fn() -> R,
    R: Future<Output = Option<Vec<SocketAddr>>>,
{
    let began = Instant::now();
    let mut servers = Servers::default();
    let Apis { kubernetes, consul } = apis;
    let ports: Vec<u16> = consul.iter().map(|(_, port)| *port).collect();
    let names: Vec<Api> = kubernetes.into_iter().chain(consul).collect();
    let known = names.iter().map(|api| (api.clone(), Vec::new()));
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
        if !allows_local {
            servers.read(&read, Instant::now()).await;
        }
        let is_told = forbidden.borrow().is_some();
        if complete || is_told || allows_local || began.elapsed() >= PATIENCE {
            let all = known.iter().flat_map(|(_, addresses)| addresses).copied();
            let all = all.chain(servers.listening_at(&ports));
            let now = Forbidden::new(allows_local, all).with_names(&names);
            if forbidden.send(Some(Arc::new(now))).is_err() {
                return;
            }
        } else if forbidden.is_closed() {
            return;
        }
        sleep(pause_after(complete, allows_local || servers.are_known())).await;
    }
}

/// How long until the next look-up, after one that found all that have a name, or not, and Consul's servers.
fn pause_after(complete: bool, knows_servers: bool) -> Duration {
    if complete && knows_servers {
        LOOK_UP
    } else {
        LOOK_UP_AGAIN
    }
}

/// Consul's servers.
#[derive(Default)]
struct Servers {
    at: Vec<SocketAddr>,
    read_at: Option<Instant>,
}

impl Servers {
    /// Where they listen, as the catalog says, and at these ports too.
    fn listening_at(&self, ports: &[u16]) -> impl Iterator<Item = SocketAddr> {
        let of = move |at: &SocketAddr| {
            let (ip, own) = (at.ip(), at.port());
            let ports = [own].into_iter().chain(ports.iter().copied());
            ports.map(move |port| SocketAddr::new(ip, port))
        };
        self.at.iter().flat_map(of)
    }

    fn are_known(&self) -> bool {
        self.read_at.is_some()
    }

    /// Reads where they are, unless that was done lately.
    async fn read<R>(&mut self, read: &impl Fn() -> R, now: Instant)
    where
        R: Future<Output = Option<Vec<SocketAddr>>>,
    {
        if self.read_at.is_some_and(|at| now < at + READ_SERVERS) {
            return;
        }
        match timeout(DEADLINE, read()).await {
            // Consul has one at least. Whoever may not read them, as before a login, is shown none.
            Ok(Some(mut found)) if !found.is_empty() => {
                found.truncate(MOST_ADDRESSES);
                self.at = found;
                self.read_at = Some(now);
            }
            Ok(_) | Err(_) => {
                tracing::debug!("where Consul's servers are cannot be read: checks may ask them");
            }
        }
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
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Whether something is told soon of these, one of which has no address.
    async fn is_told_soon(allows_local: bool) -> bool {
        let (sender, mut forbidden) = watch::channel(None);
        let consul = ["10.0.0.1", "nowhere.invalid"].map(|host| (host.to_owned(), 8500));
        let apis = Apis {
            consul: consul.to_vec(),
            ..Apis::default()
        };
        let read = async || None;
        let follows = tokio::spawn(follow(apis, read, allows_local, sender));
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

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn the_servers_of_consul_are_kept_away_from() {
        let (sender, mut forbidden) = watch::channel(None);
        let apis = Apis {
            kubernetes: Some(("10.0.0.2".to_owned(), 16443)),
            consul: vec![("10.0.0.1".to_owned(), 18501)],
        };
        let read = || std::future::ready(Some(vec![at("10.0.0.7:8300")]));
        let follows = tokio::spawn(follow(apis, read, false, sender));
        let told = forbidden.wait_for(Option::is_some).await.unwrap().clone();
        let told = told.unwrap();
        for address in [
            "10.0.0.1:18501",
            "10.0.0.2:16443",
            "10.0.0.7:8300",
            "10.0.0.7:8501",
            // 10.0.0.1 may be what is before it.
            "10.0.0.7:18501",
        ] {
            assert!(told.why(at(address)).is_some(), "{address}");
        }
        for address in ["10.0.0.7:8080", "10.0.0.7:16443"] {
            assert_eq!(told.why(at(address)), None, "{address}");
        }
        follows.abort();
    }

    #[tokio::test]
    async fn they_are_read_rarely_and_stay_while_they_cannot_be() {
        let (one, other) = (vec![at("10.0.0.7:8300")], vec![at("10.0.0.8:8300")]);
        let answers = [
            Some(one.clone()),
            None,
            Some(Vec::new()),
            Some(other.clone()),
        ];
        let answers = Mutex::new(VecDeque::from(answers));
        let read = || std::future::ready(answers.lock().unwrap().pop_front().unwrap());
        let (mut servers, start) = (Servers::default(), Instant::now());
        for (minute, at, left) in [
            (0, &one, 3),
            (1, &one, 3),
            (9, &one, 3),
            (10, &one, 2),
            (11, &one, 1),
            (12, &other, 0),
            (21, &other, 0),
        ] {
            let now = start + Duration::from_mins(minute);
            servers.read(&read, now).await;
            let asked = answers.lock().unwrap().len();
            assert_eq!((&servers.at, asked), (at, left), "minute {minute}");
        }
    }

    #[tokio::test]
    async fn they_are_looked_for_again_soon_until_they_are_known() {
        // Consul is away, then nobody is logged in yet.
        let answers = [None, Some(Vec::new()), Some(vec![at("10.0.0.7:8300")])];
        let answers = Mutex::new(VecDeque::from(answers));
        let read = || std::future::ready(answers.lock().unwrap().pop_front().unwrap());
        let (mut servers, now) = (Servers::default(), Instant::now());
        for pause in [LOOK_UP_AGAIN, LOOK_UP_AGAIN, LOOK_UP] {
            servers.read(&read, now).await;
            assert_eq!(pause_after(true, servers.are_known()), pause);
        }
        assert_eq!(pause_after(false, true), LOOK_UP_AGAIN);
    }

    #[tokio::test]
    async fn where_all_may_be_asked_no_server_is_looked_for() {
        let (sender, mut forbidden) = watch::channel(None);
        let read = || -> std::future::Ready<_> { panic!("it is asked for") };
        let follows = tokio::spawn(follow(Apis::default(), read, true, sender));
        forbidden.wait_for(Option::is_some).await.unwrap();
        follows.abort();
    }
}
