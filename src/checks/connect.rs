//! The one way in which a check reaches the network.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, Join, Take, join};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::forbidden::Forbidden;

/// Most bytes that are read of one connection, whatever they are: of an answer's head less is taken, but
/// there may be any number of them before the last one (RFC 9110, section 15.2).
const MOST_BYTES: u64 = 128 * 1024;

/// A connection of which no more is read than [`MOST_BYTES`]: it ends there.
pub type Connection = Join<Take<OwnedReadHalf>, OwnedWriteHalf>;

/// Why a run found nothing that passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// So it is: it counts.
    Found(String),
    /// This process could not ask, which says nothing of what was to be asked.
    NotAsked(String),
}

/// Connects to the first of these addresses of a host that takes it.
///
/// No proxy of the environment is used. The addresses that are judged are those that are connected to, so
/// that a name cannot lead elsewhere the second time. Without a deadline of its own: its caller has one.
pub async fn connect(
    host: &str,
    addresses: &[SocketAddr],
    forbidden: &Forbidden,
) -> Result<Connection, Failure> {
    // One that is forbidden spoils all: who names it means it.
    for address in addresses {
        if let Some(why) = forbidden.why(*address) {
            return Err(Failure::Found(format!(
                "{address} is not asked: {why} (--allow-local-checks allows it, for tests)"
            )));
        }
    }
    let mut problem = Failure::Found(format!("{host} has no address"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is one small packet.
                let _ = stream.set_nodelay(true);
                let (read, write) = stream.into_split();
                return Ok(join(read.take(MOST_BYTES), write));
            }
            Err(error) if is_own(&error, *address) => {
                problem = Failure::NotAsked(format!("cannot connect: {}", said(&error)));
            }
            // Of several addresses one that could not be asked may be the one that answers.
            Err(error) if matches!(problem, Failure::Found(_)) => {
                problem = Failure::Found(said(&error));
            }
            Err(_) => {}
        }
    }
    Err(problem)
}

/// Whether it is this process, or its host, that has no more sockets, memory or ports.
pub fn is_own(error: &io::Error, address: impl Into<Option<SocketAddr>>) -> bool {
    let of_ipv6 = address.into().is_some_and(|address| address.is_ipv6());
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => true,
        // Over IPv6 it is also what a host without IPv6 says: that does not pass, and is better told.
        Some(libc::EADDRNOTAVAIL) => !of_ipv6,
        _ => false,
    }
}

/// An error of the system's without the number that it ends with.
fn said(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_lacks_is_not_the_other_sides() {
        let v4 = SocketAddr::from(([10, 0, 0, 1], 80));
        let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 80));
        let own = |code, address| is_own(&io::Error::from_raw_os_error(code), address);
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert!(own(code, v4) && own(code, v6), "{code}");
        }
        assert!(own(libc::EADDRNOTAVAIL, v4) && !own(libc::EADDRNOTAVAIL, v6));
        for code in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH] {
            assert!(!own(code, v4) && !own(code, v6), "{code}");
        }
    }
}
