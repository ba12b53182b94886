//! Pieces of schema and rules that several fields share.
//!
//! Every list has `maxItems` and every string `maxLength`: the API server refuses rules whose cost
//! it cannot bound.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::core::{Message, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize as _, Deserializer};
use serde_json::{Number, Value, json};

use super::conditions::{ConditionType, MESSAGE_BYTES};
use crate::model::{limits, marks};

/// A lower-case DNS label.
pub(super) fn dns_label(what: &str) -> Rule {
    let message = format!(
        "{what} must be a lower-case DNS label: at most 63 of a-z, 0-9 and '-', the first and the last not '-'"
    );
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(message.as_str())
}

/// Keys that a label of a pod can have: with any other a selector would choose nothing, or everything.
/// `rule` says where they are, with `{}` for the test.
pub(super) fn label_keys(rule: &str) -> Rule {
    let key = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
    Rule::new(rule.replace("{}", &format!("matches('{key}')"))).message(
        "a label's key is a name, at most 63 of A-Z, a-z, 0-9, '-', '_' and '.' with a letter or digit at \
         both ends, or a lower-case domain, '/' and a name",
    )
}

/// Values that a label of a pod can have; for `rule` see [`label_keys`].
pub(super) fn label_values(rule: &str) -> Rule {
    let value = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
    Rule::new(rule.replace("{}", &format!("matches('{value}')"))).message(
        "a label's value is empty or made of A-Z, a-z, 0-9, '-', '_' and '.' with a letter or digit at both \
         ends",
    )
}

/// No separator of the annotation form, nothing that breaks a line of a log or of a DNS answer.
pub(super) fn tags_without_comma() -> Rule {
    Rule::new("self.all(tag, !tag.contains(','))")
        .message("a tag must not contain a comma: write two tags as two items of the list")
}

/// See [`tags_without_comma`].
pub(super) fn tags_without_control_characters() -> Rule {
    Rule::new(r"self.all(tag, !tag.matches('[\\x00-\\x1f\\x7f]'))")
        .message("a tag must not contain control characters, such as a line break or a tab")
}

/// Patterns of names, in which braces stand around `{namespace}` only.
pub(super) fn name_patterns() -> Rule {
    Rule::new("self.all(pattern, pattern.matches('^([A-Za-z0-9_.*?-]|[{]namespace[}])+$'))").message(
        "a pattern is made of A-Z, a-z, 0-9, '-', '_' and '.', of * for any text, ? for any one character, \
         and {namespace}",
    )
}

/// Patterns of tags, which have any characters.
pub(super) fn tag_patterns() -> Rule {
    Rule::new("self.all(pattern, pattern.matches('^([^{}]|[{]namespace[}])+$'))")
        .message("in a pattern of tags braces stand around {namespace} only")
}

/// Keys that Consul accepts.
pub(super) fn meta_keys() -> Rule {
    let most = limits::MAX_META_KEY_BYTES;
    let rule = format!("self.all(key, key.matches('^[A-Za-z0-9_-]{{1,{most}}}$'))");
    let message =
        format!("a meta key must be 1 to {most} of the characters A-Z, a-z, 0-9, '_' and '-'");
    Rule::new(rule).message(message.as_str())
}

/// Keys that say who owns an entry are not for users.
pub(super) fn meta_reserved() -> Rule {
    let prefixes = marks::RESERVED_PREFIXES.map(|prefix| format!("key.startsWith('{prefix}')"));
    let names = marks::RESERVED.map(|name| format!("'{name}'"));
    let reserved = format!("{} || key in [{}]", prefixes.join(" || "), names.join(", "));
    let message = format!(
        "'the meta key ' + self.filter(key, {reserved})[0] + ' is reserved: it says who owns an entry in Consul. \
         Choose another name, that does not start with lictor- or consul-'"
    );
    Rule::new(format!("!self.exists(key, {reserved})")).message(Message::Expression(message))
}

/// What a name in Consul is made of, for a regular expression. Consul takes any text; the names of
/// sources are written into the marks of ownership, where these stand for themselves.
const NAME: &str = "[A-Za-z0-9_.-]";
const NAME_SAID: &str = "A-Z, a-z, 0-9, '-', '_' and '.'";

/// A name in Consul.
pub(super) fn name(what: &str) -> Rule {
    let message = format!("{what} is made of {NAME_SAID}");
    Rule::new(format!("self.matches('^{NAME}+$')")).message(message.as_str())
}

/// A name in Consul, or none.
pub(super) fn empty_or_name(what: &str) -> Rule {
    let message = format!("{what} is made of {NAME_SAID}");
    Rule::new(format!("self.matches('^{NAME}*$')")).message(message.as_str())
}

/// A name in Consul, or `*`.
pub(super) fn name_or_wildcard(what: &str) -> Rule {
    let message = format!("{what} is made of {NAME_SAID}, or is * as a whole");
    Rule::new(format!("self.matches('^({NAME}+|[*])$')")).message(message.as_str())
}

/// A name in Consul, `*`, or none.
pub(super) fn empty_name_or_wildcard(what: &str) -> Rule {
    let message = format!("{what} is made of {NAME_SAID}, or is * as a whole");
    Rule::new(format!("self.matches('^({NAME}*|[*])$')")).message(message.as_str())
}

/// Of an object with `name` and `namespace`.
pub(super) fn wildcard_namespace() -> Rule {
    Rule::new("self.?__namespace__.orValue('') != '*' || self.name == '*'")
        .message("namespace * goes with name * only")
        .field_path(".name")
}

/// At most one of these texts is given. The message is to be added.
pub(super) fn at_most_one(fields: &[&str]) -> Rule {
    let given: Vec<String> = fields
        .iter()
        .map(|field| format!("self.?{field}.orValue('')"))
        .collect();
    Rule::new(format!(
        "[{}].filter(text, text != '').size() <= 1",
        given.join(", ")
    ))
}

/// No source is there twice.
pub(super) fn sources_once() -> Rule {
    once("name", &["peer", "partition", "samenessGroup"]).message("a source is there twice")
}

/// No upstream is there twice.
pub(super) fn upstreams_once() -> Rule {
    once("service", &["peer", "partition", "datacenter"]).message("an upstream is there twice")
}

/// No two items have the same `name`, namespace and one of `places`. `transformMapEntry` fails on a key
/// that the map has, and the API server tells which: to compare each with each would cost more than it
/// allows.
fn once(name: &str, places: &[&str]) -> Rule {
    let given = |field: &str| format!("has(item.{field}) && item.{field} != ''");
    // Branch by branch: of the length of `c ? a : b` the estimate of the cost knows nothing, and so
    // nothing of what it is a part of.
    let anywhere = |text: String| {
        places.iter().fold(text.clone(), |otherwise, place| {
            let test = given(place);
            format!("({test} ? {text} + ' of {place} ' + item.{place} : {otherwise})")
        })
    };
    let plain = anywhere(format!("item.{name}"));
    let spaced = anywhere(format!(
        "item.{name} + ' of namespace ' + item.__namespace__"
    ));
    let key = format!("{} ? {spaced} : {plain}", given("__namespace__"));
    Rule::new(format!(
        "self.transformMapEntry(at, item, {{{key}: at}}).size() == self.size()"
    ))
}

/// No name of a query is there twice, in whatever case.
pub(super) fn query_names_once() -> Rule {
    Rule::new(
        "self.all(query, self.exists_one(other, other.name.lowerAscii() == query.name.lowerAscii()))",
    )
    .message("two queries have one name: capital and small letters are the same")
}

/// A path of HTTP, or none.
pub(super) fn absolute_path(what: &str) -> Rule {
    let message = format!("{what} must start with /");
    Rule::new("self == '' || self.startsWith('/')").message(message.as_str())
}

/// A regular expression of RE2, which is what CEL has. With one that is none Envoy would refuse the
/// whole configuration of the proxy. The rule fails for it with the reason.
pub(super) fn regular_expression() -> Rule {
    Rule::new("''.matches(self) in [true, false]").message("not a regular expression (RE2)")
}

/// A duration as Go writes it, or none.
pub(super) fn duration(what: &str) -> Rule {
    let message = format!("{what} is a duration such as 10s, 1m30s or 500ms");
    // The last test fails for one that is too long to be counted.
    Rule::new(
        "self.matches('^(0?|([0-9]+([.][0-9]+)?(ns|us|µs|ms|s|m|h))+)$') \
         && (self == '' || duration(self) >= duration('0'))",
    )
    .message(message.as_str())
}

/// A duration within these bounds.
pub(super) fn duration_between(what: &str, least: &str, most: &str) -> Rule {
    let message = format!("{what} is a duration from {least} to {most}, such as 10s");
    Rule::new(format!(
        "self.matches('^([0-9]+([.][0-9]+)?(ns|us|µs|ms|s|m|h))+$') \
         && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
    ))
    .message(message.as_str())
}

/// A port that is a number, where it is one.
pub(super) fn port_number_in_range() -> Rule {
    Rule::new("type(self) != int || (self >= 1 && self <= 65535)")
        .message("a port number is 1 to 65535")
}

/// A port that is the name of a container port, where it is one.
pub(super) fn port_name() -> Rule {
    Rule::new(
        "type(self) != string || (self.matches('^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$') \
         && self.matches('[a-z]') && !self.contains('--'))",
    )
    .message(
        "a port name is that of a container port: at most 15 of a-z, 0-9 and '-', a letter among them; \
         write a number without quotes",
    )
}

/// The same where there may be many: the API server takes such a text to be as long as a request, and
/// then a regular expression costs more than it allows.
pub(super) fn port_name_in_list() -> Rule {
    Rule::new("type(self) != string || (self.size() >= 1 && self.size() <= 15)").message(
        "a port name is that of a container port, with at most 15 characters; write a number without quotes",
    )
}

/// Header fields of a request.
pub(super) fn headers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 1024},
    })
}

/// Names of header fields (RFC 9110, section 5.6.2).
pub(super) fn header_names() -> Rule {
    Rule::new(r"self.all(name, name.matches('^[A-Za-z0-9!#$%&*+.^_|~-]{1,128}$'))").message(
        "the name of a header field is 1 to 128 letters, digits and marks such as '-', without spaces",
    )
}

/// Values of header fields: nothing that would begin another one.
pub(super) fn header_values() -> Rule {
    Rule::new(r"self.all(name, self[name].matches('^[\\t -~]*$'))")
        .message("the value of a header field is printable ASCII on one line")
}

/// Values of a filter of metadata that Consul accepts.
pub(super) fn meta_values() -> Rule {
    let most = limits::MAX_META_VALUE_BYTES;
    let message = format!("a meta value has at most {most} bytes");
    Rule::new(format!("self.all(key, bytes(self[key]).size() <= {most})")).message(message.as_str())
}

/// Metadata that is looked for.
pub(super) fn meta_filter(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": limits::MAX_META_VALUE_BYTES},
    })
}

/// An optional text; `""` is none.
pub(super) fn some_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|text| !text.is_empty()))
}

/// A list of tags.
pub(super) fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": limits::MAX_TAGS,
        "items": {"type": "string", "minLength": 1, "maxLength": limits::MAX_TAG_BYTES},
    })
}

/// Metadata of a service.
pub(super) fn meta(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": limits::MAX_META_PAIRS,
        "additionalProperties": {"type": "string", "maxLength": limits::MAX_META_VALUE_BYTES},
    })
}

/// A TCP or UDP port.
pub(super) fn port_number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

/// A weight in DNS SRV answers.
pub(super) fn weight(generator: &mut SchemaGenerator) -> Schema {
    port_number(generator)
}

/// A number of instances.
pub(super) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int32", "minimum": 0})
}

/// An index of Consul or a generation of Kubernetes.
pub(super) fn index(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}

/// The conditions of a status, as `metav1.Condition` has them.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "Ready, Reconciling or Stalled."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "Why, as a CamelCase word for programs."},
                "message": {"type": "string", "maxLength": MESSAGE_BYTES, "description": "Why, as a sentence for people."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "The generation of the spec that this condition is about."},
            },
        },
    })
}

/// The CRD with a status for objects that have none yet, and without what serves no reader of it: `nullable`
/// (the derive macro sets it on every optional field, but an absent field has one form here, and a `null` is
/// told to the user), titles, and the line breaks of doc comments.
pub(super) fn polished(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            polish(schema);
            let properties = schema.properties.as_mut();
            if let Some(status) = properties.and_then(|all| all.get_mut("status")) {
                status.default = Some(JSON(unseen()));
            }
        }
    }
    crd
}

/// What the API server shows as the status of an object until Lictor has written one. Tools that wait for
/// objects take one without conditions for done.
fn unseen() -> Value {
    json!({"conditions": [{
        "type": ConditionType::Ready.as_str(),
        "status": "Unknown",
        "reason": "Pending",
        "message": "Lictor has not seen it yet: if this stays, see whether it runs and watches this namespace",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]})
}

fn polish(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.title = None;
    schema.description = schema
        .description
        .take()
        .map(|text| text.replace('\n', " "));
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
    {
        polish(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        polish(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        polish(values);
    }
}

/// The CRD as values, in which whole numbers are written as such: `65535`, not `65535.0`.
pub(super) fn plain(crd: &CustomResourceDefinition) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(crd)?;
    whole_numbers(&mut value);
    Ok(value)
}

fn whole_numbers(value: &mut Value) {
    match value {
        // No limit in a schema is anywhere near where a float loses whole numbers.
        #[expect(clippy::cast_possible_truncation)]
        Value::Number(number) => {
            if let Some(float) = number
                .as_f64()
                .filter(|float| number.is_f64() && float.fract() == 0.0)
            {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
