//! The flags that say where Consul is, with the environment of Consul's own tools.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, runtime};
use crate::access::{Access, AuthMethod};
use crate::app::told;
use crate::consul::{Client, ConsulConfig, ConsulSettings};
use crate::gc::verify_token;

#[derive(Args, Debug)]
#[expect(
    clippy::struct_field_names,
    reason = "the names are those of the flags"
)]
#[command(next_help_heading = "Consul")]
pub(super) struct ConsulFlags {
    /// Address, or several separated by commas, tried in turn: `http://HOST:PORT`, `https://HOST:PORT`,
    /// `unix:///PATH`
    #[arg(
        long,
        env = "CONSUL_HTTP_ADDR",
        default_value = "127.0.0.1:8500",
        value_name = "ADDR"
    )]
    consul_http_addr: String,
    /// ACL token; a file or the environment keep it out of the list of processes
    #[arg(
        long,
        env = "CONSUL_HTTP_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    consul_http_token: Option<SecretString>,
    /// File with the ACL token, read again when it changes
    #[arg(long, env = "CONSUL_HTTP_TOKEN_FILE", value_name = "FILE")]
    consul_http_token_file: Option<String>,
    /// Log in with this auth method of Consul for Kubernetes, with the service account's token, and log out
    /// at the end; instead of a token
    #[arg(long, env = "CONSUL_AUTH_METHOD", value_name = "NAME")]
    consul_auth_method: Option<String>,
    /// File with the service account's token for the login
    #[arg(
        long,
        env = "CONSUL_BEARER_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token",
        value_name = "FILE"
    )]
    consul_bearer_token_file: PathBuf,
    /// Use TLS also for addresses without a scheme
    #[arg(
        long,
        env = "CONSUL_HTTP_SSL",
        num_args = 0..=1,
        default_value_t = false,
        default_missing_value = "true",
        value_parser = boolean,
        value_name = "BOOL"
    )]
    consul_http_ssl: bool,
    /// PEM file of the authorities to trust
    #[arg(long, env = "CONSUL_CACERT", value_name = "FILE")]
    consul_cacert: Option<String>,
    /// PEM file of the client certificate
    #[arg(long, env = "CONSUL_CLIENT_CERT", value_name = "FILE")]
    consul_client_cert: Option<String>,
    /// PEM file of the client certificate's key
    #[arg(long, env = "CONSUL_CLIENT_KEY", value_name = "FILE")]
    consul_client_key: Option<String>,
    /// Name in the servers' certificate, e.g. `server.dc1.consul`
    #[arg(long, env = "CONSUL_TLS_SERVER_NAME", value_name = "NAME")]
    consul_tls_server_name: Option<String>,
    /// Namespace (Enterprise)
    #[arg(long, env = "CONSUL_NAMESPACE", value_name = "NAME")]
    consul_namespace: Option<String>,
    /// Admin partition (Enterprise)
    #[arg(long, env = "CONSUL_PARTITION", value_name = "NAME")]
    consul_partition: Option<String>,
}

/// Waits until the process is told to end. It is not ended by that: there may be a login to take back.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

impl ConsulFlags {
    /// How to log in, if a login it is.
    pub(super) fn auth_method(&self) -> Result<Option<AuthMethod>, Failure> {
        let Some(name) = self
            .consul_auth_method
            .clone()
            .filter(|name| !name.is_empty())
        else {
            return Ok(None);
        };
        let is_given = |text: &SecretString| !text.expose_secret().is_empty();
        let token = self.consul_http_token.as_ref().is_some_and(is_given);
        let file = self
            .consul_http_token_file
            .as_ref()
            .is_some_and(|file| !file.is_empty());
        if token || file {
            let message = "--consul-auth-method: a token is given as well (CONSUL_HTTP_TOKEN or \
                           CONSUL_HTTP_TOKEN_FILE): give one or the other";
            return Err(Failure::Usage(message.to_owned()));
        }
        let pod = told("POD_NAMESPACE").zip(told("POD_NAME"));
        Ok(Some(AuthMethod {
            name,
            bearer: self.consul_bearer_token_file.clone(),
            pod: pod.map(|(namespace, name)| format!("{namespace}/{name}")),
        }))
    }

    /// Does one thing with Consul, logged in before where a login it is, and out again afterwards.
    pub(super) fn once<T>(
        self,
        work: impl AsyncFnOnce(&Client) -> anyhow::Result<T>,
    ) -> Result<T, Failure> {
        let method = self.auth_method()?;
        let consul = Client::new(self.config()?).context("cannot set up Consul access")?;
        let runtime = runtime()?;
        let mut access = Access::new(consul.clone(), method);
        let done = runtime.block_on(async {
            let work = async {
                access.log_in().await?;
                verify_token(&consul).await?;
                work(&consul).await
            };
            tokio::select! {
                done = work => done.map(Some),
                stopped = stopped() => stopped.map(|()| None),
            }
        });
        runtime.block_on(access.log_out());
        // Not waiting for whoever reads an answer that does not come any more.
        runtime.shutdown_background();
        done?.ok_or(Failure::Told)
    }

    pub(super) fn config(self) -> Result<ConsulConfig, Failure> {
        ConsulConfig::new(ConsulSettings {
            addresses: self.consul_http_addr,
            token: self.consul_http_token,
            token_file: file(self.consul_http_token_file),
            ssl: self.consul_http_ssl,
            ca_cert: file(self.consul_cacert),
            client_cert: file(self.consul_client_cert),
            client_key: file(self.consul_client_key),
            tls_server_name: self.consul_tls_server_name,
            namespace: self.consul_namespace,
            partition: self.consul_partition,
        })
        .map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Set to nothing is not set, as in Consul's own tools.
fn file(path: Option<String>) -> Option<PathBuf> {
    path.filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "0" | "f" | "false" => Ok(false),
        "1" | "t" | "true" => Ok(true),
        _ => Err("must be true or false".to_owned()),
    }
}
