//! Who answers: `/v1/agent/self`, `/v1/status/leader`; and in which datacenter config entries are.

use std::net::SocketAddr;

use serde::Deserialize;

use super::wire::null_is_default;
use super::{Client, ConsulError, ErrorClass, Observed, Quality, Request};
use crate::model::text::Text;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Version, like `1.22.7` or `1.22.7+ent`.
    pub version: Box<str>,
    /// Datacenter.
    pub datacenter: Box<str>,
    /// The datacenter that config entries are written in; see [`Client::read_entries_from`].
    pub primary_datacenter: Box<str>,
    /// Node name of the agent.
    pub node: Box<str>,
}

/// What a datacenter says about where it copies tokens from.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replication {
    enabled: bool,
    #[serde(default)]
    source_datacenter: Box<str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SelfBody {
    config: SelfConfig,
}

/// As lenient as all of the catalog is read: anybody may register a service of this name.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Server {
    #[serde(deserialize_with = "null_is_default")]
    node: ServerNode,
    #[serde(deserialize_with = "null_is_default")]
    service: ServerService,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ServerNode {
    #[serde(deserialize_with = "null_is_default")]
    address: Text,
    #[serde(deserialize_with = "null_is_default")]
    datacenter: Text,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ServerService {
    #[serde(rename = "ID", deserialize_with = "null_is_default")]
    id: Text,
    #[serde(deserialize_with = "null_is_default")]
    address: Text,
    #[serde(deserialize_with = "null_is_default")]
    port: i64,
    #[serde(deserialize_with = "null_is_default")]
    meta: ServerMeta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ServerMeta {
    version: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SelfConfig {
    version: Box<str>,
    datacenter: Box<str>,
    #[serde(default)]
    primary_datacenter: Box<str>,
    node_name: Box<str>,
}

impl Client {
    /// Version and datacenter. Needs `agent:read` on the agent that answers.
    pub async fn agent(&self) -> Result<AgentInfo, ConsulError> {
        let body: SelfBody = self.send(&Request::get("agent/self")).await?.json()?.value;
        let SelfConfig {
            version,
            datacenter,
            primary_datacenter,
            node_name: node,
        } = body.config;
        Ok(AgentInfo {
            version,
            datacenter,
            primary_datacenter,
            node,
        })
    }

    /// Finds out which datacenter has the config entries, and reads them there from now on
    /// ([`Client::read_entries_from`]).
    ///
    /// Without the right to ask the agent: where there are ACLs, any datacenter but the primary one
    /// copies tokens from that, and says so to everybody.
    pub async fn locate_entries(&self) -> Result<(), ConsulError> {
        let primary = self.primary_datacenter().await?.unwrap_or_default();
        if !primary.is_empty() {
            tracing::info!(
                primary = &*primary,
                "config entries are read in the primary datacenter, which has them"
            );
        }
        self.read_entries_from(&primary);
        Ok(())
    }

    /// The datacenter that has the config entries, if it is another one than that which answers.
    pub async fn primary_datacenter(&self) -> Result<Option<Text>, ConsulError> {
        let primary = match self.agent().await {
            Ok(agent) if agent.primary_datacenter == agent.datacenter => Box::default(),
            Ok(agent) => agent.primary_datacenter,
            Err(error) if error.class() == ErrorClass::AccessDenied => {
                let request = Request::get("acl/replication");
                let told: Replication = self.send(&request).await?.json()?.value;
                Some(told.source_datacenter)
                    .filter(|_| told.enabled)
                    .unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
        Ok(Some(Text::from(primary)).filter(|primary| !primary.is_empty()))
    }

    /// The lowest version among the servers that are well, as they tell it in the catalog; `None` where they do
    /// not. Needs `service:read` on `consul`.
    pub async fn oldest_server(&self) -> Result<Option<Text>, ConsulError> {
        let servers = self.read_servers(true).await?.value.into_iter();
        let versions = servers.filter_map(|server| server.service.meta.version);
        Ok(versions.min_by_key(|version| {
            let numbers = version
                .split('.')
                .map(|part| part.parse::<u64>().unwrap_or(u64::MAX));
            numbers.collect::<Vec<_>>()
        }))
    }

    /// The datacenter that answers: as the agent says, or, without the right to ask it, as the catalog says of
    /// its servers. `None` where neither does.
    pub async fn datacenter(&self) -> Result<Option<Text>, ConsulError> {
        if let Ok(agent) = self.agent().await {
            return Ok(Some(Text::from(&*agent.datacenter)));
        }
        let servers = self.read_servers(false).await?.value.into_iter();
        let mut told = servers.map(|server| server.node.datacenter);
        Ok(told.find(|name| !name.is_empty()))
    }

    /// Where the servers of this datacenter are, as the catalog tells it; none where it does not, or not of all.
    /// Needs `service:read` on `consul`, and `node:read` on the servers' nodes.
    pub async fn servers(&self) -> Result<Vec<SocketAddr>, ConsulError> {
        let servers = self.read_servers(false).await?;
        if let Quality::Filtered | Quality::Unidentified = servers.quality {
            return Ok(Vec::new());
        }
        let addresses = servers.value.iter().flat_map(|Server { node, service }| {
            let told = [&node.address, &service.address];
            let port = u16::try_from(service.port).ok();
            told.map(|address| Some(SocketAddr::new(address.parse().ok()?, port?)))
        });
        Ok(addresses.flatten().collect())
    }

    /// The servers as the catalog has them, or only those that are well.
    async fn read_servers(&self, well: bool) -> Result<Observed<Vec<Server>>, ConsulError> {
        let mut request = Request::get("health/service")
            .segment("consul")
            .of_servers();
        if well {
            request = request.query("passing", "");
        }
        let mut found: Observed<Vec<Server>> = self.send(&request).await?.json()?;
        // Anybody may register a service of that name, but only servers have this id.
        found.value.retain(|server| *server.service.id == *"consul");
        Ok(found)
    }

    /// The address of the servers' leader; `None` while there is none. Needs no right.
    pub async fn leader(&self) -> Result<Option<Box<str>>, ConsulError> {
        let leader: Box<str> = self
            .send(&Request::get("status/leader"))
            .await?
            .json()?
            .value;
        Ok(Some(leader).filter(|leader| !leader.is_empty()))
    }
}
