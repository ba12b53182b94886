//! The second Consul datacenter of a bed, and how the two know each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Bed;
use crate::{ConsulApi, Server, wait};

/// Longer than it takes to find each other and to dial.
const JOIN: Duration = Duration::from_secs(30);

/// For these calls the bed needs [`BedOptions::second_datacenter`](crate::BedOptions).
impl Bed {
    /// The Consul server of `dc2`, to be killed, paused and started as any other.
    pub fn dc2_server(&self) -> Result<&Server> {
        let server = self.dc2_server.as_ref();
        server.context("the bed has one datacenter: set BedOptions::second_datacenter")
    }

    /// The address of the HTTP API of `dc2`, such as `http://127.0.0.1:21235`.
    pub fn dc2_addr(&self) -> Result<String> {
        Ok(self.dc2_server()?.addr().to_owned())
    }

    /// The address of the DNS of `dc2`, for TCP and UDP.
    pub fn dc2_dns_addr(&self) -> Result<String> {
        let ports = self.numbers.consul_dc2.context("no second datacenter")?;
        Ok(format!("127.0.0.1:{}", ports.dns))
    }

    /// Calls of the API of `dc2` with every right, as [`Bed::consul`] for `dc1`.
    pub fn dc2_consul(&self) -> Result<ConsulApi> {
        let addr = self.dc2_addr()?;
        Ok(ConsulApi::new(&addr)?.with_token(self.management_token()))
    }

    /// Starts the server of `dc2` if it does not run, and waits until the datacenters are joined.
    pub async fn start_dc2(&self) -> Result<()> {
        let server = self.dc2_server()?;
        if server.pid().is_none() {
            server.start().await?;
        }
        self.datacenters_joined().await
    }

    /// Waits until either datacenter knows both and reads what the other holds, and until `dc2` has
    /// copied the tokens of `dc1`. A token that is created later takes it up to a second.
    pub async fn datacenters_joined(&self) -> Result<()> {
        let (dc1, dc2) = (self.consul()?, self.dc2_consul()?);
        // Anonymous callers have a token too; without it all is refused to them.
        let anonymous = dc2.clone().with_token("");
        wait::until("dc1 and dc2 to be joined", JOIN, async || {
            for (consul, other) in [(&dc1, "dc2"), (&dc2, "dc1")] {
                let known = consul.get("/v1/catalog/datacenters").await?;
                let count = known.as_array().map_or(0, Vec::len);
                ensure!(count == 2, "{other} is not among {known}");
                let path = format!("/v1/catalog/service/consul?dc={other}&consistent");
                let held = consul.get(&path).await?;
                let held = held.as_array().is_some_and(|held| !held.is_empty());
                ensure!(held, "{other} does not show its servers");
            }
            anonymous.get("/v1/catalog/services").await.map(drop)
        })
        .await
    }

    /// Starts the Consul servers of all datacenters that do not run, and waits until all are ready.
    pub(super) async fn start_datacenters(&self) -> Result<()> {
        let Some(dc2) = &self.dc2_server else {
            return self.start_consul().await;
        };
        let start = async || match dc2.pid() {
            None => dc2.start().await,
            Some(_) => Ok(()),
        };
        tokio::try_join!(self.start_consul(), start())?;
        self.datacenters_joined().await
    }
}
