//! Settings that change while the engine works: where they come from, and what follows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::apply::{ReadError, sure};
use super::dirty::Cause;
use super::engine::Engine;
use super::signals::Signal;
use crate::consul::wire::KvPair;
use crate::consul::{Backoff, Client, Consistency, Observed, Quality};
use crate::model::epoch;
use crate::model::names::ClusterName;
use crate::model::text::Text;
use crate::settings::{self, News, Reading, Setting, Values};

/// How soon it is read again where that failed, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// And how soon later on.
const AGAIN: Duration = Duration::from_secs(2);

/// Values by the names of the keys.
pub type Keys = BTreeMap<Text, Box<[u8]>>;

/// Reads what a folder of settings holds.
///
/// # Errors
///
/// What may not be read, or not all of it: that is not missing.
pub async fn read(client: &Client, folder: &str) -> Result<Keys, ReadError> {
    let pairs = sure(client.kv_list(folder, Consistency::Consistent).await)?;
    let keys = named(folder, pairs);
    if keys.is_empty() {
        // Consul leaves keys out of a list without a word where the token may not read them; asked for
        // one alone it says so.
        let key = format!("{folder}{}", Setting::Policy.name());
        client.kv_get(&key, Consistency::Consistent).await?;
    }
    Ok(keys)
}

fn named(folder: &str, pairs: Vec<KvPair>) -> Keys {
    let named = |pair: KvPair| {
        let name = pair.key.strip_prefix(folder)?;
        Some((name.into(), pair.value))
    };
    pairs.into_iter().filter_map(named).collect()
}

/// The folder of the settings in Consul, as it is followed.
pub(super) struct Followed {
    client: Client,
    folder: String,
    epoch: String,
    /// The `CreateIndex` of the epoch when the settings were read last, or since: it stays the same for as
    /// long as Consul does not lose what it holds. 0 while there is none.
    born: AtomicU64,
}

impl Followed {
    pub(super) fn new(client: Client, cluster: &ClusterName) -> Self {
        Self {
            client,
            folder: settings::folder(cluster),
            epoch: epoch::key(cluster),
            born: AtomicU64::new(0),
        }
    }

    /// The key of the epoch was read.
    pub(super) fn epoch_seen(&self, pair: Option<&KvPair>) {
        let index = pair.map_or(0, |pair| pair.create_index);
        // What was known before is compared with what is there only where keys are missing.
        let _ = self
            .born
            .compare_exchange(0, index, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Tells what the folder holds, whenever that changes.
    pub(super) async fn follow(&self, signals: &mpsc::Sender<Signal>) {
        // While the folder is empty every write to another key wakes the query.
        let mut watch = self.client.watch_kv_list(&self.folder);
        watch = watch.pace(Duration::from_secs(1));
        let mut known: Option<Keys> = None;
        loop {
            let seen = match watch.next().await {
                Ok(change) => change.observed,
                Err(error) => {
                    let _ = signals.send(Signal::NoSettings(error.to_string())).await;
                    continue;
                }
            };
            // It only tells that there may be something to read.
            if seen.quality <= Quality::Leased && known == Some(named(&self.folder, seen.value)) {
                continue;
            }
            let keys = self.read(signals).await;
            if known.as_ref() == Some(&keys) {
                continue;
            }
            let is_missing = |known: &Keys| known.keys().any(|name| !keys.contains_key(name));
            let misses = known.as_ref().is_some_and(is_missing);
            let lost = self.epoch_is_another(misses).await;
            known = Some(keys.clone());
            if signals
                .send(Signal::Settings(Reading { keys, lost }))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// What the folder holds, once that can be read: what may not be read is not missing.
    async fn read(&self, signals: &mpsc::Sender<Signal>) -> Keys {
        let mut backoff = Backoff::new(FIRST_PAUSE, AGAIN);
        loop {
            let why = match read(&self.client, &self.folder).await {
                Ok(keys) => return keys,
                Err(why) => why.to_string(),
            };
            let _ = signals.send(Signal::NoSettings(why)).await;
            sleep(backoff.next_delay()).await;
        }
    }

    /// Whether Consul lost the epoch since the settings were read last, where that `matters`.
    async fn epoch_is_another(&self, matters: bool) -> bool {
        loop {
            let read = self.client.kv_get(&self.epoch, Consistency::Consistent);
            let read = read.await.ok().and_then(Observed::authoritative);
            if let Some(pair) = read {
                let now = pair.map_or(0, |pair| pair.create_index);
                let before = self.born.swap(now, Ordering::Relaxed);
                return matters && before != 0 && before != now;
            }
            if !matters {
                return false;
            }
            sleep(AGAIN).await;
        }
    }
}

impl Engine {
    /// Takes over what the settings in Consul say.
    pub(super) fn take_settings(&mut self, reading: &Reading, now: Instant) {
        self.unread_settings = None;
        let first = !self.settings.is_known();
        let before = self.settings.values().clone();
        for news in self.settings.read(reading) {
            tell(&news, self.settings.folder());
        }
        let lines = self.settings.lines();
        self.readiness.send_modify(|known| known.settings = lines);
        let values = self.settings.values().clone();
        self.put_in_force(&before, &values);
        let replan = values.policy != before.policy
            || values.drift != before.drift
            || values.sweep_critical_after != before.sweep_critical_after;
        if replan && !first {
            self.touch_all(Cause::Read, now);
        }
    }

    fn put_in_force(&mut self, before: &Values, values: &Values) {
        if values.log_level != before.log_level
            && let Some(log) = &self.log_level
            && let Err(error) = log.set(&values.log_level)
        {
            tracing::warn!(%error, "the level of logs cannot be changed");
        }
        if values.policy != before.policy {
            // What is kept of critical instances was rehearsed, or is to be.
            self.critical.epoch = None;
        }
        self.rules.obey(values);
        if values.drift_interval != before.drift_interval {
            self.sweeper.set_interval(values.drift_interval);
            for state in self.tables.values_mut() {
                state.sweeper.set_interval(values.drift_interval);
            }
        }
        if values.consul_write_rate != before.consul_write_rate {
            self.pace.set_rate(values.consul_write_rate);
        }
    }
}

fn tell(news: &News, folder: &str) {
    match news {
        News::Changed {
            setting,
            from,
            to,
            by_key,
        } => {
            let setting = setting.name();
            let why = if *by_key { "key in Consul" } else { "flag" };
            tracing::info!(setting, from, to, why, "a setting changed");
        }
        News::Refused { name, why } => {
            tracing::warn!("{folder}{name} in Consul is not used, what held before stays: {why}");
        }
        News::Kept { setting, value } => {
            let name = setting.name();
            tracing::warn!(
                "{folder}{name} went with everything else in Consul: {name} stays {value} until it is \
                 written again"
            );
        }
    }
}
