//! Lictor itself: built by the cargo that runs us, and run as a process of its own.

use std::{
    env,
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lictor_testbed::wait;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::cargo;

const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Ties it to this process, which may be killed without a chance to clean up: a shell waits for its
/// standard input to end, and kills what the shell itself has become by then.
const LEASH: &str = r#"exec 3<&0; { read -r _ <&3 || kill -9 $$; } & exec "$@" 3<&- </dev/null"#;

/// Builds the program as `cargo build` does, its progress on standard error.
pub fn build(root: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let output = cargo::command()
        .current_dir(root)
        .args(["build", "--package=lictor", "--bin=lictor"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("lictor cannot be built ({})", output.status);
    }
    String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .next_back()
        .context("cargo built no program")
}

/// What a `lictor run` is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub program: PathBuf,
    /// `--cluster`.
    pub cluster: &'static str,
    /// `--lease-namespace`.
    pub namespace: &'static str,
    /// The access to Kubernetes, with the rights that the chart gives.
    pub kubeconfig: PathBuf,
    /// Consul's address.
    pub consul: String,
    /// Where it logs, over all its starts.
    pub log: PathBuf,
}

/// A running `lictor run`; dropped, it is killed.
#[derive(Debug)]
pub struct Lictor {
    child: Child,
    address: SocketAddr,
}

impl Lictor {
    /// Starts it and waits until `/readyz` says that it knows both sides.
    pub async fn start(setup: &Setup) -> Result<Self> {
        let address = free_address()?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&setup.log)
            .with_context(|| format!("cannot write {}", setup.log.display()))?;
        let mut command = Command::new("/bin/sh");
        for (name, _) in env::vars_os() {
            let name = name.to_string_lossy();
            // The settings of whoever runs this are for another Lictor and another Consul.
            if ["LICTOR_", "CONSUL_", "KUBE", "RUST_LOG"]
                .iter()
                .any(|start| name.starts_with(start))
            {
                command.env_remove(&*name);
            }
        }
        let child = command
            .args(["-c", LEASH, "lictor"])
            .arg(&setup.program)
            .args(["run", "--cluster", setup.cluster])
            .arg("--kubeconfig")
            .arg(&setup.kubeconfig)
            .args(["--consul-http-addr", &setup.consul])
            .args(["--listen", &address.to_string()])
            .args(["--lease-namespace", setup.namespace])
            // One that is started anew is a restarted container, and leads again at once.
            .env("POD_NAME", "lictor-demo")
            // A Ctrl-C is for us, and we end it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", setup.program.display()))?;
        let mut this = Self { child, address };
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{address}/readyz");
        let mut ended = None;
        wait::until("lictor to be ready", READY_DEADLINE, async || {
            ended = this.child.try_wait()?;
            if ended.is_some() {
                return Ok(());
            }
            let answer = client.get(&url).send().await?;
            if answer.status().is_success() {
                return Ok(());
            }
            bail!("{}", answer.text().await?.trim())
        })
        .await?;
        match ended {
            None => Ok(this),
            Some(status) => bail!("lictor ended ({status})"),
        }
    }

    /// The value of a metric without labels, or the sum over all labels.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{}/metrics", self.address);
        let text = client.get(url).send().await?.text().await?;
        Ok(sum(&text, name))
    }

    /// Where `/readyz` and `/metrics` are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks it to end, as Kubernetes does, and returns how long that took.
    pub async fn stop(mut self) -> Result<Duration> {
        let started = Instant::now();
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(Pid::from_raw).context("lictor has ended")?;
        kill_process(pid, Signal::TERM)?;
        let leash = self.child.stdin.take();
        let status = timeout(STOP_DEADLINE, self.child.wait())
            .await
            .context("lictor does not end on SIGTERM")??;
        if let Some(mut leash) = leash {
            // Without the shell there is nothing to let off.
            let _ = leash.write_all(b"\n").await;
        }
        if !status.success() {
            bail!("lictor ended badly ({status})");
        }
        Ok(started.elapsed())
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

fn sum(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let labelled = rest.starts_with('{') || rest.starts_with(' ');
            labelled.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        })
        .fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text =
            "# TYPE a counter\na_total{x=\"1 2\"} 3\na_total{x=\"y\"} 4\na_total_more 9\nb 1.5\n";
        assert!((sum(text, "a_total") - 7.0).abs() < f64::EPSILON);
        assert!((sum(text, "b") - 1.5).abs() < f64::EPSILON);
        assert!(sum(text, "c").abs() < f64::EPSILON);
    }
}
