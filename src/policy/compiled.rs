//! A `RegistrationPolicy`, parsed once.

use super::pattern::Pattern;
use super::uses::Sort;
use crate::api::registration_policy::{Adopt, Checks};
use crate::api::{LabelSelector, PolicyObject, RegistrationPolicySpec};
use crate::model::names::stem_of_sidecar;
use crate::model::text::{Pairs, Text};

/// A policy as it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: Text,
    selector: LabelSelector,
    services: Box<[Pattern]>,
    destinations: Box<[Pattern]>,
    queries: Box<[Pattern]>,
    /// `None` for any tag.
    tags: Option<Box<[Pattern]>>,
    requires_account: bool,
    allows_checks: bool,
    /// Whether what nobody owns may be taken over.
    pub allows_adopt: bool,
}

/// What an instance is beside its name.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// The service that a service account must be named like.
    pub service: &'a str,
    /// The service account of its pod; `None` for an endpoint.
    pub account: Option<&'a str>,
    /// Its tags.
    pub tags: &'a [Text],
    /// Whether it has checks of its own.
    pub checks: bool,
}

impl Policy {
    /// Reads an object; says what is wrong with one that cannot be understood.
    pub fn of(object: &PolicyObject) -> Result<Self, Text> {
        let read = |spec: &RegistrationPolicySpec| Self::read(&object.name, spec);
        match &object.spec {
            Ok(spec) => read(spec).map_err(Text::from),
            Err(why) => Err(why.clone()),
        }
    }

    fn read(name: &Text, spec: &RegistrationPolicySpec) -> Result<Self, String> {
        let RegistrationPolicySpec {
            namespace_selector,
            services,
            destinations,
            queries,
            tags,
            require_service_account_name,
            checks,
            adopt,
        } = spec;
        let names = |field: &str, listed: &[String]| {
            let read = listed.iter().map(|text| Pattern::of_name(text));
            let read: Result<Box<[Pattern]>, String> = read.collect();
            read.map_err(|why| format!("spec.{field}: {why}"))
        };
        let tags = tags.as_ref().map(|listed| {
            let read = listed.iter().map(|text| Pattern::of_tag(text));
            let read: Result<Box<[Pattern]>, String> = read.collect();
            read.map_err(|why| format!("spec.tags: {why}"))
        });
        Ok(Self {
            name: name.clone(),
            selector: namespace_selector.clone(),
            services: names("services", services)?,
            destinations: names("destinations", destinations)?,
            queries: names("queries", queries)?,
            tags: tags.transpose()?,
            requires_account: require_service_account_name.unwrap_or_default(),
            allows_checks: *checks != Some(Checks::Deny),
            allows_adopt: *adopt == Some(Adopt::Allow),
        })
    }

    /// Whether it chooses a namespace with these labels.
    #[must_use]
    pub fn chooses(&self, labels: &Pairs) -> bool {
        self.selector.matches(labels)
    }

    /// Whether it allows a name.
    #[must_use]
    pub fn allows(&self, sort: Sort, name: &str, namespace: &str) -> bool {
        let any = |patterns: &[Pattern], name: &str| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| pattern.matches(name, namespace))
        };
        match sort {
            Sort::Service => any(&self.services, name),
            // The proxy goes with its service.
            Sort::Sidecar => {
                any(&self.services, name)
                    || stem_of_sidecar(name).is_some_and(|stem| any(&self.services, stem))
            }
            Sort::Destination if name == "*" => self.destinations.iter().any(Pattern::is_all),
            Sort::Destination => any(&self.destinations, name),
            Sort::Query => any(&self.queries, name),
            Sort::Template => {
                let mut queries = self.queries.iter();
                queries.any(|pattern| pattern.matches_all_from(name, namespace))
            }
        }
    }

    /// What of an instance, beside its name, it does not allow.
    #[must_use]
    pub fn forbids(&self, instance: &Features<'_>, namespace: &str) -> Option<String> {
        let service = instance.service;
        if self.requires_account {
            match instance.account {
                None => {
                    return Some(format!(
                        "spec.endpoints: it has no service account named {service:?}"
                    ));
                }
                Some(account) if account != service => {
                    return Some(format!(
                        "spec.serviceAccountName: the pod's service account is {account:?} and not {service:?}"
                    ));
                }
                Some(_) => {}
            }
        }
        let is_allowed = |tag: &str| {
            self.tags.as_ref().is_none_or(|patterns| {
                let mut patterns = patterns.iter();
                patterns.any(|pattern| pattern.matches(tag, namespace))
            })
        };
        if let Some(tag) = instance.tags.iter().find(|tag| !is_allowed(tag)) {
            return Some(format!("the tag {tag:?}"));
        }
        if instance.checks && !self.allows_checks {
            return Some("health.checks".to_owned());
        }
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::desired::fixtures::object;

    pub fn policy(name: &str, spec: Value) -> Policy {
        Policy::of(&object(name, spec)).unwrap()
    }

    fn of(more: Value) -> Policy {
        let mut spec = json!({"namespaceSelector": {}});
        let Value::Object(more) = more else {
            panic!("{more}")
        };
        for (key, value) in more {
            spec[key] = value;
        }
        policy("p", spec)
    }

    #[test]
    fn a_list_that_is_left_out_allows_nothing() {
        let nothing = of(json!({}));
        for sort in Sort::ALL {
            assert!(!nothing.allows(sort, "web", "shop"), "{sort:?}");
        }
        assert!(!nothing.allows_adopt);
    }

    #[test]
    fn each_sort_of_name_has_a_list_of_its_own() {
        let services = of(json!({"services": ["{namespace}-*"]}));
        assert!(services.allows(Sort::Service, "shop-web", "shop"));
        assert!(!services.allows(Sort::Destination, "shop-web", "shop"));
        assert!(!services.allows(Sort::Query, "shop-web", "shop"));
        let destinations = of(json!({"destinations": ["web"]}));
        assert!(destinations.allows(Sort::Destination, "web", "shop"));
        assert!(!destinations.allows(Sort::Service, "web", "shop"));
        let queries = of(json!({"queries": ["web"]}));
        assert!(queries.allows(Sort::Query, "web", "shop"));
    }

    #[test]
    fn all_destinations_and_templates_need_a_pattern_that_has_them() {
        assert!(!of(json!({"destinations": ["?", "?*"]})).allows(Sort::Destination, "*", "shop"));
        assert!(of(json!({"destinations": ["*"]})).allows(Sort::Destination, "*", "shop"));
        let exact = of(json!({"queries": ["shop"]}));
        assert!(exact.allows(Sort::Query, "shop", "shop"));
        assert!(!exact.allows(Sort::Template, "shop", "shop"));
        assert!(of(json!({"queries": ["shop*"]})).allows(Sort::Template, "shop", "shop"));
    }

    #[test]
    fn a_proxy_goes_with_its_service_and_its_name_alone_does_not() {
        let policy = of(json!({"services": ["web"]}));
        assert!(policy.allows(Sort::Sidecar, "web-sidecar-proxy", "shop"));
        assert!(!policy.allows(Sort::Service, "web-sidecar-proxy", "shop"));
        assert!(!policy.allows(Sort::Sidecar, "api-sidecar-proxy", "shop"));
    }

    #[test]
    fn what_an_instance_is_beside_its_name_is_judged_too() {
        let tags = [Text::from("canary")];
        let instance = Features {
            service: "web",
            account: Some("default"),
            tags: &tags,
            checks: true,
        };
        assert_eq!(of(json!({})).forbids(&instance, "shop"), None);
        let why = |spec| of(spec).forbids(&instance, "shop").unwrap();
        assert!(why(json!({"requireServiceAccountName": true})).contains("\"default\" and not"));
        assert!(why(json!({"tags": []})).contains("canary"));
        assert!(why(json!({"tags": ["v?"]})).contains("canary"));
        assert!(why(json!({"checks": "Deny"})).contains("health.checks"));
        let endpoint = Features {
            account: None,
            ..instance
        };
        let policy = of(json!({"requireServiceAccountName": true}));
        assert!(policy.forbids(&endpoint, "shop").is_some());
        let named = Features {
            account: Some("web"),
            ..instance
        };
        assert_eq!(policy.forbids(&named, "shop"), None);
    }

    #[test]
    fn what_is_not_understood_is_none() {
        let bad = object("p", json!({"namespaceSelector": {}, "services": ["{ns}"]}));
        assert!(Policy::of(&bad).unwrap_err().contains("spec.services"));
    }
}
