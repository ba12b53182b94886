//! The Consul of a bed in `dc1`: one server, or three that elect a leader.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use futures::future::try_join_all;

use super::Bed;
use crate::{CONSUL_MANAGEMENT_TOKEN, ConsulApi, Server, wait};

/// Longer than any election takes that ends.
const ELECTION: Duration = Duration::from_secs(30);
/// A server tells at once who leads, or it is paused.
const TELLS: Duration = Duration::from_secs(1);

impl Bed {
    /// The Consul servers of `dc1`; [`Bed::consul_server`] is the first.
    pub fn consul_servers(&self) -> Vec<&Server> {
        let more = self.more_consul_servers.iter();
        std::iter::once(&self.consul_server).chain(more).collect()
    }

    /// The address of Consul's HTTP API, such as `http://127.0.0.1:21235`; that of the first server.
    pub fn consul_addr(&self) -> String {
        self.consul_server.addr().to_owned()
    }

    /// The addresses of the HTTP API of all servers.
    pub fn consul_addrs(&self) -> Vec<String> {
        let servers = self.consul_servers().into_iter();
        servers.map(|server| server.addr().to_owned()).collect()
    }

    /// The address of Consul's DNS, such as `127.0.0.1:21236`, for TCP and UDP; that of the first
    /// server.
    pub fn consul_dns_addr(&self) -> String {
        let dns = self.numbers.consul.first().map_or(0, |ports| ports.dns);
        format!("127.0.0.1:{dns}")
    }

    /// Calls of Consul's API that do not depend on the code under test, with every right. Where one
    /// server fails, another one is asked.
    pub fn consul(&self) -> Result<ConsulApi> {
        self.consul_as(self.management_token())
    }

    /// The same with another token; the empty one is that of anonymous callers.
    pub fn consul_as(&self, token: &str) -> Result<ConsulApi> {
        Ok(ConsulApi::any_of(&self.consul_addrs())?.with_token(token))
    }

    /// What may do everything, if Consul asks for a token at all.
    pub(super) fn management_token(&self) -> &'static str {
        if self.consul_acls {
            CONSUL_MANAGEMENT_TOKEN
        } else {
            ""
        }
    }

    /// The server that leads. Waits until there is one that knows it and answers consistent reads,
    /// which no server does without a quorum.
    pub async fn consul_leader(&self) -> Result<&Server> {
        let servers = self.consul_servers();
        let one_by_one = self.consul()?.each();
        wait::until("Consul to have a leader", ELECTION, async || {
            let mut told = Vec::new();
            for ((server, api), ports) in servers.iter().zip(&one_by_one).zip(&self.numbers.consul)
            {
                let leader = told_leader(api).await;
                if matches!(&leader, Ok(leader) if *leader == format!("127.0.0.1:{}", ports.rpc)) {
                    let read = api.get("/v1/catalog/nodes?consistent");
                    tokio::time::timeout(TELLS, read).await??;
                    return Ok(*server);
                }
                told.push(leader.unwrap_or_else(|error| format!("{error:#}")));
            }
            bail!("the servers say: {told:?}")
        })
        .await
    }

    /// The servers that do not lead, once there is a leader.
    pub async fn consul_followers(&self) -> Result<Vec<&Server>> {
        let leader = self.consul_leader().await?;
        let mut servers = self.consul_servers();
        servers.retain(|server| !std::ptr::eq(*server, leader));
        Ok(servers)
    }

    /// Waits until no server that answers knows a leader, as without a quorum.
    pub async fn no_consul_leader(&self) -> Result<()> {
        let one_by_one = self.consul()?.each();
        wait::until("Consul to have no leader", ELECTION, async || {
            for api in &one_by_one {
                if let Ok(leader) = told_leader(api).await
                    && !leader.is_empty()
                {
                    bail!("{leader} leads");
                }
            }
            Ok(())
        })
        .await
    }

    /// Starts the Consul servers that do not run, and waits until all are ready: for after a loss of
    /// the quorum, when one server alone would never be ready.
    pub async fn start_consul(&self) -> Result<()> {
        let servers = self.consul_servers();
        let mut started = Vec::new();
        for server in servers {
            if server.pid().is_none() {
                server.spawn()?;
                started.push(server);
            }
        }
        let ready = started.iter().map(|server| server.wait_ready());
        let ready = try_join_all(ready).await;
        if ready.is_err() {
            for server in started {
                server.kill();
            }
        }
        ready.map(drop)
    }

    /// Kills the Consul servers, removes their data and starts them: nothing is left of what they
    /// held, tokens and policies included.
    pub async fn wipe_consul(&self) -> Result<()> {
        for server in self.consul_servers() {
            server.kill();
        }
        for server in self.consul_servers() {
            server.wipe()?;
        }
        self.start_consul().await
    }
}

/// The address of the leader that a server knows of; empty without one.
async fn told_leader(api: &ConsulApi) -> Result<String> {
    let leader = tokio::time::timeout(TELLS, api.get("/v1/status/leader")).await??;
    match leader.as_str() {
        Some(leader) => Ok(leader.to_owned()),
        None => Err(anyhow!("not an address: {leader}")),
    }
}
