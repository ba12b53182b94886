//! `lictor acl-policy`.

use std::io::Write as _;

use clap::Args;

use super::Failure;
use super::run::cluster;
use crate::consul::rights;
use crate::model::names::ClusterName;

#[derive(Args, Debug)]
pub(super) struct AclPolicy {
    /// The name that `lictor run` has for this Kubernetes cluster
    #[arg(long, env = "LICTOR_CLUSTER", value_name = "NAME", value_parser = cluster)]
    cluster: ClusterName,
}

impl AclPolicy {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        write!(out, "{}", rules(&self.cluster))?;
        Ok(())
    }
}

/// The rules, in Consul's language.
fn rules(cluster: &ClusterName) -> String {
    let mut rules: Vec<String> = rights::rules(cluster)
        .iter()
        .map(ToString::to_string)
        .collect();
    rules.push(String::new());
    rules.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_docs_say() {
        let docs = include_str!("../../docs/operations.md");
        let (_, section) = docs.split_once("## Rights in Consul").unwrap();
        let (_, block) = section.split_once("```hcl\n").unwrap();
        let (shown, _) = block.split_once("```").unwrap();
        assert_eq!(shown.replace("NAME", "a-1"), rules(&"a-1".parse().unwrap()));
    }
}
