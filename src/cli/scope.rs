//! The flags that say which namespaces count.

use std::collections::BTreeSet;

use clap::Args;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::Failure;
use crate::app::Scope;
use crate::model::names::is_dns_label;
use crate::model::text::Text;

#[derive(Args, Debug)]
pub(super) struct ScopeFlags {
    /// Watch only this namespace, for which Roles suffice; may be repeated. Nodes, CRDs and policies are
    /// then not read
    #[arg(
        long,
        env = "LICTOR_NAMESPACE",
        value_delimiter = ',',
        value_name = "NAME",
        value_parser = namespace
    )]
    namespace: Vec<Text>,
    /// Namespaces whose pods and resources claim nothing; a glob, may be repeated
    #[arg(
        long,
        env = "LICTOR_EXCLUDE_NAMESPACE",
        value_delimiter = ',',
        value_name = "GLOB"
    )]
    exclude_namespace: Vec<String>,
}

impl ScopeFlags {
    pub(super) fn scope(self) -> Result<Scope, Failure> {
        let excluded = globs(&self.exclude_namespace)?;
        let namespaces: BTreeSet<Text> = self.namespace.into_iter().collect();
        if let Some(both) = namespaces.iter().find(|name| excluded.is_match(&***name)) {
            return Err(Failure::Usage(format!(
                "--namespace {both} is excluded by --exclude-namespace: leave one of the two out"
            )));
        }
        Ok(Scope {
            namespaces,
            excluded,
        })
    }
}

fn namespace(name: &str) -> Result<Text, String> {
    if is_dns_label(name) {
        Ok(name.into())
    } else {
        Err("must be the name of a namespace: a lower-case DNS label".to_owned())
    }
}

fn globs(patterns: &[String]) -> Result<GlobSet, Failure> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).build().map_err(|error| {
            Failure::Usage(format!(
                "--exclude-namespace {pattern}: {error}: give a glob such as team-*"
            ))
        })?;
        set.add(glob);
    }
    Ok(set.build()?)
}
