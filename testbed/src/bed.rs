//! The bed itself.

mod consul;
mod datacenters;
mod state;

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, Config, api::PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    Server,
    pki::Pki,
    ports::Port,
    server::Probe,
    servers::{self, ConsulNumbers, Numbers, Plan},
    tools::{self, Progress, Tools},
};

/// What a bed's temporary folder is called, so that one left behind by a killed process is known.
const PREFIX: &str = "lictor-bed-";
const OWNER: &str = "owner.lock";
/// Set to anything, it keeps the folders of beds, to read their logs after a test.
const KEEP: &str = "LICTOR_TESTBED_KEEP";
/// How often a start is tried with other ports when something else took one of them.
const ATTEMPTS: u32 = 3;

/// How a bed is made. The default is what tests want.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option by itself")]
pub struct BedOptions {
    /// Where its state goes; it is kept at the end. By default a temporary folder that goes with
    /// the bed.
    pub dir: Option<PathBuf>,
    /// How the build of missing tools is shown.
    pub progress: Progress,
    /// More arguments of kube-apiserver; they win over the bed's own.
    pub apiserver_args: Vec<String>,
    /// Whether the API server notes who called what, for [`Bed::audit`].
    pub audit: bool,
    /// Whether Deployments and `ReplicaSets` make pods. Nobody schedules or runs them.
    pub workloads: bool,
    /// More controllers of kube-controller-manager, by their names.
    pub controllers: Vec<&'static str>,
    /// How many Consul servers there are: one, or three for tests of elections and of the quorum.
    pub consul_servers: usize,
    /// A second Consul datacenter, `dc2`: one server that is joined with `dc1`, the primary one, over
    /// the WAN.
    pub second_datacenter: bool,
    /// Consul denies what no token allows. [`Bed::consul`] has a token that may do everything.
    pub consul_acls: bool,
    /// More configuration of Consul, laid over the bed's own, that of each server.
    pub consul_config: Value,
}

impl Default for BedOptions {
    fn default() -> Self {
        Self {
            dir: None,
            progress: Progress::default(),
            apiserver_args: Vec::new(),
            audit: false,
            workloads: false,
            controllers: Vec::new(),
            consul_servers: 1,
            second_datacenter: false,
            consul_acls: false,
            consul_config: Value::Null,
        }
    }
}

/// A running Kubernetes API and a running Consul.
///
/// Dropping it kills its servers. They also end when the process ends in any other way. It may be
/// shared by tests that each have a runtime of their own: it holds no connection.
#[derive(Debug)]
pub struct Bed {
    /// etcd, the store of the API server.
    pub etcd: Server,
    /// The Kubernetes API.
    pub apiserver: Server,
    /// Deletes namespaces and what has lost its owner, and makes pods where that is asked for.
    pub controller_manager: Server,
    /// The first Consul server of `dc1`, and its leader if it is the only one.
    pub consul_server: Server,
    more_consul_servers: Vec<Server>,
    dc2_server: Option<Server>,
    consul_acls: bool,
    tools: Tools,
    pki: Pki,
    numbers: Numbers,
    admin_token: String,
    kubeconfig: PathBuf,
    // Dropped after the servers, in this order.
    folder: Folder,
    _ports: Vec<Port>,
}

impl Bed {
    /// Starts all servers and waits until each is ready, some seconds; builds the tools first if
    /// they are missing, some minutes.
    ///
    /// Fails with the end of the log of the server that did not start.
    pub async fn start(options: BedOptions) -> Result<Self> {
        let tools = tools::ensure(options.progress).await?;
        for _ in 1..ATTEMPTS {
            match Self::try_start(&options, &tools).await {
                Err(error) if format!("{error:#}").contains("address already in use") => {}
                other => return other,
            }
        }
        Self::try_start(&options, &tools).await
    }

    async fn try_start(options: &BedOptions, tools: &Tools) -> Result<Self> {
        let folder = match &options.dir {
            Some(dir) => Folder::kept(dir)?,
            None => Folder::temporary()?,
        };
        let path = folder.path();
        let pki = Pki::generate(&path.join("pki"))?;
        let (numbers, ports) = reserve_ports(options)?;
        let admin_token = String::from("lictor-test-bed-admin");
        let kubeconfig = path.join("kubeconfig");
        let kube_addr = kube_addr(&numbers);
        write_kubeconfig(&kubeconfig, &pki, &kube_addr, &admin_token)?;
        let plan = Plan {
            folder: path,
            tools,
            pki: &pki,
            ports: &numbers,
            options,
            admin_token: &admin_token,
            kubeconfig: &kubeconfig,
        };
        let mut consul = plan.consul()?;
        if consul.is_empty() {
            bail!("a bed has at least one Consul server");
        }
        let bed = Self {
            etcd: plan.etcd()?,
            apiserver: plan.apiserver()?,
            controller_manager: plan.controller_manager()?,
            consul_server: consul.remove(0),
            more_consul_servers: consul,
            dc2_server: plan.consul_dc2()?,
            consul_acls: options.consul_acls,
            tools: tools.clone(),
            numbers,
            admin_token,
            kubeconfig,
            pki,
            folder,
            _ports: ports,
        };
        let consul = bed.start_datacenters();
        tokio::try_join!(bed.start_kubernetes(), consul)?;
        Ok(bed)
    }

    /// The folder with its state and logs.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The binaries that it runs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Another Consul program of the bed, with its log in a folder.
    pub(crate) fn consul_program(
        &self,
        name: &'static str,
        args: Vec<String>,
        folder: &Path,
        probe: Probe,
    ) -> Server {
        Server::new(name, &self.tools.consul, args, folder, probe, &self.pki)
    }

    /// Its servers, in the order of their start.
    pub fn servers(&self) -> Vec<&Server> {
        let mut servers = self.kubernetes().to_vec();
        servers.extend(self.consul_servers());
        servers.extend(&self.dc2_server);
        servers
    }

    /// The address of the Kubernetes API, such as `https://127.0.0.1:21234`.
    pub fn kube_addr(&self) -> String {
        kube_addr(&self.numbers)
    }

    /// The calls that the API server noted until now, as `audit.k8s.io` has them, without bodies: those that
    /// are answered, and watches that began. Needs [`BedOptions::audit`].
    pub fn audit(&self) -> Result<Vec<Value>> {
        let log = self.dir().join(servers::AUDIT_LOG);
        let text = fs::read_to_string(&log).with_context(|| {
            format!(
                "cannot read {}: was the bed started with audit?",
                log.display()
            )
        })?;
        // The last line may be half there.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("not an audit log")
    }

    /// The configuration of a client that may do everything. It ignores the environment's proxies,
    /// and does not retry: a test wants to see what happened.
    pub fn kube_config(&self) -> Result<Config> {
        self.config_with(&self.admin_token)
    }

    /// A client that may do everything; it belongs to the current runtime.
    pub fn kube_client(&self) -> Result<Client> {
        client(self.kube_config()?)
    }

    /// A client with the rights of a `ServiceAccount`, which must exist.
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        client(self.config_with(&self.service_account_token(namespace, name).await?)?)
    }

    /// A kubeconfig that may do everything.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// Writes a kubeconfig with the rights of a `ServiceAccount`, which must exist; its token
    /// is good for a day.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.service_account_token(namespace, name).await?;
        let path = self.dir().join(format!("kubeconfig-{namespace}-{name}"));
        write_kubeconfig(&path, &self.pki, &self.kube_addr(), &token)?;
        Ok(path)
    }

    /// Writes a copy of a kubeconfig of this bed that finds the API at another address, which is
    /// that of a proxy on 127.0.0.1: the certificate of the API is good for it.
    pub fn kubeconfig_through(&self, kubeconfig: &Path, addr: &str) -> Result<PathBuf> {
        let text = fs::read_to_string(kubeconfig)
            .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
        let mut config: Value = serde_json::from_str(&text).context("not a bed's kubeconfig")?;
        config["clusters"][0]["cluster"]["server"] = addr.into();
        let (_, port) = addr.rsplit_once(':').context("an address without a port")?;
        let name = kubeconfig.file_name().unwrap_or_default().to_string_lossy();
        let path = self.dir().join(format!("{name}-through-{port}"));
        write_config(&path, &config)?;
        Ok(path)
    }

    /// Runs kubectl as administrator and gives its standard output; fails with its standard error.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        run(self.kubectl_command().args(args), None).await
    }

    /// Gives a manifest (YAML or JSON) to `kubectl apply`, as administrator.
    pub async fn kubectl_apply(&self, manifest: &str) -> Result<String> {
        let mut command = self.kubectl_command();
        run(command.args(["apply", "--filename=-"]), Some(manifest)).await
    }

    /// Runs Helm as administrator and gives its standard output; fails with its standard error.
    pub async fn helm<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        run(self.helm_command().args(args), None).await
    }

    /// kubectl as administrator, to be given arguments; with its caches in the bed.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.command(&self.tools.kubectl);
        command.env("KUBECACHEDIR", self.dir().join("kubectl-cache"));
        command
    }

    /// Helm as administrator, to be given arguments; with its caches in the bed.
    pub fn helm_command(&self) -> Command {
        let mut command = self.command(&self.tools.helm);
        for (name, folder) in [
            ("HELM_CACHE_HOME", "helm/cache"),
            ("HELM_CONFIG_HOME", "helm/config"),
            ("HELM_DATA_HOME", "helm/data"),
        ] {
            command.env(name, self.dir().join(folder));
        }
        command
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .kill_on_drop(true);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(name);
        }
        command
    }

    fn config_with(&self, token: &str) -> Result<Config> {
        let mut config = Config::new(self.kube_addr().parse()?);
        config.root_cert = Some(vec![self.pki.ca_der.clone()]);
        config.auth_info.token = Some(token.to_owned().into());
        config.connect_timeout = Some(Duration::from_secs(5));
        config.default_retry = false;
        Ok(config)
    }

    /// A new token of a `ServiceAccount`.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.kube_client()?, namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(24 * 60 * 60),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let granted = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for the ServiceAccount {namespace}/{name}"))?;
        granted
            .status
            .and_then(|status| status.token)
            .context("a grant without a token")
    }
}

/// The state of a bed on disk.
#[derive(Debug)]
enum Folder {
    Kept(PathBuf),
    Temporary {
        folder: TempDir,
        _owner: Option<File>,
    },
}

impl Folder {
    fn kept(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self::Kept(dir.canonicalize()?))
    }

    /// Also removes the folders of beds whose process was killed.
    fn temporary() -> Result<Self> {
        let parent = std::env::temp_dir();
        for entry in fs::read_dir(&parent)?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let abandoned =
                File::open(entry.path().join(OWNER)).is_ok_and(|owner| owner.try_lock().is_ok());
            if abandoned {
                // Another bed may be doing the same, or the folder may be another user's.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let keep = std::env::var_os(KEEP).is_some_and(|value| !value.is_empty());
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .disable_cleanup(keep)
            .tempdir_in(parent)?;
        if keep {
            return Ok(Self::Temporary {
                folder,
                _owner: None,
            });
        }
        // Locked before it has its name, or it could look abandoned for a moment.
        let unnamed = folder.path().join("owner");
        let owner = File::create(&unnamed)?;
        owner.lock()?;
        fs::rename(&unnamed, folder.path().join(OWNER))?;
        Ok(Self::Temporary {
            folder,
            _owner: Some(owner),
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary { folder, .. } => folder.path(),
        }
    }
}

fn client(config: Config) -> Result<Client> {
    // kube takes the provider of the process; an error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(Client::try_from(config)?)
}

fn kube_addr(numbers: &Numbers) -> String {
    format!("https://127.0.0.1:{}", numbers.apiserver)
}

fn reserve_ports(options: &BedOptions) -> Result<(Numbers, Vec<Port>)> {
    let folder = tools::cache_folder()?.join("ports");
    let mut ports = Vec::new();
    let mut next = || -> Result<u16> {
        let port = Port::reserve(&folder)?;
        let number = port.number();
        ports.push(port);
        Ok(number)
    };
    let etcd_client = next()?;
    let etcd_peer = next()?;
    let apiserver = next()?;
    let controller_manager = next()?;
    let mut consul = || -> Result<ConsulNumbers> {
        Ok(ConsulNumbers {
            http: next()?,
            dns: next()?,
            rpc: next()?,
            serf_lan: next()?,
            serf_wan: next()?,
        })
    };
    let numbers = Numbers {
        etcd_client,
        etcd_peer,
        apiserver,
        controller_manager,
        consul: (0..options.consul_servers)
            .map(|_| consul())
            .collect::<Result<_>>()?,
        consul_dc2: options.second_datacenter.then(consul).transpose()?,
    };
    Ok((numbers, ports))
}

fn write_kubeconfig(path: &Path, pki: &Pki, server: &str, token: &str) -> Result<()> {
    // JSON is YAML, and needs no writer of its own.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {
            "server": server,
            "certificate-authority": pki.ca_file,
        }}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "user"}}],
        "current-context": "bed",
    });
    write_config(path, &config)
}

fn write_config(path: &Path, config: &Value) -> Result<()> {
    fs::write(path, format!("{config:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}

async fn run(command: &mut Command, input: Option<&str>) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!(
            "{shown}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
