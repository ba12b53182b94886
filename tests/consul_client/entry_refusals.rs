//! What Consul refuses of intentions and service defaults, and by which words.

use lictor::consul::{Client, ErrorClass as C, Request};
use serde_json::{Map, Value, json};

use super::config_entries::put_raw;
use super::refusals::refused;

fn put(entry: &Value) -> Request<'static> {
    Request::put("config").json(entry).unwrap()
}

/// Intentions of `web` that differ from good ones in these fields.
fn intentions(fields: Value) -> Value {
    let mut entry = json!({"Kind": "service-intentions", "Name": "refused-web",
                           "Sources": [{"Name": "a", "Action": "allow"}]});
    let Value::Object(fields) = fields else {
        panic!("{fields}");
    };
    entry.as_object_mut().unwrap().extend(fields);
    entry
}

fn source(fields: &Value) -> Value {
    intentions(json!({"Sources": [fields]}))
}

fn permission(fields: &Value) -> Value {
    intentions(json!({"Name": "refused-http", "Sources": [{"Name": "a", "Permissions": [fields]}]}))
}

fn http(conditions: &Value) -> Value {
    permission(&json!({"Action": "allow", "HTTP": conditions}))
}

fn header(condition: &Value) -> Value {
    http(&json!({"Header": [condition]}))
}

fn meta(pairs: impl IntoIterator<Item = (String, String)>) -> Value {
    let pairs = pairs.into_iter().map(|(key, value)| (key, value.into()));
    json!({"Meta": pairs.collect::<Map<_, _>>()})
}

#[allow(clippy::too_many_lines, reason = "a table")]
pub async fn of_intentions(client: &Client) {
    put_raw(
        client,
        &json!({"Kind": "service-defaults", "Name": "refused-http", "Protocol": "http"}),
    )
    .await;
    let root = json!({"PathExact": "/"});
    let jwt = |providers: Value| json!({"JWT": {"Providers": providers}});
    let with_jwt = |provider: Value| {
        permission(&json!({"Action": "allow", "HTTP": root, "JWT": {"Providers": [provider]}}))
    };
    let twice = |a: &Value, b: &Value| intentions(json!({"Sources": [a, b]}));
    let a = json!({"Name": "a", "Action": "allow"});
    let outage = json!({"Name": "No cluster leader", "Action": "allow"});
    let peered = json!({"Name": "a", "Action": "allow", "Peer": "p"});
    let many = (0..65).map(|i| (format!("k{i}"), String::new()));
    let long = "x".repeat(513);
    let cases = [
        (intentions(json!({"Name": ""})), "Name is required"),
        (
            intentions(json!({"Name": "a*"})),
            "Name: wildcard character '*' cannot be used",
        ),
        (
            intentions(json!({"Sources": []})),
            "At least one source is required",
        ),
        (
            intentions(json!({"Sources": null})),
            "At least one source is required",
        ),
        (twice(&a, &a), r#"Sources[1] defines "a" more than once"#),
        (twice(&outage, &outage), "more than once"),
        (
            twice(&peered, &peered),
            r#"Sources[1] defines peer("p") "a" more than once"#,
        ),
        (
            source(&json!({"Action": "allow"})),
            "Sources[0].Name is required",
        ),
        (
            source(&json!({"Name": "a*", "Action": "allow"})),
            "Sources[0].Name: wildcard",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "Peer": "*"})),
            "Sources[0].Peer: cannot use wildcard",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "SamenessGroup": "g"})),
            "Sources[0].SamenessGroup: Sameness groups are a Consul Enterprise feature",
        ),
        (
            source(&json!({"Name": "a", "Action": "x"})),
            "Action must be set to 'allow' or 'deny'",
        ),
        (
            source(&json!({"Name": "a"})),
            "Sources[0].Action must be set to 'allow' or 'deny'",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "Type": "x"})),
            "Sources[0].Type must be set to 'consul'",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "Description": long})),
            "Sources[0].Description exceeds maximum length 512",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "LegacyMeta": {"k": "v"}})),
            "Sources[0].LegacyMeta must be omitted",
        ),
        (
            source(&json!({"Name": "a", "Action": "allow", "Permissions": [{"HTTP": root}]})),
            "Sources[0].Action must be omitted if Permissions are specified",
        ),
        (
            intentions(json!({"Name": "*", "Sources": [{"Name": "a",
                "Permissions": [{"Action": "allow", "HTTP": root}]}]})),
            "cannot be specified on intentions with wildcarded destinations",
        ),
        (
            intentions(json!({"Name": "ACL not found", "Sources": [{"Name": "a",
                "Permissions": [{"Action": "allow", "HTTP": root}]}]})),
            r#"has protocol "tcp", which is incompatible with L7 intentions permissions"#,
        ),
        (
            permission(&json!({"HTTP": root})),
            "Permissions[0].Action must be set to",
        ),
        (
            permission(&json!({"Action": "deny"})),
            "Permissions[0].HTTP is required",
        ),
        (http(&json!({})), "Permissions[0].HTTP should not be empty"),
        (
            http(&json!({"PathExact": "a"})),
            "HTTP.PathExact doesn't start with '/'",
        ),
        (
            http(&json!({"PathPrefix": "a"})),
            "HTTP.PathPrefix doesn't start with '/'",
        ),
        (
            http(&json!({"PathExact": "/", "PathRegex": "/"})),
            "at most one of PathExact, PathPrefix, or PathRegex",
        ),
        (
            http(&json!({"Methods": ["rate limit exceeded"]})),
            "Methods contains an invalid method",
        ),
        (
            http(&json!({"Methods": ["GET", "get"]})),
            r#"Methods contains "GET" more than once"#,
        ),
        (
            header(&json!({"Present": true})),
            "Header[0] missing required Name field",
        ),
        (
            header(&json!({"Name": "h"})),
            "Header[0] should only contain one of Present",
        ),
        (
            header(&json!({"Name": "h", "Exact": "a", "Regex": "b"})),
            "Header[0] should only contain one of Present",
        ),
        (
            header(&json!({"Name": "h", "Regex": "b", "IgnoreCase": true})),
            "when using IgnoreCase",
        ),
        (
            intentions(jwt(json!([{"Name": ""}]))),
            "JWT provider name is required",
        ),
        (
            intentions(jwt(json!([{"Name": "none"}]))),
            "Referenced JWT Provider does not exist",
        ),
        (with_jwt(json!({})), "JWT provider name is required"),
        (
            with_jwt(json!({"Name": "none"})),
            "Referenced JWT Provider does not exist",
        ),
        (
            intentions(meta(many)),
            "Meta exceeds maximum element count 64",
        ),
        (
            intentions(meta([(long.clone(), String::new())])),
            "exceeds maximum length 128",
        ),
        (
            intentions(meta([("k".to_owned(), long.clone())])),
            "exceeds maximum length 512",
        ),
        // These are a 400.
        (
            intentions(json!({"Invented": 1})),
            r#"invalid config key "Invented""#,
        ),
        (
            source(&json!({"Name": "a", "Invented": 1})),
            r#"invalid config key "Sources[0].Invented""#,
        ),
        (
            intentions(json!({"Namespace": ""})),
            "namespaces are a consul enterprise feature",
        ),
        (
            source(&json!({"Name": "a", "Partition": ""})),
            "invalid config key",
        ),
        (
            intentions(json!({"Sources": "a"})),
            "expected a map or struct",
        ),
        (
            intentions(json!({"Kind": "invented"})),
            "invalid config entry kind",
        ),
    ];
    for (entry, fragment) in cases {
        refused(client, &put(&entry), C::Refused, fragment).await;
    }
    let cas = put(&intentions(json!({}))).query("cas", "x");
    refused(client, &cas, C::Refused, "strconv.ParseUint").await;
    let list = Request::get("config").segment("invented");
    refused(client, &list, C::Refused, "invalid config entry kind").await;
    // Consul checks neither claims nor expressions.
    let claims = with_jwt(json!({"Name": "okta", "VerifyClaims": [{}]}));
    let regex = http(&json!({"PathRegex": "("}));
    for entry in [claims, regex] {
        client.send(&put(&entry)).await.unwrap().success().unwrap();
    }
}

/// After [`of_intentions`], which left intentions with permissions for `refused-http`.
pub async fn of_defaults(client: &Client) {
    let with = |fields: Value| {
        let mut entry = json!({"Kind": "service-defaults", "Name": "refused-web"});
        let fields = fields.as_object().unwrap().clone();
        entry.as_object_mut().unwrap().extend(fields);
        entry
    };
    for name in ["refused-split", "refused-half", "refused-ingress"] {
        put_raw(client, &with(json!({"Name": name, "Protocol": "http"}))).await;
    }
    put_raw(
        client,
        &json!({"Kind": "service-splitter", "Name": "refused-split", "Splits":
            [{"Weight": 50}, {"Weight": 50, "Service": "refused-half"}]}),
    )
    .await;
    put_raw(
        client,
        &json!({"Kind": "ingress-gateway", "Name": "refused-gateway", "Listeners": [{"Port": 8080,
            "Protocol": "http", "Services": [{"Name": "refused-ingress", "Hosts": ["a.b"]}]}]}),
    )
    .await;
    let l7 = "incompatible with L7 intentions permissions";
    let cases = [
        (
            with(json!({"Name": "", "Protocol": "http"})),
            "Name is required",
        ),
        (with(json!({"Name": "*"})), "and not a wildcard"),
        (
            with(json!({"Protocol": "ACL not found"})),
            "invalid value for protocol",
        ),
        (
            with(meta([("k".to_owned(), "x".repeat(513))])),
            "exceeds maximum length 512",
        ),
        (with(json!({"Invented": 1})), "invalid config key"),
        (
            with(json!({"Namespace": ""})),
            "namespaces are a consul enterprise feature",
        ),
        (with(json!({"MutualTLSMode": "x"})), "Invalid MutualTLSMode"),
        (
            with(json!({"MutualTLSMode": "permissive"})),
            "cannot set MutualTLSMode=permissive",
        ),
        (
            with(json!({"Destination": {"Addresses": ["*"]}})),
            "errors occurred:",
        ),
        (
            with(json!({"RateLimits": {"InstanceLevel": {}}})),
            "enterprise feature",
        ),
        (with(json!({"Name": "refused-http", "Protocol": "tcp"})), l7),
        (with(json!({"Name": "refused-http"})), l7),
        (
            with(json!({"Name": "refused-split"})),
            "uses inconsistent protocols",
        ),
        (
            with(json!({"Name": "refused-half"})),
            "uses inconsistent protocols",
        ),
        (
            with(json!({"Name": "refused-ingress", "Protocol": "tcp"})),
            "does not match defined listener protocol",
        ),
    ];
    for (entry, fragment) in cases {
        refused(client, &put(&entry), C::Refused, fragment).await;
    }
    // What is needed cannot be removed, and a lost race is no refusal.
    let delete = Request::delete("config/service-defaults").segment("refused-http");
    refused(client, &delete, C::Refused, l7).await;
    let remove = async |cas| {
        client
            .delete_config_entry::<lictor::consul::wire::ServiceDefaults>("refused-http", cas)
            .await
    };
    assert!(!remove(1).await.unwrap());
    let index = client
        .config_entry::<lictor::consul::wire::ServiceDefaults>(
            "refused-http",
            lictor::consul::Consistency::Consistent,
        )
        .await
        .unwrap()
        .value
        .unwrap()
        .modify_index;
    assert_eq!(remove(index).await.unwrap_err().class(), C::Refused);
}
