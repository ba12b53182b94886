//! What a `ServiceRegistration` may say of the checks that Lictor runs.

use anyhow::Result;
use kube::Client;
use lictor::api::ServiceRegistration;
use serde_json::{Value, json};

use crate::asking::{long, refused, taken, with};

fn checks(checks: &Value) -> Value {
    with(
        json!({"endpoints": []}),
        json!({"health": {"checks": checks}}),
    )
}

fn one(more: Value) -> Value {
    checks(&json!([with(json!({"name": "api"}), more)]))
}

pub async fn checks_are_judged(client: &Client) -> Result<()> {
    let many = |count: usize| (0..count).map(|n| json!({"name": format!("c{n}"), "tcp": {}}));
    let good = [
        checks(&json!([])),
        one(json!({"http": {}})),
        one(
            json!({"http": {"path": "/a?b=c%20d", "port": "http", "scheme": "https", "method": "HEAD",
                            "headers": {"X-A": "b c", "Host": "db"}}}),
        ),
        one(json!({"tcp": {"port": 65535}, "interval": "1s", "timeout": "100ms"})),
        one(
            json!({"grpc": {"port": 1, "service": "shop.Payments"}, "interval": "24h", "timeout": "1m"}),
        ),
        one(
            json!({"tcp": {}, "interval": "1m30s", "failuresBeforeCritical": 100, "successesBeforePassing": 100}),
        ),
        checks(&many(16).collect()),
    ];
    for spec in good {
        taken::<ServiceRegistration>(client, "good", &spec).await?;
    }
    let bad = [
        (checks(&many(17).collect()), "must have at most 16 items"),
        (
            checks(&json!([{"name": "a", "tcp": {}}, {"name": "a", "grpc": {}}])),
            "Duplicate value",
        ),
        (
            one(json!({})),
            "give exactly one of http, tcp, grpc and ttl",
        ),
        (
            one(json!({"tcp": {}, "http": {}})),
            "give exactly one of http, tcp, grpc and ttl",
        ),
        (one(json!({"ttl": {"lease": "worker", "ttl": "9s"}})), "ttl"),
        (
            one(json!({"name": "ready", "tcp": {}})),
            "ready and alias are checks that every instance has",
        ),
        (
            one(json!({"name": "A", "tcp": {}})),
            "must be a lower-case DNS label",
        ),
        (
            one(json!({"tcp": {}, "interval": "500ms"})),
            "interval is a duration from 1s to 24h",
        ),
        (
            one(json!({"tcp": {}, "interval": "25h"})),
            "interval is a duration from 1s to 24h",
        ),
        (
            one(json!({"tcp": {}, "interval": "soon"})),
            "interval is a duration from",
        ),
        (
            one(json!({"tcp": {}, "timeout": "2m"})),
            "timeout is a duration from 100ms to 1m",
        ),
        (
            one(json!({"tcp": {"port": 0}})),
            "a port number is 1 to 65535",
        ),
        (
            one(json!({"tcp": {"port": long(16)}})),
            "a port name is that of a container port",
        ),
        (
            one(json!({"tcp": {}, "failuresBeforeCritical": 0})),
            "should be greater than or equal to 1",
        ),
        (
            one(json!({"http": {"path": "health"}})),
            "path starts with /",
        ),
        (one(json!({"http": {"path": "/a b"}})), "path starts with /"),
        (
            one(json!({"http": {"method": "DELETE"}})),
            "Unsupported value",
        ),
        (
            one(json!({"http": {"headers": {"a b": "c"}}})),
            "the name of a header field",
        ),
        (
            one(json!({"http": {"headers": {"a": "b\r\nc: d"}}})),
            "on one line",
        ),
        (one(json!({"grpc": {"service": "a b"}})), "without spaces"),
    ];
    for (spec, says) in bad {
        refused::<ServiceRegistration>(client, "bad", &spec, says).await?;
    }
    heartbeats_are_judged(client).await?;
    the_time_until_a_removal_is_judged(client).await
}

async fn heartbeats_are_judged(client: &Client) -> Result<()> {
    let good = [
        one(json!({"ttl": {"lease": "${pod.name}", "ttl": "10s"}})),
        one(json!({"ttl": {"lease": "worker", "ttl": "24h"}})),
    ];
    for spec in good {
        taken::<ServiceRegistration>(client, "good", &spec).await?;
    }
    let bad = [
        (
            one(json!({"tcp": {}, "ttl": {"lease": "worker", "ttl": "10s"}})),
            "give exactly one of http, tcp, grpc and ttl",
        ),
        (
            one(json!({"ttl": {"lease": "worker", "ttl": "10s"}, "interval": "10s"})),
            "nothing is run for a ttl check",
        ),
        (
            one(json!({"ttl": {"lease": "worker", "ttl": "25h"}})),
            "ttl",
        ),
        (
            one(json!({"ttl": {"lease": "", "ttl": "10s"}})),
            "at least 1",
        ),
        (one(json!({"ttl": {"lease": "worker"}})), "Required value"),
    ];
    for (spec, says) in bad {
        refused::<ServiceRegistration>(client, "bad", &spec, says).await?;
    }
    Ok(())
}

async fn the_time_until_a_removal_is_judged(client: &Client) -> Result<()> {
    let after = |time: &str| {
        let health = json!({"deregisterCriticalServiceAfter": time});
        with(json!({"endpoints": []}), json!({"health": health}))
    };
    for time in ["30s", "1m30s", "8760h"] {
        taken::<ServiceRegistration>(client, "good", &after(time)).await?;
    }
    let says = "deregisterCriticalServiceAfter is a duration from 30s to 8760h";
    for time in ["29s", "0s", "8761h", "-90s", "soon", ""] {
        refused::<ServiceRegistration>(client, "bad", &after(time), says).await?;
    }
    Ok(())
}
