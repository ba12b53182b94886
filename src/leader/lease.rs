//! Election by a Lease in Kubernetes: the calls that its [rules] ask for.

mod rules;

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::rules::{Act, Due, Rules, Wrote};
use super::pause::Complaint;
use super::{CALL, Elector, IdentityTaken, Leadership, RELEASE};
use crate::k8s::client::CallError;
use crate::k8s::{LeaseAccess, LeaseNews, LeaseWrite};

/// What a watch lasts at least: API servers end them after minutes, broken proxies at once.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// What a watch told.
enum News {
    /// How the Lease is.
    Lease(LeaseNews),
    /// It cannot go on.
    Failed(CallError),
    /// Its time was over, after so long.
    Ended(Duration),
}

/// Campaigns for a Lease.
pub struct LeaseElector {
    access: LeaseAccess,
    rules: Rules,
    /// The watch of a process that does not lead, and when it began.
    watch: Option<(BoxStream<'static, Result<LeaseNews, CallError>>, Instant)>,
    /// What the watch told while this process rested.
    news: Option<News>,
    complaint: Complaint,
}

impl LeaseElector {
    /// Under this identity, which no other process has.
    #[must_use]
    pub fn new(access: LeaseAccess, identity: String) -> Self {
        let rules = Rules::new(identity, access.what());
        Self {
            access,
            rules,
            watch: None,
            news: None,
            complaint: Complaint::default(),
        }
    }

    async fn read(&mut self) -> Result<(), IdentityTaken> {
        // What was read is newer than what an old watch tells.
        self.watch = None;
        self.news = None;
        match self.access.get(CALL).await {
            Ok(lease) => self.rules.see(lease, Instant::now()),
            Err(error) => {
                self.failed("read", &error);
                Ok(())
            }
        }
    }

    async fn write(
        &mut self,
        call: impl Future<Output = Result<LeaseWrite, CallError>>,
    ) -> Result<(), IdentityTaken> {
        let wrote = match call.await {
            Ok(LeaseWrite::Done(lease)) => Wrote::Done(lease),
            Ok(LeaseWrite::Conflict) => Wrote::Conflict,
            Err(error) => {
                self.failed("written", &error);
                return Ok(());
            }
        };
        self.rules.wrote(wrote, Instant::now())
    }

    /// Takes in what the watch told.
    fn take_news(&mut self) -> Result<(), IdentityTaken> {
        let Some(news) = self.news.take() else {
            return Ok(());
        };
        let now = Instant::now();
        match news {
            News::Lease(LeaseNews::Is(lease)) => return self.rules.see(Some(lease), now),
            News::Lease(LeaseNews::Gone) => return self.rules.see(None, now),
            News::Failed(error) => {
                tracing::debug!("the watch of {} ended: {error}", self.access.what());
                self.watch = None;
                self.rules.failed(now, rand::random());
            }
            News::Ended(lasted) => {
                self.watch = None;
                if lasted < SHORTEST_WATCH {
                    self.rules.failed(now, rand::random());
                } else {
                    self.rules.doubt();
                }
            }
        }
        Ok(())
    }

    fn failed(&mut self, what: &'static str, error: &CallError) {
        let error = match error.status() {
            Some(status) => format!("{} {}", status.code, status.message),
            None => error.to_string(),
        };
        let text = format!("{} cannot be {what}: {error}", self.access.what());
        let now = Instant::now();
        self.complaint.tell(text, now);
        self.rules.failed(now, rand::random());
    }
}

impl Elector for LeaseElector {
    async fn step(&mut self, mut tell: impl FnMut(Leadership) + Send) -> Result<(), IdentityTaken> {
        self.take_news()?;
        loop {
            let now = Instant::now();
            let access = self.access.clone();
            let act = self.rules.next(now, Timestamp::now());
            tell(self.rules.leadership(now));
            match act {
                Act::Wait(_) => {
                    if self.rules.is_well() {
                        self.complaint.over(&self.access.what());
                    }
                    return Ok(());
                }
                Act::Read => self.read().await?,
                Act::Create(lease) => self.write(access.create(*lease, CALL)).await?,
                Act::Replace(lease) => self.write(access.replace(&lease, CALL)).await?,
            }
        }
    }

    async fn rest(&mut self) {
        let now = Instant::now();
        let Due::Wait(until) = self.rules.due(now) else {
            return;
        };
        let wake = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        // Whoever pauses after a failure reads first: what a watch would go on from may be too old, and one
        // that fails at once would end the pause.
        if self.rules.leads(now) || self.rules.is_unsure() {
            self.watch = None;
            return wake.await;
        }
        let watched = async {
            if self.watch.is_none() {
                match self.access.watch(self.rules.version(), CALL).await {
                    Ok(watch) => self.watch = Some((watch, Instant::now())),
                    Err(error) => return News::Failed(error),
                }
            }
            let Some((watch, began)) = &mut self.watch else {
                return News::Ended(Duration::ZERO);
            };
            match watch.next().await {
                Some(Ok(news)) => News::Lease(news),
                Some(Err(error)) => News::Failed(error),
                None => News::Ended(began.elapsed()),
            }
        };
        tokio::select! {
            () = wake => {}
            news = watched => self.news = Some(news),
        }
    }

    async fn verify(&mut self) -> Result<bool, IdentityTaken> {
        self.read().await?;
        Ok(!self.rules.is_unsure() && self.rules.leads(Instant::now()))
    }

    async fn release(&mut self) {
        self.watch = None;
        self.news = None;
        let deadline = Instant::now() + RELEASE;
        let released = async {
            for _ in 0..2 {
                // What is held may be known less well than it is: a write may have been cut off.
                if self.rules.is_unsure() {
                    let lease = self.access.get(RELEASE).await?;
                    if self.rules.see(lease, Instant::now()).is_err() {
                        return Ok(None);
                    }
                }
                let Some(lease) = self.rules.release(Timestamp::now()) else {
                    return Ok(None);
                };
                match self.access.replace(&lease, RELEASE).await? {
                    LeaseWrite::Done(lease) => return Ok(Some(lease)),
                    LeaseWrite::Conflict => self.rules.doubt(),
                }
            }
            Ok(None)
        };
        let released = timeout_at(deadline, released).await;
        match released {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(lease))) => {
                tracing::info!("{} is released", self.access.what());
                // It is nobody's: no identity can be taken.
                let _ = self.rules.see(Some(lease), Instant::now());
            }
            Ok(Err(error)) => self.failed("released", &error),
            Err(_) => tracing::warn!("{} could not be released in time", self.access.what()),
        }
        self.rules.doubt();
    }
}

#[cfg(test)]
mod tests;
