//! Who answers, and what it takes us for: `/v1/agent/self`, `/v1/status/leader`, `/v1/acl/token/self`.

use serde::Deserialize;

use super::{Client, ConsulError, ErrorClass, Request, TokenStanding};

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Version, like `1.22.7` or `1.22.7+ent`.
    pub version: Box<str>,
    /// Datacenter.
    pub datacenter: Box<str>,
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
    node_name: Box<str>,
}

#[derive(Deserialize)]
struct SelfToken {
    #[serde(rename = "AccessorID")]
    accessor: Box<str>,
}

/// The accessor of the token that stands for "no token".
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

const ACLS_OFF: &str = "ACL support disabled";

impl Client {
    /// Version and datacenter. Needs `agent:read` on the agent that answers.
    pub async fn agent(&self) -> Result<AgentInfo, ConsulError> {
        let body: SelfBody = self.send(&Request::get("agent/self")).await?.json()?.value;
        let SelfConfig {
            version,
            datacenter,
            node_name: node,
        } = body.config;
        Ok(AgentInfo {
            version,
            datacenter,
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

    /// Asks Consul what it takes our token for and remembers it: for 15 minutes, or until the
    /// token changes, answers count as verified if it was found good.
    ///
    /// Source: <https://developer.hashicorp.com/consul/api-docs/acl/tokens#read-self-token>
    pub async fn check_token(&self) -> Result<TokenStanding, ConsulError> {
        let (sent, generation) = self.token_in_use();
        let answer = self.send(&Request::get("acl/token/self")).await?;
        let standing = match answer.json::<SelfToken>() {
            Ok(token) if &*token.value.accessor == ANONYMOUS => TokenStanding::Anonymous,
            Ok(token) => TokenStanding::Token {
                accessor: token.value.accessor,
            },
            Err(error) if error.status() == Some(401) && error.text().contains(ACLS_OFF) => {
                TokenStanding::AclsOff
            }
            // Consul says the same about no token as about one that it does not know.
            Err(error) if error.class() == ErrorClass::TokenUnknown => {
                if sent {
                    TokenStanding::Unknown
                } else {
                    TokenStanding::Anonymous
                }
            }
            Err(error) => return Err(error),
        };
        self.remember_standing(generation, standing.clone());
        Ok(standing)
    }
}
