//! How the Consul servers of a bed are started.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{ConsulNumbers, Plan};
use crate::{
    CONSUL_MANAGEMENT_TOKEN, Server,
    server::{DATA, Probe},
};

/// How often a server tries to reach others that are not there yet.
const RETRY: &str = "500ms";

impl Plan<'_> {
    /// The servers of `dc1`; the first one has the names that a single one has.
    pub fn consul(&self) -> Result<Vec<Server>> {
        let all = &self.ports.consul;
        let mut servers = Vec::new();
        for (number, ports) in all.iter().enumerate() {
            let name = match number {
                0 => "consul".to_owned(),
                other => format!("consul-{}", other + 1),
            };
            let mut more = Value::Null;
            if all.len() > 1 {
                // Itself left out: a join that reaches only the one who asks counts as done.
                let others = all.iter().filter(|other| other.http != ports.http);
                let join: Vec<_> = others.map(|other| address(other.serf_lan)).collect();
                more = json!({
                    "retry_join": join,
                    "retry_interval": RETRY,
                    // A dead server must go on to count, or the quorum depends on how long it is dead.
                    "autopilot": {
                        "cleanup_dead_servers": false,
                        "server_stabilization_time": "200ms",
                    },
                });
            }
            if let Some(dc2) = &self.ports.consul_dc2 {
                // Each side looks for the other, so that they meet again when one was wiped.
                merge(&mut more, &joins_wan(&[*dc2]));
            }
            servers.push(self.consul_server(&name, *ports, &more)?);
        }
        Ok(servers)
    }

    /// The server of `dc2`, if the bed is to have one.
    pub fn consul_dc2(&self) -> Result<Option<Server>> {
        let Some(ports) = self.ports.consul_dc2 else {
            return Ok(None);
        };
        let mut more = joins_wan(&self.ports.consul);
        let secondary = json!({
            "datacenter": "dc2",
            // There is one authority, and one place where config entries and tokens are written.
            "primary_datacenter": "dc1",
            "bootstrap_expect": 1,
        });
        merge(&mut more, &secondary);
        if self.options.consul_acls {
            let acl = json!({
                // Its servers know the tokens of dc1 when dc1 is away.
                "enable_token_replication": true,
                "tokens": { "replication": CONSUL_MANAGEMENT_TOKEN },
            });
            merge(&mut more, &json!({ "acl": acl }));
        }
        self.consul_server("consul-dc2", ports, &more).map(Some)
    }

    /// A server in a folder of that name; what it has of its own is laid over what all have.
    fn consul_server(&self, name: &str, ports: ConsulNumbers, more: &Value) -> Result<Server> {
        let folder = self.folder(name)?;
        let mut config = json!({
            "node_name": name.replace("consul", "consul-server"),
            "datacenter": "dc1",
            "data_dir": folder.join(DATA),
            "server": true,
            "bootstrap_expect": self.ports.consul.len(),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "http": ports.http,
                "dns": ports.dns,
                "server": ports.rpc,
                "serf_lan": ports.serf_lan,
                "serf_wan": ports.serf_wan,
                "https": -1,
                "grpc": -1,
                "grpc_tls": -1,
            },
            "performance": { "raft_multiplier": 1 },
            // Every test and each of its controllers is the same client to it.
            "limits": { "http_max_conns_per_client": 2000 },
            "disable_update_check": true,
            "log_level": "warn",
        });
        if self.options.consul_acls {
            let acl = json!({
                "enabled": true,
                "default_policy": "deny",
                "tokens": {
                    "initial_management": CONSUL_MANAGEMENT_TOKEN,
                    // For what a server writes about its own node.
                    "agent": CONSUL_MANAGEMENT_TOKEN,
                },
            });
            merge(&mut config, &json!({ "acl": acl }));
        }
        merge(&mut config, more);
        merge(&mut config, &self.options.consul_config);
        self.consul_process(&folder, ports, &config)
    }

    fn consul_process(
        &self,
        folder: &Path,
        ports: ConsulNumbers,
        config: &Value,
    ) -> Result<Server> {
        let file = folder.join("consul.json");
        fs::write(&file, config.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        let args = vec![
            "agent".to_owned(),
            format!("-config-file={}", file.display()),
        ];
        // It shows itself once there is a leader that takes writes.
        let mut probe = Probe::new(
            format!("http://127.0.0.1:{}", ports.http),
            "/v1/catalog/service/consul?consistent",
            "ServiceID",
        );
        if self.options.consul_acls {
            probe = probe.with_consul_token(CONSUL_MANAGEMENT_TOKEN);
        }
        let program = &self.tools.consul;
        Ok(Server::new(
            "consul", program, args, folder, probe, self.pki,
        ))
    }
}

/// What joins a server with those of the other datacenter, over the ports of the WAN.
fn joins_wan(others: &[ConsulNumbers]) -> Value {
    let others: Vec<_> = others.iter().map(|other| address(other.serf_wan)).collect();
    json!({ "retry_join_wan": others, "retry_interval_wan": RETRY })
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Lays `over` on `base`: objects are merged, everything else is replaced.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => base.clone_from(over),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_objects_keep_what_is_not_named() {
        let mut base = json!({"ports": {"http": 1, "dns": 2}, "server": true});
        merge(
            &mut base,
            &json!({"ports": {"dns": 3}, "acl": {"enabled": true}}),
        );
        let want = json!({
            "ports": {"http": 1, "dns": 3}, "server": true, "acl": {"enabled": true},
        });
        assert_eq!(base, want);
    }
}
