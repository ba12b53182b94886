use super::*;
use crate::preview::manifests::parse;

fn options() -> Options {
    Options {
        namespace: "shop".to_owned(),
        all_services: false,
        prefix: String::new(),
        suffix: true,
    }
}

fn migrated(text: &str) -> Vec<Migrated> {
    migrate(&parse(text, "here").unwrap(), &options())
}

fn one(text: &str) -> Migrated {
    let mut all = migrated(text);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

fn notes(migrated: &Migrated) -> String {
    migrated.notes.join("\n")
}

const REGISTRATIONS: &str = r#"
apiVersion: consul.hashicorp.com/v1alpha1
kind: Registration
metadata: {name: ledger.one}
spec:
  node: legacy
  address: 10.0.0.1
  service: {id: x, name: Ledger_DB, port: 5432, address: db-0.example.com, tags: [primary], meta: {lictor-x: y, rack: r1}, weights: {passing: 3, warning: 1}}
  check:
    name: Health of DB
    status: passing
    definition: {http: "https://db-0.example.com:8443/health?deep=1", method: HEAD, header: {X-A: [a, b]}, intervalDuration: 10s, timeoutDuration: 2s, deregisterCriticalServiceAfterDuration: 5m, body: hello}
---
apiVersion: consul.hashicorp.com/v1alpha1
kind: Registration
metadata: {name: ledger-one}
spec:
  node: legacy
  address: 10.0.0.2
  service: {name: Ledger_DB, port: 5432, address: "", weights: {passing: 3, warning: 1}}
"#;

#[test]
fn registrations_of_a_service_become_its_endpoints() {
    let found = one(REGISTRATIONS);
    assert_eq!(
        found.object,
        json!({
            "apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
            "metadata": {"name": "ledger-db", "namespace": "shop"},
            "spec": {
                "service": "Ledger_DB",
                "endpoints": [
                    {"name": "ledger-one", "address": "db-0.example.com", "port": 5432, "tags": ["primary"],
                     "meta": {"rack": "r1"}},
                    {"name": "ledger-one-2", "address": "10.0.0.2", "port": 5432},
                ],
                "weights": {"passing": 3, "warning": 1},
                "health": {
                    "checks": [{
                        "name": "health-of-db", "interval": "10s", "timeout": "2s",
                        "http": {"scheme": "https", "port": 8443, "path": "/health?deep=1", "method": "HEAD",
                                 "headers": {"X-A": "a, b"}},
                    }],
                    "deregisterCriticalServiceAfter": "5m",
                },
            },
        })
    );
    let told = notes(&found);
    for lost in [
        "Registration/ledger.one: spec.service.id has no counterpart",
        "Registration/ledger.one: meta \"lictor-x\" is left out",
        "spec.check.definition.body",
        "Registration/ledger-one: spec.health is of all endpoints, and those differ",
    ] {
        assert!(told.contains(lost), "{lost}: {told}");
    }
    assert!(!told.contains("spec.weights"), "{told}");
}

#[test]
fn checks_of_other_sorts_and_of_another_host() {
    let check = |definition: &str| {
        let text = format!(
            "apiVersion: consul.hashicorp.com/v1alpha1\nkind: Registration\nmetadata: {{name: a}}\nspec: \
             {{service: {{name: a, port: 80, address: 10.0.0.1}}, check: {{definition: {definition}}}}}"
        );
        one(&text)
    };
    let tcp = check("{tcp: '10.0.0.1:80'}");
    let expected = json!([{"name": "tcp", "tcp": {}}]);
    assert_eq!(
        (&tcp.object["spec"]["health"]["checks"], notes(&tcp)),
        (&expected, String::new())
    );
    let grpc = check("{grpc: '10.0.0.9:81/my.Service'}");
    let expected = json!([{"name": "grpc", "grpc": {"port": 81, "service": "my.Service"}}]);
    assert_eq!(grpc.object["spec"]["health"]["checks"], expected);
    assert!(
        notes(&grpc).contains("asks \"10.0.0.9\""),
        "{}",
        notes(&grpc)
    );
    for (bad, why) in [
        ("{http: 'http://['}", "no address to ask"),
        ("{udp: 'a:1'}", "asks nobody"),
    ] {
        let bad = check(bad);
        assert!(bad.object["spec"].get("health").is_none());
        assert!(notes(&bad).contains(why), "{}", notes(&bad));
    }
}

#[test]
fn intentions_move_by_their_kind_and_a_protocol_goes_to_the_registration() {
    let all = migrated(
        r#"
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: bank, annotations: {consul.hashicorp.com/service-sync: "true", consul.hashicorp.com/service-name: pay}}
spec: {selector: {app: pay}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceDefaults
metadata: {name: pay, namespace: bank}
spec: {protocol: http}
---
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: pay, namespace: bank, labels: {team: a, app.kubernetes.io/instance: b, argocd.argoproj.io/instance: c}, finalizers: [x], annotations: {consul.hashicorp.com/migrate-entry: "true"}}
spec: {destination: {name: pay, namespace: other}, sources: [{name: web, action: allow}]}
"#,
    );
    assert_eq!(all[0].object["spec"]["protocol"], "http");
    assert!(notes(&all[0]).contains("ServiceDefaults/pay"));
    assert_eq!(
        all[1].object,
        json!({
            "apiVersion": "lictor.io/v1alpha1", "kind": "Intention",
            "metadata": {"name": "pay", "namespace": "bank", "labels": {"team": "a"}},
            "spec": {
                "destination": {"name": "pay", "namespace": "other"}, "adopt": true,
                "sources": [{"name": "web", "action": "allow"}],
            },
        })
    );
    assert!(notes(&all[1]).contains("spec.destination.namespace is other"));
}

#[test]
fn a_service_that_is_synced_becomes_a_registration_with_its_selector() {
    let service = |annotations: &str, spec: &str| {
        migrated(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: bank, annotations: {{{annotations}}}}}\n\
             spec: {{{spec}}}"
        ))
    };
    let sync = "consul.hashicorp.com/service-sync: 'true'";
    let spec = "selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81}]";
    assert_eq!(service("", spec), [], "nobody asks for it");
    assert_eq!(
        service("consul.hashicorp.com/service-sync: 'false'", spec),
        []
    );
    let more = "consul.hashicorp.com/service-port: admin, consul.hashicorp.com/service-tags: 'k8s, a', \
                consul.hashicorp.com/service-meta-team: x, consul.hashicorp.com/service-meta-managed-by: z";
    let all = service(&format!("{sync}, {more}"), spec);
    assert_eq!(
        all[0].object["spec"],
        json!({
            "service": "web-bank", "selector": {"matchLabels": {"app": "web"}}, "port": 81, "tags": ["a"],
            "meta": {"team": "x"},
        })
    );
    let told = notes(&all[0]);
    assert!(
        told.contains("http, admin") && told.contains("\"managed-by\""),
        "{told}"
    );
    let all = service(
        sync,
        "type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http}]",
    );
    assert_eq!(all[0].object["spec"]["port"], "http");
    assert_eq!(all[0].object["spec"]["address"], "HostIP");
    let all = service(
        sync,
        "type: ExternalName, externalName: db.example.com, ports: [{port: 5432}]",
    );
    let endpoint = json!([{"name": "e0", "address": "db.example.com", "port": 5432}]);
    assert_eq!(all[0].object["spec"]["endpoints"], endpoint);
    let all = service(
        sync,
        "type: LoadBalancer, selector: {app: web}, externalIPs: [192.0.2.9], ports: [{port: 80, targetPort: 8080}]",
    );
    let endpoint = json!([{"name": "e0", "address": "192.0.2.9", "port": 80}]);
    assert_eq!(all[0].object["spec"]["endpoints"], endpoint);
    assert!(all[0].object["spec"].get("selector").is_none());
    let all = service(
        sync,
        "type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]",
    );
    assert!(
        notes(&all[0]).contains("type LoadBalancer"),
        "{}",
        notes(&all[0])
    );
    let tags = "consul.hashicorp.com/service-tags: 'rule=^/a$', consul.hashicorp.com/service-meta-x: '${pod.ip}'";
    let all = service(&format!("{sync}, {tags}"), spec);
    assert_eq!(all[0].object["spec"]["tags"], json!(["rule=^/a$$"]));
    assert_eq!(all[0].object["spec"]["meta"]["x"], "$${pod.ip}");
    let all = service(sync, "ports: [{port: 1}]");
    assert!(
        notes(&all[0]).contains("it selects no pods"),
        "{}",
        notes(&all[0])
    );
}

#[test]
fn annotations_of_a_template_get_ours_beside_them() {
    let found = one(r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: bank, labels: {a: b}}
spec:
  replicas: 2
  template:
    metadata:
      annotations:
        katalog-sync.wish.com/service-names: "web, api"
        katalog-sync.wish.com/service-port: "8080"
        katalog-sync.wish.com/service-port-api: "8081"
        katalog-sync.wish.com/service-tags-api: "a,b"
        katalog-sync.wish.com/service-meta: "team:x, consul-y:z"
        katalog-sync.wish.com/sync-interval: 10s
        katalog-sync.wish.com/service-port-gone: "1"
"#);
    assert_eq!(
        found.object,
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "bank"},
            "spec": {"template": {"metadata": {"annotations": {
                "lictor.io/service": "web,api", "lictor.io/port": "8080", "lictor.io/port.api": "8081",
                "lictor.io/tags.api": "a, b", "lictor.io/meta": "team=x",
            }}}},
        })
    );
    let told = notes(&found);
    for lost in [
        "sync-interval has no counterpart",
        "service-port-gone",
        "\"consul-y\"",
    ] {
        assert!(told.contains(lost), "{lost}: {told}");
    }
    let found = one(
        "{apiVersion: batch/v1, kind: CronJob, metadata: {name: job}, spec: {jobTemplate: {spec: {template: {metadata: \
         {annotations: {consul.register/enabled: 'true', consul.register/service.meta.a: b, \
         consul.register/pod.container.name: c}}}}}}}",
    );
    let template = &found.object["spec"]["jobTemplate"]["spec"]["template"];
    let expected = json!({"lictor.io/service": "job", "lictor.io/meta": "a=b"});
    assert_eq!(template["metadata"]["annotations"], expected);
    assert!(notes(&found).contains("pod.container.name"));
    assert_eq!(
        migrated("{apiVersion: v1, kind: Pod, metadata: {name: p}}"),
        []
    );
}

#[test]
fn what_the_sync_leaves_out_stays_out_and_no_two_have_one_name() {
    let text = "
{apiVersion: v1, kind: Service, metadata: {name: dns, namespace: kube-system}, spec: {selector: {a: b}}}
---
{apiVersion: v1, kind: Service, metadata: {name: odd, namespace: shop, annotations: \
                {consul.hashicorp.com/service-sync: 'maybe'}}, spec: {selector: {a: b}}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {a: b}}}
---
{apiVersion: consul.hashicorp.com/v1alpha1, kind: Registration, metadata: {name: x}, spec: {service: {name: web, \
                port: 1, address: 192.0.2.1}}}
";
    let options = Options {
        all_services: true,
        suffix: false,
        ..options()
    };
    let all = migrate(&parse(text, "here").unwrap(), &options);
    let found: Vec<_> = all
        .iter()
        .map(|it| (name(&it.object), it.object["spec"]["service"].as_str()))
        .collect();
    assert_eq!(
        found,
        [("web", None), ("odd", None), ("web-2", Some("web"))]
    );
    assert!(notes(&all[2]).contains("web-2"));
}

#[test]
fn what_commas_would_part_is_left_out_of_an_annotation() {
    let found = one(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, annotations: {consul.register/enabled: 'true', \
         consul.register/service.meta.a: 'x,team=y', consul.register/service.meta.b: c}}}",
    );
    assert_eq!(
        found.object["metadata"]["annotations"]["lictor.io/meta"],
        "b=c"
    );
    assert!(
        notes(&found).contains("meta \"a\" is left out"),
        "{}",
        notes(&found)
    );
}

#[test]
fn notes_are_comments_and_end_where_their_line_does() {
    let all = [Migrated {
        object: json!({"kind": "X"}),
        notes: vec!["a\nkind: \u{1b}Y".to_owned()],
    }];
    assert_eq!(yaml(&all).unwrap(), "---\n# a kind: Y\nkind: X\n");
}
