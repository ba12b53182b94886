//! Settings that may change while Lictor runs: its flags, and the keys in Consul that win over them. Pure.
//!
//! A key is named like its flag, without the dashes. One that cannot be used changes nothing: what held
//! before stays, and the key is told of. What guards against removals can only be made stricter there than
//! the flags are, so that whoever may write to Consul alone can stop Lictor, but not set it loose.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::desired::probe::LEAST_CRITICAL;
use crate::model::names::ClusterName;
use crate::model::text::Text;
use crate::plan::guard::Limits;
use crate::plan::{DriftMode, Mode};
use crate::telemetry;

/// What stands for "none" where a setting is optional.
const OFF: &str = "off";
/// Longest time that a setting may ask for. Nobody means more, and clocks end somewhere.
const LONGEST: Duration = Duration::from_hours(8760);
/// Largest value that is looked at, in bytes.
const LONGEST_VALUE: usize = 1024;

/// The folder in Consul KV whose keys win over the flags of this cluster's processes.
#[must_use]
pub fn folder(cluster: &ClusterName) -> String {
    format!("lictor/v1/{cluster}/config/")
}

/// What may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// `--log-level`.
    pub log_level: String,
    /// `--policy`.
    pub policy: Mode,
    /// `--drift`.
    pub drift: DriftMode,
    /// `--drift-interval`.
    pub drift_interval: Duration,
    /// `--max-delete-percent`, `--max-delete-floor` and `--delete-confirm`.
    pub limits: Limits,
    /// `--sweep-critical-after`.
    pub sweep_critical_after: Option<Duration>,
    /// `--consul-write-rate`: entries a second.
    pub consul_write_rate: Option<NonZeroU32>,
}

/// A setting that may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// `log-level`.
    LogLevel,
    /// `policy`.
    Policy,
    /// `drift`.
    Drift,
    /// `drift-interval`.
    DriftInterval,
    /// `max-delete-percent`.
    MaxDeletePercent,
    /// `max-delete-floor`.
    MaxDeleteFloor,
    /// `delete-confirm`.
    DeleteConfirm,
    /// `sweep-critical-after`.
    SweepCriticalAfter,
    /// `consul-write-rate`.
    ConsulWriteRate,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::LogLevel,
        Self::Policy,
        Self::Drift,
        Self::DriftInterval,
        Self::MaxDeletePercent,
        Self::MaxDeleteFloor,
        Self::DeleteConfirm,
        Self::SweepCriticalAfter,
        Self::ConsulWriteRate,
    ];

    /// The name of the flag, without dashes before it, and of the key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LogLevel => "log-level",
            Self::Policy => "policy",
            Self::Drift => "drift",
            Self::DriftInterval => "drift-interval",
            Self::MaxDeletePercent => "max-delete-percent",
            Self::MaxDeleteFloor => "max-delete-floor",
            Self::DeleteConfirm => "delete-confirm",
            Self::SweepCriticalAfter => "sweep-critical-after",
            Self::ConsulWriteRate => "consul-write-rate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name() == name)
    }

    /// What it is, as a flag or a key would say it.
    #[must_use]
    pub fn of(self, values: &Values) -> String {
        match self {
            Self::LogLevel => values.log_level.clone(),
            Self::Policy => values.policy.to_string(),
            Self::Drift => values.drift.to_string(),
            Self::DriftInterval => shown(values.drift_interval),
            Self::MaxDeletePercent => values.limits.percent.to_string(),
            Self::MaxDeleteFloor => values.limits.floor.to_string(),
            Self::DeleteConfirm => values.limits.confirm.to_string(),
            Self::SweepCriticalAfter => values.sweep_critical_after.map_or(OFF.to_owned(), shown),
            Self::ConsulWriteRate => values
                .consul_write_rate
                .map_or(OFF.to_owned(), |rate| rate.to_string()),
        }
    }

    /// Sets it to what `text` says.
    fn put(self, text: &str, values: &mut Values) -> Result<(), String> {
        match self {
            Self::LogLevel => {
                telemetry::filter(text).map_err(|error| error.to_string())?;
                text.clone_into(&mut values.log_level);
            }
            Self::Policy => values.policy = one_of(text)?,
            Self::Drift => values.drift = one_of(text)?,
            Self::DriftInterval => values.drift_interval = duration(text)?,
            Self::MaxDeletePercent => values.limits.percent = number(text, 0, 100)?,
            Self::MaxDeleteFloor => values.limits.floor = number(text, 0, usize::MAX)?,
            Self::DeleteConfirm => values.limits.confirm = number(text, 1, 100)?,
            Self::SweepCriticalAfter if text == OFF => values.sweep_critical_after = None,
            Self::SweepCriticalAfter => {
                values.sweep_critical_after = Some(critical_time(text)?);
            }
            Self::ConsulWriteRate if text == OFF => values.consul_write_rate = None,
            Self::ConsulWriteRate => {
                let rate = number(text, 1, u32::MAX).map_err(|why| format!("{why}, or {OFF}"))?;
                values.consul_write_rate = NonZeroU32::new(rate);
            }
        }
        Ok(())
    }

    /// Takes it over from other values.
    fn take(self, from: &Values, into: &mut Values) {
        match self {
            Self::LogLevel => from.log_level.clone_into(&mut into.log_level),
            Self::Policy => into.policy = from.policy,
            Self::Drift => into.drift = from.drift,
            Self::DriftInterval => into.drift_interval = from.drift_interval,
            Self::MaxDeletePercent => into.limits.percent = from.limits.percent,
            Self::MaxDeleteFloor => into.limits.floor = from.limits.floor,
            Self::DeleteConfirm => into.limits.confirm = from.limits.confirm,
            Self::SweepCriticalAfter => into.sweep_critical_after = from.sweep_critical_after,
            Self::ConsulWriteRate => into.consul_write_rate = from.consul_write_rate,
        }
    }

    /// Whether it guards against removals, and `values` would let more go than `flags` do.
    fn is_laxer(self, values: &Values, flags: &Values) -> bool {
        match self {
            Self::Policy => strictness(values.policy) < strictness(flags.policy),
            Self::MaxDeletePercent => values.limits.percent > flags.limits.percent,
            Self::MaxDeleteFloor => values.limits.floor > flags.limits.floor,
            Self::DeleteConfirm => values.limits.confirm < flags.limits.confirm,
            Self::LogLevel
            | Self::Drift
            | Self::DriftInterval
            | Self::SweepCriticalAfter
            | Self::ConsulWriteRate => false,
        }
    }
}

fn strictness(mode: Mode) -> u8 {
    match mode {
        Mode::Sync => 0,
        Mode::UpsertOnly => 1,
        Mode::DryRun => 2,
    }
}

fn one_of<T: clap::ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let values = T::value_variants().iter();
        let names: Vec<String> = values
            .filter_map(T::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        format!("must be one of {}", names.join(", "))
    })
}

fn number<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + std::fmt::Display + PartialOrd + Copy,
{
    let parsed = text.parse().ok();
    let parsed = parsed.filter(|parsed| (&least..=&most).contains(&parsed));
    parsed.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
}

/// Reads a time of at least a second and at most a year, such as `90s` or `1h30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed: kube::core::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if parsed.is_negative() {
        return Err("must not be negative".to_owned());
    }
    let parsed = Duration::from(parsed);
    if parsed < Duration::from_secs(1) {
        return Err("must be at least 1s".to_owned());
    }
    if parsed > LONGEST {
        return Err("must be at most 8760h".to_owned());
    }
    Ok(parsed)
}

/// Reads for how long an instance must have been critical before it is deregistered.
pub fn critical_time(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    if parsed < LEAST_CRITICAL {
        return Err(format!("must be at least {LEAST_CRITICAL:?}"));
    }
    Ok(parsed)
}

fn shown(duration: Duration) -> String {
    format!("{duration:?}")
}

/// What the folder in Consul holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Values by the names of the keys.
    pub keys: BTreeMap<Text, Box<[u8]>>,
    /// Whether Consul lost the epoch of the cluster since the last reading, and with it everything: then
    /// nobody removed what is not there.
    pub lost: bool,
}

/// Something that is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A setting changed.
    Changed {
        /// Which.
        setting: Setting,
        /// What it was.
        from: String,
        /// What it is.
        to: String,
        /// Whether a key says so, and not the flag.
        by_key: bool,
    },
    /// A key is of no use; what held before stays.
    Refused {
        /// Its name.
        name: Text,
        /// Why, and what helps.
        why: String,
    },
    /// A key went with everything else in Consul; what it said stays until it is written again, or the
    /// process ends.
    Kept {
        /// Which.
        setting: Setting,
        /// What it said.
        value: String,
    },
}

/// The settings in force, and where they come from.
#[derive(Clone, Debug)]
pub struct Settings {
    folder: String,
    flags: Values,
    values: Values,
    /// What keys say.
    keys: BTreeSet<Setting>,
    /// What keys said when Consul lost them.
    kept: BTreeSet<Setting>,
    /// Keys that are of no use, and why.
    refused: BTreeMap<Text, String>,
    known: bool,
}

impl Settings {
    /// Those of the flags, before anything is known of Consul.
    #[must_use]
    pub fn new(cluster: &ClusterName, flags: Values) -> Self {
        Self {
            folder: folder(cluster),
            values: flags.clone(),
            flags,
            keys: BTreeSet::new(),
            kept: BTreeSet::new(),
            refused: BTreeMap::new(),
            known: false,
        }
    }

    /// What is in force.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The folder in Consul that they are read from.
    #[must_use]
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// What the flags say.
    #[must_use]
    pub fn flags(&self) -> &Values {
        &self.flags
    }

    /// Whether Consul's part was read once: before that it may forbid what the flags allow.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Takes over what Consul holds. What of it is new is to be told.
    pub fn read(&mut self, reading: &Reading) -> Vec<News> {
        self.known = true;
        let before = self.values.clone();
        let mut news = Vec::new();
        let mut refused = BTreeMap::new();
        for setting in Setting::ALL {
            let Some(value) = reading.keys.get(setting.name()) else {
                self.vanished(setting, reading.lost, &mut news);
                continue;
            };
            match self.accept(setting, value) {
                Ok(()) => {
                    self.keys.insert(setting);
                    self.kept.remove(&setting);
                }
                Err(why) => {
                    refused.insert(setting.name().into(), why);
                }
            }
        }
        let unknown = |name: &&Text| !name.is_empty() && Setting::named(name).is_none();
        for name in reading.keys.keys().filter(unknown) {
            let names: Vec<&str> = Setting::ALL.into_iter().map(Setting::name).collect();
            let why = format!("there is no such setting: there are {}", names.join(", "));
            refused.insert(name.clone(), why);
        }
        for (name, why) in &refused {
            if self.refused.get(name) != Some(why) {
                news.push(News::Refused {
                    name: name.clone(),
                    why: why.clone(),
                });
            }
        }
        self.refused = refused;
        let changed = Setting::ALL.into_iter().filter_map(|setting| {
            let (from, to) = (setting.of(&before), setting.of(&self.values));
            let by_key = self.keys.contains(&setting);
            (from != to).then_some(News::Changed {
                setting,
                from,
                to,
                by_key,
            })
        });
        news.extend(changed);
        news
    }

    fn accept(&mut self, setting: Setting, value: &[u8]) -> Result<(), String> {
        let readable = std::str::from_utf8(value).ok();
        let Some(text) = readable.filter(|text| text.len() <= LONGEST_VALUE) else {
            return Err("its value is no text, or too long".to_owned());
        };
        let text = text.trim();
        let mut values = self.values.clone();
        setting
            .put(text, &mut values)
            .map_err(|why| format!("{text:?}: {why}"))?;
        if setting.is_laxer(&values, &self.flags) {
            let (name, flag) = (setting.name(), setting.of(&self.flags));
            return Err(format!(
                "{text:?} would let more be removed than --{name} {flag}: here it can only be made stricter; \
                 change the flag for that"
            ));
        }
        self.values = values;
        Ok(())
    }

    fn vanished(&mut self, setting: Setting, lost: bool, news: &mut Vec<News>) {
        if lost && self.keys.contains(&setting) {
            if self.kept.insert(setting) {
                let value = setting.of(&self.values);
                news.push(News::Kept { setting, value });
            }
        } else if !self.kept.contains(&setting) && self.keys.remove(&setting) {
            setting.take(&self.flags, &mut self.values);
        }
    }

    /// What is in force, one line a setting.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |setting: Setting| {
            let from = if self.kept.contains(&setting) {
                " (from Consul, which lost it)"
            } else if self.keys.contains(&setting) {
                " (from Consul)"
            } else {
                ""
            };
            format!("{} = {}{from}", setting.name(), setting.of(&self.values))
        };
        Setting::ALL.into_iter().map(line).collect()
    }

    /// Keys that are of no use, and why, one line each.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        let refused = self.refused.iter();
        let folder = &self.folder;
        refused.map(move |(name, why)| format!("{folder}{name} in Consul is not used: {why}"))
    }
}

#[cfg(test)]
mod tests;
