//! Our own list and watch.
//!
//! `kube::runtime::watcher` does the same, but its stream does not say when a broken watch is healthy
//! again: after an error there is silence until the next event, which may be an hour away. Lictor's
//! first promise is that "I could not read it" is never taken for "it is empty", so whoever decides
//! about a removal must know at every moment whether what it knows is complete. Besides, here an
//! event goes from the socket to the channel in one step, and only the fields in use are ever decoded.
//!
//! The decisions are in `machine`; this is what carries them out.

use std::time::Duration;

use futures::future::{Either, select};
use futures::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};
use kube::Resource as _;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::crd::{CrdState, Fate, crd_state};
use super::failures::{
    endless, failed, leaving, other, overdue, refused, unanswered, undecodable, unknown,
    unreachable,
};
use super::home::Home;
use super::kinds::{BrokenKind, KubeEvent, Relist, WatchEvent, Watched};
use super::machine::{Failure, Machine, PROBATION, Say, Step};
use super::trim::{self, Line, Page, Texts};
use crate::model::text::Text;

/// Objects in a page: large enough for few round trips, small enough to be decoded between two events
/// of another kind.
const PAGE: u32 = 500;
/// What is borne with from the API server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For a whole page.
    page: Duration,
    /// For the head of an answer.
    open: Duration,
    /// For a line of an open watch. The server ends each watch after a minute at the latest, so that
    /// one that is silent for longer hangs.
    line: Duration,
    /// Bytes of a page. The API server stores no object of more than 3 MiB, and [`PAGE`] of a usual
    /// size come to some 10 MiB; what is longer than this does not end by itself.
    page_bytes: u64,
    /// Bytes of a line of a watch, which holds one object.
    line_bytes: u64,
}

pub(super) const LIMITS: Limits = Limits {
    page: Duration::from_secs(30),
    open: Duration::from_secs(10),
    line: Duration::from_secs(65),
    page_bytes: 512 << 20,
    line_bytes: 16 << 20,
};

const SILENT: &str = "the watch is open, and silent for longer than the API server would keep it";

/// The receiver is gone: there is nobody to watch for.
#[derive(Debug)]
struct Unheard;

/// Watches one kind, in the whole cluster or in one namespace, until the receiver is gone.
pub(super) async fn watch<T: Watched>(
    home: Home,
    scope: Option<Text>,
    events: mpsc::Sender<KubeEvent>,
    relist: Relist,
) {
    watch_within::<T>(home, scope, events, relist, LIMITS).await;
}

async fn watch_within<T: Watched>(
    home: Home,
    scope: Option<Text>,
    events: mpsc::Sender<KubeEvent>,
    relist: Relist,
    limits: Limits,
) {
    let watch = Watch::<T> {
        path: T::Resource::url_path(&(), scope.as_deref()),
        home,
        limits,
        machine: Machine::new(),
        crd: None,
        texts: Texts::default(),
        out: Out {
            scope,
            events: events.clone(),
            kind: std::marker::PhantomData,
        },
    };
    tokio::select! {
        Err(Unheard) = watch.run(relist) => {}
        () = events.closed() => {}
    }
}

struct Watch<T> {
    path: String,
    home: Home,
    limits: Limits,
    machine: Machine,
    /// The CRD as it was before the last list began, where the kind has one and it is known.
    crd: Option<CrdState>,
    texts: Texts,
    out: Out<T>,
}

struct Out<T> {
    scope: Option<Text>,
    events: mpsc::Sender<KubeEvent>,
    kind: std::marker::PhantomData<fn(T)>,
}

impl<T: Watched> Out<T> {
    async fn send(&self, event: WatchEvent<T>) -> Result<(), Unheard> {
        let event = KubeEvent {
            at: Instant::now(),
            scope: self.scope.clone(),
            change: T::change(event),
        };
        self.events.send(event).await.map_err(|_| Unheard)
    }

    async fn say(&self, say: Option<Say>) -> Result<(), Unheard> {
        match say {
            None => Ok(()),
            Some(Say::Listing) => self.send(WatchEvent::Listing).await,
            Some(Say::Listed(resource_version)) => {
                self.send(WatchEvent::Listed { resource_version }).await
            }
            Some(Say::Broken(why)) => {
                tracing::warn!(kind = T::KIND.resource(), reason = ?why.kind, "watch is broken: {}", why.message);
                self.send(WatchEvent::Broken(why)).await
            }
            Some(Say::Healthy) => {
                tracing::info!(kind = T::KIND.resource(), "watch is healthy again");
                self.send(WatchEvent::Healthy).await
            }
        }
    }
}

impl<T: Watched> Watch<T> {
    async fn run(mut self, mut relist: Relist) -> Result<(), Unheard> {
        loop {
            let (say, step) = self.machine.step(&mut rand::random);
            self.out.say(say).await?;
            tokio::select! {
                done = self.carry_out(step) => done?,
                () = asked(&mut relist) => self.machine.list_now(),
            }
        }
    }

    async fn carry_out(&mut self, step: Step) -> Result<(), Unheard> {
        match step {
            Step::Pause(pause) => {
                sleep(pause).await;
                Ok(())
            }
            Step::List { token } => self.list(token).await,
            Step::Watch { from, seconds } => self.follow(&from, seconds).await,
        }
    }

    async fn list(&mut self, token: Option<String>) -> Result<(), Unheard> {
        if token.is_none() {
            // Before the list: one that is read after it need not be the one that they belong to.
            self.crd = self.crd_state().await;
        }
        // Without a resourceVersion the answer is what a quorum of etcd holds, not a cache's.
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: token,
            ..ListParams::default()
        };
        let say = match self.own_page(&params).await {
            Ok(page) => {
                self.out.send(WatchEvent::Page(page.items)).await?;
                let version = page.resource_version;
                self.machine.page(
                    &version,
                    page.continue_token,
                    Instant::now(),
                    &mut rand::random,
                )
            }
            Err(failure) => self
                .machine
                .failed(failure, Instant::now(), &mut rand::random),
        };
        self.out.say(say).await
    }

    /// A page of a list that shows, from its beginning to its end, what is ours.
    async fn own_page(&mut self, params: &ListParams) -> Result<Page<T>, Failure> {
        if params.continue_token.is_none() {
            self.at_home().await?;
        }
        let page = self.page(params).await?;
        if page.continue_token.is_none() {
            self.at_home().await?;
            // What is no longer in the list may have gone with the CRD.
            if self.fate().await == Fate::Go {
                return Err(leaving());
            }
        }
        Ok(page)
    }

    async fn at_home(&self) -> Result<(), Failure> {
        at_home(&self.home).await
    }

    async fn page(&mut self, params: &ListParams) -> Result<Page<T>, Failure> {
        let body = body(&self.home, &self.path, params, self.limits).await?;
        trim::page::<T>(&body, &mut self.texts).map_err(|error| undecodable(&error))
    }

    /// Looks whether the store was taken back while it could not be watched.
    async fn look(&mut self) -> Result<bool, Failure> {
        self.at_home().await?;
        let params = ListParams {
            limit: Some(1),
            ..ListParams::default()
        };
        let version = self.page(&params).await?.resource_version;
        let back = self.machine.went_back(&version);
        if back {
            tracing::warn!(
                kind = T::KIND.resource(),
                version = &*version,
                "resource versions went back: everything is listed anew"
            );
        }
        Ok(back)
    }

    async fn follow(&mut self, from: &str, seconds: u32) -> Result<(), Unheard> {
        if self.machine.is_broken() {
            match self.look().await {
                Ok(false) => {}
                Ok(true) => return Ok(()),
                Err(failure) => {
                    let say = self
                        .machine
                        .failed(failure, Instant::now(), &mut rand::random);
                    return self.out.say(say).await;
                }
            }
        }
        let params = WatchParams {
            bookmarks: true,
            timeout: Some(seconds),
            ..WatchParams::default()
        };
        let stream = match Request::new(&*self.path).watch(&params, from) {
            Ok(request) => {
                let answer = self.home.client().request_stream(request);
                answered("a watch", answer, self.limits.open).await
            }
            Err(error) => Err(failed(&error)),
        };
        // Once it is open: the address may have led away before, and an open connection stays.
        let stream = match stream {
            Ok(stream) => self.at_home().await.map(|()| stream),
            Err(failure) => Err(failure),
        };
        let say = match stream {
            Ok(stream) => {
                self.machine.opened(Instant::now());
                match self.read(stream).await? {
                    Ok(()) => self.machine.ended(Instant::now(), &mut rand::random),
                    Err(failure) => self
                        .machine
                        .failed(failure, Instant::now(), &mut rand::random),
                }
            }
            Err(failure) => self
                .machine
                .failed(failure, Instant::now(), &mut rand::random),
        };
        self.out.say(say).await
    }

    /// The state of the kind's CRD; `None` if it has none, or if that is not known.
    async fn crd_state(&self) -> Option<CrdState> {
        let name = T::CRD.filter(|_| self.may_read_crds())?;
        let state = crd_state(self.home.client(), name).await;
        state
            .inspect_err(|error| tracing::debug!("cannot read the CRD {name}: {error}"))
            .ok()
    }

    /// No Role lets CRDs be read.
    fn may_read_crds(&self) -> bool {
        self.home.namespaces().is_empty()
    }

    /// Whether the CRD takes with it what was listed.
    async fn fate(&self) -> Fate {
        if T::CRD.is_none() {
            return Fate::Stay;
        }
        Fate::of(self.crd.as_ref(), self.crd_state().await.as_ref())
    }

    /// Reads to the end of a watch.
    async fn read(&mut self, stream: impl AsyncBufRead) -> Result<Result<(), Failure>, Unheard> {
        let mut stream = std::pin::pin!(stream);
        let mut line = Vec::new();
        let idle = self.limits.line;
        loop {
            line.clear();
            let mut limited = (&mut stream).take(self.limits.line_bytes);
            let reading = std::pin::pin!(limited.read_until(b'\n', &mut line));
            let read = if self.machine.is_broken() {
                let probation = std::pin::pin!(sleep(PROBATION));
                match select(reading, probation).await {
                    Either::Left((read, _)) => Ok(read),
                    Either::Right(((), reading)) => {
                        self.out.say(self.machine.vouched()).await?;
                        timeout(idle, reading).await
                    }
                }
            } else {
                timeout(idle, reading).await
            };
            match read {
                Err(_) => return Ok(Err(other(BrokenKind::Unreachable, SILENT))),
                Ok(Err(error)) => return Ok(Err(unreachable(&error))),
                Ok(Ok(_)) if line.len() as u64 >= self.limits.line_bytes => {
                    return Ok(Err(endless("a watch")));
                }
                // A line without an end is what was left when the connection broke.
                Ok(Ok(_)) if line.last() != Some(&b'\n') => return Ok(Ok(())),
                Ok(Ok(_)) => {}
            }
            match trim::line::<T>(&line, &mut self.texts) {
                Ok((Line::Error(status), _)) => return Ok(Err(refused(&status))),
                Ok((event, version)) => {
                    if let Some(version) = version {
                        let say = self.machine.seen(version);
                        self.out.say(say).await?;
                    }
                    match event {
                        Line::Applied(object) => self.out.send(WatchEvent::Applied(object)).await?,
                        Line::Deleted(object) => {
                            let by_itself = match self.fate().await {
                                Fate::Go => return Ok(Err(leaving())),
                                Fate::Stay => true,
                                Fate::Unknown => false,
                            };
                            let event = WatchEvent::Deleted { object, by_itself };
                            self.out.send(event).await?;
                        }
                        Line::Bookmark | Line::Error(_) => {}
                    }
                }
                Err(error) => return Ok(Err(undecodable(&error))),
            }
        }
    }
}

/// Fails where another cluster answers at the address, or where that cannot be known.
pub(super) async fn at_home(home: &Home) -> Result<(), Failure> {
    match home.look().await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(stranger)) => Err(other(BrokenKind::Stranger, stranger.to_string())),
        Err(error) => Err(unknown(error)),
    }
}

/// Reads a page of a list.
pub(super) async fn body(
    home: &Home,
    path: &str,
    params: &ListParams,
    limits: Limits,
) -> Result<Vec<u8>, Failure> {
    let request = Request::new(path)
        .list(params)
        .map_err(|error| failed(&error))?;
    let read = async {
        let answer = home.client().request_stream(request);
        let stream = answered("a list", answer, limits.open).await?;
        let mut stream = std::pin::pin!(stream);
        let mut body = Vec::new();
        // Not by read_to_end, which fills all the room that is left with zeros each time that it waits.
        loop {
            let piece = stream.fill_buf().await;
            let piece = piece.map_err(|error| unreachable(&error))?;
            if piece.is_empty() {
                return Ok(body);
            }
            let length = piece.len();
            if (body.len() + length) as u64 >= limits.page_bytes {
                return Err(endless("a list"));
            }
            body.extend_from_slice(piece);
            stream.consume_unpin(length);
        }
    };
    let deadline = limits.page;
    timeout(deadline, read)
        .await
        .unwrap_or_else(|_| Err(overdue("a list", deadline)))
}

/// Waits for the head of an answer, not long: of several connections that went dead together each is
/// found out by a request of its own.
async fn answered<S>(
    what: &str,
    answer: impl Future<Output = kube::Result<S>>,
    limit: Duration,
) -> Result<S, Failure> {
    let answer = timeout(limit, answer).await;
    answer
        .map_err(|_| overdue(what, limit))?
        .map_err(unanswered)
}

/// Ends when a full list is asked for.
async fn asked(relist: &mut Relist) {
    if relist.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
