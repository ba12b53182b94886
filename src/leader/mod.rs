//! Leader election: which of the processes of a cluster may write.
//!
//! An [`Elector`] campaigns, and publishes how it stands as a [`Leadership`]. The engine holds the other
//! end, a [`Candidate`], and takes the epoch only while it leads; every write is preceded by a look at
//! the [`Tenure`] that it is made under. The epoch, not the election, keeps two that both believe to lead
//! from writing: an election ends by a clock, and clocks stop with their process.
//!
//! Who leads judges by its own monotonic clock alone, and by the moment *before* the request that
//! renewed was sent. It stops [`LEASE`] - [`TENURE`] before another may follow: the time that a call may
//! take to start, and to arrive.

pub mod lease;

pub mod lock;
pub mod off;
mod pause;
mod reign;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use reign::Reign;

/// How long a leader that shows no sign of life keeps others away.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long a leader relies on what it renewed last, from before that was sent.
pub const TENURE: Duration = Duration::from_secs(10);
/// How often it is renewed: rarely, since a standing cluster is to cost next to nothing.
const RENEWAL: Duration = Duration::from_secs(4);
/// The pause after a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a call may take: so short that a second attempt fits into the tenure.
const CALL: Duration = Duration::from_secs(3);
/// How long the release at the end may take.
const RELEASE: Duration = Duration::from_millis(1200);

/// `--leader-election`: how processes of one cluster agree on which of them writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Election {
    /// By a Lease in Kubernetes.
    #[default]
    Lease,
    /// By a lock in Consul's key-value store.
    Consul,
    /// Not at all: the one that started last writes.
    Off,
}

/// How a process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It may not write.
    StandsBy {
        /// Who may, where that is known.
        leader: Option<String>,
    },
    /// It may write.
    Leads {
        /// Which of its leaderships this is: one that lapsed is another one than what follows.
        term: u64,
        /// Until when, unless it is renewed before; `None` for ever.
        until: Option<Instant>,
    },
}

impl Leadership {
    /// Which leadership holds at this moment, if one does.
    #[must_use]
    pub fn term(&self, now: Instant) -> Option<u64> {
        match *self {
            Self::Leads { term, until } if until.is_none_or(|until| now < until) => Some(term),
            _ => None,
        }
    }
}

/// A leadership without its end, which moves with each renewal.
type Mark = Result<u64, Option<String>>;

impl Leadership {
    fn mark(&self) -> Mark {
        match self {
            Self::Leads { term, .. } => Ok(*term),
            Self::StandsBy { leader } => Err(leader.clone()),
        }
    }
}

impl Default for Leadership {
    fn default() -> Self {
        Self::StandsBy { leader: None }
    }
}

/// Another process runs under the same identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process runs under the identity \"{identity}\" of this one: it took or renewed {what}, which \
     this process did not write. Give each process a POD_NAME of its own"
)]
pub struct IdentityTaken {
    /// The identity.
    pub identity: String,
    /// What was renewed.
    pub what: String,
}

/// Campaigns for the leadership, and keeps it.
pub trait Elector: Send {
    /// Does all that is due, and tells how it stands before each call, which has a deadline, and at the
    /// end: what was renewed is not to seem lapsed while another call is waited for.
    fn step(
        &mut self,
        tell: impl FnMut(Leadership) + Send,
    ) -> impl Future<Output = Result<(), IdentityTaken>> + Send;

    /// Waits until something is due again. Nothing is lost where it is dropped.
    fn rest(&mut self) -> impl Future<Output = ()> + Send;

    /// Asks those who know whether it leads; `false` also where they do not answer.
    fn verify(&mut self) -> impl Future<Output = Result<bool, IdentityTaken>> + Send;

    /// Gives the leadership up, so that another may follow at once.
    fn release(&mut self) -> impl Future<Output = ()> + Send;
}

/// The end that an elector publishes at.
#[derive(Debug)]
pub struct Seat {
    published: watch::Sender<Leadership>,
    campaigns: watch::Receiver<bool>,
    doubts: mpsc::Receiver<oneshot::Sender<bool>>,
}

#[cfg(test)]
impl Seat {
    /// As an elector would.
    pub(crate) fn publish(&self, leadership: Leadership) {
        self.published.send_replace(leadership);
    }

    /// Whether the engine wants to lead.
    pub(crate) fn is_wanted(&self) -> bool {
        *self.campaigns.borrow()
    }
}

/// The end that the engine holds.
#[derive(Debug)]
pub struct Candidate {
    election: Election,
    published: watch::Receiver<Leadership>,
    campaigns: watch::Sender<bool>,
    verifier: Verifier,
    /// How it stood when that was looked at last.
    noted: Mark,
    /// What publishes where there is no elector.
    _alone: Option<watch::Sender<Leadership>>,
}

/// Both ends of an election.
#[must_use]
pub fn channel(election: Election) -> (Seat, Candidate) {
    let (published, receiver) = watch::channel(Leadership::default());
    let (campaigns, wanted) = watch::channel(false);
    let (asks, doubts) = mpsc::channel(1);
    let seat = Seat {
        published,
        campaigns: wanted,
        doubts,
    };
    let candidate = Candidate {
        election,
        published: receiver,
        campaigns,
        verifier: Verifier(asks),
        noted: Leadership::default().mark(),
        _alone: None,
    };
    (seat, candidate)
}

impl Candidate {
    /// One whose standing never changes.
    #[must_use]
    fn fixed(election: Election, leadership: Leadership) -> Self {
        let (_, candidate) = channel(election);
        let (sender, published) = watch::channel(leadership);
        Self {
            published,
            _alone: Some(sender),
            ..candidate
        }
    }

    /// How the leader is found.
    #[must_use]
    pub fn election(&self) -> Election {
        self.election
    }

    /// How it stands.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.published.borrow().clone()
    }

    /// The leadership that holds at this moment, if one does.
    #[must_use]
    pub fn tenure(&self, now: Instant) -> Option<Tenure> {
        let term = self.published.borrow().term(now)?;
        Some(Tenure(Some((term, self.published.clone()))))
    }

    /// When the leadership lapses, if it is not renewed before.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        match *self.published.borrow() {
            Leadership::Leads { until, .. } => until,
            Leadership::StandsBy { .. } => None,
        }
    }

    /// Takes note of how it stands.
    pub fn note(&mut self) {
        self.noted = self.published.borrow_and_update().mark();
    }

    /// Waits until it stands otherwise than was noted, renewals apart; for ever where that cannot be.
    pub async fn changed(&mut self) {
        while self.published.borrow_and_update().mark() == self.noted {
            if self.published.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether it is to lead: one that cannot work leaves it to others, and gives up what it has.
    pub fn campaign(&self, campaigns: bool) {
        self.campaigns.send_if_modified(|known| {
            let changed = *known != campaigns;
            *known = campaigns;
            changed
        });
    }

    /// Whoever asks where the leadership is known.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.verifier.clone()
    }
}

/// Asks whether this process leads, where that is known: at the API server, or in Consul.
#[derive(Clone, Debug)]
pub struct Verifier(mpsc::Sender<oneshot::Sender<bool>>);

impl Verifier {
    /// Whether it does, as a fresh read shows; not where that fails.
    pub async fn leads(&self) -> bool {
        let (sender, answer) = oneshot::channel();
        self.0.send(sender).await.is_ok() && answer.await.unwrap_or(false)
    }
}

/// A leadership that something is done under. It is over when it is not renewed in time, also where this
/// process stood still and saw nothing of that.
#[derive(Clone, Debug)]
pub struct Tenure(Option<(u64, watch::Receiver<Leadership>)>);

impl Tenure {
    /// Of a process that nobody competes with, such as `lictor gc`.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// One that is over.
    #[cfg(test)]
    pub(crate) fn over() -> Self {
        let (_, published) = watch::channel(Leadership::default());
        Self(Some((1, published)))
    }

    /// Which leadership it is; 0 for the one without limit.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.0.as_ref().map_or(0, |(term, _)| *term)
    }

    /// Whether it holds at this moment.
    #[must_use]
    pub fn holds(&self, now: Instant) -> bool {
        let Some((term, published)) = &self.0 else {
            return true;
        };
        published.borrow().term(now) == Some(*term)
    }
}

/// Campaigns whenever that is wanted, until stopped; then releases what it has. The caller stops it once
/// the last writes have ended.
pub async fn run(
    mut elector: impl Elector,
    seat: Seat,
    stop: CancellationToken,
) -> Result<(), IdentityTaken> {
    let Seat {
        published,
        mut campaigns,
        mut doubts,
    } = seat;
    let publish = |leadership: Leadership| {
        published.send_if_modified(|known| {
            let changed = *known != leadership;
            *known = leadership;
            changed
        });
    };
    loop {
        if !*campaigns.borrow_and_update() {
            if matches!(*published.borrow(), Leadership::Leads { .. }) {
                // Before others hear of it.
                publish(Leadership::default());
                elector.release().await;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = campaigns.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                Some(asks) = doubts.recv() => {
                    let _ = asks.send(false);
                }
            }
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            stepped = elector.step(publish) => stepped?,
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Ok(()) = campaigns.changed() => {}
            Some(asks) = doubts.recv() => {
                let leads = elector.verify().await?;
                // Nobody waits for it any more where the engine ended.
                let _ = asks.send(leads);
            }
            () = elector.rest() => {}
        }
    }
    publish(Leadership::default());
    elector.release().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that always wins, and tells what it was asked.
    struct Sure(mpsc::UnboundedSender<&'static str>, u64);

    impl Elector for Sure {
        async fn step(
            &mut self,
            mut tell: impl FnMut(Leadership) + Send,
        ) -> Result<(), IdentityTaken> {
            let until = Some(Instant::now() + TENURE);
            tell(Leadership::Leads {
                term: self.1,
                until,
            });
            Ok(())
        }

        async fn rest(&mut self) {
            std::future::pending::<()>().await;
        }

        async fn verify(&mut self) -> Result<bool, IdentityTaken> {
            let _ = self.0.send("verify");
            Ok(false)
        }

        async fn release(&mut self) {
            self.1 += 1;
            let _ = self.0.send("release");
        }
    }

    async fn won(candidate: &mut Candidate) -> Tenure {
        loop {
            if let Some(tenure) = candidate.tenure(Instant::now()) {
                return tenure;
            }
            candidate.note();
            candidate.changed().await;
        }
    }

    #[tokio::test]
    async fn a_campaign_begins_and_ends_as_the_engine_says() {
        let (asked, mut told) = mpsc::unbounded_channel();
        let (seat, mut candidate) = channel(Election::Lease);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(Sure(asked, 1), seat, stop.clone()));
        assert!(candidate.tenure(Instant::now()).is_none());
        candidate.campaign(true);
        let first = won(&mut candidate).await;
        assert!(first.holds(Instant::now()));
        assert!(!first.holds(Instant::now() + TENURE));
        candidate.campaign(false);
        assert_eq!(told.recv().await, Some("release"));
        assert!(!first.holds(Instant::now()));
        assert!(!candidate.verifier().leads().await);
        candidate.campaign(true);
        let second = won(&mut candidate).await;
        assert!(second.holds(Instant::now()) && !first.holds(Instant::now()));
        assert!(!candidate.verifier().leads().await);
        assert_eq!(told.recv().await, Some("verify"));
        stop.cancel();
        running.await.unwrap().unwrap();
        assert_eq!(told.recv().await, Some("release"));
        assert!(candidate.tenure(Instant::now()).is_none());
    }

    /// One that renews, and whose next call gets no answer.
    struct Slow;

    impl Elector for Slow {
        async fn step(
            &mut self,
            mut tell: impl FnMut(Leadership) + Send,
        ) -> Result<(), IdentityTaken> {
            let until = Some(Instant::now() + TENURE);
            tell(Leadership::Leads { term: 1, until });
            std::future::pending().await
        }

        async fn rest(&mut self) {}

        async fn verify(&mut self) -> Result<bool, IdentityTaken> {
            Ok(true)
        }

        async fn release(&mut self) {}
    }

    #[tokio::test]
    async fn what_was_renewed_is_known_while_another_call_is_waited_for() {
        let (seat, mut candidate) = channel(Election::Lease);
        candidate.campaign(true);
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(Slow, seat, stop.clone()));
        let tenure = won(&mut candidate).await;
        assert!(tenure.holds(Instant::now()));
        stop.cancel();
        running.await.unwrap().unwrap();
        assert!(!tenure.holds(Instant::now()));
    }

    #[test]
    fn what_has_no_limit_always_holds() {
        assert!(Tenure::unlimited().holds(Instant::now()));
        let alone = off::candidate();
        assert!(alone.tenure(Instant::now()).unwrap().holds(Instant::now()));
    }
}
