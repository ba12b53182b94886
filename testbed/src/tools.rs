//! The binaries of a bed: built once from `testbed/tools/*/go.mod` by the Go tool chain, and cached.
//!
//! The cache is `$LICTOR_TESTBED_CACHE`, else `$XDG_CACHE_HOME/lictor/testbed`, else
//! `~/.cache/lictor/testbed`. Each tool has a folder there that is named after the hash of its
//! `go.mod`, `go.sum`, build flags and the version of Go, so a change of any builds anew.
//! `LICTOR_TESTBED_BIN`, a folder that holds all binaries, skips all this.

mod build;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use build::{GoVersion, Recipe};

/// How a build of the tools tells how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// Lines on standard error; a counter of seconds if that is a terminal. Silent when nothing
    /// has to be built.
    #[default]
    Stderr,
    /// Nothing at all.
    Quiet,
}

/// The binaries that a bed runs and that look into it.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder that holds all of them, by their usual names.
    pub bin: PathBuf,
    /// etcd 3.6.
    pub etcd: PathBuf,
    /// kube-apiserver 1.36.
    pub kube_apiserver: PathBuf,
    /// kube-controller-manager 1.36.
    pub kube_controller_manager: PathBuf,
    /// kubectl 1.36.
    pub kubectl: PathBuf,
    /// Consul 1.22.
    pub consul: PathBuf,
    /// Helm 4.
    pub helm: PathBuf,
}

impl Tools {
    /// The tools in a folder; fails with the names of those that are missing.
    pub fn in_folder(bin: &Path) -> Result<Self> {
        let missing: Vec<_> = recipes()
            .iter()
            .flat_map(|recipe| recipe.binaries)
            .filter(|name| !bin.join(name).is_file())
            .copied()
            .collect();
        if !missing.is_empty() {
            bail!("{} has no {}", bin.display(), missing.join(", "));
        }
        let tool = |name: &str| bin.join(name);
        Ok(Self {
            bin: bin.to_owned(),
            etcd: tool("etcd"),
            kube_apiserver: tool("kube-apiserver"),
            kube_controller_manager: tool("kube-controller-manager"),
            kubectl: tool("kubectl"),
            consul: tool("consul"),
            helm: tool("helm"),
        })
    }
}

/// Finds the tools, and builds those that are missing, which takes some minutes.
///
/// Safe to call from many processes at once: one builds, the others wait for it.
pub async fn ensure(progress: Progress) -> Result<Tools> {
    tokio::task::spawn_blocking(move || ensure_blocking(progress))
        .await
        .context("the build of the tools was cut short")?
}

/// [`ensure`] for callers without a runtime.
pub fn ensure_blocking(progress: Progress) -> Result<Tools> {
    if let Some(bin) = env::var_os("LICTOR_TESTBED_BIN").filter(|value| !value.is_empty()) {
        let bin = fs::canonicalize(&bin)
            .with_context(|| format!("LICTOR_TESTBED_BIN is {}", Path::new(&bin).display()))?;
        return Tools::in_folder(&bin).context("LICTOR_TESTBED_BIN is not complete");
    }
    let cache = cache_folder()?;
    let go = GoVersion::find()?;
    let recipes = recipes();
    let missing: Vec<_> = recipes
        .iter()
        .filter(|recipe| !recipe.is_built(&cache, &go))
        .collect();
    for (done, recipe) in missing.iter().enumerate() {
        recipe.build(
            &cache,
            &go,
            progress,
            &format!("{} of {}", done + 1, missing.len()),
        )?;
    }
    let bin = build::assemble(&recipes, &cache, &go)?;
    Tools::in_folder(&bin)
}

/// The folder that keeps what outlives a bed: binaries and the reservations of ports.
pub fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("LICTOR_TESTBED_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("lictor/testbed")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/lictor/testbed")))
        .context("no home folder: set LICTOR_TESTBED_CACHE to a folder that may be written")?;
    std::path::absolute(folder).context("cannot tell the cache folder's absolute path")
}

fn recipes() -> [Recipe; 4] {
    [
        Recipe {
            tool: "etcd",
            go_mod: include_str!("../tools/etcd/go.mod"),
            go_sum: include_str!("../tools/etcd/go.sum"),
            packages: &["go.etcd.io/etcd/server/v3"],
            binaries: &["etcd"],
            ldflags: "-s -w",
        },
        Recipe {
            tool: "consul",
            go_mod: include_str!("../tools/consul/go.mod"),
            go_sum: include_str!("../tools/consul/go.sum"),
            packages: &["github.com/hashicorp/consul"],
            binaries: &["consul"],
            ldflags: "-s -w",
        },
        Recipe {
            tool: "helm",
            go_mod: include_str!("../tools/helm/go.mod"),
            go_sum: include_str!("../tools/helm/go.sum"),
            packages: &["helm.sh/helm/v4/cmd/helm"],
            binaries: &["helm"],
            ldflags: "-s -w",
        },
        Recipe {
            tool: "kubernetes",
            go_mod: include_str!("../tools/kubernetes/go.mod"),
            go_sum: include_str!("../tools/kubernetes/go.sum"),
            packages: &[
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "k8s.io/kubernetes/cmd/kubectl",
            ],
            binaries: &["kube-apiserver", "kube-controller-manager", "kubectl"],
            // Without it they call themselves v0.0.0, which charts and clients refuse.
            ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
                      -X k8s.io/component-base/version.gitMajor=1 \
                      -X k8s.io/component-base/version.gitMinor=36",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_tools_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tools::in_folder(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("kube-apiserver") && error.contains("helm"),
            "{error}"
        );
    }

    #[test]
    fn the_stamped_version_is_the_pinned_one() {
        let [.., kubernetes] = recipes();
        let stamp = kubernetes.ldflags.split("gitVersion=").nth(1).unwrap();
        let version = stamp.split_whitespace().next().unwrap();
        assert!(
            kubernetes
                .go_mod
                .contains(&format!("k8s.io/kubernetes {version} ")),
            "{version}"
        );
    }
}
