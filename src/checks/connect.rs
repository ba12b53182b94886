//! The one way in which a check reaches the network.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::forbidden::Forbidden;

/// Most addresses of one name that are tried.
const MOST_ADDRESSES: usize = 4;

/// Connects to a port of a host, which is an address or a name; says why it cannot, for people.
///
/// No proxy of the environment is used. The address that was judged is the one that is connected to, so
/// that a name cannot lead elsewhere the second time. Without a deadline of its own: its caller has one.
pub async fn connect(
    host: &str,
    port: u16,
    resolver: &Resolver,
    forbidden: &Forbidden,
) -> Result<TcpStream, String> {
    let addresses = resolver.addresses_of(host, port).await?;
    // One that is forbidden spoils all: who names it means it.
    for address in &addresses {
        if let Some(why) = forbidden.why(*address) {
            return Err(format!(
                "{address} is not asked: {why} (--allow-local-checks allows it, for tests)"
            ));
        }
    }
    let mut problem = format!("{host} has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is one small packet.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => problem = said(&error),
        }
    }
    Err(problem)
}

/// Names looked up at once. The system takes as long as it likes for each, on a thread of its own, and has
/// few of these for the whole process.
const LOOK_UPS: usize = 16;

/// Looks up names, a bounded number at once.
#[derive(Debug)]
pub struct Resolver(Arc<Semaphore>);

impl Default for Resolver {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOK_UPS)))
    }
}

impl Resolver {
    async fn addresses_of(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let permit = self.0.clone().acquire_owned().await;
        let permit = permit.map_err(|_| "names are not looked up any more".to_owned())?;
        let asked = (host.to_owned(), port);
        let found = tokio::task::spawn_blocking(move || {
            // Held until the system answers, also if nobody waits for it any more.
            let _permit = permit;
            let found = asked.to_socket_addrs();
            found.map(|found| found.take(MOST_ADDRESSES).collect())
        });
        let found = found.await.map_err(|error| error.to_string())?;
        found.map_err(|error| format!("{host} cannot be looked up: {error}"))
    }
}

/// An error of the system's without the number that it ends with.
fn said(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}
