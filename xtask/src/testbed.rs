use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use lictor_testbed::{
    Bed, BedOptions,
    tools::{self, Progress},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

/// Start and stop a Kubernetes API and a Consul on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the folder with etcd, kube-apiserver, kube-controller-manager, kubectl, consul and
    /// helm, after building what is missing.
    Path,
    /// Start a bed that stays up, and print the environment to use it: `eval "$(... up)"`.
    Up(Place),
    /// End the bed that `up` started, and remove its state.
    Down(Place),
    /// Hold a bed until told to end; `up` runs it in the background.
    #[command(hide = true)]
    Serve(Place),
}

/// Where a bed that stays up has its state.
#[derive(Debug, clap::Args)]
struct Place {
    /// The folder with its state [default: lictor-testbed in the system's temporary folder].
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    /// Carries out what was asked for.
    pub async fn run(self) -> Result<ExitCode> {
        match self.action {
            Action::Path => {
                println!("{}", tools::ensure(Progress::Stderr).await?.bin.display());
            }
            Action::Up(place) => place.up().await?,
            Action::Down(place) => place.down().await?,
            Action::Serve(place) => place.serve().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Place {
    fn dir(&self) -> Result<PathBuf> {
        let default = || env::temp_dir().join("lictor-testbed");
        Ok(std::path::absolute(
            self.dir.clone().unwrap_or_else(default),
        )?)
    }

    async fn up(&self) -> Result<()> {
        let dir = self.dir()?;
        let started = Instant::now();
        claim(&dir)?;
        tools::ensure(Progress::Stderr).await?;
        let log = File::create(dir.join(LOG))?;
        let mut keeper = Command::new(env::current_exe()?)
            .args(["testbed", "serve", "--dir"])
            .arg(&dir)
            // Apart from the terminal's group, so that a Ctrl-C there does not end it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the keeper of the bed")?;
        let environment = dir.join(ENVIRONMENT);
        let mut ended = None;
        wait::until("the bed to be up", Duration::from_mins(3), async || {
            ended = keeper.try_wait()?;
            if ended.is_some() {
                return Ok(());
            }
            fs::read(&environment).map(drop).context("it is starting")
        })
        .await?;
        if let Some(status) = ended {
            let log = fs::read_to_string(dir.join(LOG)).unwrap_or_default();
            bail!("the bed did not start ({status}):\n{}", log.trim());
        }
        print!("{}", fs::read_to_string(environment)?);
        eprintln!(
            "The bed is up after {:.1} s. It ends with:\n  cargo xtask testbed down --dir {}",
            started.elapsed().as_secs_f64(),
            quoted(&dir)
        );
        Ok(())
    }

    async fn down(&self) -> Result<()> {
        let dir = self.dir()?;
        let Ok(lock) = File::open(dir.join(LOCK)) else {
            bail!("there is no bed in {}", dir.display());
        };
        // The keeper writes its number after it has locked the file, and the lock ends with it:
        // while it is held, the number is the keeper's and nobody else's.
        if lock.try_lock().is_err() {
            let number = fs::read_to_string(dir.join(LOCK))?;
            let keeper = number.trim().parse().ok().and_then(Pid::from_raw);
            let keeper = keeper.context("the bed has only just begun to start; try again")?;
            kill_process(keeper, Signal::TERM).context("cannot signal the keeper of the bed")?;
            let what = format!("the keeper of the bed (process {}) to end", number.trim());
            let free = async || lock.try_lock();
            if wait::until(&what, Duration::from_secs(30), free)
                .await
                .is_err()
            {
                // Its servers end with it, by their leashes.
                kill_process(keeper, Signal::KILL)?;
                wait::until(&what, Duration::from_secs(10), free).await?;
            }
        }
        clear(&dir)?;
        fs::remove_file(dir.join(LOCK))?;
        // A folder that holds something else stays.
        let _ = fs::remove_dir(&dir);
        eprintln!("The bed in {} is gone.", dir.display());
        Ok(())
    }

    async fn serve(&self) -> Result<()> {
        let dir = self.dir()?;
        let mut lock = File::options().write(true).open(dir.join(LOCK))?;
        lock.try_lock()
            .with_context(|| format!("a bed runs in {} already", dir.display()))?;
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;

        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Listening is enough not to end with the terminal.
        let _hangup = signal(SignalKind::hangup())?;
        let options = BedOptions {
            dir: Some(dir.join(STATE)),
            ..BedOptions::default()
        };
        let start = Bed::start(options);
        let bed = tokio::select! {
            bed = start => bed?,
            _ = term.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let unnamed = dir.join("env.new");
        fs::write(&unnamed, environment(&bed))?;
        fs::rename(unnamed, dir.join(ENVIRONMENT))?;
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        drop(bed);
        Ok(())
    }
}

/// The number of the process that keeps the bed; locked by it.
const LOCK: &str = "lictor-testbed.lock";
const LOG: &str = "keeper.log";
const STATE: &str = "state";
/// The environment to use the bed, as shell commands; there once the bed is up.
const ENVIRONMENT: &str = "env";

/// Makes the folder ready for a new bed. Fails when one runs there, or when it holds what is not
/// ours.
fn claim(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if !dir.join(LOCK).exists() && fs::read_dir(dir)?.next().is_some() {
        bail!("{} holds other files: give an empty folder", dir.display());
    }
    let lock = File::options()
        .create(true)
        .append(true)
        .open(dir.join(LOCK))?;
    if lock.try_lock().is_err() {
        bail!(
            "a bed runs in {} already; its environment is in {}",
            dir.display(),
            dir.join(ENVIRONMENT).display()
        );
    }
    lock.set_len(0)?;
    clear(dir)
}

/// Removes what a bed leaves in its folder.
fn clear(dir: &Path) -> Result<()> {
    for name in [ENVIRONMENT, LOG] {
        let path = dir.join(name);
        if path.exists() {
            fs::remove_file(path)?;
        }
    }
    let state = dir.join(STATE);
    if state.exists() {
        fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    Ok(())
}

fn environment(bed: &Bed) -> String {
    format!(
        "export KUBECONFIG={}\nexport CONSUL_HTTP_ADDR={}\nexport PATH={}:\"$PATH\"\n",
        quoted(bed.kubeconfig_path()),
        bed.consul_addr(),
        quoted(&bed.tools().bin),
    )
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
