//! One server process: start, stop, kill, pause, restart, and never outlive the test.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::{consul_api::CONSUL_TOKEN, pki::Pki, wait};

/// How long a server may take until it answers its readiness probe.
const READY_DEADLINE: Duration = Duration::from_mins(1);
/// How long a server may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The folder of a server's data, in the server's own folder.
pub(crate) const DATA: &str = "data";

/// Ties a server to the process that started it, which may be killed without a chance to clean up:
/// a shell waits in the background for its standard input to end, kills what the shell itself has
/// become by then, and is let off by a line. The server keeps the process number that we know.
const LEASH: &str = r#"exec 3<&0; { read -r _ <&3 || kill -9 $$; } & exec "$@" 3<&- </dev/null"#;

/// How to see that a server works.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// Where its API is.
    base: String,
    sign: Sign,
}

#[derive(Debug, Clone)]
enum Sign {
    /// The body of a good answer at a path contains a text.
    Answer {
        path: &'static str,
        expect: &'static str,
        consul_token: Option<&'static str>,
    },
    /// A line that it has logged since its start contains a text.
    Log(&'static str),
}

impl Probe {
    pub fn new(base: String, path: &'static str, expect: &'static str) -> Self {
        let sign = Sign::Answer {
            path,
            expect,
            consul_token: None,
        };
        Self { base, sign }
    }

    /// For a server without an API.
    pub fn log(base: String, expect: &'static str) -> Self {
        let sign = Sign::Log(expect);
        Self { base, sign }
    }

    pub fn with_consul_token(mut self, token: &'static str) -> Self {
        if let Sign::Answer { consul_token, .. } = &mut self.sign {
            *consul_token = Some(token);
        }
        self
    }
}

/// A server of a bed. All methods may be called from several tasks; each call sees the effect of
/// those that returned before it.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    folder: PathBuf,
    log: PathBuf,
    probe: Probe,
    ca: Vec<u8>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    leash: ChildStdin,
    /// How long its log was when it was started.
    logged: u64,
}

impl Running {
    fn pid(&self) -> Result<Pid> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        pid.context("no such process number")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Returns when the last thread has stopped, since some go on for a moment after the signal.
    fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // An end is left for `Child` to see.
        let until = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid()?), until)?;
        Ok(())
    }

    /// Call it when the child was reaped: from then on its number may be another's.
    fn let_off(mut self) {
        // Without the shell there is nothing to let off.
        let _ = self.leash.write_all(b"\n");
    }

    fn kill(mut self) {
        let _ = self.child.kill();
        if self.child.wait().is_ok() {
            self.let_off();
        }
    }
}

impl Server {
    pub(crate) fn new(
        name: &'static str,
        program: &Path,
        args: Vec<String>,
        folder: &Path,
        probe: Probe,
        pki: &Pki,
    ) -> Self {
        Self {
            name,
            program: program.to_owned(),
            args,
            folder: folder.to_owned(),
            log: folder.join(format!("{name}.log")),
            probe,
            ca: pki.ca_der.clone(),
            running: Mutex::new(None),
        }
    }

    /// The name of its program, such as `kube-apiserver`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where its API is, such as `http://127.0.0.1:21235`.
    pub fn addr(&self) -> &str {
        &self.probe.base
    }

    /// Where it logs, over all its starts.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its process number while it runs or is paused.
    pub fn pid(&self) -> Option<u32> {
        self.state().as_ref().map(|running| running.child.id())
    }

    /// Starts it on its ports and data, and waits until it is ready.
    ///
    /// Fails with the end of its log when it ends at once or is not ready within a minute; then it
    /// does not run.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        let ready = self.wait_ready().await;
        if ready.is_err() {
            self.kill();
        }
        ready
    }

    /// Starts it without waiting until it is ready. Fails when it runs already.
    pub fn spawn(&self) -> Result<()> {
        let mut state = self.state();
        if state.is_some() {
            bail!("{} runs already", self.name);
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let logged = log.metadata()?.len();
        let mut child = Command::new("/bin/sh")
            .args(["-c", LEASH, self.name])
            .arg(&self.program)
            .args(&self.args)
            .current_dir(&self.folder)
            // A Ctrl-C is for the test; the server goes with it, by the leash.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let leash = child.stdin.take().context("a piped stdin is missing")?;
        *state = Some(Running {
            child,
            leash,
            logged,
        });
        Ok(())
    }

    /// Waits until it answers its readiness probe; for after [`Server::spawn`].
    pub async fn wait_ready(&self) -> Result<()> {
        let client = crate::consul_api::http_client(&[&self.ca])?;
        let what = format!("{} to be ready", self.name);
        let mut ended = None;
        let ready = wait::until(&what, READY_DEADLINE, async || {
            if let Some(status) = self.reap()? {
                ended = Some(status);
                return Ok(());
            }
            self.probe(&client).await
        })
        .await;
        match (ready, ended) {
            (Ok(()), None) => Ok(()),
            (Err(error), _) => Err(anyhow!("{error:#}\n{}", self.log_tail())),
            (_, Some(status)) => Err(anyhow!(
                "{} ended ({status}) before it was ready\n{}",
                self.name,
                self.log_tail()
            )),
        }
    }

    /// Asks it to end, as an operator would (SIGTERM), and waits until it has; kills it after ten
    /// seconds. Does nothing when it does not run.
    pub async fn stop(&self) -> Result<()> {
        if let Some(running) = self.state().as_ref() {
            running.signal(Signal::TERM)?;
            // A paused process gets no signal until it goes on.
            running.signal(Signal::CONT)?;
        }
        let ended = wait::until(self.name, STOP_DEADLINE, async || {
            self.reap()?.map(drop).context("still running")
        })
        .await;
        if ended.is_err() {
            self.kill();
        }
        Ok(())
    }

    /// Ends it without a warning (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        if let Some(running) = self.state().take() {
            running.kill();
        }
    }

    /// Freezes it (SIGSTOP): its connections stay open, and nothing answers.
    pub fn pause(&self) -> Result<()> {
        self.with_running(Running::pause)
    }

    /// Lets it go on after [`Server::pause`].
    pub fn resume(&self) -> Result<()> {
        self.with_running(|running| running.signal(Signal::CONT))
    }

    /// [`Server::stop`], then [`Server::start`], with the same ports and data.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Removes its data, as a lost disk does, so that it starts anew the next time; what has no data
    /// of its own (only etcd and Consul have) is left alone. Fails while it runs.
    pub fn wipe(&self) -> Result<()> {
        let data = self.data_at_rest()?;
        if data.exists() {
            fs::remove_dir_all(&data)
                .with_context(|| format!("cannot remove {}", data.display()))?;
        }
        Ok(())
    }

    /// Copies its data to a folder, which must not exist. Fails while it runs.
    pub fn save(&self, to: &Path) -> Result<()> {
        copy(&self.data_at_rest()?, to)
    }

    /// Puts what was saved in the place of its data. Fails while it runs.
    pub fn restore(&self, from: &Path) -> Result<()> {
        self.wipe()?;
        copy(from, &self.data_at_rest()?)
    }

    fn data_at_rest(&self) -> Result<PathBuf> {
        if self.pid().is_some() {
            bail!("{} runs: end it before its data is touched", self.name);
        }
        Ok(self.folder.join(DATA))
    }

    /// The end of its log, for an error.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("the end of {}:\n{tail}", self.log.display())
    }

    fn with_running(&self, act: impl FnOnce(&Running) -> Result<()>) -> Result<()> {
        match self.state().as_ref() {
            Some(running) => act(running),
            None => bail!("{} does not run", self.name),
        }
    }

    /// Takes notice of its end; its status, or success when it did not run before.
    fn reap(&self) -> Result<Option<ExitStatus>> {
        let mut state = self.state();
        let Some(running) = state.as_mut() else {
            return Ok(Some(ExitStatus::from_raw(0)));
        };
        let status = running.child.try_wait()?;
        if status.is_some()
            && let Some(running) = state.take()
        {
            running.let_off();
        }
        Ok(status)
    }

    async fn probe(&self, client: &reqwest::Client) -> Result<()> {
        let (path, expect, consul_token) = match &self.probe.sign {
            Sign::Answer {
                path,
                expect,
                consul_token,
            } => (path, expect, consul_token),
            Sign::Log(expect) => return self.has_logged(expect),
        };
        let url = format!("{}{path}", self.probe.base);
        let mut request = client.get(&url).timeout(Duration::from_secs(5));
        if let Some(token) = consul_token {
            request = request.header(CONSUL_TOKEN, *token);
        }
        let body = request.send().await?.error_for_status()?.text().await?;
        if !body.contains(expect) {
            bail!("{url} answers {body:?}");
        }
        Ok(())
    }

    fn has_logged(&self, expect: &str) -> Result<()> {
        let mut log = File::open(&self.log)?;
        let from = self.state().as_ref().map_or(0, |running| running.logged);
        log.seek(SeekFrom::Start(from))?;
        let mut since = Vec::new();
        log.read_to_end(&mut since)?;
        if !String::from_utf8_lossy(&since).contains(expect) {
            bail!("{} has not logged {expect:?}", self.name);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, Option<Running>> {
        // What a panicking holder leaves behind is whole: every change is one assignment.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies a folder of files and folders.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("cannot copy {} to {}", from.display(), to.display());
    fs::create_dir(to).with_context(what)?;
    for entry in fs::read_dir(from).with_context(what)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).with_context(what)?;
        }
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Running {
        let mut child = Command::new("/bin/sh")
            .args(["-c", LEASH, "sleeper", "sleep", "60"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let leash = child.stdin.take().unwrap();
        Running {
            child,
            leash,
            logged: 0,
        }
    }

    #[test]
    fn a_server_ends_with_the_process_that_holds_its_leash() {
        let Running {
            mut child, leash, ..
        } = sleeper();
        // What the kernel does when that process is killed.
        drop(leash);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_leash_let_off_kills_nobody() {
        let Running {
            mut child,
            mut leash,
            ..
        } = sleeper();
        leash.write_all(b"\n").unwrap();
        drop(leash);
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
