//! The flags that say where Kubernetes is.

use std::path::PathBuf;

use clap::Args;

use crate::k8s::client::ClientOptions;

#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct KubernetesFlags {
    /// Kubeconfig file; without it `KUBECONFIG`, `~/.kube/config`, or the service account of the pod
    #[arg(long, env = "LICTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, env = "LICTOR_CONTEXT", value_name = "NAME")]
    context: Option<String>,
}

impl KubernetesFlags {
    pub(super) fn options(self) -> ClientOptions {
        ClientOptions {
            kubeconfig: self.kubeconfig,
            context: self.context,
        }
    }
}
