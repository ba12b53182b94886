//! Prepared queries as objects ask for them, parsed once.

use super::parsed::{Asked, Parsed};
use crate::api::prepared_query as api;
use crate::api::{PreparedQueryObject, QuerySpec};
use crate::consul::wire;
use crate::model::names::QueryName;
use crate::model::owner::OwnerKind;
use crate::model::text::{Pairs, Text};

/// A `PreparedQuery` as the index holds it.
pub type PreparedQuery = Parsed<QueryClaim>;

/// A query that an object asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryClaim {
    /// Its name.
    pub name: QueryName,
    /// The query, as Consul returns it, without an id.
    pub query: wire::PreparedQuery,
    /// Whether one without an owner that has the name is taken over.
    pub adopt: bool,
}

impl Asked for QueryClaim {
    const KIND: OwnerKind = OwnerKind::PreparedQuery;
}

impl PreparedQuery {
    /// Reads an object; what cannot be understood becomes invalid.
    #[must_use]
    pub fn of(object: &PreparedQueryObject) -> Self {
        Self::read(object, |name, spec| {
            claim(Some(name), None, spec).map_err(|problem| format!("spec.{problem}"))
        })
    }
}

/// Reads a query; `name` and `service` are what counts where it gives none.
///
/// What the API server's validation lets through is checked again where a wrong query could come of
/// it: the resource may have been stored under an older, laxer schema.
pub(super) fn claim(
    name: Option<&str>,
    service: Option<&Text>,
    spec: &QuerySpec,
) -> Result<QueryClaim, String> {
    let QuerySpec {
        name: own_name,
        service: own_service,
        tags,
        service_meta,
        node_meta,
        near,
        only_passing,
        ignore_check_ids,
        connect,
        failover,
        dns,
        template,
        adopt,
    } = spec;
    let name = own_name.as_deref().or(name).unwrap_or_default();
    if !is_query_name(name) {
        return Err(format!(
            "name: {name:?} must be 1 to 63 of A-Z, a-z, 0-9 and '-', the first not '-'"
        ));
    }
    let own_service = own_service.as_deref().map(Text::from);
    let service = own_service
        .or_else(|| service.cloned())
        .ok_or_else(|| "service: say which Consul service is looked up".to_owned())?;
    let failover = failover.clone().unwrap_or_default();
    if !failover.targets.is_empty()
        && (failover.nearest_n.unwrap_or_default() > 0 || !failover.datacenters.is_empty())
    {
        return Err("failover: targets go without nearestN and datacenters: list the datacenters as targets".to_owned());
    }
    let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    let target = |target: &api::QueryTarget| wire::QueryTarget {
        peer: text(&target.peer),
        datacenter: text(&target.datacenter),
        partition: text(&target.partition),
        namespace: text(&target.namespace),
    };
    let template = template.as_ref().map(|template| wire::QueryTemplate {
        template_type: TEMPLATE_TYPE.into(),
        regexp: text(&template.regexp),
        remove_empty_tags: template.remove_empty_tags.unwrap_or_default(),
    });
    let query = wire::PreparedQuery {
        name: name.into(),
        template,
        service: wire::QueryService {
            service,
            failover: wire::QueryFailover {
                nearest_n: failover.nearest_n.unwrap_or_default().into(),
                datacenters: texts(&failover.datacenters),
                targets: failover.targets.iter().map(target).collect(),
            },
            only_passing: only_passing.unwrap_or_default(),
            ignore_check_ids: texts(ignore_check_ids),
            near: text(near),
            tags: texts(tags),
            node_meta: pairs(node_meta),
            service_meta: pairs(service_meta),
            connect: connect.unwrap_or_default(),
            ..wire::QueryService::default()
        },
        dns: wire::QueryDns {
            ttl: dns
                .as_ref()
                .map_or_else(Text::default, |dns| text(&dns.ttl)),
        },
        ..wire::PreparedQuery::default()
    };
    Ok(QueryClaim {
        name: QueryName::new(name),
        query,
        adopt: adopt.unwrap_or_default(),
    })
}

/// The only type of template that Consul has.
const TEMPLATE_TYPE: &str = "name_prefix_match";

fn is_query_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed)
}

fn pairs(pairs: &std::collections::BTreeMap<String, String>) -> Pairs {
    let pair = |(key, value): (&String, &String)| (Text::from(key.as_str()), value.as_str().into());
    pairs.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: serde_json::Value) -> Result<QueryClaim, String> {
        claim(None, None, &serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn every_field_becomes_one_of_consuls() {
        let claim = read(json!({
            "name": "Nearest-Payment", "service": "payment", "tags": ["v2", "!canary"],
            "serviceMeta": {"version": "2"}, "nodeMeta": {"zone": "a"}, "near": "_agent",
            "onlyPassing": true, "ignoreCheckIds": ["x"], "connect": true,
            "failover": {"nearestN": 2, "datacenters": ["dc2", "dc3"]}, "dns": {"ttl": "10s"},
            "template": {"type": "name_prefix_match", "regexp": "^a", "removeEmptyTags": true},
        }))
        .unwrap();
        assert_eq!(claim.name.as_ref(), "nearest-payment");
        assert_eq!(
            serde_json::to_value(&claim.query).unwrap(),
            json!({
                "Name": "Nearest-Payment",
                "Template": {"Type": "name_prefix_match", "Regexp": "^a", "RemoveEmptyTags": true},
                "Service": {
                    "Service": "payment", "Tags": ["v2", "!canary"], "ServiceMeta": {"version": "2"},
                    "NodeMeta": {"zone": "a"}, "Near": "_agent", "OnlyPassing": true,
                    "IgnoreCheckIDs": ["x"], "Connect": true,
                    "Failover": {"NearestN": 2, "Datacenters": ["dc2", "dc3"]},
                },
                "DNS": {"TTL": "10s"},
            })
        );
        let targets = read(json!({"name": "q", "service": "s",
            "failover": {"targets": [{"peer": "p"}, {"datacenter": "dc2"}]}}));
        assert_eq!(targets.unwrap().query.service.failover.targets.len(), 2);
    }

    #[test]
    fn an_empty_name_which_would_catch_every_lookup_is_refused() {
        let template = json!({"type": "name_prefix_match"});
        for name in ["", "-a", "a.b", &"a".repeat(64)] {
            let spec = json!({"name": name, "service": "s", "template": template});
            assert!(read(spec).unwrap_err().starts_with("name:"), "{name:?}");
        }
        assert!(
            read(json!({"name": "q"}))
                .unwrap_err()
                .starts_with("service:")
        );
    }
}
