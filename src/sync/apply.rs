//! The one place where Consul is read and written.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::claim::{ClaimError, Claimant, Claimed, Mandate, NameIs};
use super::critical::{CriticalRead, CriticalWritten};
use super::entries::{EntryWritten, TableRead};
use super::fence::Last;
use super::pass::Pass;
use super::sessions::Acted;
use crate::consul::wire::HealthCheck;
use crate::consul::{
    Client, Consistency, ConsulError, ErrorClass, Observed, Quality, Txn, TxnError, TxnFailure,
    TxnOp, TxnOutcome,
};
use crate::model::gc::{self, Exchange};
use crate::model::key::{InstanceKey, Key};
use crate::model::names::{ClusterName, InstanceId, NodeName};
use crate::observed::content::NodeContent;
use crate::observed::mirror::Ticket;
use crate::plan::Step;
use crate::plan::batch::BatchedStep;
use crate::sync::dirty::Due;

/// A piece of work that is done.
#[derive(Debug)]
pub enum Done {
    /// A transaction was answered, or not.
    Wrote {
        /// Which one.
        id: u64,
        /// The index of the epoch that it was fenced with.
        epoch: u64,
        /// What it was to do.
        steps: Vec<BatchedStep<Due>>,
        /// What became of it.
        outcome: Result<TxnOutcome, ConsulError>,
        /// When.
        at: Instant,
    },
    /// A write of what is on no node was answered, or not.
    WroteEntry(Box<EntryWritten>),
    /// What is kept of how long instances have been critical was read.
    ReadCritical(CriticalRead),
    /// What is kept of it was written, or not.
    WroteCritical(CriticalWritten),
    /// A table of what is on no node was read.
    ReadTable(TableRead),
    /// `lictor gc` was answered, or not.
    Answered(Answered),
    /// A session was created, renewed or ended, or was not.
    Acted(Box<Acted>),
    /// It was read which sessions there are.
    ReadSessions(Box<super::sessions::Read>),
    /// The epoch was claimed.
    Claimed(Result<Claimed, ClaimError>),
    /// It was looked whether the name of the cluster is this one's.
    LookedAtName(Result<NameIs, ClaimError>),
    /// The list of our nodes was read.
    Listed {
        /// The read.
        ticket: Ticket,
        /// The nodes.
        nodes: Result<Nodes, ReadError>,
    },
    /// A node was read.
    Read {
        /// The read.
        ticket: Ticket,
        /// The node.
        name: NodeName,
        /// What is on it.
        content: Result<NodeContent, ReadError>,
    },
}

/// What became of an answer to `lictor gc`.
#[derive(Debug)]
pub struct Answered {
    /// The index of the epoch that it was given under.
    pub epoch: u64,
    /// What it says to be released.
    pub release: BTreeSet<Key>,
    /// Whether it is known to be given.
    pub given: bool,
}

/// Why a read says nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The call failed.
    #[error(transparent)]
    Failed(#[from] ConsulError),
    /// It was answered, but what is missing in the answer may be there all the same.
    #[error("{}", quality(*.0))]
    NotAuthoritative(Quality),
}

impl ReadError {
    /// Whether Consul answered, but not with what was asked for.
    #[must_use]
    pub fn is_garbled(&self) -> bool {
        matches!(self, Self::Failed(error) if error.class() == ErrorClass::Malformed)
    }
}

/// The value of an answer that leaves nothing out.
///
/// # Errors
///
/// The call failed, or what is missing in its answer may be there all the same.
pub fn sure<T>(answer: Result<Observed<T>, ConsulError>) -> Result<T, ReadError> {
    let answer = answer?;
    let quality = answer.quality;
    answer
        .authoritative()
        .ok_or(ReadError::NotAuthoritative(quality))
}

fn quality(quality: Quality) -> &'static str {
    match quality {
        Quality::Authoritative => "the answer is authoritative",
        Quality::Leased | Quality::Stale => "the answer may be stale",
        Quality::Unverified => {
            "it is not known that Consul takes the token, or has no ACLs: reads could be silently \
             empty; with ACLs on, set CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE"
        }
        Quality::Filtered => {
            "Consul left entries out for want of rights: give the token node:read and service:read \
             on all"
        }
        Quality::Unidentified => {
            "the answer lacks Consul's headers (X-Consul-Index, X-Consul-KnownLeader): a proxy between \
             may have given it, or left them out"
        }
    }
}

/// Claims the epoch.
pub async fn claim(
    client: Client,
    claimant: Claimant,
    last: Option<Last>,
    mandate: Mandate,
) -> Done {
    Done::Claimed(claimant.claim(&client, last, &mandate).await)
}

/// Looks whether the name of the cluster is this one's.
pub async fn look_at_name(client: Client, claimant: Claimant) -> Done {
    Done::LookedAtName(claimant.look(&client).await)
}

/// Answers `lictor gc`, which says what is to be released then. Whoever does not get an answer asks
/// again.
pub async fn answer(
    client: Client,
    pass: Pass,
    cluster: ClusterName,
    exchange: Exchange,
    asked_at: u64,
    release: BTreeSet<Key>,
) -> Done {
    let given = give(&client, &pass, &gc::key(&cluster), &exchange, asked_at).await;
    if let Err(why) = &given {
        tracing::warn!("cannot answer lictor gc: {why}");
    }
    Done::Answered(Answered {
        epoch: pass.epoch(),
        release,
        given: given.is_ok(),
    })
}

async fn give(
    client: &Client,
    pass: &Pass,
    key: &str,
    exchange: &Exchange,
    index: u64,
) -> Result<(), String> {
    let value = serde_json::to_vec(exchange).map_err(|error| error.to_string())?;
    let mut txn = Txn::new();
    let value = &value;
    txn.push(&TxnOp::KvCas { key, value, index })
        .map_err(|full| full.to_string())?;
    match pass.apply(client, &txn).await {
        Ok(TxnOutcome::Applied(_)) => Ok(()),
        Ok(TxnOutcome::RolledBack(_)) => Err("it does not ask any more".to_owned()),
        Ok(TxnOutcome::Fenced { what, .. }) => Err(what.into()),
        Err(error) if error.class().may_be_applied() => {
            let there = client.kv_get(key, Consistency::Consistent).await;
            let there = there.ok().and_then(Observed::authoritative).flatten();
            // Nobody else knows the id and answers it; one that is gone by now may have been ours, but
            // to release less than was said is the safe side.
            match there {
                Some(pair) if *pair.value == **value => Ok(()),
                _ => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Carries out a transaction behind the fence of the epoch with this index.
pub async fn write(
    client: Client,
    cluster: ClusterName,
    id: u64,
    pass: Pass,
    (txn, steps): (Txn, Vec<BatchedStep<Due>>),
) -> Done {
    let outcome = match may_go(&client, &cluster, &steps).await {
        Ok(stale) if stale.is_empty() => pass.apply(&client, &txn).await,
        Ok(stale) => Ok(TxnOutcome::RolledBack(stale)),
        Err(error) => Err(error),
    };
    let at = Instant::now();
    Done::Wrote {
        id,
        epoch: pass.epoch(),
        steps,
        outcome,
        at,
    }
}

/// A removal takes things with it whose index it cannot compare: so these are read directly before. Returns
/// the removals that would take what another hand put there.
async fn may_go(
    client: &Client,
    cluster: &ClusterName,
    steps: &[BatchedStep<Due>],
) -> Result<Vec<TxnError>, ConsulError> {
    let mut checks: BTreeMap<&NodeName, Option<Vec<HealthCheck>>> = BTreeMap::new();
    let mut stale = Vec::new();
    for step in steps {
        let what = match (&step.key, &step.step) {
            (Key::Node(name), Step::RemoveNode(_)) if !is_empty(client, name).await? => {
                "the node is not empty any more, or not known to be"
            }
            (Key::Instance(key), Step::Remove(removal)) if removal.why.is_critical() => {
                if !checks.contains_key(&key.node) {
                    checks.insert(&key.node, checks_on(client, &key.node).await?);
                }
                let checks = checks.get(&key.node).and_then(Option::as_ref);
                if checks.is_some_and(|checks| is_bare(key, cluster, checks)) {
                    continue;
                }
                "somebody else has a check on the instance by now, or that is not known"
            }
            _ => continue,
        };
        stale.push(TxnError {
            op_index: step.ops.start,
            what: what.into(),
            reason: TxnFailure::StaleIndex,
        });
    }
    Ok(stale)
}

/// A node takes everything with it that is on it by then.
async fn is_empty(client: &Client, name: &NodeName) -> Result<bool, ConsulError> {
    let read = client.node_services(name.as_ref(), Consistency::Consistent);
    let services = read.await?.authoritative().flatten();
    Ok(services.is_some_and(|(_, services)| services.is_empty()))
}

/// The checks on a node; `None` where that is not known.
async fn checks_on(
    client: &Client,
    name: &NodeName,
) -> Result<Option<Vec<HealthCheck>>, ConsulError> {
    let read = client.node_checks(name.as_ref(), Consistency::Consistent);
    Ok(read.await?.authoritative())
}

/// Whether all checks of an instance, and of the proxy beside it, are ours. One that is only critical may be
/// in maintenance by another hand, and would come back without.
fn is_bare(key: &InstanceKey, cluster: &ClusterName, checks: &[HealthCheck]) -> bool {
    let proxy = key.counterpart(cluster);
    let ids = [Some(&key.id), proxy.as_ref().map(|proxy| &proxy.id)];
    checks.iter().all(|check| {
        let about = InstanceId::observed(&check.service_id);
        let of = ids.into_iter().flatten().find(|id| **id == about);
        of.is_none_or(|id| id.names_check(&check.check_id))
    })
}

/// Our nodes, and the datacenter that they are in, where that was asked for and told.
pub type Nodes = (BTreeSet<NodeName>, Option<String>);

/// Reads which of our nodes there are, and, if `locate`, in which datacenter.
pub async fn list(client: Client, cluster: ClusterName, locate: bool, ticket: Ticket) -> Done {
    let nodes = list_nodes(&client, &cluster, locate).await;
    Done::Listed { ticket, nodes }
}

/// Makes sure that Consul knows the token: without that a read says nothing. Whoever looks at it regularly
/// may not have come to it yet.
pub async fn check_token(client: &Client) -> Result<(), ReadError> {
    if !client.is_token_verified() {
        client.check_token().await?;
    }
    Ok(())
}

async fn list_nodes(
    client: &Client,
    cluster: &ClusterName,
    locate: bool,
) -> Result<Nodes, ReadError> {
    check_token(client).await?;
    let filter = node_filter(cluster);
    let nodes = sure(client.nodes(Some(&filter), Consistency::Consistent).await)?;
    let ours = |name: &str| NodeName::parse(cluster, name);
    let nodes = nodes.iter().filter_map(|node| ours(&node.name)).collect();
    // Nothing depends on it; the nodes tell it too, once there are some.
    let datacenter = if locate {
        let told = client.datacenter().await.ok().flatten();
        told.map(|name| name.to_string())
    } else {
        None
    };
    Ok((nodes, datacenter))
}

/// Selects the nodes that the cluster may use, whoever's they are.
#[must_use]
pub fn node_filter(cluster: &ClusterName) -> String {
    format!("Node matches \"(?i)^lictor-{cluster}(--.+|-external)$\"")
}

/// Reads what is on one of our nodes.
pub async fn read(client: Client, name: NodeName, ticket: Ticket) -> Done {
    let content = read_node(&client, &name).await;
    Done::Read {
        ticket,
        name,
        content,
    }
}

/// Services and checks come in two answers. A write between them can only make the later one newer,
/// and what was written since the read began is not taken from either; what another hand wrote
/// between them moves Consul's index, which signals another sweep.
async fn read_node(client: &Client, name: &NodeName) -> Result<NodeContent, ReadError> {
    let (services, checks) = tokio::try_join!(
        client.node_services(name.as_ref(), Consistency::Consistent),
        client.node_checks(name.as_ref(), Consistency::Consistent),
    )?;
    let quality = services.quality.max(checks.quality);
    match (services.authoritative(), checks.authoritative()) {
        (Some(Some((node, services))), Some(checks)) => Ok(NodeContent {
            node: Some(node),
            services,
            checks,
        }),
        (Some(None), Some(_)) => Ok(NodeContent::default()),
        _ => Err(ReadError::NotAuthoritative(quality)),
    }
}

#[cfg(test)]
mod tests {
    use wiremock::matchers::path;
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::consul::{ConsulConfig, ConsulSettings};
    use crate::leader::Tenure;
    use crate::model::owner::Owner;
    use crate::plan::Removal;
    use crate::plan::batch::Batch;
    use crate::plan::gate::Why;
    use crate::sync::carry::{self, Carried};
    use crate::sync::dirty::Cause;

    fn authoritative(body: &str) -> ResponseTemplate {
        ResponseTemplate::new(200)
            .insert_header("X-Consul-Index", "7")
            .insert_header("X-Consul-KnownLeader", "true")
            .insert_header("X-Consul-LastContact", "0")
            .insert_header("X-Consul-Effective-Consistency", "consistent")
            .set_body_string(body)
    }

    /// A Consul that gives these answers, and a client that knows its token to be good.
    async fn consul(answers: &[(&str, ResponseTemplate)]) -> (MockServer, Client) {
        let server = MockServer::start().await;
        let off = ResponseTemplate::new(401).set_body_string("ACL support disabled");
        let acl = ("/v1/acl/token/self", off);
        for (at, answer) in answers.iter().chain([&acl]) {
            Mock::given(path(*at))
                .respond_with(answer.clone())
                .mount(&server)
                .await;
        }
        let settings = ConsulSettings {
            addresses: server.uri(),
            ..ConsulSettings::default()
        };
        let client = Client::new(ConsulConfig::new(settings).unwrap()).unwrap();
        (server, client)
    }

    /// Whatever is to be written: nothing is sent once the leadership is over, not even behind an epoch
    /// that still holds.
    #[tokio::test]
    async fn nothing_is_written_once_the_leadership_is_over() {
        let epoch = r#"[{"Key":"lictor/v1/a/epoch","Value":"e30=","ModifyIndex":5}]"#;
        let (server, client) = consul(&[("/v1/kv/lictor/v1/a/epoch", authoritative(epoch))]).await;
        client.check_token().await.unwrap();
        let pass = |tenure| Pass::new("lictor/v1/a/epoch".into(), 5, tenure);
        let mut txn = Txn::new();
        let key = "k";
        txn.push(&TxnOp::KvSet { key, value: b"v" }).unwrap();
        let outcome = pass(Tenure::over()).apply(&client, &txn).await;
        let lapsed = TxnFailure::Lapsed;
        assert!(matches!(outcome, Ok(TxnOutcome::Fenced { reason, .. }) if reason == lapsed));
        let asked = server.received_requests().await.unwrap();
        assert!(asked.iter().all(|asked| asked.url.path() != "/v1/txn"));
        // What cannot be in a transaction looks at both.
        let checked = carry::check(&client, &pass(Tenure::unlimited())).await;
        assert!(matches!(checked, Ok(None)), "{checked:?}");
        let checked = carry::check(&client, &pass(Tenure::over())).await;
        assert!(matches!(checked, Ok(Some(Carried::Fenced { reason, .. })) if reason == lapsed));
    }

    #[tokio::test]
    async fn the_first_read_is_worth_something_even_if_nobody_looked_at_the_token_yet() {
        let (_server, client) = consul(&[("/v1/catalog/nodes", authoritative("[]"))]).await;
        let nodes = list_nodes(&client, &"a".parse().unwrap(), false).await;
        assert_eq!(nodes.unwrap(), (BTreeSet::new(), None));
    }

    /// Removes an instance with this reason, on whose node there are these checks by then. Returns what became
    /// of it, and whether anything was written.
    async fn remove(why: Why, checks: ResponseTemplate) -> (Result<TxnOutcome, ConsulError>, bool) {
        let node = NodeName::for_kubernetes(&"a".parse().unwrap(), "n1");
        let at = format!("/v1/health/node/{node}");
        let empty = ResponseTemplate::new(200).set_body_string(r#"{"Results":[],"Errors":null}"#);
        let (server, client) = consul(&[(&at, checks), ("/v1/txn", empty)]).await;
        client.check_token().await.unwrap();
        let key = Key::Instance(InstanceKey {
            node,
            id: InstanceId::observed("a.shop.web.p"),
        });
        let step = Step::Remove(Removal {
            owner: Owner::pod(&"shop".into(), &"p".into()),
            name: "web".into(),
            index: 7,
            why,
        });
        let due = Due {
            cause: Cause::Read,
            since: Instant::now(),
        };
        let mut batch = Batch::default();
        batch.push(key, step, due).unwrap();
        let pass = Pass::new("lictor/v1/a/epoch".into(), 5, Tenure::unlimited());
        let done = write(client, "a".parse().unwrap(), 1, pass, batch.into_parts()).await;
        let Done::Wrote { outcome, .. } = done else {
            panic!("{done:?}")
        };
        let asked = server.received_requests().await.unwrap();
        (outcome, asked.iter().any(|it| it.url.path() == "/v1/txn"))
    }

    fn check(id: &str, of: &str) -> ResponseTemplate {
        let ready = r#"{"CheckID":"a.shop.web.p:ready","ServiceID":"a.shop.web.p"}"#;
        let more = format!(r#"{{"CheckID":"{id}","ServiceID":"{of}"}}"#);
        authoritative(&format!("[{ready},{more}]"))
    }

    fn is_stale(outcome: &Result<TxnOutcome, ConsulError>) -> bool {
        let Ok(TxnOutcome::RolledBack(errors)) = outcome else {
            return false;
        };
        matches!(&**errors, [one] if one.op_index == 0 && one.reason == TxnFailure::StaleIndex)
    }

    #[tokio::test]
    async fn what_another_hand_put_into_maintenance_meanwhile_does_not_go_for_being_critical() {
        let critical = Why::Critical(std::time::Duration::from_secs(30));
        for of in ["a.shop.web.p", "a.shop.web-sidecar-proxy.p", "A.shop.web.P"] {
            let there = check(&format!("_service_maintenance:{of}"), of);
            let (outcome, written) = remove(critical, there).await;
            assert!(is_stale(&outcome) && !written, "{of}: {outcome:?}");
        }
        // What is not known may be there.
        let stale = check("a.shop.web.p:api", "a.shop.web.p");
        let stale = stale.insert_header("X-Consul-KnownLeader", "false");
        let (outcome, written) = remove(critical, stale).await;
        assert!(is_stale(&outcome) && !written, "{outcome:?}");
        let (outcome, written) = remove(critical, ResponseTemplate::new(503)).await;
        assert!(outcome.is_err() && !written, "{outcome:?}");
        for (id, of) in [
            ("a.shop.web.p:api", "a.shop.web.p"),
            (
                "a.shop.web-sidecar-proxy.p:alias",
                "a.shop.web-sidecar-proxy.p",
            ),
            ("_service_maintenance:other", "other"),
            ("serfHealth", ""),
        ] {
            assert!(remove(critical, check(id, of)).await.1, "{id}");
        }
        // What nothing claims goes whoever looks at it.
        let there = check("mine", "a.shop.web.p");
        assert!(remove(Why::Found, there).await.1);
    }
}
