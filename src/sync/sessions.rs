//! The calls that create, renew and end sessions: one each, since none of it can be in a transaction with the
//! epoch, which is read directly before instead.

use std::time::Duration;

use tokio::time::Instant;

use super::apply::ReadError;
use super::carry::{self, Carried};
use super::pass::Pass;
use crate::consul::wire::HealthCheck;
use crate::consul::{Client, Consistency, ConsulError, Quality, Session};
use crate::heartbeat::pulses::{Act, Begun, Outcome, Place};
use crate::model::text::Text;

/// What became of an act.
#[derive(Debug)]
pub struct Acted {
    /// Its number among our writes; a renewal is none.
    pub id: Option<u64>,
    /// What was to be done.
    pub begun: Begun,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it failed, if it did.
    pub error: Option<ConsulError>,
    /// The raft index of what was written, where it is known.
    pub index: Option<u64>,
    /// What the check is now that its session was created or ended.
    pub check: Checked,
    /// When.
    pub at: Instant,
}

/// What was read of a check.
#[derive(Debug)]
pub enum Checked {
    /// Nothing.
    Unread,
    /// It is not there.
    Gone,
    /// It is this.
    Is(Box<HealthCheck>),
}

/// What Consul has.
#[derive(Debug)]
pub struct Read {
    /// When it was asked.
    pub asked: Instant,
    /// All sessions.
    pub sessions: Result<Vec<Session>, ReadError>,
    /// The oldest version among Consul's servers, where it is known.
    pub version: Option<Text>,
}

/// Carries out an act behind the epoch; a renewal needs none, and no leadership.
pub async fn act(client: Client, id: Option<u64>, pass: Option<Pass>, begun: Begun) -> Acted {
    let act = &begun.act;
    let done = carried_out(&client, pass, act).await;
    let check = match &done {
        Ok((Outcome::Created(_) | Outcome::Gone, _)) => checked(&client, act.place()).await,
        _ => Checked::Unread,
    };
    let (outcome, index, error) = match done {
        Ok((outcome, index)) => (outcome, index, None),
        Err(error) => {
            let lost = error.class().may_be_applied() && matches!(act, Act::Create(..));
            let outcome = if lost { Outcome::Lost } else { Outcome::Failed };
            (outcome, None, Some(error))
        }
    };
    Acted {
        id,
        begun,
        outcome,
        error,
        index,
        check,
        at: Instant::now(),
    }
}

async fn checked(client: &Client, place: &Place) -> Checked {
    let (node, id) = (place.node.as_ref(), &*place.check);
    let read = client.node_check(node, id, Consistency::Consistent);
    let Ok(checks) = read.await else {
        return Checked::Unread;
    };
    let mut checks = checks.value.into_iter();
    match checks.find(|check| check.check_id == place.check) {
        Some(check) => Checked::Is(Box::new(check)),
        None => Checked::Gone,
    }
}

async fn carried_out(
    client: &Client,
    pass: Option<Pass>,
    act: &Act,
) -> Result<(Outcome, Option<u64>), ConsulError> {
    if let Act::Renew(_, id) = act {
        let lives = client.renew_session(id).await?;
        let outcome = if lives {
            Outcome::Renewed
        } else {
            Outcome::Gone
        };
        return Ok((outcome, None));
    }
    let Some(pass) = pass else {
        return Ok((Outcome::Failed, None));
    };
    match carry::check(client, &pass).await? {
        None => {}
        Some(Carried::Fenced { what, .. } | Carried::NoEpoch(what) | Carried::Denied(what)) => {
            tracing::warn!("a session was not touched, because of the epoch: {what}");
            return Ok((Outcome::Failed, None));
        }
        Some(Carried::Done(..) | Carried::Unseen(_) | Carried::Outdated) => {
            return Ok((Outcome::Failed, None));
        }
    }
    match act {
        Act::Create(place, ttl) => {
            // It holds no lock.
            let id = client
                .create_session(place.node.as_ref(), &place.check, *ttl, Duration::ZERO)
                .await?;
            // By its index the signal is known to be of our own doing; else a sweep looks what it was.
            let there = client.session(&id).await.ok().and_then(|it| it.value);
            let index = there.map(|session| session.create_index);
            Ok((Outcome::Created(id), index))
        }
        Act::End(_, id) | Act::Renew(_, id) => {
            client.destroy_session(id).await?;
            Ok((Outcome::Gone, None))
        }
    }
}

/// Reads which sessions there are, and whether Consul's servers know checks that follow them.
pub async fn read(client: Client, asked: Instant) -> Read {
    let version = client.oldest_server().await.ok().flatten();
    let sessions = match client.sessions().await {
        // Those of others may be hidden from us.
        Ok(found) if matches!(found.quality, Quality::Authoritative | Quality::Filtered) => {
            Ok(found.value)
        }
        Ok(found) => Err(ReadError::NotAuthoritative(found.quality)),
        Err(error) => Err(error.into()),
    };
    Read {
        asked,
        sessions,
        version,
    }
}

/// Reads a duration as Consul shows it, such as `30s`.
#[must_use]
pub fn ttl(session: &Session) -> Option<Duration> {
    let ttl: jiff::SignedDuration = session.ttl.parse().ok()?;
    Duration::try_from(ttl).ok().filter(|ttl| !ttl.is_zero())
}
