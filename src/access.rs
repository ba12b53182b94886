//! The token that this process has in Consul: had by a login where there is an auth method, looked at, and
//! given back at the end.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::consul::{Backoff, Client, ConsulError, Login, TokenStanding};

/// How often the token is checked while it is good.
const INTERVAL: Duration = Duration::from_mins(3);
/// How often the token is checked while it is not, or Consul does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// How long a token that a login gave may be unknown to the server that is asked: others hear of it a moment
/// later than the leader.
const SPREAD: Duration = Duration::from_secs(5);
/// How long the token before it is kept: longer than any call that was sent with it, blocking ones too.
const LAST_CALLS: Duration = Duration::from_mins(1);
/// How long a logout may take at the end.
const GOODBYE: Duration = Duration::from_millis(1500);

/// Where a token comes from: `--consul-auth-method`.
#[derive(Clone, Debug)]
pub struct AuthMethod {
    /// Its name in Consul.
    pub name: String,
    /// The file with the token of the `ServiceAccount`, read at every login.
    pub bearer: PathBuf,
    /// Who logs in, for people who look at tokens in Consul: the pod, as `namespace/name`.
    pub pod: Option<String>,
}

/// Why there is no token from a login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The file of the `ServiceAccount`'s token.
    #[error(
        "cannot log in to Consul with the auth method {method}: cannot read the service account token {path}: \
         {error}; mount one, or name it with --consul-bearer-token-file"
    )]
    Bearer {
        /// The auth method.
        method: String,
        /// The file.
        path: String,
        /// What is wrong.
        error: std::io::Error,
    },
    /// Consul does not answer, or refuses.
    #[error(
        "cannot log in to Consul with the auth method {method}: {error}; see that it exists, and that a binding \
         rule of it gives this service account a role or policy"
    )]
    Refused {
        /// The auth method.
        method: String,
        /// What it said.
        error: ConsulError,
    },
}

impl AuthMethod {
    async fn login(&self, consul: &Client) -> Result<Login, LoginError> {
        let bearer = fs::read_to_string(&self.bearer).map_err(|error| LoginError::Bearer {
            method: self.name.clone(),
            path: self.bearer.display().to_string(),
            error,
        })?;
        let bearer = SecretString::from(bearer.trim().to_owned());
        let login = consul.login(&self.name, &bearer, self.pod.as_deref()).await;
        login.map_err(|error| LoginError::Refused {
            method: self.name.clone(),
            error,
        })
    }
}

/// A token that a login gave.
struct Held {
    token: SecretString,
    since: Instant,
    /// When the next login is due: there is no renewal.
    renew_at: Option<Instant>,
}

impl Held {
    fn new(login: Login, now: Instant) -> Self {
        let Login {
            token, lifetime, ..
        } = login;
        Self {
            token,
            since: now,
            renew_at: lifetime.map(|lifetime| now + lifetime * 2 / 3),
        }
    }
}

/// Keeps a token, and keeps knowing whether it is one: with ACLs on, reads without one are silently empty.
pub struct Access {
    consul: Client,
    method: Option<AuthMethod>,
    held: Option<Held>,
    /// The one before, until when it is kept.
    former: Option<(SecretString, Instant)>,
    backoff: Backoff,
    /// Why the last login failed, and when the next may be tried.
    failed: Option<(String, Instant)>,
}

impl Access {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(consul: Client, method: Option<AuthMethod>) -> Self {
        Self {
            consul,
            method,
            held: None,
            former: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            failed: None,
        }
    }

    /// Tells why the token cannot be relied on, while it cannot, until `done`; then gives back what logins
    /// gave.
    pub async fn keep(mut self, problem: watch::Sender<Option<String>>, done: CancellationToken) {
        let kept = async {
            loop {
                let found = self.look(&problem).await;
                tell(&problem, found.as_ref());
                self.wait(&problem).await;
            }
        };
        tokio::select! {
            () = done.cancelled() => {}
            () = kept => {}
        }
        self.log_out().await;
    }

    /// Waits until the token is to be looked at again.
    async fn wait(&mut self, problem: &watch::Sender<Option<String>>) {
        // Looking at what is known costs nothing; a changed token file makes it unknown, and so does
        // a refusal. Others look too: what they found good must not be told as bad any longer.
        let again = Instant::now() + INTERVAL;
        loop {
            sleep(RETRY).await;
            let now = Instant::now();
            if let Some((token, _)) = self.former.take_if(|(_, until)| *until <= now) {
                let _ = self.consul.logout(token).await;
            }
            let told = problem.borrow().is_some();
            let due = self.renewal_is_due(now) && self.failed_lately(now).is_none();
            if now >= again || told || due || !self.consul.is_token_verified() {
                return;
            }
        }
    }

    /// Why the last login failed, while it is too early for the next.
    fn failed_lately(&self, now: Instant) -> Option<&String> {
        let failed = self.failed.as_ref().filter(|(_, at)| *at > now);
        failed.map(|(why, _)| why)
    }

    fn renewal_is_due(&self, now: Instant) -> bool {
        let renew_at = self.held.as_ref().and_then(|held| held.renew_at);
        renew_at.is_some_and(|at| at <= now)
    }

    /// Why the token cannot be relied on, if it cannot.
    async fn look(&mut self, problem: &watch::Sender<Option<String>>) -> Option<String> {
        let now = Instant::now();
        if self.method.is_some()
            && (self.held.is_none() || self.renewal_is_due(now))
            && let Err(error) = self.log_in_again(now).await
        {
            // One that still holds is good until it ends.
            if self.held.is_none() {
                return Some(error);
            }
            tracing::warn!("{error}");
        }
        let mut standing = self.consul.check_token().await;
        if self.method.is_some() && matches!(standing, Ok(TokenStanding::Unknown)) {
            let age = self.held.as_ref().map(|held| held.since.elapsed());
            if age.is_none_or(|age| age > SPREAD) {
                if let Err(error) = self.log_in_again(now).await {
                    return Some(error);
                }
                standing = self.consul.check_token().await;
            }
        }
        match standing {
            Ok(TokenStanding::AclsOff | TokenStanding::Token { .. }) => None,
            Ok(TokenStanding::Anonymous) => Some(
                "the Consul token is rejected: Consul has ACLs, and none was given: set \
                 CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE or CONSUL_AUTH_METHOD"
                    .to_owned(),
            ),
            Ok(TokenStanding::Unknown) => Some(
                "the Consul token is rejected: Consul does not know it; it may be revoked or expired"
                    .to_owned(),
            ),
            // An outage says nothing about the token.
            Err(_) => problem.borrow().clone(),
        }
    }

    /// Logs in, unless that failed a moment ago: then why.
    async fn log_in_again(&mut self, now: Instant) -> Result<(), String> {
        if let Some(why) = self.failed_lately(now) {
            return Err(why.clone());
        }
        match self.log_in().await {
            Ok(()) => {
                self.backoff.reset();
                self.failed = None;
                Ok(())
            }
            Err(error) => {
                let why = error.to_string();
                self.failed = Some((why.clone(), Instant::now() + self.backoff.next_delay()));
                Err(why)
            }
        }
    }

    /// Has a token from now on, where there is an auth method; the one before is given back some time later.
    pub async fn log_in(&mut self) -> Result<(), LoginError> {
        let Some(method) = &self.method else {
            return Ok(());
        };
        let login = method.login(&self.consul).await?;
        let now = Instant::now();
        let accessor = &login.accessor;
        tracing::info!(method = method.name, %accessor, lifetime = ?login.lifetime, "logged in to Consul");
        let held = Held::new(login, now);
        // It came from Consul itself: a token that is no header is an answer of something else.
        if let Err(error) = self.consul.set_token(&held.token) {
            tracing::warn!(%error, "Consul gave a token that cannot be sent");
        }
        if let Some(before) = self.held.replace(held) {
            let until = now + LAST_CALLS;
            if let Some((older, _)) = self.former.replace((before.token, until)) {
                let _ = self.consul.logout(older).await;
            }
        }
        Ok(())
    }

    /// Gives back what logins gave: else it stays in Consul until it ends by itself.
    pub async fn log_out(&mut self) {
        let held = self.held.take().map(|held| held.token);
        let former = self.former.take().map(|(token, _)| token);
        for token in held.into_iter().chain(former) {
            match timeout(GOODBYE, self.consul.logout(token)).await {
                Ok(Ok(())) => tracing::info!("logged out of Consul"),
                Ok(Err(error)) => tracing::warn!(%error, "cannot log out of Consul"),
                Err(_) => tracing::warn!("cannot log out of Consul: no answer"),
            }
        }
    }
}

fn tell(problem: &watch::Sender<Option<String>>, found: Option<&String>) {
    problem.send_if_modified(|known| {
        if let Some(text) = found.filter(|text| known.as_ref() != Some(text)) {
            tracing::warn!("{text}");
        }
        let changed = known.as_ref() != found;
        *known = found.cloned();
        changed
    });
}
