//! Who answers: `/v1/agent/self`, `/v1/status/leader`.

use serde::Deserialize;

use super::{Client, ConsulError, Request};

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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SelfBody {
    config: SelfConfig,
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
