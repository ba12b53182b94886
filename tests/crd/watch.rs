//! What the watches tell, through restarts, lost history and a CRD that goes and comes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, CustomResourceExt};
use lictor::api::{self, Intention, PreparedQuery, RegistrationObject, ServiceRegistration};
use lictor::k8s::crd::{CrdState, crd_state};
use lictor::k8s::{self, BrokenKind, Change, KubeEvent, WatchEvent};
use lictor::model::facts::{PodFacts, Tristate};
use lictor::model::kind::Kind;
use lictor_testbed::kubelet::{self, TestNode, TestPod};
use lictor_testbed::{Bed, BedOptions};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::{SOON, install};

/// What a receiver makes of one kind's events, and what it was told since it was last asked.
#[derive(Debug)]
struct View<T> {
    objects: BTreeMap<String, T>,
    listing: Option<BTreeMap<String, T>>,
    complete: bool,
    broken: Option<BrokenKind>,
    told: Vec<&'static str>,
}

impl<T> Default for View<T> {
    fn default() -> Self {
        let (objects, told) = (BTreeMap::new(), Vec::new());
        Self {
            objects,
            listing: None,
            complete: false,
            broken: None,
            told,
        }
    }
}

impl<T> View<T> {
    fn take(&mut self, event: WatchEvent<T>, name: impl Fn(&T) -> String) {
        let word = match event {
            WatchEvent::Listing => {
                (self.listing, self.complete) = (Some(BTreeMap::new()), false);
                "listing"
            }
            WatchEvent::Page(items) => {
                let listing = self.listing.get_or_insert_default();
                listing.extend(items.into_iter().map(|item| (name(&item), item)));
                "page"
            }
            WatchEvent::Listed { .. } => {
                self.objects = self.listing.take().unwrap_or_default();
                (self.complete, self.broken) = (true, None);
                "listed"
            }
            WatchEvent::Applied(item) => {
                self.objects.insert(name(&item), item);
                "applied"
            }
            WatchEvent::Deleted { object: item, .. } => {
                self.objects.remove(&name(&item));
                "deleted"
            }
            WatchEvent::Broken(why) => {
                self.broken = Some(why.kind);
                "broken"
            }
            WatchEvent::Healthy => {
                self.broken = None;
                "healthy"
            }
        };
        self.told.push(word);
    }

    fn is_well(&self) -> bool {
        self.complete && self.broken.is_none()
    }
}

/// The names of the objects that an event tells of.
fn names<T>(event: WatchEvent<T>, name: impl Fn(&T) -> &str) -> Vec<String> {
    let objects = match event {
        WatchEvent::Page(objects) => objects,
        WatchEvent::Applied(object) => vec![object],
        _ => Vec::new(),
    };
    objects
        .iter()
        .map(|object| name(object).to_owned())
        .collect()
}

struct Views {
    events: mpsc::Receiver<KubeEvent>,
    pods: View<PodFacts>,
    nodes: usize,
    /// What was applied of the kinds that work like registrations.
    others: Vec<String>,
    registrations: View<RegistrationObject>,
}

impl Views {
    /// Takes events until `done` says that it is as it should be.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        let take = async {
            while !done(self) {
                let event = self.events.recv().await.context("the watches ended")?;
                match event.change {
                    Change::Pod(event) => self.pods.take(event, |pod| pod.name.to_string()),
                    Change::Registration(event) => self
                        .registrations
                        .take(event, |object| object.name.to_string()),
                    Change::Node(WatchEvent::Applied(_)) => self.nodes += 1,
                    Change::Intention(event) => self.others.extend(names(event, |it| &it.name)),
                    Change::PreparedQuery(event) => self.others.extend(names(event, |it| &it.name)),
                    Change::Policy(event) => self.others.extend(names(event, |it| &it.name)),
                    Change::Node(_) | Change::Namespace(_) | Change::Lease(_) => {}
                }
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(SOON, take).await {
            Ok(taken) => taken,
            Err(_) => bail!("no {what}: {:?}, {:?}", self.pods.told, self.registrations),
        }
    }

    fn ready(&self, pod: &str) -> Option<Tristate> {
        self.pods.objects.get(pod).map(|pod| pod.ready)
    }
}

#[tokio::test]
async fn watches_tell_what_is_and_what_they_do_not_know() -> Result<()> {
    let bed = Bed::start(BedOptions::default()).await?;
    let client = bed.kube_client()?;
    // More than a page.
    let pods = (0..520).map(|n| {
        TestPod::new("default", &format!("web-{n}"))
            .node("n1")
            .ip("10.1.2.3")
    });
    kubelet::create_all(&client, pods, 16).await?;

    let (sender, events) = mpsc::channel(64);
    let (_asks, relist) = watch::channel(());
    let home = k8s::Home::new(client.clone());
    for kind in Kind::ALL {
        tokio::spawn(k8s::watch(
            kind,
            home.clone(),
            None,
            sender.clone(),
            relist.clone(),
        ));
    }
    drop(sender);
    let mut views = Views {
        events,
        pods: View::default(),
        nodes: 0,
        others: Vec::new(),
        registrations: View::default(),
    };

    pods_are_listed_and_followed(&mut views, &client).await?;
    a_missing_crd_is_told_and_looked_for(&mut views, &client).await?;
    what_cannot_be_decoded_shows(&mut views, &client).await?;
    the_other_kinds_are_followed(&mut views, &client).await?;
    a_restart_is_survived(&mut views, &bed, &client).await?;
    a_crd_may_go_and_come(&mut views, &client).await
}

async fn pods_are_listed_and_followed(views: &mut Views, client: &Client) -> Result<()> {
    views
        .until("list of pods", |views| views.pods.is_well())
        .await?;
    ensure!(
        views.pods.objects.len() == 520,
        "{} pods",
        views.pods.objects.len()
    );
    ensure!(
        views.pods.told == ["listing", "page", "page", "listed"],
        "{:?}",
        views.pods.told
    );
    ensure!(
        views.ready("web-7") == Some(Tristate::True),
        "{:?}",
        views.pods.objects.get("web-7")
    );

    TestNode::new("n1").create(client).await?;
    views.until("node", |views| views.nodes > 0).await?;
    let pod = TestPod::new("default", "late").node("n1").ip("10.1.9.9");
    pod.create_ready(client).await?;
    views
        .until("pod", |views| views.ready("late") == Some(Tristate::True))
        .await?;
    pod.not_ready(client, "app").await?;
    views
        .until("readiness", |views| {
            views.ready("late") == Some(Tristate::False)
        })
        .await?;
    pod.delete(client).await?;
    views
        .until("termination", |views| {
            views
                .pods
                .objects
                .get("late")
                .is_some_and(|pod| pod.deleting)
        })
        .await?;
    pod.finish_deletion(client).await?;
    views
        .until("end", |views| !views.pods.objects.contains_key("late"))
        .await?;
    ensure!(
        views.pods.told.last() == Some(&"deleted"),
        "{:?}",
        views.pods.told
    );
    Ok(())
}

async fn a_missing_crd_is_told_and_looked_for(views: &mut Views, client: &Client) -> Result<()> {
    views
        .until("word of the CRD", |views| {
            views.registrations.broken == Some(BrokenKind::Missing)
        })
        .await?;
    ensure!(!views.registrations.complete, "complete without a CRD");
    // At first with a schema that lets everything pass, as an older or a newer release might.
    install(client, &[loose()?]).await?;
    views
        .until("registrations", |views| views.registrations.is_well())
        .await
}

fn loose() -> Result<CustomResourceDefinition> {
    let mut crd = ServiceRegistration::crd();
    let version = crd
        .spec
        .versions
        .first_mut()
        .context("a CRD without versions")?;
    let schema = version
        .schema
        .as_mut()
        .context("a version without a schema")?;
    let open = || JSONSchemaProps {
        type_: Some("object".to_owned()),
        x_kubernetes_preserve_unknown_fields: Some(true),
        ..JSONSchemaProps::default()
    };
    let properties = [("spec".to_owned(), open()), ("status".to_owned(), open())];
    schema.open_api_v3_schema = Some(JSONSchemaProps {
        properties: Some(properties.into()),
        ..open()
    });
    Ok(crd)
}

async fn what_cannot_be_decoded_shows(views: &mut Views, client: &Client) -> Result<()> {
    create(
        client,
        "odd",
        json!({"endpoints": [], "port": {"of": "call"}}),
    )
    .await?;
    create(
        client,
        "good",
        json!({"endpoints": [{"name": "a", "address": "db"}]}),
    )
    .await?;
    views
        .until("both", |views| views.registrations.objects.len() == 2)
        .await?;
    // Then the API server serves what it stored under the strict schema of today.
    views.registrations.told.clear();
    install(client, &api::crds()).await?;
    create(client, "strict", json!({"endpoints": []})).await?;
    views
        .until("the third", |views| views.registrations.objects.len() == 3)
        .await?;
    for (name, object) in &views.registrations.objects {
        let odd = object
            .spec
            .as_ref()
            .is_err_and(|why| why.contains("a port: a name, or a number"));
        ensure!(odd == (name == "odd"), "{object:?}");
        ensure!(
            object.generation == 1 && object.created > 0 && !object.uid.is_empty(),
            "{object:?}"
        );
    }
    ensure!(
        views.registrations.is_well(),
        "{:?}",
        views.registrations.told
    );
    Ok(())
}

async fn the_other_kinds_are_followed(views: &mut Views, client: &Client) -> Result<()> {
    let intention =
        json!({"destination": {"name": "api"}, "sources": [{"name": "web", "action": "allow"}]});
    create_one::<Intention>(client, "who", intention).await?;
    create_one::<PreparedQuery>(client, "near", json!({"service": "web"})).await?;
    let both = |views: &Views| {
        ["who", "near"]
            .iter()
            .all(|name| views.others.iter().any(|other| other == name))
    };
    views.until("the other kinds", both).await
}

async fn create(client: &Client, name: &str, spec: serde_json::Value) -> Result<()> {
    create_one::<ServiceRegistration>(client, name, spec).await
}

async fn create_one<K: CustomResourceExt>(
    client: &Client,
    name: &str,
    spec: serde_json::Value,
) -> Result<()> {
    let kind = K::api_resource();
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), "default", &kind);
    let object = DynamicObject::new(name, &kind).data(json!({"spec": spec}));
    lictor_testbed::wait::until("the object to be taken", SOON, async || {
        // For a moment after a change of the CRD the API server knows the kind no longer or not yet.
        api.create(&PostParams::default(), &object).await
    })
    .await?;
    Ok(())
}

async fn a_restart_is_survived(views: &mut Views, bed: &Bed, client: &Client) -> Result<()> {
    // Something else than a pod, so that what the watch of pods saw last is older than what the
    // store holds: a new process of the API server has no history from there.
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let metadata = ObjectMeta {
        name: Some("newer".to_owned()),
        ..ObjectMeta::default()
    };
    maps.create(
        &PostParams::default(),
        &ConfigMap {
            metadata,
            ..ConfigMap::default()
        },
    )
    .await?;
    views.pods.told.clear();

    bed.apiserver.stop().await?;
    views
        .until("word of the end", |views| views.pods.broken.is_some())
        .await?;
    ensure!(
        views.pods.objects.len() == 520,
        "an API server that is away has taken pods with it"
    );
    bed.apiserver.start().await?;
    views
        .until("recovery", |views| {
            views.pods.is_well() && views.registrations.is_well()
        })
        .await?;
    let told: Vec<_> = views
        .pods
        .told
        .iter()
        .filter(|word| **word != "broken")
        .copied()
        .collect();
    ensure!(told == ["listing", "page", "page", "listed"], "{told:?}");
    TestPod::new("default", "after")
        .node("n1")
        .ip("10.1.9.10")
        .create_ready(client)
        .await?;
    views
        .until("the next pod", |views| {
            views.ready("after") == Some(Tristate::True)
        })
        .await
}

async fn a_crd_may_go_and_come(views: &mut Views, client: &Client) -> Result<()> {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let state =
        async || Ok::<_, anyhow::Error>(crd_state(client, ServiceRegistration::crd_name()).await?);
    let CrdState::Present(uid) = state().await? else {
        bail!("{:?}", state().await?);
    };
    // With a finalizer the CRD stays for a while without its objects.
    let finalizers = async |list: &[&str]| {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": list}}));
        let name = ServiceRegistration::crd_name();
        crds.patch(name, &PatchParams::default(), &patch)
            .await
            .map(drop)
    };
    finalizers(&["lictor.io/test"]).await?;
    crds.delete(ServiceRegistration::crd_name(), &DeleteParams::default())
        .await?;
    // What goes with it is not told as deleted: nobody meant that.
    let objects = views.registrations.objects.len();
    let broken = |views: &Views| views.registrations.broken == Some(BrokenKind::Leaving);
    views.until("the objects' end", broken).await?;
    ensure!(
        views.registrations.objects.len() == objects
            && !views.registrations.told.ends_with(&["deleted", "broken"]),
        "{:?}",
        views.registrations.told
    );
    ensure!(
        state().await? == CrdState::Terminating,
        "{:?}",
        state().await?
    );
    finalizers(&[]).await?;
    let missing = |views: &Views| views.registrations.broken == Some(BrokenKind::Missing);
    views.until("the CRD's end", missing).await?;
    ensure!(state().await? == CrdState::Missing, "{:?}", state().await?);

    install(client, &api::crds()).await?;
    let back = state().await?;
    ensure!(
        matches!(&back, CrdState::Present(now) if *now != uid),
        "{uid} {back:?}"
    );
    views
        .until("the CRD's return", |views| views.registrations.is_well())
        .await?;
    ensure!(
        views.registrations.objects.is_empty(),
        "{:?}",
        views.registrations.objects
    );
    create(client, "anew", json!({"endpoints": []})).await?;
    views
        .until("a registration", |views| {
            views.registrations.objects.contains_key("anew")
        })
        .await
}
