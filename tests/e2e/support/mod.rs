//! What all tests are made of.

mod consul;
mod lictor;
mod objects;
mod oracle;
mod scene;
pub mod schema;
mod target;
mod turns;

use std::{fmt::Display, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use lictor_testbed::{Bed, BedOptions, CONSUL_MANAGEMENT_TOKEN, kubelet::TestPod, wait};
use serde_json::json;
use tokio::sync::OnceCell;

pub use consul::{Instance, condition, user_meta};
pub use lictor::{Lictor, acl_policy, at_terminal, json_lines, run, run_in, run_within};
pub use objects::{Kind, sources_of};
pub use oracle::Oracle;
pub use scene::Scene;
pub use target::{Answer, GrpcTarget, Target, selected};
pub use turns::Turns;

/// Longer than anything here takes, unless it never happens.
pub const SOON: Duration = Duration::from_secs(30);

/// The namespace that the chart is installed in, where the Leases of all processes are.
pub const RELEASE: &str = "lictor-system";

/// Where the leader is to go on while the API server is away.
pub const BY_LOCK: &str = "--leader-election=consul";

/// Without an election: the one that started last writes.
pub const OFF: &str = "--leader-election=off";

/// A bed in which the chart is installed, with a kubeconfig that has just the rights of its
/// `ServiceAccount`. No controller makes pods of its Deployment: each test starts its own process.
#[derive(Debug)]
pub struct Installed {
    pub bed: Bed,
    pub kubeconfig: std::path::PathBuf,
    /// For Consul, where it has ACLs: with every right.
    pub token: Option<&'static str>,
}

impl Installed {
    pub async fn start() -> Result<Self> {
        Self::with(BedOptions::default()).await
    }

    pub async fn with(options: BedOptions) -> Result<Self> {
        Self::with_values(options, &[]).await
    }

    /// With values of the chart, such as `cluster=chart`.
    pub async fn with_values(options: BedOptions, values: &[&str]) -> Result<Self> {
        let token = options.consul_acls.then_some(CONSUL_MANAGEMENT_TOKEN);
        let bed = Bed::start(options).await?;
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/lictor");
        let mut args = vec!["install", "lictor", chart, "--namespace", RELEASE];
        args.extend(["--create-namespace", "--set", "cluster=chart"]);
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        bed.helm(&args)
            .await
            .context("the chart cannot be installed")?;
        let kubeconfig = bed.service_account_kubeconfig(RELEASE, "lictor").await?;
        until("the CRDs to be served", async || {
            let kinds = "serviceregistrations,intentions,preparedqueries,registrationpolicies";
            bed.kubectl(&["get", kinds, "--all-namespaces"]).await
        })
        .await?;
        Ok(Self {
            bed,
            kubeconfig,
            token,
        })
    }
}

impl Installed {
    /// Gives the `ServiceAccount` the rights on the Lease of a cluster that the chart gives it on that of
    /// its own.
    pub async fn allow_lease(client: &Client, cluster: &str) -> Result<()> {
        let roles = Api::<Role>::namespaced(client.clone(), RELEASE);
        let bindings = Api::<RoleBinding>::namespaced(client.clone(), RELEASE);
        let mut role = roles.get("lictor").await?;
        let name = format!("lictor-{cluster}");
        role.metadata = ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        };
        for rule in role.rules.iter_mut().flatten() {
            if let Some(names) = &mut rule.resource_names {
                ensure!(names == &["lictor-chart"], "{names:?}");
                *names = vec![name.clone()];
            }
        }
        let mut binding = bindings.get("lictor").await?;
        binding.metadata = role.metadata.clone();
        binding.role_ref.name.clone_from(&name);
        let params = PostParams::default();
        roles.create(&params, &role).await?;
        bindings.create(&params, &binding).await?;
        Ok(())
    }
}

/// The bed that tests share which leave its servers alone.
pub async fn shared() -> Result<&'static Installed> {
    static SHARED: OnceCell<Installed> = OnceCell::const_new();
    // Each `lictor` there has just the rights that `lictor acl-policy` prints.
    let start = async || {
        let installed = Installed::with(BedOptions {
            consul_acls: true,
            consul_config: json!({"default_intention_policy": "allow"}),
            ..BedOptions::default()
        });
        let installed = installed.await?;
        // As its DNS has it, and whoever else only looks.
        let read = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }
            query_prefix "" { policy = "read" }"#;
        let consul = installed.bed.consul()?;
        consul.allow_anonymous(Some(read)).await?;
        Ok(installed)
    };
    SHARED.get_or_try_init(start).await
}

/// Waits until `probe` is content; an error says what was seen instead.
pub async fn until<T, E: Display>(
    what: &str,
    probe: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    wait::until(what, SOON, probe).await
}

/// Annotations of Lictor on a pod.
pub trait Annotated {
    /// Adds the annotation `lictor.io/KEY`.
    #[must_use]
    fn lictor(self, key: &str, value: &str) -> Self;
}

impl Annotated for TestPod {
    fn lictor(self, key: &str, value: &str) -> Self {
        self.annotation(&format!("lictor.io/{key}"), value)
    }
}
