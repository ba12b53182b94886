//! An `Intention`, parsed once.

use std::collections::BTreeMap;

use super::parsed::{Asked, Parsed};
use crate::api::intention as api;
use crate::api::{IntentionObject, IntentionSpec};
use crate::consul::wire;
use crate::model::names::Destination;
use crate::model::owner::OwnerKind;
use crate::model::source::{SourceName, without_default};
use crate::model::text::Text;

/// What kind of source it is; Consul fills it in where it is not given, and knows no other.
const SOURCE_TYPE: &str = "consul";

/// An `Intention` as the index holds it.
pub type Intention = Parsed<IntentionClaims>;

/// What a valid `Intention` asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct IntentionClaims {
    /// Whom the sources call.
    pub destination: Destination,
    /// The sources, as Consul returns them.
    pub sources: BTreeMap<SourceName, wire::SourceIntention>,
    /// What every request must carry.
    pub jwt: Option<wire::IntentionJwt>,
    /// Whether sources without an owner that stand there are taken over.
    pub adopt: bool,
}

impl Asked for IntentionClaims {
    const KIND: OwnerKind = OwnerKind::Intention;
}

impl IntentionClaims {
    /// All that it claims of its destination.
    pub fn names(&self) -> impl Iterator<Item = SourceName> {
        let jwt = self.jwt.iter().map(|_| SourceName::Jwt);
        self.sources.keys().cloned().chain(jwt)
    }
}

impl Intention {
    /// Reads an object; what cannot be understood becomes invalid.
    #[must_use]
    pub fn of(object: &IntentionObject) -> Self {
        Self::read(object, |_, spec| claims(spec))
    }
}

/// What the API server's validation lets through is checked again where a wrong entry could come of
/// it: the resource may have been stored under an older, laxer schema.
fn claims(spec: &IntentionSpec) -> Result<IntentionClaims, String> {
    let IntentionSpec {
        destination,
        sources,
        jwt,
        adopt,
    } = spec;
    let api::IntentionDestination {
        name,
        namespace,
        partition,
    } = destination;
    for (field, value) in [("namespace", namespace), ("partition", partition)] {
        if value.as_ref().is_some_and(|value| value != "default") {
            return Err(format!(
                "spec.destination.{field}: intentions are written in the {field} that Lictor itself \
                 uses (CONSUL_NAMESPACE, CONSUL_PARTITION): leave it out"
            ));
        }
    }
    is_name("spec.destination.name", name)?;
    if matches!(&**name, "." | "..") {
        return Err(format!(
            "spec.destination.name: {name:?} cannot be asked for by a URL, so that the entry could never \
             be removed: choose another name"
        ));
    }
    let mut named = BTreeMap::new();
    for source in sources {
        let (name, source) = source_of(source)?;
        if named.insert(name.clone(), source).is_some() {
            return Err(format!(
                "spec.sources: the source {name} is given twice (a namespace or partition \"default\" \
                 is the same as none): leave one of the two out"
            ));
        }
    }
    if named.is_empty() {
        return Err("spec.sources: give at least one source".to_owned());
    }
    let has_rules = |source: &wire::SourceIntention| !source.permissions.is_empty();
    if name == "*" && named.values().any(has_rules) {
        return Err(
            "spec.sources: permissions need a destination with a name, since \"*\" has no protocol: give \
             an action"
                .to_owned(),
        );
    }
    Ok(IntentionClaims {
        destination: Destination::new(name),
        sources: named,
        jwt: jwt.as_ref().map(|jwt| jwt_of("spec.", jwt)).transpose()?,
        adopt: adopt.unwrap_or_default(),
    })
}

/// Marks list names divided by `,`, with parts after `|`.
fn is_name(field: &str, name: &str) -> Result<(), String> {
    let divides = |c: char| matches!(c, ',' | '|' | '=') || c.is_control();
    if name.is_empty() || name.contains(divides) {
        return Err(format!(
            "{field}: {name:?} is no name of a service: it must not be empty, nor have a ',', '|', '=' or \
             a control character"
        ));
    }
    Ok(())
}

fn source_of(source: &api::IntentionSource) -> Result<(SourceName, wire::SourceIntention), String> {
    let api::IntentionSource {
        name,
        namespace,
        partition,
        peer,
        sameness_group,
        action,
        permissions,
        description,
    } = source;
    is_name("spec.sources", name)?;
    let parts = [namespace, partition, peer, sameness_group]
        .map(|part| part.as_deref().unwrap_or_default());
    for part in parts {
        if !part.is_empty() {
            is_name("spec.sources", part)?;
        }
    }
    if action.is_some() != permissions.is_empty() {
        return Err(format!(
            "spec.sources: {name:?} must have exactly one of action and permissions"
        ));
    }
    let [namespace, partition, peer, sameness_group] = parts.map(Text::from);
    let [namespace, partition] = [namespace, partition].map(without_default);
    let key = SourceName::new(name, [&namespace, &partition, &peer, &sameness_group]);
    let source = wire::SourceIntention {
        name: name.as_str().into(),
        namespace,
        partition,
        peer,
        sameness_group,
        action: action.map(action_of).unwrap_or_default(),
        permissions: permissions
            .iter()
            .map(permission_of)
            .collect::<Result<_, _>>()?,
        description: text(description.as_deref()),
        source_type: SOURCE_TYPE.into(),
        ..wire::SourceIntention::default()
    };
    Ok((key, source))
}

fn action_of(action: api::IntentionAction) -> Text {
    match action {
        api::IntentionAction::Allow => "allow".into(),
        api::IntentionAction::Deny => "deny".into(),
    }
}

fn permission_of(
    permission: &api::IntentionPermission,
) -> Result<wire::IntentionPermission, String> {
    let api::IntentionPermission { action, http, jwt } = permission;
    let api::HttpPermission {
        path_exact,
        path_prefix,
        path_regex,
        header,
        methods,
    } = http;
    let http = wire::IntentionHttpPermission {
        path_exact: text(path_exact.as_deref()),
        path_prefix: text(path_prefix.as_deref()),
        path_regex: text(path_regex.as_deref()),
        header: header.iter().map(header_of).collect(),
        methods: methods
            .iter()
            .map(|method| method.as_str().into())
            .collect(),
        ..wire::IntentionHttpPermission::default()
    };
    let jwt = jwt.as_ref().map(|jwt| jwt_of("spec.sources: ", jwt));
    Ok(wire::IntentionPermission {
        action: action_of(*action),
        http: Some(http),
        jwt: jwt.transpose()?,
        ..wire::IntentionPermission::default()
    })
}

fn header_of(header: &api::HeaderPermission) -> wire::IntentionHeader {
    let api::HeaderPermission {
        name,
        present,
        exact,
        prefix,
        suffix,
        contains,
        regex,
        invert,
        ignore_case,
    } = header;
    wire::IntentionHeader {
        name: name.as_str().into(),
        present: present.unwrap_or_default(),
        exact: text(exact.as_deref()),
        prefix: text(prefix.as_deref()),
        suffix: text(suffix.as_deref()),
        contains: text(contains.as_deref()),
        regex: text(regex.as_deref()),
        invert: invert.unwrap_or_default(),
        ignore_case: ignore_case.unwrap_or_default(),
        ..wire::IntentionHeader::default()
    }
}

/// Consul takes a requirement that nothing is asked of, and every request meets it.
fn jwt_of(at: &str, jwt: &api::IntentionJwt) -> Result<wire::IntentionJwt, String> {
    if jwt.providers.is_empty() {
        return Err(format!(
            "{at}jwt.providers: give at least one, since without any no token is asked for"
        ));
    }
    let mut claims = jwt.providers.iter().flat_map(|it| &it.verify_claims);
    if claims.any(|claim| claim.path.is_empty()) {
        return Err(format!(
            "{at}jwt.providers: verifyClaims: a claim without a path is none: give its path"
        ));
    }
    let claim = |claim: &api::JwtClaim| wire::IntentionJwtClaim {
        path: claim.path.iter().map(|part| part.as_str().into()).collect(),
        value: text(claim.value.as_deref()),
        ..wire::IntentionJwtClaim::default()
    };
    let provider = |provider: &api::JwtProvider| wire::IntentionJwtProvider {
        name: provider.name.as_str().into(),
        verify_claims: provider.verify_claims.iter().map(claim).collect(),
        ..wire::IntentionJwtProvider::default()
    };
    Ok(wire::IntentionJwt {
        providers: jwt.providers.iter().map(provider).collect(),
        ..wire::IntentionJwt::default()
    })
}

fn text(text: Option<&str>) -> Text {
    text.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(spec: serde_json::Value) -> Result<IntentionClaims, String> {
        claims(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn every_field_becomes_one_of_consuls() {
        let claims = read(json!({
            "destination": {"name": "payment"},
            "sources": [
                {"name": "web", "action": "allow", "description": "shop"},
                {"name": "api", "peer": "other", "action": "deny"},
                {"name": "reports", "permissions": [{
                    "action": "allow",
                    "http": {"pathPrefix": "/v1", "methods": ["GET"],
                             "header": [{"name": "x-team", "exact": "reports", "invert": true}]},
                    "jwt": {"providers": [{"name": "okta", "verifyClaims": [
                        {"path": ["aud"], "value": "shop"}]}]},
                }]},
            ],
            "jwt": {"providers": [{"name": "okta"}]},
        }))
        .unwrap();
        let names: Vec<String> = claims.names().map(|name| name.to_string()).collect();
        assert_eq!(names, ["api|peer:other", "reports", "web", "|jwt|"]);
        let reports = &claims.sources[&SourceName::parse("reports").unwrap()];
        let as_json = serde_json::to_value(reports).unwrap();
        assert_eq!(
            as_json,
            json!({
                "Name": "reports", "Type": "consul",
                "Permissions": [{
                    "Action": "allow",
                    "HTTP": {"PathPrefix": "/v1", "Methods": ["GET"],
                             "Header": [{"Name": "x-team", "Exact": "reports", "Invert": true}]},
                    "JWT": {"Providers": [{"Name": "okta", "VerifyClaims": [
                        {"Path": ["aud"], "Value": "shop"}]}]},
                }],
            })
        );
    }

    /// Consul names neither: what it returns is to be the same.
    #[test]
    fn the_default_namespace_and_partition_are_none() {
        let spec = |source: serde_json::Value| {
            let source = json!({"name": "web", "action": "allow"})
                .as_object()
                .unwrap()
                .clone()
                .into_iter()
                .chain(source.as_object().unwrap().clone())
                .collect::<serde_json::Map<_, _>>();
            read(json!({"destination": {"name": "payment"}, "sources": [source]})).unwrap()
        };
        for field in ["namespace", "partition"] {
            assert_eq!(spec(json!({field: "default"})), spec(json!({})), "{field}");
        }
    }

    #[test]
    fn what_no_entry_can_be_made_of_is_told_by_its_field() {
        let source = json!({"name": "web", "action": "allow"});
        let to = |name: &str| json!({"name": name});
        for (spec, part) in [
            (
                json!({"destination": to("a,b"), "sources": [source]}),
                "spec.destination.name",
            ),
            (
                json!({"destination": to("a"), "sources": [source], "jwt": {"providers": []}}),
                "spec.jwt.providers",
            ),
            (
                json!({"destination": to("a"), "sources": [{"name": "web", "permissions": [
                {"action": "allow", "http": {"pathExact": "/"}, "jwt": {"providers": []}}]}]}),
                "spec.sources: jwt.providers",
            ),
            (
                json!({"destination": to("a"), "sources": [source], "jwt": {"providers": [
                {"name": "okta", "verifyClaims": [{"path": [], "value": "shop"}]}]}}),
                "verifyClaims",
            ),
            (
                json!({"destination": to("."), "sources": [source]}),
                "spec.destination.name",
            ),
            (
                json!({"destination": to(".."), "sources": [source]}),
                "spec.destination.name",
            ),
            (
                json!({"destination": {"name": "a", "namespace": "team"}, "sources": [source]}),
                "spec.destination.namespace",
            ),
            (
                json!({"destination": to("a"), "sources": []}),
                "at least one",
            ),
            (
                json!({"destination": to("a"), "sources": [source, source]}),
                "given twice",
            ),
            (
                json!({"destination": to("a"), "sources": [source,
                {"name": "web", "namespace": "default", "action": "deny"}]}),
                "\"default\" is the same as none",
            ),
            (
                json!({"destination": to("a"), "sources": [{"name": "web"}]}),
                "exactly one",
            ),
            (
                json!({"destination": to("*"), "sources": [{"name": "web", "permissions": [
                {"action": "allow", "http": {"pathExact": "/"}}]}]}),
                "permissions",
            ),
        ] {
            let problem = read(spec).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }
}
