//! The annotations `lictor.io/*` of a pod.

use std::collections::{BTreeMap, BTreeSet};

use super::problems::Problems;
use super::spec::{AddressChoice, InstanceSpec, PortChoice, Terminating};
use crate::model::entry::Health;
use crate::model::facts::PodFacts;
use crate::model::limits::MAX_SERVICES;
use crate::model::names::ServiceName;
use crate::model::text::Text;

/// The domain of our annotations, with the slash.
pub const DOMAIN: &str = "lictor.io/";
/// The annotation, without its domain, that holds an object as it is.
pub const PAUSED: &str = "paused";

/// A setting that an annotation can give, for all services of a pod or for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Setting {
    Port,
    Tags,
    Meta,
    Address,
    Weight,
    WeightWarning,
    NotReady,
    Terminating,
}

impl Setting {
    const ALL: [(&'static str, Self); 8] = [
        ("port", Self::Port),
        ("tags", Self::Tags),
        ("meta", Self::Meta),
        ("address", Self::Address),
        ("weight", Self::Weight),
        ("weight-warning", Self::WeightWarning),
        ("not-ready", Self::NotReady),
        ("terminating", Self::Terminating),
    ];

    fn parse(key: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, setting)| *setting)
    }

    fn key(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// What a pod's annotations say, sorted out but not yet applied to a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// The services of `lictor.io/service`, in their order, without repeats.
    pub services: Vec<ServiceName>,
    /// Why the list of services cannot be relied on: then what it may have held before is kept.
    pub list_problem: Option<String>,
    /// Whether `lictor.io/paused` is in force; a value that is not understood pauses too.
    pub paused: bool,
    /// What is wrong beside the list and the settings of services, for people.
    pub remarks: Vec<String>,
    /// Services that only settings name.
    mentioned: BTreeSet<Text>,
    plain: BTreeMap<Setting, Value>,
    of_service: BTreeMap<(Text, Setting), Value>,
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Given(Text),
    TooLong,
}

impl Value {
    fn of(value: &Text) -> Self {
        if value.len() < PodFacts::ANNOTATION_BYTES {
            Self::Given(value.clone())
        } else {
            Self::TooLong
        }
    }

    fn apply(&self, setting: Setting, spec: &mut InstanceSpec) -> Result<(), String> {
        match self {
            Self::Given(value) => apply(setting, value, spec),
            Self::TooLong => Err(too_long()),
        }
    }
}

fn too_long() -> String {
    let most = PodFacts::ANNOTATION_BYTES - 1;
    format!("is longer than {most} bytes: make it shorter")
}

impl Annotations {
    /// Sorts out the annotations of a pod. Never fails: what is wrong is part of the result.
    #[must_use]
    pub fn of(pod: &PodFacts) -> Self {
        let (mut found, mut remarks) = (Self::default(), Problems::default());
        for (key, value) in pod.annotations.iter() {
            let Some(key) = key.strip_prefix(DOMAIN) else {
                continue;
            };
            found.take(key, value, &mut remarks);
        }
        found.remarks = remarks.into_vec();
        let listed: BTreeSet<&Text> = found.services.iter().map(ServiceName::text).collect();
        let named = found.of_service.keys().map(|(service, _)| service);
        let mentioned = named.filter(|service| !listed.contains(service));
        found.mentioned = mentioned.cloned().collect();
        found
    }

    /// Services that only a `lictor.io/KEY.SERVICE` names, not the list.
    pub fn mentioned(&self) -> impl Iterator<Item = &Text> {
        self.mentioned.iter()
    }

    /// Whether the pod can hold what it does not claim: what it had is then kept as it was.
    #[must_use]
    pub fn holds_unclaimed(&self) -> bool {
        self.paused || self.list_problem.is_some() || self.mentioned().next().is_some()
    }

    /// Puts the settings for `service` over `base`.
    ///
    /// The errors name the annotation, what is wrong and what is allowed.
    pub fn overlay(
        &self,
        service: &ServiceName,
        mut base: InstanceSpec,
    ) -> Result<InstanceSpec, Vec<String>> {
        let mut problems = Problems::default();
        for (_, setting) in Setting::ALL {
            let own = self.of_service.get(&(service.text().clone(), setting));
            let Some(value) = own.or_else(|| self.plain.get(&setting)) else {
                continue;
            };
            if let Err(problem) = value.apply(setting, &mut base) {
                let of = if own.is_some() {
                    format!(".{service}")
                } else {
                    String::new()
                };
                problems.push(format!("{DOMAIN}{}{of}: {problem}", setting.key()));
            }
        }
        if problems.is_empty() {
            Ok(base)
        } else {
            Err(problems.into_vec())
        }
    }

    /// The health settings for `service`, with what is not understood left as in `base`: health goes
    /// on while a shape is frozen.
    #[must_use]
    pub fn overlay_health(&self, service: &ServiceName, mut base: InstanceSpec) -> InstanceSpec {
        for setting in [Setting::NotReady, Setting::Terminating, Setting::Address] {
            let own = self.of_service.get(&(service.text().clone(), setting));
            if let Some(value) = own.or_else(|| self.plain.get(&setting)) {
                // A value that is not understood leaves the setting as it is; it was reported.
                let _ = value.apply(setting, &mut base);
            }
        }
        base
    }

    fn take(&mut self, key: &str, value: &Text, remarks: &mut Problems) {
        match key {
            "service" if value.len() >= PodFacts::ANNOTATION_BYTES => {
                self.list_problem = Some(format!("{DOMAIN}service: {}", too_long()));
            }
            "service" => self.take_services(value),
            PAUSED => match value.trim() {
                "true" => self.paused = true,
                "false" => {}
                other => {
                    self.paused = true;
                    remarks.push(format!(
                        "{DOMAIN}paused: {other:?} is neither \"true\" nor \"false\"; the pod is \
                         held as if paused"
                    ));
                }
            },
            _ => self.take_setting(key, value, remarks),
        }
    }

    fn take_services(&mut self, list: &str) {
        let mut problems = Problems::default();
        let mut too_many = 0;
        for name in items(list) {
            match name.parse::<ServiceName>() {
                Ok(service) if self.services.contains(&service) => {}
                // Anyone who can create a pod could have all others wait.
                Ok(_) if self.services.len() == MAX_SERVICES => too_many += 1,
                Ok(service) => self.services.push(service),
                Err(error) => problems.push(error.to_string()),
            }
        }
        if too_many > 0 {
            problems.push(format!(
                "a pod has at most {MAX_SERVICES} services: the last {too_many} are left out"
            ));
        }
        if self.services.is_empty() && problems.is_empty() {
            problems.push("names no service: name one, or remove the annotation".to_owned());
        }
        if !problems.is_empty() {
            let problems = problems.into_vec().join("; ");
            self.list_problem = Some(format!("{DOMAIN}service: {problems}"));
        }
    }

    fn take_setting(&mut self, key: &str, value: &Text, remarks: &mut Problems) {
        let (name, service) = match key.split_once('.') {
            Some((name, service)) => (name, Some(service)),
            None => (key, None),
        };
        match (Setting::parse(name), service) {
            (Some(setting), None) => {
                self.plain.insert(setting, Value::of(value));
            }
            (Some(setting), Some(service)) => {
                self.of_service
                    .insert((service.into(), setting), Value::of(value));
            }
            (None, _) => {
                let known: Vec<_> = Setting::ALL.iter().map(|(name, _)| *name).collect();
                remarks.push(format!(
                    "{DOMAIN}{key}: is not an annotation that Lictor knows, and is ignored; there \
                     are service, paused, {}",
                    known.join(", ")
                ));
            }
        }
    }
}

/// The items of a comma-separated list, trimmed, without empty ones.
fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn apply(setting: Setting, value: &str, spec: &mut InstanceSpec) -> Result<(), String> {
    let trimmed = value.trim();
    match setting {
        Setting::Port => spec.port = port(trimmed)?,
        Setting::Tags => spec.tags = items(value).map(Text::from).collect(),
        Setting::Meta => overlay_meta(value, &mut spec.meta)?,
        Setting::Address => {
            spec.address = match trimmed {
                "PodIP" => AddressChoice::PodIp,
                "HostIP" => AddressChoice::HostIp,
                _ => return Err(format!("{trimmed:?} is neither PodIP nor HostIP")),
            }
        }
        Setting::Weight => spec.weights.passing = weight(trimmed)?,
        Setting::WeightWarning => spec.weights.warning = weight(trimmed)?,
        Setting::NotReady => {
            spec.not_ready = match trimmed {
                "Critical" => Health::Critical,
                "Warning" => Health::Warning,
                _ => return Err(format!("{trimmed:?} is neither Critical nor Warning")),
            }
        }
        Setting::Terminating => {
            spec.terminating = match trimmed {
                "Critical" => Terminating::Health(Health::Critical),
                "Warning" => Terminating::Health(Health::Warning),
                "Deregister" => Terminating::Deregister,
                _ => {
                    return Err(format!(
                        "{trimmed:?} is none of Critical, Warning, Deregister"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn port(value: &str) -> Result<PortChoice, String> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        let number = value.parse::<u16>().ok().filter(|number| *number > 0);
        number
            .map(PortChoice::Number)
            .ok_or_else(|| format!("{value} is not within 1..65535: give a number that is"))
    } else if is_port_name(value) {
        Ok(PortChoice::Name(value.into()))
    } else {
        Err(format!(
            "{value:?} is neither a number within 1..65535 nor the name of a port: give one of these"
        ))
    }
}

/// Kubernetes' rule for port names (`IANA_SVC_NAME`), case aside.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn weight(value: &str) -> Result<u16, String> {
    // The standard library's parser would take a sign.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse::<u16>().ok().filter(|number| *number > 0);
    let number = number.filter(|_| digits);
    number.ok_or_else(|| format!("{value:?} is not a number within 1..65535: give one that is"))
}

/// Adds `key=value` pairs; a pair replaces the one of the same key.
fn overlay_meta(list: &str, meta: &mut Vec<(Text, Text)>) -> Result<(), String> {
    for item in items(list) {
        let (key, value) = item
            .split_once('=')
            .ok_or_else(|| format!("{item:?} is not of the form key=value: write it so"))?;
        let (key, value) = (key.trim(), Text::from(value.trim()));
        match meta.iter_mut().find(|(known, _)| **known == *key) {
            Some(pair) => pair.1 = value,
            None => meta.push((key.into(), value)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::fixtures::pod;

    fn name(name: &str) -> ServiceName {
        name.parse().unwrap()
    }

    fn spec(pod: &PodFacts, service: &str) -> Result<InstanceSpec, Vec<String>> {
        Annotations::of(pod).overlay(&name(service), InstanceSpec::default())
    }

    #[test]
    fn keys_stand_in_the_table_at_their_own_place() {
        for (key, setting) in Setting::ALL {
            assert_eq!(setting.key(), key);
        }
    }

    #[test]
    fn several_services_are_listed_once_each() {
        let found = Annotations::of(&pod("p").lictor("service", " web, api ,web,").facts());
        assert_eq!(found.services, [name("web"), name("api")]);
        assert_eq!(found.list_problem, None);
    }

    #[test]
    fn a_bad_name_spoils_the_list_and_keeps_the_good_ones() {
        let found = Annotations::of(&pod("p").lictor("service", "web,Bad_Name").facts());
        assert_eq!(found.services, [name("web")]);
        assert!(found.list_problem.unwrap().contains("\"Bad_Name\""));
        let empty = Annotations::of(&pod("p").lictor("service", " ,").facts());
        assert!(empty.list_problem.unwrap().contains("names no service"));
    }

    #[test]
    fn what_a_pod_can_ask_for_is_bounded() {
        let names: Vec<_> = (0..=MAX_SERVICES).map(|n| format!("s{n}")).collect();
        let mut many = pod("p").lictor("service", &names.join(","));
        for n in 0..100 {
            many = many.lictor(&format!("unknown{n}"), "");
        }
        let found = Annotations::of(&many.facts());
        assert_eq!(found.services.len(), MAX_SERVICES);
        assert!(found.list_problem.unwrap().contains("at most 64 services"));
        assert!(found.remarks.len() < 10, "{}", found.remarks.len());
        let all = Annotations::of(&pod("p").lictor("service", &names[1..].join(",")).facts());
        assert_eq!((all.services.len(), all.list_problem), (MAX_SERVICES, None));
    }

    #[test]
    fn the_form_for_one_service_wins() {
        let facts = pod("p")
            .lictor("service", "web,api")
            .lictor("port", "http")
            .lictor("port.api", "9000")
            .lictor("weight", "5")
            .facts();
        assert_eq!(
            spec(&facts, "web").unwrap().port,
            PortChoice::Name("http".into())
        );
        assert_eq!(spec(&facts, "api").unwrap().port, PortChoice::Number(9000));
        assert_eq!(spec(&facts, "api").unwrap().weights.passing, 5);
    }

    #[test]
    fn a_bad_value_for_one_service_leaves_the_other_whole() {
        let facts = pod("p")
            .lictor("service", "web,api")
            .lictor("weight.api", "0")
            .facts();
        assert!(spec(&facts, "web").is_ok());
        let problems = spec(&facts, "api").unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].starts_with("lictor.io/weight.api: \"0\""),
            "{problems:?}"
        );
    }

    #[test]
    fn every_setting_refuses_what_it_does_not_know() {
        for (key, bad) in [
            ("port", "70000"),
            ("port", "0"),
            ("port", "no such name"),
            ("port", ""),
            ("address", "podip"),
            ("weight", "65536"),
            ("weight-warning", "-1"),
            ("weight", "NaN"),
            ("weight", "+5"),
            ("not-ready", "Deregister"),
            ("terminating", "Passing"),
            ("meta", "novalue"),
        ] {
            let problems = spec(&pod("p").lictor(key, bad).facts(), "web").unwrap_err();
            assert!(
                problems[0].starts_with(&format!("lictor.io/{key}: ")),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn meta_goes_over_the_base_key_by_key() {
        let base = InstanceSpec {
            meta: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
            ..InstanceSpec::default()
        };
        let found = Annotations::of(&pod("p").lictor("meta", "b=3, c = x=y").facts());
        let meta = found.overlay(&name("web"), base).unwrap().meta;
        let expected = [("a", "1"), ("b", "3"), ("c", "x=y")];
        assert_eq!(meta, expected.map(|(k, v)| (Text::from(k), Text::from(v))));
    }

    #[test]
    fn paused_holds_and_so_does_what_is_not_understood() {
        let paused = |value: &str| Annotations::of(&pod("p").lictor("paused", value).facts());
        assert!(paused("true").paused && paused("true").remarks.is_empty());
        assert!(!paused("false").paused);
        assert!(paused("yes").paused && paused("yes").remarks[0].contains("\"yes\""));
    }

    #[test]
    fn an_unknown_annotation_is_remarked_upon_and_harmless() {
        let found = Annotations::of(&pod("p").lictor("service", "web").lictor("tag", "x").facts());
        assert!(found.remarks[0].contains("lictor.io/tag"));
        assert!(found.overlay(&name("web"), InstanceSpec::default()).is_ok());
    }
}
