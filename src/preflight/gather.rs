//! Asking both sides. Nothing is written, but for a token where a login gives one.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::client::Body;
use kube::{Api, ResourceExt as _};

use super::clock::Clock;
use super::facts::{Consul, ConsulNode, Crd, Facts, Held, Kubernetes, Rest, Seen, Services, Token};
use super::{Settings, consul as judged};
use crate::access::Access;
use crate::api;
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Request, TokenStanding,
};
use crate::k8s::client::{CallError, ClientOptions, client, within};
use crate::k8s::home::{identity, uid_of};
use crate::k8s::rights::{Right, needed};
use crate::model::epoch::{self, Epoch};
use crate::model::kind::Kind;
use crate::model::marks;
use crate::model::names::{ClusterName, NodeName};
use crate::model::text::Text;
use crate::sync::apply::{ReadError, node_filter, sure};

/// How long one call may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often all is asked again where a server does not know the token yet, and after which pause.
const TOKEN_SPREADS: usize = 5;
const TOKEN_SPREADS_AFTER: Duration = Duration::from_secs(1);
/// Questions about rights under way at once.
const AT_ONCE: usize = 8;
/// The API group of consul-k8s' kinds.
const CONSUL_K8S: &str = "consul.hashicorp.com";

/// Asks both sides, at the same time. `consul` is a client, or why there is none.
pub async fn gather(
    settings: &Settings,
    options: &ClientOptions,
    consul: Seen<(&Client, &mut Access)>,
) -> Facts {
    let consul = async {
        match consul {
            Ok((client, access)) => ask_consul(settings, client, access).await,
            Err(why) => Err(why),
        }
    };
    let (kubernetes, consul) = tokio::join!(ask_kubernetes(settings, options), consul);
    Facts { kubernetes, consul }
}

// === Kubernetes ===

async fn ask_kubernetes(settings: &Settings, options: &ClientOptions) -> Seen<Box<Kubernetes>> {
    let client = client(options).await.map_err(chain)?;
    let (version, clock) = version(&client).await?;
    let uid = async {
        uid_of(&client, &identity(&settings.scope.namespaces))
            .await
            .map_err(|error| error.to_string())
    };
    let (identity, crds, rights, nodes, consul_k8s) = tokio::join!(
        uid,
        crds(&client, settings),
        rights(&client, settings),
        nodes(&client, settings),
        serves_consul_k8s(&client),
    );
    Ok(Box::new(Kubernetes {
        version,
        clock,
        identity,
        crds,
        rights,
        nodes,
        consul_k8s,
    }))
}

fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// What the API server said, if it did.
fn said(error: CallError) -> String {
    match error.status() {
        Some(status) => format!("{} {}", status.code, status.message),
        None => chain(error),
    }
}

async fn version(client: &kube::Client) -> Seen<(String, Option<Clock>)> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Info {
        git_version: String,
    }
    let request = hyper::Request::get("/version")
        .body(Body::empty())
        .map_err(chain)?;
    let sent = Timestamp::now();
    let answer = within(DEADLINE, client.send(request)).await.map_err(said)?;
    let received = Timestamp::now();
    let date = answer.headers().get(hyper::header::DATE);
    let theirs = date.and_then(|date| {
        let parser = jiff::fmt::rfc2822::DateTimeParser::new();
        parser.parse_timestamp(date.to_str().ok()?).ok()
    });
    let clock = theirs.map(|theirs| Clock {
        sent,
        received,
        theirs,
    });
    let status = answer.status();
    if status == hyper::StatusCode::UNAUTHORIZED {
        return Err(format!("{status}: the API server does not know who we are"));
    }
    if !status.is_success() {
        return Ok((status.to_string(), clock));
    }
    let body = tokio::time::timeout(DEADLINE, answer.into_body().collect()).await;
    let body = body.map_err(chain)?.map_err(chain)?.to_bytes();
    let info: Info = serde_json::from_slice(&body)
        .map_err(|error| format!("what answers is no API server: {error}"))?;
    Ok((info.git_version, clock))
}

async fn crds(client: &kube::Client, settings: &Settings) -> Vec<(&'static str, Seen<Crd>)> {
    let installed = Api::<CustomResourceDefinition>::all(client.clone());
    let named = settings.scope.namespaces.is_empty();
    let served = if named {
        Ok(Vec::new())
    } else {
        served(client).await
    };
    let mut seen = Vec::new();
    for ours in api::crds() {
        let mut kinds = Kind::ALL
            .into_iter()
            .filter(|kind| named || kind.is_namespaced());
        let is = |kind: &Kind| kind.crd().is_some() && kind.crd() == ours.metadata.name.as_deref();
        let Some((kind, name)) = kinds.find(is).and_then(|kind| Some((kind, kind.crd()?))) else {
            continue;
        };
        let crd = if named {
            let found = within(DEADLINE, installed.get_opt(name)).await;
            let found = found.map(|found| Crd::of(found.as_ref(), &ours));
            found.map_err(said)
        } else {
            let is_served = |served: &Vec<String>| served.iter().any(|it| it == kind.resource());
            let served = served.as_ref().map(is_served).map_err(Clone::clone);
            served.map(|served| if served { Crd::Served } else { Crd::Missing })
        };
        seen.push((name, crd));
    }
    seen
}

/// The resources of our API group, which everybody may list.
async fn served(client: &kube::Client) -> Seen<Vec<String>> {
    let version = format!("{}/v1alpha1", api::GROUP);
    let list = within(DEADLINE, client.list_api_group_resources(&version)).await;
    match list {
        Ok(list) => Ok(list
            .resources
            .into_iter()
            .map(|resource| resource.name)
            .collect()),
        Err(error) if error.status().is_some_and(|status| status.code == 404) => Ok(Vec::new()),
        Err(error) => Err(said(error)),
    }
}

async fn rights(client: &kube::Client, settings: &Settings) -> Vec<(Right, Seen<bool>)> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let rights = needed(
        settings.readiness_gate,
        &settings.scope.namespaces,
        settings.lease.as_ref(),
    );
    let asked = rights.into_iter().map(|right| {
        let reviews = reviews.clone();
        async move {
            let allowed = allows(&reviews, &right).await;
            (right, allowed)
        }
    });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

async fn allows(reviews: &Api<SelfSubjectAccessReview>, right: &Right) -> Seen<bool> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (&*right.resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(right.verb.to_owned()),
                name: right.name.as_deref().map(str::to_owned),
                namespace: right.namespace.as_deref().map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let params = PostParams::default();
    let answer = within(DEADLINE, reviews.create(&params, &review)).await;
    let status = answer.map_err(said)?.status;
    let status = status.ok_or("an answer without a status")?;
    Ok(status.allowed)
}

async fn nodes(client: &kube::Client, settings: &Settings) -> Seen<Vec<Text>> {
    if !settings.scope.namespaces.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = Api::<Node>::all(client.clone());
    let params = ListParams::default();
    let listed = within(DEADLINE, nodes.list_metadata(&params)).await;
    let listed = listed.map_err(said)?.items;
    Ok(listed.iter().map(|node| node.name_any().into()).collect())
}

/// By the API groups, which everybody may list.
async fn serves_consul_k8s(client: &kube::Client) -> Seen<bool> {
    let groups = within(DEADLINE, client.list_api_groups()).await;
    let groups = groups.map_err(said)?.groups;
    Ok(groups.iter().any(|group| group.name == CONSUL_K8S))
}

// === Consul ===

async fn ask_consul(
    settings: &Settings,
    client: &Client,
    access: &mut Access,
) -> Seen<Box<Consul>> {
    let sent = Timestamp::now();
    let request = Request::get("status/leader").within(DEADLINE);
    let answer = client
        .send(&request)
        .await
        .map_err(|error| error.to_string())?;
    let received = Timestamp::now();
    let clock = answer.date().map(|theirs| Clock {
        sent,
        received,
        theirs,
    });
    let leader = answer.json::<String>().map_err(|error| error.to_string())?;
    let leader = !leader.value.is_empty();
    let token = if leader {
        token(client, access).await
    } else {
        Err("the servers have no leader".to_owned())
    };
    let rest = match token.as_ref().map(|token| &token.standing) {
        Ok(TokenStanding::AclsOff | TokenStanding::Token { .. }) => {
            let token = token.as_ref().ok();
            Ok(Box::new(rest_once_known(settings, client, token).await))
        }
        Ok(TokenStanding::Anonymous | TokenStanding::Unknown) => {
            Err("there is no token that Consul knows".to_owned())
        }
        Err(_) if !leader => Err("the servers have no leader".to_owned()),
        Err(_) => Err("there is no token".to_owned()),
    };
    Ok(Box::new(Consul {
        leader,
        clock,
        token,
        rest,
    }))
}

async fn token(client: &Client, access: &mut Access) -> Seen<Token> {
    access.log_in().await.map_err(|error| error.to_string())?;
    let standing = client
        .check_token()
        .await
        .map_err(|error| error.to_string())?;
    let own = match standing {
        TokenStanding::Token { .. } => client.own_token().await.ok(),
        _ => None,
    };
    Ok(Token { standing, own })
}

/// Asks again where a server does not know the token that another one knows: a new one takes a moment to
/// reach them all.
async fn rest_once_known(settings: &Settings, client: &Client, token: Option<&Token>) -> Rest {
    let mut again = TOKEN_SPREADS;
    loop {
        let (rest, agreed) = rest(settings, client, token).await;
        if agreed || again == 0 {
            return rest;
        }
        again -= 1;
        tokio::time::sleep(TOKEN_SPREADS_AFTER).await;
        // Nothing is read with a token that was refused, before it is known again.
        let _ = client.check_token().await;
    }
}

/// What there is, and whether the servers agree about the token.
async fn rest(settings: &Settings, client: &Client, token: Option<&Token>) -> (Rest, bool) {
    let acls = token.is_some_and(|token| token.standing != TokenStanding::AclsOff);
    let rights = async {
        if !acls {
            return Ok(Vec::new());
        }
        let questions = judged::questions(&settings.cluster, &settings.services);
        let questions: Vec<_> = questions
            .into_iter()
            .map(|(_, question)| question)
            .collect();
        let answers = client.authorize(&questions).await?;
        Ok::<_, ConsulError>(questions.into_iter().zip(answers).collect())
    };
    let (version, datacenter, primary, rights, epoch, nodes, services) = tokio::join!(
        client.oldest_server(),
        client.datacenter(),
        client.primary_datacenter(),
        rights,
        held(client, &settings.cluster),
        consul_nodes(client, &settings.cluster),
        services(client, &settings.cluster),
    );
    let text = |error: ConsulError| error.to_string();
    let is_unknown = |error: &ConsulError| error.class() == ErrorClass::TokenUnknown;
    let agreed = !rights.as_ref().is_err_and(is_unknown);
    let rest = Rest {
        version: version.map_err(text),
        datacenter: datacenter.map_err(text),
        primary: primary.map_err(text),
        rights: rights.map_err(text),
        epoch: epoch.map_err(|error| error.to_string()),
        nodes: nodes.map_err(|error| error.to_string()),
        services: services.map_err(|error| error.to_string()),
    };
    (rest, agreed)
}

/// What was read, even where more may be hidden from us.
fn shown<T>(answer: Result<Observed<T>, ConsulError>) -> Result<T, ReadError> {
    let answer = answer?;
    match answer.quality {
        Quality::Authoritative | Quality::Filtered => Ok(answer.value),
        quality => Err(ReadError::NotAuthoritative(quality)),
    }
}

async fn held(client: &Client, cluster: &ClusterName) -> Result<Held, ReadError> {
    let key = epoch::key(cluster);
    let pair = sure(client.kv_get(&key, Consistency::Consistent).await)?;
    Ok(match pair {
        None => Held::Free,
        Some(pair) => match serde_json::from_slice::<Epoch>(&pair.value) {
            Ok(epoch) => Held::By(Box::new(epoch)),
            Err(error) => Held::Unreadable(error.to_string()),
        },
    })
}

async fn consul_nodes(
    client: &Client,
    cluster: &ClusterName,
) -> Result<Vec<ConsulNode>, ReadError> {
    let filter = node_filter(cluster);
    let nodes = shown(client.nodes(Some(&filter), Consistency::Consistent).await)?;
    let agents = client.agents(&filter).await;
    let agents = agents.map_err(|error| error.to_string());
    let nodes = nodes.into_iter();
    let nodes = nodes.filter(|node| NodeName::parse(cluster, &node.name).is_some());
    Ok(nodes
        .map(|node| ConsulNode {
            agent: agents.as_ref().map_err(Clone::clone).map(|agents| {
                let same = |agent: &Text| agent.eq_ignore_ascii_case(&node.name);
                agents.iter().any(same)
            }),
            cluster: node.meta.get(marks::CLUSTER).cloned(),
            name: node.name,
        })
        .collect())
}

async fn services(client: &Client, cluster: &ClusterName) -> Result<Services, ReadError> {
    let cluster_mark = marks::CLUSTER;
    let ours = format!("ServiceMeta[\"{cluster_mark}\"] == \"{cluster}\"");
    let meshed = "ServiceMeta[\"managed-by\"] == \"consul-k8s-endpoints-controller\"";
    let synced = format!(
        "NodeMeta[\"external-source\"] == \"kubernetes\" and \"{cluster_mark}\" not in NodeMeta and \
         Node not matches \"-virtual$\""
    );
    let (ours, synced, meshed) = tokio::join!(
        client.service_tags(&ours),
        client.service_tags(&synced),
        client.service_tags(meshed),
    );
    Ok(Services {
        ours: shown(ours)?,
        synced: shown(synced)?.into_keys().collect(),
        meshed: shown(meshed)?.into_keys().collect(),
    })
}
