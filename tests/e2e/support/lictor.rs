//! A `lictor` process.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lictor_testbed::wait;
use serde_json::Value;

use super::{SOON, until};

/// Kills the process when the pipe to its stdin breaks, as it does when the test ends in any way.
const LEASH: &str = r#"exec 3<&0; { read -r _ <&3 || kill -9 $$; } & exec "$@" 3<&- </dev/null"#;

/// A running `lictor`, killed when dropped; its log is then printed, which the test harness shows
/// where the test failed.
#[derive(Debug)]
pub struct Lictor {
    child: Child,
    leash: ChildStdin,
    ended: Option<ExitStatus>,
    log: PathBuf,
    http: reqwest::Client,
    port: u16,
    refusals: bool,
    /// Whether it has just the rights that `lictor acl-policy` prints.
    policy: bool,
}

impl Lictor {
    /// Starts `lictor` with these arguments and this environment; it must say where it listens.
    pub async fn start(log: &Path, args: &[String], env: &[(String, String)]) -> Result<Self> {
        let file = File::create(log)?;
        let mut child = command("/bin/sh")
            .args(["-c", LEASH, "lictor", env!("CARGO_BIN_EXE_lictor")])
            .args(args)
            .envs(env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let leash = child.stdin.take().context("a piped stdin is missing")?;
        let mut this = Self {
            child,
            leash,
            ended: None,
            log: log.to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(10))
                .build()?,
            port: 0,
            refusals: false,
            policy: env.iter().any(|(name, _)| name == "CONSUL_HTTP_TOKEN"),
        };
        this.port = until("lictor to say where it listens", async || {
            if let Some(status) = this.child.try_wait()? {
                this.ended = Some(status);
                return Ok(None);
            }
            let log = fs::read_to_string(&this.log)?;
            let line = log.lines().find(|line| line.contains("starting"));
            let port = line.and_then(port_of).context("not yet")?;
            anyhow::Ok(Some(port))
        })
        .await?
        .context("lictor ended at once")?;
        Ok(this)
    }

    /// The API server starts while it runs: for a moment that one answers before it knows its roles.
    pub fn bears_refusals(&mut self) {
        self.refusals = true;
    }

    /// Waits until `/readyz` is 200.
    pub async fn ready(&mut self) -> Result<()> {
        until("lictor to be ready", async || {
            let (status, text) = self.http("/readyz").await?;
            ensure!(status == 200, "{text}");
            Ok(())
        })
        .await
    }

    /// Waits until `/readyz` is 503 and says so.
    pub async fn not_ready(&self, text: &str) -> Result<()> {
        until("lictor to say why it is not ready", async || {
            let (status, body) = self.http("/readyz").await?;
            ensure!(status == 503 && body.contains(text), "{status}: {body}");
            Ok(())
        })
        .await
    }

    /// Waits until a metric has this value.
    pub async fn shows(&self, name: &str, value: f64) -> Result<()> {
        until(&format!("{name} to be {value}"), async || {
            let now = self.metric(name, &[]).await?;
            ensure!((now - value).abs() < f64::EPSILON, "{now}");
            Ok(())
        })
        .await
    }

    /// Status and body of a path.
    pub async fn http(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let answer = self.http.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The sum of a metric over all its samples whose line has all the texts of `with`.
    pub async fn metric(&self, name: &str, with: &[&str]) -> Result<f64> {
        let (_, text) = self.http("/metrics").await?;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').context("not a sample")?;
            let named = sample == name || sample.starts_with(&format!("{name}{{"));
            if named && with.iter().all(|text| sample.contains(text)) {
                sum += value.parse::<f64>()?;
            }
        }
        Ok(sum)
    }

    /// Waits until nothing is left to be planned or written.
    pub async fn idle(&self) -> Result<()> {
        until("lictor to have nothing to do", async || {
            let pending = self.metric("lictor_pending_keys", &[]).await?;
            ensure!(pending == 0.0, "{pending} keys are pending");
            Ok(())
        })
        .await
    }

    /// All that it logged until now.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM), and waits until it has, as long as is promised.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        let status = self.wait_end(Duration::from_secs(5)).await?;
        Ok(status)
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.wait_end(SOON).await
    }

    /// Asks it to end, and does not wait.
    pub fn terminate(&self) -> Result<()> {
        self.signal("TERM")
    }

    /// Stops it where it is, until [`Self::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal("STOP")
    }

    pub fn resume(&self) -> Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, name: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let sent = command("kill").args([&format!("-{name}"), &pid]).status()?;
        ensure!(sent.success(), "cannot send SIG{name}");
        Ok(())
    }

    /// Kills it, as a lost machine would.
    pub fn kill(mut self) {
        self.end();
    }

    async fn wait_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let status = wait::until("lictor to end", deadline, async || {
            self.child.try_wait()?.context("it runs")
        })
        .await?;
        self.ended = Some(status);
        Ok(status)
    }

    fn end(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
        // From here on the process number may be another's.
        let _ = self.leash.write_all(b"\n");
    }
}

impl Drop for Lictor {
    fn drop(&mut self) {
        self.end();
        let log = self.log();
        println!("--- {} ---\n{log}--- end of log ---", self.log.display());
        // In every test: what is planned key by key and what is planned as a whole agree.
        let missed = log.lines().find(|line| line.contains("missed before"));
        if let Some(line) = missed
            && !std::thread::panicking()
        {
            panic!("the total pass found more than the incremental ones: {line}");
        }
        // With the chart's rights nothing is refused.
        let refused = log
            .lines()
            .find(|line| line.to_lowercase().contains("forbidden"));
        if let Some(line) = refused
            && !self.refusals
            && !std::thread::panicking()
        {
            panic!("the chart's rights do not suffice: {line}");
        }
        let denied = log.lines().find(|line| line.contains("lacks permission"));
        if let Some(line) = denied
            && self.policy
            && !self.refusals
            && !std::thread::panicking()
        {
            panic!("the rights of lictor acl-policy do not suffice: {line}");
        }
    }
}

/// Runs `lictor` to its end.
pub async fn run(args: &[&str]) -> Result<(Option<i32>, String, String)> {
    run_within(SOON, args).await
}

/// The same where the end may be far away.
pub async fn run_within(
    patience: Duration,
    args: &[&str],
) -> Result<(Option<i32>, String, String)> {
    ended_within(patience, &[], args).await
}

/// The same in this environment.
pub async fn run_in(
    env: &[(String, String)],
    args: &[&str],
) -> Result<(Option<i32>, String, String)> {
    ended_within(SOON, env, args).await
}

async fn ended_within(
    patience: Duration,
    env: &[(String, String)],
    args: &[&str],
) -> Result<(Option<i32>, String, String)> {
    let child = tokio::process::Command::from(command(env!("CARGO_BIN_EXE_lictor")))
        .args(args)
        .envs(env.iter().cloned())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(patience, child).await {
        Ok(output) => {
            let output = output?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok((
                output.status.code(),
                text(&output.stdout),
                text(&output.stderr),
            ))
        }
        Err(_) => bail!("lictor {args:?} does not end"),
    }
}

/// `lictor` as someone at a terminal has it; its arguments are to be added.
pub fn at_terminal() -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_lictor"));
    command.env("TERM", "xterm");
    command
}

/// A command whose environment has nothing that Lictor reads.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

fn port_of(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once("127.0.0.1:")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|port| *port > 0)
}

/// What `lictor acl-policy` says that it needs in Consul for this cluster.
pub async fn acl_policy(cluster: &str) -> Result<String> {
    let (code, rules, error) = run(&["acl-policy", "--cluster", cluster]).await?;
    ensure!(code == Some(0), "no policy for {cluster}: {error}");
    Ok(rules)
}

/// The lines of a JSON log; fails if any is none.
pub fn json_lines(log: &str) -> Result<Vec<Value>> {
    log.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}
