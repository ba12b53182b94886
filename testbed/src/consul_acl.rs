//! Tokens of Consul, each with rights of its own, and where they come from.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Bed, ConsulApi};

/// The token that may do everything where ACLs are on
/// ([`BedOptions::consul_acls`](crate::BedOptions::consul_acls)).
pub const CONSUL_MANAGEMENT_TOKEN: &str = "7c1a3f3e-51b5-4c5b-9d5e-0c7e5a1b9e55";

/// A token with a policy of its own.
#[derive(Debug, Clone)]
pub struct ConsulToken {
    /// Its public name.
    pub accessor: String,
    /// What is sent with a request.
    pub secret: String,
    policy: String,
    policy_name: String,
}

/// The token of callers that send none.
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

/// For these calls it needs a token that may write ACLs.
impl ConsulApi {
    /// Creates a token that may do what the rules say, in Consul's own language, and no more.
    pub async fn create_token(&self, rules: &str) -> Result<ConsulToken> {
        let (policy, policy_name) = self.create_policy(rules).await?;
        let token = json!({"Policies": [{"ID": policy}]});
        let token = self.put("/v1/acl/token", &token).await?;
        Ok(ConsulToken {
            accessor: text(&token, "AccessorID")?,
            secret: text(&token, "SecretID")?,
            policy,
            policy_name,
        })
    }

    /// Lets callers without a token do what the rules say; without rules nothing again.
    pub async fn allow_anonymous(&self, rules: Option<&str>) -> Result<()> {
        let mut policies = Vec::new();
        if let Some(rules) = rules {
            let (policy, _) = self.create_policy(rules).await?;
            policies.push(json!({"ID": policy}));
        }
        let path = format!("/v1/acl/token/{ANONYMOUS}");
        let token = json!({"AccessorID": ANONYMOUS, "Policies": policies});
        self.put(&path, &token).await.map(drop)
    }

    /// The id and the name of a new policy.
    async fn create_policy(&self, rules: &str) -> Result<(String, String)> {
        // A name is taken once, also on a bed that several processes use.
        let name = format!("bed-{:016x}", RandomState::new().build_hasher().finish());
        let policy = json!({"Name": name, "Rules": rules});
        let policy = self.put("/v1/acl/policy", &policy).await?;
        Ok((text(&policy, "ID")?, name))
    }

    /// Gives a token other rights.
    pub async fn change_rules(&self, token: &ConsulToken, rules: &str) -> Result<()> {
        let path = format!("/v1/acl/policy/{}", token.policy);
        let policy = json!({"Name": token.policy_name, "Rules": rules});
        self.put(&path, &policy).await.map(drop)
    }

    /// Revokes a token.
    pub async fn delete_token(&self, token: &ConsulToken) -> Result<()> {
        let path = format!("/v1/acl/token/{}", token.accessor);
        self.delete(&path).await.map(drop)
    }
}

impl Bed {
    /// An auth method of Consul that asks the API server whose a `ServiceAccount`'s token is, for
    /// `/v1/acl/auth-method`, with the account that Consul asks as.
    pub async fn kubernetes_auth_method(&self, name: &str, max_token_ttl: &str) -> Result<Value> {
        const NAMESPACE: &str = "default";
        let account = format!("{name}-reviewer");
        let kind = |kind: &str, version: &str, name: &str| {
            json!({"apiVersion": version, "kind": kind,
                   "metadata": {"name": name, "namespace": NAMESPACE}})
        };
        let rbac = "rbac.authorization.k8s.io/v1";
        let binding = |name: &str, role: &str| {
            let mut binding = kind("ClusterRoleBinding", rbac, name);
            binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io",
                                        "kind": "ClusterRole", "name": role});
            binding["subjects"] = json!([{"kind": "ServiceAccount", "name": account,
                                          "namespace": NAMESPACE}]);
            binding
        };
        let mut role = kind("ClusterRole", rbac, &account);
        role["rules"] =
            json!([{"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}]);
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            kind("ServiceAccount", "v1", &account),
            binding(&account, "system:auth-delegator"),
            role,
            binding(&format!("{account}-reads"), &account),
        ]});
        self.kubectl_apply(&objects.to_string()).await?;
        let authority = std::fs::read_to_string(self.dir().join("pki/ca.crt"))?;
        Ok(json!({
            "Name": name, "Type": "kubernetes", "MaxTokenTTL": max_token_ttl,
            "Config": {
                "Host": self.kube_addr(), "CACert": authority,
                "ServiceAccountJWT": self.service_account_token(NAMESPACE, &account).await?,
            },
        }))
    }
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value[field].as_str();
    Ok(text
        .with_context(|| format!("no {field} in {value}"))?
        .to_owned())
}
