//! Names of hosts, looked up a bounded number at once.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::{Failure, is_own};
use super::shares::{Id, Shares};
use crate::model::text::Text;

/// Names looked up at once. The system takes as long as it likes for each, on a thread of its own, and has
/// few of these for the whole process.
const LOOK_UPS: usize = 16;
/// Most addresses of one name that are judged and tried.
const MOST_ADDRESSES: usize = 4;

type LookUp = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// Looks up names. Those of one namespace take their turns as runs do: what hangs in one holds up no other.
#[derive(Debug)]
pub struct Resolver {
    turns: Arc<Mutex<Turns>>,
    look_up: LookUp,
}

#[derive(Debug, Default)]
struct Turns {
    shares: Shares,
    waiting: HashMap<Id, oneshot::Sender<()>>,
    last: Id,
}

/// A place among those that are looked up, or that wait for it; given back when it is dropped.
#[derive(Debug)]
struct Place {
    turns: Arc<Mutex<Turns>>,
    id: Id,
}

/// That a host may be looked up now; nothing where it is an address.
#[derive(Debug)]
pub struct Turn(Option<Place>);

impl Default for Resolver {
    fn default() -> Self {
        Self::with(|host, port| {
            let found = (host, port).to_socket_addrs()?;
            Ok(found.take(MOST_ADDRESSES).collect())
        })
    }
}

impl Resolver {
    /// Names lead where this says.
    pub(super) fn with(look_up: LookUp) -> Self {
        Self {
            turns: Arc::default(),
            look_up,
        }
    }

    /// Waits for the turn of a host that is named in this namespace, for as long as its caller does.
    pub async fn turn(&self, namespace: &Text, host: &str) -> Turn {
        if host.parse::<IpAddr>().is_ok() {
            return Turn(None);
        }
        let (sender, turn) = oneshot::channel();
        let place = {
            let mut turns = locked(&self.turns);
            turns.last += 1;
            let id = turns.last;
            turns.waiting.insert(id, sender);
            turns.shares.wait(namespace, Instant::now(), id);
            turns.hand_out();
            let turns = self.turns.clone();
            Place { turns, id }
        };
        // The sender is dropped with the place, and not before.
        let _ = turn.await;
        Turn(Some(place))
    }

    /// The addresses of a host.
    pub async fn addresses_of(
        &self,
        Turn(place): Turn,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Failure> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let (asked, look_up) = (host.to_owned(), self.look_up);
        let found = tokio::task::spawn_blocking(move || {
            // Held until the system answers, also if nobody waits for it any more.
            let _place = place;
            look_up(&asked, port)
        });
        let found = found
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        found.map_err(|error| {
            let says = format!("{host} cannot be looked up: {error}");
            if is_own(&error, None) || is_temporary(&error) {
                Failure::NotAsked(says)
            } else {
                Failure::Found(says)
            }
        })
    }
}

impl Turns {
    fn hand_out(&mut self) {
        while let Some((_, id)) = self.shares.begin(LOOK_UPS) {
            let turn = self.waiting.remove(&id);
            if turn.is_none_or(|turn| turn.send(()).is_err()) {
                // It does not wait any more.
                self.shares.end(id);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut turns = locked(&self.turns);
        turns.waiting.remove(&self.id);
        turns.shares.end(self.id);
        turns.hand_out();
    }
}

fn locked(turns: &Mutex<Turns>) -> MutexGuard<'_, Turns> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether no server of names answers, or none of those that would know. `EAI_AGAIN` has no kind in the
/// standard library, so that only its text is left: of glibc, of musl.
fn is_temporary(error: &io::Error) -> bool {
    let text = error.to_string();
    ["Temporary failure in name resolution", "Try again"]
        .iter()
        .any(|temporary| text.ends_with(temporary))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn turn<'a>(
        resolver: &'a Resolver,
        namespace: &'a Text,
    ) -> impl Future<Output = Turn> + Unpin + 'a {
        Box::pin(resolver.turn(namespace, "db.example.com"))
    }

    #[tokio::test]
    async fn names_of_one_namespace_that_hang_hold_up_no_other() {
        let resolver = Resolver::default();
        let (slow, shop) = ("slow".into(), "shop".into());
        let mut held = Vec::new();
        while let Some(turn) = turn(&resolver, &slow).now_or_never() {
            held.push(turn);
        }
        assert_eq!(held.len(), LOOK_UPS / 2);
        let other = turn(&resolver, &shop).now_or_never();
        assert!(other.is_some());
        // Who waits no more is passed over, and a place that is free again goes to who waits.
        let (mut gone, mut waits) = (turn(&resolver, &slow), turn(&resolver, &slow));
        assert!((&mut gone).now_or_never().is_none() && (&mut waits).now_or_never().is_none());
        drop(gone);
        held.pop();
        assert!((&mut waits).now_or_never().is_some());
        drop((held, other, waits));
        let turns = locked(&resolver.turns);
        assert!(turns.waiting.is_empty());
    }

    #[tokio::test]
    async fn what_the_resolver_cannot_do_now_says_nothing_of_a_name() {
        for (says, is_found) in [
            ("Name or service not known", true),
            ("Name does not resolve", true),
            ("Temporary failure in name resolution", false),
            ("Try again", false),
        ] {
            let error = io::Error::other(format!("failed to lookup address information: {says}"));
            assert_eq!(is_temporary(&error), !is_found, "{says}");
        }
        let resolver = Resolver::with(|_, _| Err(io::Error::from_raw_os_error(libc::EMFILE)));
        let turn = resolver.turn(&"shop".into(), "db").await;
        let found = resolver.addresses_of(turn, "db", 80).await;
        assert!(matches!(found, Err(Failure::NotAsked(_))), "{found:?}");
    }
}
