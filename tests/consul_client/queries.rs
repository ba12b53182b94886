//! Prepared queries: what Consul makes of each field, refusals, watches.

use lictor::consul::wire::{
    PreparedQuery, QueryDns, QueryFailover, QueryService, QueryTarget, QueryTemplate,
};
use lictor::consul::{Cause, Client, Consistency, ConsulSettings, ErrorClass, Quality, Request};
use lictor_testbed::{Bed, BedOptions};
use serde_json::{Value, json};

use super::refusals::refused;
use super::watches::{is_quiet, next, quick};
use super::{client, pairs};

/// A UUID that no query has.
const NOBODY: &str = "adf4238a-882b-9ddc-4a9d-5b6758e4159e";

pub fn query(name: &str) -> PreparedQuery {
    PreparedQuery {
        name: name.into(),
        service: QueryService {
            service: "web".into(),
            ..QueryService::default()
        },
        ..PreparedQuery::default()
    }
}

async fn get(client: &Client, id: &str) -> Option<PreparedQuery> {
    let found = client.query(id, Consistency::Consistent).await.unwrap();
    assert_eq!(found.quality, Quality::Authoritative);
    found.value
}

async fn create_raw(client: &Client, query: &Value) -> String {
    let request = Request::post("query").json(query).unwrap();
    let created = client.send(&request).await.unwrap().json::<Value>();
    created.unwrap().value["ID"].as_str().unwrap().to_owned()
}

/// Runs first, while there is none.
pub async fn signals_of_queries_are_woken_by_their_own_table(client: &Client) {
    let mut watch = quick(client.watch_any_query(Consistency::Default));
    let began = std::time::Instant::now();
    let first = watch.next().await.unwrap();
    assert_eq!(
        (first.cause, first.observed.index),
        (Cause::First, std::num::NonZeroU64::new(1))
    );
    assert!(
        began.elapsed().as_secs() < 5,
        "an empty list does not block"
    );
    assert!(is_quiet(&mut watch).await);
    assert!(
        client
            .kv_put_cas("lictor/v1/query-signal", b"", 0)
            .await
            .unwrap()
    );
    assert!(is_quiet(&mut watch).await);

    let id = client.create_query(&query("signal")).await.unwrap();
    let created = get(client, &id).await.unwrap();
    assert_eq!(next(&mut watch).await, created.modify_index);
    client.update_query(&created).await.unwrap();
    let updated = get(client, &id).await.unwrap();
    assert_eq!(next(&mut watch).await, updated.modify_index);
    client.delete_query(&id).await.unwrap();
    assert!(next(&mut watch).await > updated.modify_index);
    assert!(is_quiet(&mut watch).await);
}

pub async fn all_fields_of_queries_come_back(client: &Client) {
    let session = Request::put("session/create")
        .json(&json!({"Node": "consul-server"}))
        .unwrap();
    let session: Value = client.send(&session).await.unwrap().json().unwrap().value;
    let session = session["ID"].as_str().unwrap();
    let full = PreparedQuery {
        session: session.into(),
        template: Some(QueryTemplate {
            template_type: "name_prefix_match".into(),
            regexp: "^full-(.*)$".into(),
            remove_empty_tags: true,
        }),
        service: QueryService {
            service: "web${match(1)}".into(),
            failover: QueryFailover {
                nearest_n: 2,
                datacenters: vec!["dc3".into(), "dc2".into()],
                ..QueryFailover::default()
            },
            only_passing: true,
            ignore_check_ids: vec!["b".into(), "a".into()],
            near: "_agent".into(),
            tags: vec!["z".into(), "!a".into()],
            node_meta: pairs(&[("external-source", "kubernetes")]),
            service_meta: pairs(&[("any / key", "v")]),
            connect: true,
            peer: "p1".into(),
            ..QueryService::default()
        },
        dns: QueryDns {
            ttl: "90000ms".into(),
        },
        ..query("Full-")
    };
    let place = |peer: &str, datacenter: &str| QueryTarget {
        peer: peer.into(),
        datacenter: datacenter.into(),
        ..QueryTarget::default()
    };
    let mut targets = query("targets");
    targets.service.failover.targets = vec![place("p2", ""), place("", "dc2"), place("p1", "dc1")];
    for written in [query("bare"), full, targets] {
        // An id that is in it is no matter: Consul chooses.
        let with_id = PreparedQuery {
            id: NOBODY.into(),
            ..written.clone()
        };
        let id = client.create_query(&with_id).await.unwrap();
        let read = get(client, &id).await.unwrap();
        assert!(read.create_index > 0 && read.create_index == read.modify_index);
        let expected = PreparedQuery {
            id,
            create_index: read.create_index,
            modify_index: read.modify_index,
            ..written
        };
        assert_eq!(read, expected);
        let all = client.queries(Consistency::Consistent).await.unwrap();
        assert_eq!(all.quality, Quality::Authoritative);
        assert!(all.value.contains(&read));
        // Consul takes even what changes nothing for a change.
        client.update_query(&read).await.unwrap();
        let again = get(client, &read.id).await.unwrap();
        assert!(again.modify_index > read.modify_index);
        let expected = PreparedQuery {
            modify_index: again.modify_index,
            ..read
        };
        assert_eq!(again, expected);
        client.delete_query(&again.id).await.unwrap();
    }
    let spelt_out = json!({"Name": "spelt-out", "Template": {}, "DNS": {}, "Service": {
        "Service": "web", "Failover": {"Targets": [], "Datacenters": []}, "IgnoreCheckIDs": [],
        "Tags": [null], "NodeMeta": {}, "ServiceMeta": {"a": null}}});
    let id = create_raw(client, &spelt_out).await;
    let read = get(client, &id).await.unwrap();
    assert_eq!(read.service.tags, ["".into()]);
    assert_eq!(read.service.service_meta, pairs(&[("a", "")]));
    assert_eq!(read.template, None);
    client.delete_query(&id).await.unwrap();
}

pub async fn a_query_is_found_by_its_id_alone(client: &Client) {
    for (consistency, quality) in [
        (Consistency::Consistent, Quality::Authoritative),
        (Consistency::Default, Quality::Leased),
        (Consistency::Stale, Quality::Stale),
    ] {
        let missing = client.query(NOBODY, consistency).await.unwrap();
        // Its index is that of an error: none.
        assert_eq!(
            (missing.value, missing.quality, missing.index),
            (None, quality, None)
        );
    }
    let gone = PreparedQuery {
        id: NOBODY.into(),
        ..query("gone")
    };
    let error = client.update_query(&gone).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
    let error = client.delete_query(NOBODY).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
    // The second would be the execution of a query named `a`, and Consul takes only whole UUIDs.
    for id in ["", "a/execute", "abc"] {
        let error = client.query(id, Consistency::Default).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Refused, "{error}");
        let error = client.delete_query(id).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Refused, "{error}");
    }

    // An update takes out a token, which nobody sees here.
    let id = create_raw(
        client,
        &json!({"Name": "token", "Token": NOBODY, "Service": {"Service": "web"}}),
    )
    .await;
    let read = get(client, &id).await.unwrap();
    assert!(read.token && !format!("{read:?}").contains(NOBODY));
    client.update_query(&read).await.unwrap();
    assert!(!get(client, &id).await.unwrap().token);
    client.delete_query(&id).await.unwrap();
}

#[allow(clippy::too_many_lines, reason = "a table")]
pub async fn refusals_of_queries_have_their_class(client: &Client) {
    use ErrorClass as C;
    let taken = client.create_query(&query("Taken")).await.unwrap();
    let any = json!({"Template": {"Type": "name_prefix_match"},
                     "Service": {"Service": "${name.full}"}});
    let any_id = create_raw(client, &any).await;
    let service = |fields: Value| {
        let mut service = json!({"Service": "web"});
        let fields = fields.as_object().unwrap().clone();
        service.as_object_mut().unwrap().extend(fields);
        json!({"Name": "q", "Service": service})
    };
    let with = |fields: Value| {
        let mut query = service(json!({}));
        let fields = fields.as_object().unwrap().clone();
        query.as_object_mut().unwrap().extend(fields);
        query
    };
    let template = |name: &str, regexp: &str| {
        with(
            json!({"Template": {"Type": "name_prefix_match", "Regexp": regexp},
                    "Service": {"Service": name}}),
        )
    };
    let cases = [
        (
            with(json!({"Name": "tAKEN"})),
            C::Conflict,
            "aliases an existing query name",
        ),
        (
            with(json!({"Name": &*taken})),
            C::Conflict,
            "aliases an existing query ID",
        ),
        (
            any,
            C::Conflict,
            "a query template with an empty name already exists",
        ),
        (with(json!({"ID": "x"})), C::Refused, "ID must be empty"),
        (
            with(json!({"Name": ""})),
            C::Refused,
            "Must be bound to a session",
        ),
        (
            json!({"Name": "q"}),
            C::Refused,
            "Must provide a Service name",
        ),
        (with(json!({"Token": "<hidden>"})), C::Refused, "Bad Token"),
        (
            with(json!({"Session": NOBODY})),
            C::NotFound,
            "invalid session",
        ),
        (
            with(json!({"Session": "x"})),
            C::NotFound,
            "invalid session",
        ),
        (
            with(json!({"DNS": {"TTL": "No cluster leader"}})),
            C::Refused,
            "Bad DNS TTL",
        ),
        (
            with(json!({"DNS": {"TTL": "10"}})),
            C::Refused,
            "Bad DNS TTL",
        ),
        (
            with(json!({"DNS": {"TTL": "-1s"}})),
            C::Refused,
            "must be >=0",
        ),
        (
            with(json!({"Template": {"Type": "x"}})),
            C::Refused,
            "Bad Template.Type",
        ),
        (template("web", "("), C::Refused, "Bad Regexp"),
        (template("${", ""), C::Refused, "Bad format"),
        (template("${unknown}", ""), C::Refused, "Bad evaluation"),
        (with(json!({"Invented": 1})), C::Refused, "unknown field"),
        (with(json!({"Name": 1})), C::Refused, "decode failed"),
        (
            service(json!({"Failover": {"NearestN": -1}})),
            C::Refused,
            "Bad NearestN",
        ),
        (
            service(json!({"Failover": {"NearestN": 1, "Targets": [{"Peer": "p"}]}})),
            C::Refused,
            "Targets cannot be populated",
        ),
        (
            service(json!({"Failover": {"Datacenters": ["a"], "Targets": [{"Peer": "p"}]}})),
            C::Refused,
            "Targets cannot be populated",
        ),
        (
            service(json!({"Failover": {"Targets": [{"Partition": ""}]}})),
            C::Refused,
            "unknown field",
        ),
        (
            service(json!({"NodeMeta": {"a b": ""}})),
            C::Refused,
            "metadata pair",
        ),
        (
            service(json!({"SamenessGroup": "g"})),
            C::Refused,
            "enterprise-only",
        ),
    ];
    for (body, class, fragment) in &cases {
        let request = Request::post("query").json(body).unwrap();
        refused(client, &request, *class, fragment).await;
    }
    // The same of an update, and what only an update can do wrong.
    let other = client.create_query(&query("other")).await.unwrap();
    let update = |id: &str, body: &Value| {
        let request = Request::put("query").segment(id.to_owned());
        request.json(body).unwrap()
    };
    for (body, class, fragment) in &cases {
        if body["ID"].is_null() && *fragment != "aliases an existing query ID" {
            refused(client, &update(&other, body), *class, fragment).await;
        }
    }
    let fine = with(json!({}));
    refused(client, &update(NOBODY, &fine), C::NotFound, "non-existent").await;
    refused(
        client,
        &update("x", &fine),
        C::Refused,
        "UUID must be 36 characters",
    )
    .await;
    let delete = Request::delete("query").segment("x");
    refused(client, &delete, C::Refused, "UUID must be 36 characters").await;
    let tenancy = Request::get("query").query("dc", "nowhere");
    refused(client, &tenancy, C::NoLeader, "No path to datacenter").await;
    for id in [&*taken, &any_id, &*other] {
        client.delete_query(id).await.unwrap();
    }
}

/// Whoever passes a request on to the leader puts words of its own before the leader's.
#[tokio::test]
async fn what_a_follower_says_of_queries_is_understood() {
    let options = BedOptions {
        consul_servers: 3,
        ..BedOptions::default()
    };
    let bed = Bed::start(options).await.unwrap();
    let follower = bed.consul_followers().await.unwrap()[0].addr();
    let client = client(ConsulSettings {
        addresses: follower.to_owned(),
        ..ConsulSettings::default()
    });
    client.check_token().await.unwrap();
    a_query_is_found_by_its_id_alone(&client).await;
    refusals_of_queries_have_their_class(&client).await;
}
