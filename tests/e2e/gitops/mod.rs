//! What Flux and Argo CD make of our objects, in every state that `lictor run` shows.

mod judges;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use kube::api::DynamicObject;
use lictor::status::board::Reason;
use lictor_testbed::proxy::{Fault, Proxy};
use serde_json::{Value, json};

use self::judges::{Argo, Verdict, documented};
use crate::support::{Kind, Scene, condition, until};

const KINDS: [Kind; 3] = [
    Kind::ServiceRegistration,
    Kind::Intention,
    Kind::PreparedQuery,
];

/// A scene, who judges, and which reasons were judged.
struct Court {
    scene: Scene,
    argo: Argo,
    heard: BTreeSet<String>,
}

impl Court {
    async fn object(&self, kind: Kind, name: &str) -> Result<Value> {
        let object: DynamicObject = self.scene.objects(kind).get(name).await?;
        Ok(serde_json::to_value(object)?)
    }

    /// An object that asks for what it alone is named after, and for nothing that is not allowed.
    fn plain(&self, kind: Kind, name: &str) -> Value {
        let called = self.scene.named(name);
        match kind {
            Kind::ServiceRegistration => json!({
                "service": called, "endpoints": [{"name": "one", "address": "192.0.2.1", "port": 80}],
            }),
            Kind::Intention => json!({
                "destination": {"name": called},
                "sources": [{"name": "web", "action": "allow"}, {"name": "api", "action": "deny"}],
            }),
            Kind::PreparedQuery => json!({"name": called, "service": "payment"}),
        }
    }

    async fn create(&self, kind: Kind, name: &str, spec: Value) -> Result<()> {
        self.scene.create(kind, name, spec).await.map(drop)
    }

    async fn create_plain(&self, name: &str) -> Result<()> {
        for kind in KINDS {
            self.create(kind, name, self.plain(kind, name)).await?;
        }
        Ok(())
    }

    /// Waits until the object is in this state, and compares with what the docs say of it.
    async fn is(&mut self, kind: Kind, name: &str, reason: &str) -> Result<()> {
        let what = format!("{kind:?} {name} to be {reason}");
        let object = until(&what, async || {
            let object = self.object(kind, name).await?;
            let status = &object["status"];
            let observed = &status["observedGeneration"];
            let current = observed.is_null() || *observed == object["metadata"]["generation"];
            ensure!(
                current && condition(status, "Ready").1 == reason,
                "{status:#}"
            );
            Ok(object)
        })
        .await?;
        let said = documented();
        let said = said
            .get(reason)
            .with_context(|| format!("docs/gitops.md lacks {reason}"))?;
        assert_eq!(self.argo.and_kstatus(&object)?, *said, "{object:#}");
        self.heard.insert(reason.to_owned());
        Ok(())
    }

    async fn all_are(&mut self, name: &str, reason: &str) -> Result<()> {
        for kind in KINDS {
            self.is(kind, name, reason).await?;
        }
        Ok(())
    }

    /// Waits until Consul holds the object as it claims.
    async fn good(&mut self, kind: Kind, name: &str) -> Result<()> {
        let reason = match kind {
            Kind::ServiceRegistration => "Registered",
            Kind::Intention | Kind::PreparedQuery => "Applied",
        };
        self.is(kind, name, reason).await
    }

    async fn all_are_good(&mut self, name: &str) -> Result<()> {
        for kind in KINDS {
            self.good(kind, name).await?;
        }
        Ok(())
    }

    async fn annotate_all(&self, name: &str, paused: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"lictor.io/paused": paused}}});
        for kind in KINDS {
            self.scene.change(kind, name, patch.clone()).await?;
        }
        Ok(())
    }

    fn say(&self, object: &Value, kstatus: &str, argo: &str) -> Result<()> {
        let expected: Verdict = (kstatus.to_owned(), argo.to_owned());
        assert_eq!(self.argo.and_kstatus(object)?, expected, "{object:#}");
        Ok(())
    }
}

/// What somebody else has, and who asks for it.
async fn taken(court: &mut Court) -> Result<()> {
    let (scene, name) = (&court.scene, "taken");
    let [registration, intention, query] = KINDS.map(|kind| court.plain(kind, name));
    let (service, namespace) = (scene.named(name), &scene.namespace);
    let theirs = json!({
        "Node": format!("lictor-{}-external", scene.cluster), "SkipNodeUpdate": true,
        "Service": {
            "ID": format!("{}.{namespace}.{service}.{name}.one", scene.cluster),
            "Service": service, "Address": "192.0.2.9", "Meta": {"managed-by": "somebody"},
        },
    });
    scene.by_hand(&theirs).await?;
    let entry = json!({
        "Kind": "service-intentions", "Name": service,
        "Sources": [{"Name": "web", "Action": "deny"}],
    });
    scene.consul.put("/v1/config", &entry).await?;
    let theirs = json!({"Name": service, "Service": {"Service": "theirs"}});
    scene.consul.post("/v1/query", &theirs).await?;
    for (kind, spec) in KINDS.into_iter().zip([registration, intention, query]) {
        court.create(kind, name, spec).await?;
    }
    court.all_are(name, "OwnedByAnother").await
}

/// What an older object has.
async fn contested(court: &mut Court) -> Result<()> {
    let selected = json!({"service": court.scene.named("selected"),
                          "selector": {"matchLabels": {"app": "selected"}}});
    let pod = court.scene.pod("selected-0").label("app", "selected");
    pod.create_ready(&court.scene.client).await?;
    let spec = |court: &Court, kind| match kind {
        Kind::ServiceRegistration => selected.clone(),
        other => court.plain(other, "older"),
    };
    for kind in KINDS {
        court.create(kind, "older", spec(court, kind)).await?;
        court.good(kind, "older").await?;
    }
    let youngest = court
        .scene
        .objects(Kind::PreparedQuery)
        .get("older")
        .await?;
    court.scene.is_older(&youngest).await?;
    for kind in KINDS {
        court.create(kind, "younger", spec(court, kind)).await?;
    }
    court.all_are("younger", "Conflict").await
}

/// What only Consul knows to be wrong.
async fn refused(court: &mut Court) -> Result<()> {
    let name = court.scene.named("refused");
    // The Community Edition knows no partitions; and without a protocol a service speaks TCP.
    let failover = json!({"targets": [{"partition": "east"}]});
    let rules = json!([{"action": "allow", "http": {"pathPrefix": "/"}}]);
    let query = json!({"name": name, "service": "payment", "failover": failover});
    let mut registration = court.plain(Kind::ServiceRegistration, "refused");
    registration["queries"] = json!([{"name": format!("{name}-too"), "failover": failover}]);
    let intention = json!({"destination": {"name": name},
                           "sources": [{"name": "web", "permissions": rules}]});
    for (kind, spec) in KINDS.into_iter().zip([registration, intention, query]) {
        court.create(kind, "refused", spec).await?;
    }
    court.all_are("refused", "ConsulRefused").await
}

/// What is there whatever its health, and what waits for an address.
async fn by_pods(court: &mut Court) -> Result<()> {
    let scene = &court.scene;
    let ill = scene.pod("ill-0").label("app", "ill");
    ill.create_ready(&scene.client).await?;
    ill.not_ready(&scene.client, "app").await?;
    let nowhere = scene.pod("nowhere-0").label("app", "nowhere");
    let nowhere = nowhere
        .node(&format!("{}-bare", scene.node))
        .host_ips([""; 0]);
    nowhere.create_ready(&scene.client).await?;
    for app in ["ill", "nowhere"] {
        let spec = json!({"service": scene.named(app), "selector": {"matchLabels": {"app": app}}});
        court.create(Kind::ServiceRegistration, app, spec).await?;
    }
    let critical = |status: &Value| status["instances"]["critical"] == 1;
    court.scene.registration("ill", critical).await?;
    court.good(Kind::ServiceRegistration, "ill").await?;
    court
        .is(Kind::ServiceRegistration, "nowhere", "NoNodeAddress")
        .await
}

/// What is removed only when it may be, what another hand changed, and what Consul cannot be asked for.
async fn waiting(court: &mut Court) -> Result<()> {
    let scene = &court.scene;
    let kubernetes = Proxy::start(&scene.bed.kube_addr())?;
    let consul = Proxy::start(&scene.bed.consul_addr())?;
    let flags = [
        "--policy=upsert-only",
        "--drift=report",
        "--drift-interval=1s",
    ];
    let lictor = scene
        .lictor_through_with(&kubernetes, &consul, &flags)
        .await?;
    let less = [
        json!({"spec": {"endpoints": []}}),
        json!({"spec": {"sources": [{"name": "web", "action": "allow"}]}}),
        json!({"spec": {"name": scene.named("renamed")}}),
    ];
    for (kind, less) in KINDS.into_iter().zip(less) {
        scene.change(kind, "edited", less).await?;
    }
    let node = format!("lictor-{}-external", scene.cluster);
    let service = scene.named("drifted");
    let id = format!(
        "{}.{}.{service}.drifted.one",
        scene.cluster, scene.namespace
    );
    scene
        .away_by_hand(&json!({"Node": node, "ServiceID": id}))
        .await?;
    court.all_are("edited", "Held").await?;
    court
        .is(Kind::ServiceRegistration, "drifted", "Drifted")
        .await?;
    consul.set(Fault::Refuse).await?;
    court.create_plain("outage").await?;
    court.all_are("outage", "ConsulUnavailable").await?;
    consul.set(Fault::Pass).await?;
    court.all_are_good("outage").await?;
    lictor.stop().await?;
    Ok(())
}

/// Of those that no test reaches quickly, what the docs say follows from whether they pass by themselves.
#[test]
fn the_docs_have_every_reason_for_which_an_object_waits_or_fails() {
    let mut said = documented();
    for reason in [
        Reason::Invalid,
        Reason::NotAllowed,
        Reason::Conflict,
        Reason::OwnedByAnother,
        Reason::TooManySources,
        Reason::ConsulRefused,
        Reason::AccessDenied,
        Reason::Paused,
        Reason::DriftContested,
        Reason::Drifted,
        Reason::NoNodeAddress,
        Reason::Held,
        Reason::DeregisteredCritical,
        Reason::ConsulUnavailable,
        Reason::Writing,
    ] {
        let expected = if reason.is_transient() {
            "InProgress"
        } else {
            "Failed"
        };
        let found = said.remove(reason.as_str());
        let kstatus = found.as_ref().map(|(kstatus, _)| &**kstatus);
        assert_eq!(kstatus, Some(expected), "{reason:?}");
    }
    let left: Vec<&String> = said.keys().collect();
    assert_eq!(left, ["Applied", "Pending", "Registered"]);
}

#[tokio::test]
async fn flux_and_argo_cd_judge_every_state_as_the_docs_say() -> Result<()> {
    let mut court = Court {
        scene: Scene::new().await?,
        argo: Argo::new()?,
        heard: BTreeSet::new(),
    };
    for name in ["plain", "edited"] {
        court.create_plain(name).await?;
        court.all_are(name, "Pending").await?;
    }

    let lictor = court.scene.lictor().await?;
    for name in ["drifted", "paused", "misspelt"] {
        court.create_plain(name).await?;
    }
    for name in ["plain", "edited", "drifted", "paused", "misspelt"] {
        court.all_are_good(name).await?;
    }
    court.annotate_all("paused", "true").await?;
    court.all_are("paused", "Paused").await?;
    court.annotate_all("misspelt", "yes").await?;
    court.all_are("misspelt", "Invalid").await?;
    taken(&mut court).await?;
    contested(&mut court).await?;
    refused(&mut court).await?;
    by_pods(&mut court).await?;
    lictor.stop().await?;

    // Nobody looked at the change yet; and one with a finalizer of somebody else goes.
    let finalizer = |value: Value| json!({"metadata": {"finalizers": value}});
    for kind in KINDS {
        let change = json!({"spec": {"adopt": true}});
        court.scene.change(kind, "plain", change).await?;
        let edited = court.object(kind, "plain").await?;
        court.say(&edited, "InProgress", "Progressing")?;
        let keep = finalizer(json!(["example.com/wait"]));
        court.scene.change(kind, "plain", keep).await?;
        court.scene.delete(kind, "plain").await?;
        let going = court.object(kind, "plain").await?;
        court.say(&going, "Terminating", "Progressing")?;
        court
            .scene
            .change(kind, "plain", finalizer(Value::Null))
            .await?;
    }

    waiting(&mut court).await?;
    let lictor = court.scene.lictor_with(&["--default-policy=deny"]).await?;
    court.create_plain("new").await?;
    court.all_are("new", "NotAllowed").await?;
    lictor.stop().await?;
    let said: BTreeSet<String> = documented().into_keys().collect();
    let unheard: Vec<&String> = said.difference(&court.heard).collect();
    // These take minutes, or rights that are taken away, or are over in a moment.
    let expected = [
        "AccessDenied",
        "DeregisteredCritical",
        "DriftContested",
        "TooManySources",
        "Writing",
    ];
    assert_eq!(unheard, expected);
    Ok(())
}

#[tokio::test]
async fn the_first_status_is_no_difference_to_who_applies() -> Result<()> {
    let scene = Scene::new().await?;
    let object = |name: &str| {
        let spec = json!({"service": scene.named(name), "endpoints": []});
        json!({
            "apiVersion": "lictor.io/v1alpha1", "kind": "ServiceRegistration",
            "metadata": {"name": name, "namespace": scene.namespace}, "spec": spec,
        })
    };
    // As kubectl and Argo CD apply, and as Flux does.
    let ways = [("client", &[][..]), ("server", &["--server-side"])];
    let mut files = Vec::new();
    for (name, flags) in ways {
        let path = scene
            .bed
            .dir()
            .join(format!("{}-{name}.json", scene.cluster));
        std::fs::write(&path, object(name).to_string())?;
        let file = format!("--filename={}", path.display());
        let args = [&["apply", &file][..], flags].concat();
        scene.bed.kubectl(&args).await?;
        files.push((name, file, flags));
    }
    let undisturbed = async |stored: bool| -> Result<()> {
        let now = async |name: &str| -> Result<DynamicObject> {
            let mut object = scene.registrations().get(name).await?;
            // The first to write anything stores what the API server shows until then.
            object.metadata.resource_version.take_if(|_| !stored);
            Ok(object)
        };
        for (name, file, flags) in &files {
            let before = now(name).await?;
            let diff = [&["diff", file][..], flags].concat();
            scene.bed.kubectl(&diff).await?;
            let apply = [&["apply", file][..], flags].concat();
            scene.bed.kubectl(&apply).await?;
            assert_eq!(now(name).await?, before);
        }
        Ok(())
    };
    let table = async || {
        let namespace = format!("--namespace={}", scene.namespace);
        scene
            .bed
            .kubectl(&["get", "sreg", &namespace, "--output=wide"])
            .await
    };
    let shown = table().await?;
    ensure!(shown.matches(" Unknown ").count() == 2, "{shown}");
    ensure!(
        shown.contains("whether it runs and watches this namespace"),
        "{shown}"
    );
    undisturbed(false).await?;

    let lictor = scene.lictor().await?;
    for (name, ..) in ways {
        let is = |status: &Value| condition(status, "Ready").0 == "True";
        let status = scene.registration(name, is).await?;
        let conditions = status["conditions"].as_array().context("no conditions")?;
        assert_eq!(conditions.len(), 3, "{status:#}");
        ensure!(!status.to_string().contains("1970"), "{status:#}");
    }
    undisturbed(true).await?;
    lictor.stop().await?;
    Ok(())
}
