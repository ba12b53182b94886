//! What a pod with the readiness gate `lictor.io/registered` waits for.

use std::collections::BTreeSet;

use super::claims::not_a_service;
use super::{Index, PodRow, RegistrationRow};
use crate::desired::health;
use crate::desired::problems::Problems;
use crate::desired::registration::Content;
use crate::model::facts::{Phase, PodFacts};
use crate::model::key::InstanceKey;
use crate::model::names::ServiceName;
use crate::model::text::Text;

/// What a pod with our readiness gate waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing: it ends, or has ended, or is in an excluded namespace. Its gate is left as it is.
    Nothing,
    /// It asks for something invalid; each problem names the annotation and the remedy.
    Invalid(Vec<String>),
    /// It cannot be registered yet.
    Pending(&'static str),
    /// Nobody registers it.
    Unclaimed,
    /// All of these instances.
    Instances(Vec<AwaitedInstance>),
}

/// An instance that a pod is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwaitedInstance {
    /// Its key.
    pub key: InstanceKey,
    /// Why it is only kept as it is, if it is there, and not registered.
    pub kept: Option<Kept>,
}

/// Why an instance is not registered that an object asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The object, for people, is paused.
    Paused(String),
    /// What is wrong with the object.
    Invalid(String),
}

impl Index {
    /// What a pod with our readiness gate waits for; `None` where there is no such pod.
    #[must_use]
    pub fn awaited(&self, namespace: &Text, name: &Text) -> Option<(&PodFacts, Awaited)> {
        let row = self.pods.get(&(namespace.clone(), name.clone()))?;
        row.facts.gate.as_ref()?;
        Some((&row.facts, self.awaited_by(row)))
    }

    fn awaited_by(&self, row: &PodRow) -> Awaited {
        let (pod, annotations) = (&row.facts, &row.annotations);
        let ended = pod.deleting || matches!(pod.phase, Phase::Succeeded | Phase::Failed);
        if ended || self.is_excluded(&pod.namespace) {
            return Awaited::Nothing;
        }
        // What is only remarked upon keeps nothing from being registered.
        let mut problems = Problems::default();
        let unknown = self.unknown_services(pod, annotations);
        let unknown = unknown.into_iter().map(|service| not_a_service(service));
        let listed = annotations.list_problem.iter().cloned();
        listed
            .chain(unknown)
            .for_each(|problem| problems.push(problem));
        if !problems.is_empty() {
            return Awaited::Invalid(problems.into_vec());
        }
        if !health::is_registrable(pod) {
            return Awaited::Pending(match pod {
                PodFacts { node: None, .. } => "the pod is not bound to a node yet",
                PodFacts { ips, .. } if ips.is_empty() => "the pod has no address yet",
                _ => "the containers of the pod were not started yet",
            });
        }
        let claimed = row.keys.iter().map(|key| AwaitedInstance {
            key: key.clone(),
            kept: None,
        });
        let mut instances: Vec<AwaitedInstance> = claimed.collect();
        for (service, kept) in self.kept_from(row) {
            let key = self.key_of_pod(pod, &service);
            let key = key.filter(|key| !row.keys.contains(key));
            instances.extend(key.map(|key| AwaitedInstance {
                key,
                kept: Some(kept),
            }));
        }
        if instances.is_empty() {
            Awaited::Unclaimed
        } else {
            Awaited::Instances(instances)
        }
    }

    /// The services that a pod would be registered under, were it and its registrations not paused or
    /// invalid.
    fn kept_from(&self, row: &PodRow) -> Vec<(ServiceName, Kept)> {
        let mut seen = BTreeSet::new();
        let mut kept = Vec::new();
        let own = row.annotations.paused.then(|| "the pod".to_owned());
        for registration in self.registrations.in_namespace(&row.facts.namespace) {
            let Some(claims) = registration
                .last_good()
                .filter(|claims| claims.select(&row.facts.labels))
            else {
                continue;
            };
            let why = own.clone().map(Kept::Paused).or_else(|| why(registration));
            if let Some(why) = why
                && seen.insert(claims.service.clone())
            {
                kept.push((claims.service.clone(), why));
            }
        }
        if let Some(own) = own {
            for service in &row.annotations.services {
                if seen.insert(service.clone()) {
                    kept.push((service.clone(), Kept::Paused(own.clone())));
                }
            }
        }
        kept
    }
}

/// Why a registration claims nothing, if it does not.
fn why(row: &RegistrationRow) -> Option<Kept> {
    let owner = row.registration.owner();
    match &row.registration.content {
        Content::Valid(_) => None,
        Content::Paused { .. } => Some(Kept::Paused(format!("{owner}, which selects the pod,"))),
        Content::Invalid(problem) => Some(Kept::Invalid(format!(
            "{owner}, which selected the pod when it was last understood: {problem}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use globset::GlobSet;
    use serde_json::json;

    use super::*;
    use crate::api::RegistrationObject;
    use crate::desired::fixtures::{PodFixture, object, pod};
    use crate::desired::index::Touched;
    use crate::desired::registration::Registration;
    use crate::model::facts::GateFacts;
    use crate::model::text::Pairs;

    fn gated(pod: PodFixture) -> PodFixture {
        pod.change(|pod| pod.gate = Some(Box::new(GateFacts::default())))
    }

    fn index() -> Index {
        Index::new("a".parse().unwrap(), GlobSet::empty())
    }

    fn awaited(index: &mut Index, pod: PodFixture) -> Awaited {
        let facts = gated(pod).facts();
        let (namespace, name) = (facts.namespace.clone(), facts.name.clone());
        index.apply_pod(facts, &mut Touched::default());
        index.awaited(&namespace, &name).unwrap().1
    }

    fn register(index: &mut Index, paused: bool) {
        let spec = json!({"service": "web", "selector": {"matchLabels": {"app": "web"}}});
        let mut object: RegistrationObject = object("web", spec);
        if paused {
            let pair = ("lictor.io/paused".into(), "true".into());
            object.annotations = Pairs::from_iter([pair]);
        }
        index.apply_registration(Registration::of(&object), &mut Touched::default());
    }

    fn keys(awaited: Awaited) -> Vec<(String, bool)> {
        let Awaited::Instances(instances) = awaited else {
            panic!("{awaited:?}")
        };
        let shown = |one: AwaitedInstance| (one.key.id.to_string(), one.kept.is_some());
        instances.into_iter().map(shown).collect()
    }

    #[test]
    fn all_instances_of_a_pod_are_awaited() {
        let mut index = index();
        register(&mut index, false);
        let pod = pod("p").label("app", "web").lictor("service", "api,admin");
        let expected = ["a.shop.admin.p", "a.shop.api.p", "a.shop.web.p"];
        let expected = expected.map(|id| (id.to_owned(), false));
        assert_eq!(keys(awaited(&mut index, pod)), expected);
    }

    #[test]
    fn what_is_paused_is_awaited_and_not_registered() {
        let mut index = index();
        register(&mut index, true);
        let selected = pod("p").label("app", "web").lictor("service", "api");
        let expected = [
            ("a.shop.api.p".to_owned(), false),
            ("a.shop.web.p".to_owned(), true),
        ];
        assert_eq!(keys(awaited(&mut index, selected)), expected);
        let paused = pod("q").lictor("service", "api").lictor("paused", "true");
        let expected = [("a.shop.api.q".to_owned(), true)];
        assert_eq!(keys(awaited(&mut index, paused)), expected);
    }

    #[test]
    fn why_a_pod_has_no_instances_is_told_apart() {
        let mut index = index();
        assert_eq!(awaited(&mut index, pod("p")), Awaited::Unclaimed);
        let unknown = pod("p").lictor("unknown", "x");
        assert_eq!(awaited(&mut index, unknown), Awaited::Unclaimed);
        let bad = pod("p").lictor("service", "web,Bad_Name");
        let Awaited::Invalid(problems) = awaited(&mut index, bad) else {
            panic!("a bad name is not told")
        };
        assert!(problems[0].contains("Bad_Name"), "{problems:?}");
        let pending = pod("p").lictor("service", "web").ips(&[]);
        let pending = awaited(&mut index, pending);
        assert_eq!(pending, Awaited::Pending("the pod has no address yet"));
        let ends = pod("p").change(|pod| pod.deleting = true);
        assert_eq!(awaited(&mut index, ends), Awaited::Nothing);
        let failed = pod("p").phase(Phase::Failed);
        assert_eq!(awaited(&mut index, failed), Awaited::Nothing);
    }

    #[test]
    fn a_pod_without_the_gate_waits_for_nothing() {
        let mut index = index();
        index.apply_pod(pod("p").facts(), &mut Touched::default());
        assert!(index.awaited(&"shop".into(), &"p".into()).is_none());
    }
}
