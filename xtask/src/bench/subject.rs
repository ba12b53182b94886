//! The processes that are measured.

use std::{
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lictor_testbed::{Bed, wait};
use procfs::process::Process;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::scene::CLUSTER;

/// How long a subject may take to be ready.
const READY: Duration = Duration::from_mins(1);

/// What `lictor crds` prints.
pub async fn crds(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("crds").output().await?;
    if !output.status.success() {
        bail!("lictor crds: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What a command of `lictor` prints that looks once.
pub async fn output(binary: &Path, bed: &Bed, name: &str, more: &[&str]) -> Result<Output> {
    let mut command = command(binary, bed);
    command.args([name, "--cluster", CLUSTER]).args(more);
    Ok(command.output().await?)
}

/// A `lictor run` that ends when this is dropped.
#[derive(Debug)]
pub struct Lictor {
    child: Child,
    process: Process,
    http: reqwest::Client,
    address: String,
    /// When it was started.
    pub started: Instant,
}

impl Lictor {
    /// Starts it with these arguments beside those that all have.
    pub fn start(binary: &Path, bed: &Bed, more: &[&str]) -> Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(bed.dir().join("lictor.log"))?;
        let mut command = command(binary, bed);
        command
            .args(["run", "--cluster", CLUSTER, "--listen", &free.to_string()])
            .args(more)
            // One that is started anew is a restarted container, and leads again at once.
            .env("POD_NAME", "lictor-bench")
            .stdout(log.try_clone()?)
            .stderr(log);
        let started = Instant::now();
        let child = command.spawn().context("cannot start lictor")?;
        let number = child.id().context("lictor ended at once")?;
        Ok(Self {
            process: Process::new(i32::try_from(number)?)?,
            child,
            http: reqwest::Client::builder().no_proxy().build()?,
            address: format!("http://{free}"),
            started,
        })
    }

    /// Waits until it says that it is ready, and gives the moment.
    pub async fn ready(&self) -> Result<Instant> {
        wait::until("lictor to be ready", READY, async || {
            let answer = self.http.get(format!("{}/readyz", self.address)).send();
            let answer = answer.await?.error_for_status()?;
            anyhow::Ok(answer.status())
        })
        .await?;
        Ok(Instant::now())
    }

    /// Waits until it is ready and has nothing left to do.
    pub async fn settled(&self) -> Result<()> {
        self.ready().await?;
        wait::until("lictor to have nothing to do", READY, async || {
            match self.metrics().await?.sum("lictor_pending_keys", &[]) {
                0.0 => Ok(()),
                pending => bail!("{pending} keys are pending"),
            }
        })
        .await
    }

    /// What it counts.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = self.http.get(format!("{}/metrics", self.address)).send();
        Ok(Metrics(answer.await?.error_for_status()?.text().await?))
    }

    /// The CPU time that it used, in seconds.
    ///
    /// The kernel's clock of a process counts in hundredths and misses what is shorter; that of its
    /// threads counts all, but not those that have ended. The greater is nearer to the truth.
    pub fn cpu(&self) -> Result<f64> {
        let stat = self.process.stat()?;
        let ticks = u32::try_from(stat.utime + stat.stime)?;
        let a_second = u32::try_from(procfs::ticks_per_second())?;
        let ran = self.process.tasks()?.flatten();
        let ran = ran.filter_map(|task| Some(task.schedstat().ok()?.sum_exec_runtime));
        let ran = Duration::from_nanos(ran.sum());
        Ok((f64::from(ticks) / f64::from(a_second)).max(ran.as_secs_f64()))
    }

    /// How often one of its threads went to sleep so far. What that costs differs a hundredfold between
    /// machines, so that CPU time alone says little of a process that does nothing.
    pub fn sleeps(&self) -> Result<f64> {
        let tasks = self.process.tasks()?.flatten();
        let sleeps = tasks.filter_map(|task| task.status().ok()?.voluntary_ctxt_switches);
        Ok(f64::from(u32::try_from(sleeps.sum::<u64>())?))
    }

    /// Its resident memory now and at its peak, in MiB.
    pub fn memory(&self) -> Result<(f64, f64)> {
        let status = self.process.status()?;
        let mebibytes = |kibibytes: Option<u64>| -> Result<f64> {
            let kibibytes = kibibytes.context("the system does not tell the memory in use")?;
            Ok(f64::from(u32::try_from(kibibytes)?) / 1024.0)
        };
        Ok((mebibytes(status.vmrss)?, mebibytes(status.vmhwm)?))
    }

    /// Ends it without a warning.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

/// The text of `/metrics`.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum over all label sets in which all of these texts occur.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .lines()
            .filter(|line| {
                let rest = line.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            // An empty sum of floats would be -0.
            .fold(0.0, |sum, value| sum + value)
    }

    /// The buckets of a histogram without labels: the upper bound of each, and the count within it.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let prefix = format!("{name}_bucket{{le=\"");
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            let bound = bound.replace("+Inf", "inf");
            Some((bound.parse().ok()?, count.parse().ok()?))
        };
        self.0.lines().filter_map(bucket).collect()
    }

    /// Requests to Consul.
    pub fn requests(&self) -> f64 {
        self.sum("lictor_consul_requests_total", &[])
    }

    /// Transactions, the only way in which the catalog is written.
    pub fn transactions(&self) -> f64 {
        self.sum("lictor_consul_requests_total", &["endpoint=\"txn\""])
    }

    /// Entries of this kind that were created, updated or deleted, or by one of these verbs.
    pub fn operations(&self, kind: &str, verb: &str) -> f64 {
        let (kind, verb) = (format!("kind=\"{kind}\""), format!("verb=\"{verb}"));
        let labels = [&*kind, &*verb, "outcome=\"ok\""];
        self.sum("lictor_operations_total", &labels)
    }
}

/// The floor: a process that writes to Consul on each event and does nothing else.
#[derive(Debug)]
pub struct Floor {
    child: Child,
}

impl Floor {
    /// Starts it for a service of one pod, and waits until it watches.
    pub async fn start(bed: &Bed, service: &str) -> Result<Self> {
        let mut command = command(&std::env::current_exe()?, bed);
        command
            .args(["bench", "--floor-of", service])
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the floor")?;
        let output = child.stdout.take().context("a piped stdout is missing")?;
        let mut lines = BufReader::new(output).lines();
        match tokio::time::timeout(READY, lines.next_line()).await?? {
            Some(_) => Ok(Self { child }),
            None => bail!("the floor ended"),
        }
    }

    /// Ends it.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

/// With the bed in its environment and nothing else that could change what it does.
fn command(binary: &Path, bed: &Bed) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let steers = name.to_str().is_some_and(|name| {
            let proxy = name.to_ascii_lowercase().ends_with("_proxy");
            proxy || name.starts_with("LICTOR_") || name.starts_with("CONSUL_")
        });
        if steers {
            command.env_remove(name);
        }
    }
    command
        .env("KUBECONFIG", bed.kubeconfig_path())
        .env("CONSUL_HTTP_ADDR", bed.consul_addr())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_the_labels_that_are_asked_for() {
        let text = "\
# TYPE lictor_consul_requests counter
lictor_consul_requests_total{endpoint=\"txn\",code=\"200\"} 3
lictor_consul_requests_total{endpoint=\"txn\",code=\"409\"} 1
lictor_consul_requests_total{endpoint=\"catalog/nodes\",code=\"200\"} 5
lictor_pending_keys 2
late_seconds_bucket{le=\"0.5\"} 3
late_seconds_bucket{le=\"+Inf\"} 4
late_seconds_count 4
";
        let metrics = Metrics(text.to_owned());
        let close = |a: f64, b: f64| (a - b).abs() < f64::EPSILON;
        assert!(close(metrics.requests(), 9.0));
        let buckets = metrics.buckets("late_seconds");
        assert_eq!(buckets, [(0.5, 3.0), (f64::INFINITY, 4.0)]);
        assert!(close(metrics.transactions(), 4.0));
        assert!(close(metrics.sum("lictor_pending_keys", &[]), 2.0));
        assert!(close(metrics.sum("lictor_pending", &[]), 0.0));
    }
}
