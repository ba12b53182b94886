//! How each server of a bed is started: its arguments, its files and its ports.

mod consul;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    BedOptions, Server,
    pki::Pki,
    server::{DATA, Probe},
    tools::Tools,
};

/// Where the API server notes calls, in the folder of the bed.
pub(crate) const AUDIT_LOG: &str = "kube-apiserver/audit.log";

/// The numbers of the ports of one bed.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    pub etcd_client: u16,
    pub etcd_peer: u16,
    pub apiserver: u16,
    pub controller_manager: u16,
    /// One for each Consul server of `dc1`.
    pub consul: Vec<ConsulNumbers>,
    /// Those of the one of `dc2`, if there is one.
    pub consul_dc2: Option<ConsulNumbers>,
}

/// The numbers of the ports of one Consul server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConsulNumbers {
    pub http: u16,
    pub dns: u16,
    pub rpc: u16,
    pub serf_lan: u16,
    pub serf_wan: u16,
}

/// What all servers of one bed are made from.
pub(crate) struct Plan<'a> {
    pub folder: &'a Path,
    pub tools: &'a Tools,
    pub pki: &'a Pki,
    pub ports: &'a Numbers,
    pub options: &'a BedOptions,
    /// The bearer token of the administrator.
    pub admin_token: &'a str,
    /// The administrator's kubeconfig.
    pub kubeconfig: &'a Path,
}

impl Plan<'_> {
    pub fn etcd(&self) -> Result<Server> {
        let folder = self.folder("etcd")?;
        let client = format!("http://127.0.0.1:{}", self.ports.etcd_client);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let args = vec![
            "--name=bed".to_owned(),
            format!("--data-dir={}", folder.join(DATA).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=bed={peer}"),
            // A bed need not survive a power cut, and a sync of the disk costs milliseconds.
            "--unsafe-no-fsync".to_owned(),
            // One member wins every election, so it need not wait long for rivals.
            "--heartbeat-interval=10".to_owned(),
            "--election-timeout=100".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let probe = Probe::new(client, "/health", "\"true\"");
        Ok(Server::new(
            "etcd",
            &self.tools.etcd,
            args,
            &folder,
            probe,
            self.pki,
        ))
    }

    pub fn apiserver(&self) -> Result<Server> {
        let folder = self.folder("kube-apiserver")?;
        let port = self.ports.apiserver;
        let tokens = folder.join("tokens.csv");
        fs::write(
            &tokens,
            format!("{},admin,admin,system:masters\n", self.admin_token),
        )?;
        let authentication = folder.join("authentication.json");
        fs::write(&authentication, authentication_configuration().to_string())?;
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd_client),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", self.pki.cert_file.display()),
            format!("--tls-private-key-file={}", self.pki.key_file.display()),
            format!("--cert-dir={}", folder.join("certs").display()),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // It would publish a loopback address, which the API refuses.
            "--endpoint-reconciler-type=none".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            format!("--authentication-config={}", authentication.display()),
            format!("--token-auth-file={}", tokens.display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!(
                "--service-account-signing-key-file={}",
                self.pki.sa_key_file.display()
            ),
            format!(
                "--service-account-key-file={}",
                self.pki.sa_public_file.display()
            ),
            // Pods may be made in a namespace that has no ServiceAccount yet.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            // Without it a stop waits a minute for the watches of others to end.
            "--shutdown-watch-termination-grace-period=500ms".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if self.options.audit {
            let policy = folder.join("audit.json");
            fs::write(&policy, audit_policy().to_string())?;
            let log = self.folder.join(AUDIT_LOG);
            args.push(format!("--audit-policy-file={}", policy.display()));
            args.push(format!("--audit-log-path={}", log.display()));
        }
        args.extend(self.options.apiserver_args.iter().cloned());
        let probe = Probe::new(format!("https://127.0.0.1:{port}"), "/readyz", "ok");
        let program = &self.tools.kube_apiserver;
        Ok(Server::new(
            "kube-apiserver",
            program,
            args,
            &folder,
            probe,
            self.pki,
        ))
    }

    pub fn controller_manager(&self) -> Result<Server> {
        let folder = self.folder("kube-controller-manager")?;
        let port = self.ports.controller_manager;
        // Without a kubelet, the controllers of nodes and pods would undo what a test does.
        let mut controllers = vec!["namespace-controller", "garbage-collector-controller"];
        if self.options.workloads {
            controllers.extend(["deployment-controller", "replicaset-controller"]);
        }
        controllers.extend(&self.options.controllers);
        let args = vec![
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--controllers={}", controllers.join(",")),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", self.pki.cert_file.display()),
            format!("--tls-private-key-file={}", self.pki.key_file.display()),
            // A test that deletes a namespace should not wait for the client's own throttle.
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
            "--profiling=false".to_owned(),
        ];
        let probe = Probe::new(format!("https://127.0.0.1:{port}"), "/healthz", "ok");
        let program = &self.tools.kube_controller_manager;
        Ok(Server::new(
            "kube-controller-manager",
            program,
            args,
            &folder,
            probe,
            self.pki,
        ))
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }
}

/// Who called what, and what came of it; of a watch also that it began.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    })
}

/// Anonymous callers may ask for health and nothing else.
fn authentication_configuration() -> Value {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "anonymous": {
            "enabled": true,
            "conditions": [{"path": "/livez"}, {"path": "/readyz"}, {"path": "/healthz"}],
        },
    })
}
