//! An elector whose API server answers as it is told to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use wiremock::matchers::{method, path, query_param};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::*;
use crate::k8s::LeaseName;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/lictor-a";

/// A Lease that another process holds and renews no more.
fn others() -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
           "metadata": {"name": "lictor-a", "namespace": "shop", "uid": "1", "resourceVersion": "7"},
           "spec": {"holderIdentity": "other", "leaseDurationSeconds": 1,
                    "renewTime": "2026-01-01T00:00:00.000000Z"}})
}

/// An API server with that Lease, whose watches all end like this.
async fn server(watch: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    let there = Arc::new(Mutex::new(others()));
    let read = there.clone();
    Mock::given(method("GET"))
        .and(path(LEASE))
        .respond_with(move |_: &Request| {
            ResponseTemplate::new(200).set_body_json(&*read.lock().unwrap())
        })
        .mount(&server)
        .await;
    Mock::given(method("PUT"))
        .and(path(LEASE))
        .respond_with(move |request: &Request| {
            let mut there = there.lock().unwrap();
            *there = request.body_json().unwrap();
            there["metadata"]["resourceVersion"] = json!("8");
            ResponseTemplate::new(200).set_body_json(&*there)
        })
        .mount(&server)
        .await;
    Mock::given(method("GET"))
        .and(query_param("watch", "true"))
        .respond_with(watch)
        .mount(&server)
        .await;
    server
}

#[tokio::test]
async fn watches_that_fail_at_once_are_not_asked_for_again_and_again_and_keep_nobody_from_leading()
{
    let _ = rustls::crypto::ring::default_provider().install_default();
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                      "reason": "Expired", "message": "too old"});
    for watch in [
        ResponseTemplate::new(403),
        ResponseTemplate::new(410).set_body_json(&gone),
        ResponseTemplate::new(200),
    ] {
        let server = server(watch).await;
        let config = kube::Config::new(server.uri().parse().unwrap());
        let client = kube::Client::try_from(config).unwrap();
        let access = LeaseAccess::new(client, LeaseName::of(&"a".parse().unwrap(), "shop".into()));
        let mut elector = LeaseElector::new(access, "we".to_owned());
        let leads = async {
            loop {
                let mut leads = false;
                let tell = |now: Leadership| leads = matches!(now, Leadership::Leads { .. });
                elector.step(tell).await.unwrap();
                if leads {
                    return;
                }
                elector.rest().await;
            }
        };
        timeout(Duration::from_secs(20), leads)
            .await
            .expect("it never leads");
        let asked = server.received_requests().await.unwrap();
        let watches = asked.iter().filter(|it| it.url.query().is_some());
        assert!(watches.count() <= 10, "{asked:?}");
    }
}
