//! What a bed holds, lost or taken back, and servers that a test left behind.

use std::path::Path;

use anyhow::Result;

use super::Bed;
use crate::Server;

impl Bed {
    /// Starts what does not run and lets go on what is paused, as after a test that failed half-way.
    pub async fn mend(&self) -> Result<()> {
        for server in self.servers() {
            if server.pid().is_some() {
                server.resume()?;
            }
        }
        for server in self.kubernetes() {
            if server.pid().is_none() {
                server.start().await?;
            }
        }
        self.start_datacenters().await
    }

    /// Kills etcd and the API server, removes the data and starts them: no object is left, not even
    /// a CRD or an account, and resource versions begin anew.
    ///
    /// Tokens of `ServiceAccount`s are void from then on; the administrator's still holds.
    pub async fn wipe_kubernetes(&self) -> Result<()> {
        self.kill_kubernetes();
        self.etcd.wipe()?;
        self.start_kubernetes().await
    }

    /// Copies what Kubernetes holds to a folder, for which its servers are killed and started.
    pub async fn save_kubernetes(&self, to: &Path) -> Result<()> {
        self.kill_kubernetes();
        self.etcd.save(to)?;
        self.start_kubernetes().await
    }

    /// Takes Kubernetes back to what [`Bed::save_kubernetes`] has copied, as from a backup:
    /// resource versions go back too, and will be given a second time.
    pub async fn restore_kubernetes(&self, from: &Path) -> Result<()> {
        self.kill_kubernetes();
        self.etcd.restore(from)?;
        self.start_kubernetes().await
    }

    pub(super) fn kubernetes(&self) -> [&Server; 3] {
        [&self.etcd, &self.apiserver, &self.controller_manager]
    }

    fn kill_kubernetes(&self) {
        for server in self.kubernetes().into_iter().rev() {
            server.kill();
        }
    }

    pub(super) async fn start_kubernetes(&self) -> Result<()> {
        for server in self.kubernetes() {
            server.start().await?;
        }
        Ok(())
    }
}
