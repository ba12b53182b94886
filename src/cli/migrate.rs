//! `lictor migrate`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Failure, complain, manifests};
use crate::migrate::{self, Options};

#[derive(Args, Debug)]
pub(super) struct Migrate {
    /// Manifests of the other tool: a file, a folder (its *.yaml, *.yml and *.json, and those of its folders), or
    /// - for standard input; may be repeated
    #[arg(
        short,
        long = "filename",
        env = "LICTOR_FILENAME",
        value_name = "FILE|DIR",
        required = true
    )]
    filename: Vec<PathBuf>,
    /// Namespace of what is made of objects that are of the whole cluster, as Registrations are
    #[arg(
        long,
        env = "LICTOR_OBJECT_NAMESPACE",
        default_value = "default",
        value_name = "NAMESPACE"
    )]
    object_namespace: String,
    /// Take each Service that does not say `consul.hashicorp.com/service-sync: "false"` for synced, as with
    /// `syncCatalog.default: true`; without it, those that say "true"
    #[arg(long, env = "LICTOR_ALL_SERVICES")]
    all_services: bool,
    /// What the catalog sync puts before the names of Services (`syncCatalog.consulPrefix`)
    #[arg(
        long,
        env = "LICTOR_CONSUL_PREFIX",
        default_value = "",
        value_name = "PREFIX"
    )]
    consul_prefix: String,
    /// Do not put its namespace behind the name of a Service, as with `syncCatalog.addK8SNamespaceSuffix: false`
    #[arg(long, env = "LICTOR_NO_NAMESPACE_SUFFIX")]
    no_namespace_suffix: bool,
}

impl Migrate {
    pub(super) fn execute(self) -> Result<(), Failure> {
        let objects = manifests::read(&self.filename)?;
        let options = Options {
            namespace: self.object_namespace,
            all_services: self.all_services,
            prefix: self.consul_prefix,
            suffix: !self.no_namespace_suffix,
        };
        let all = migrate::migrate(&objects, &options);
        Ok(print(objects.len(), &all)?)
    }
}

fn print(read: usize, all: &[migrate::Migrated]) -> anyhow::Result<()> {
    if all.is_empty() {
        bail!(
            "none of {read} objects is one that other tools register: lictor migrate understands Registrations and \
             ServiceIntentions of consul-k8s, Services with consul.hashicorp.com/service-sync (or --all-services), \
             and pods and workloads with annotations of katalog-sync or kube-consul-register"
        );
    }
    let yaml = migrate::yaml(all).context("cannot write it as YAML")?;
    write!(std::io::stdout().lock(), "{yaml}").context("cannot print it")?;
    let notes: usize = all.iter().map(|it| it.notes.len()).sum();
    let count = all.len();
    complain(&format!(
        "{count} written from {read} objects, with {notes} comments on what to look at"
    ));
    Ok(())
}
