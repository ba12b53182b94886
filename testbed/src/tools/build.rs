//! Building one tool into the cache.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::Progress;

/// How one Go module is built.
pub(super) struct Recipe {
    /// The name of its folder under `testbed/tools`.
    pub tool: &'static str,
    pub go_mod: &'static str,
    pub go_sum: &'static str,
    pub packages: &'static [&'static str],
    /// The names of the results, in the order of `packages`.
    pub binaries: &'static [&'static str],
    pub ldflags: &'static str,
}

/// What `go env` says of version and platform.
pub(super) struct GoVersion(String);

impl GoVersion {
    /// Asks the `go` on the path; fails with how to get it when there is none.
    pub fn find() -> Result<Self> {
        let output = Command::new("go")
            .args(["env", "GOVERSION", "GOOS", "GOARCH"])
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "Go is missing: the test bed builds etcd, Kubernetes, Consul and Helm with it.\n\
                 Install Go 1.26 or newer from https://go.dev/dl/ and put `go` on the PATH, or set \
                 LICTOR_TESTBED_BIN to a folder that holds the binaries."
            ),
            Err(error) => return Err(error).context("cannot run `go env`"),
        };
        if !output.status.success() {
            bail!(
                "`go env` failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

impl Recipe {
    /// Whether the binaries are in the cache.
    pub fn is_built(&self, cache: &Path, go: &GoVersion) -> bool {
        self.folder(cache, go).is_dir()
    }

    /// Builds the binaries into the cache, unless another process does so first.
    pub fn build(&self, cache: &Path, go: &GoVersion, progress: Progress, nth: &str) -> Result<()> {
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let lock = File::create(cache.join(format!("{}.lock", self.tool)))?;
        if lock.try_lock().is_err() {
            say(
                progress,
                &format!("test bed: waiting for another build of {}", self.tool),
            );
            lock.lock().context("cannot lock the cache")?;
        }
        if self.is_built(cache, go) {
            return Ok(());
        }
        let staging = tempfile::Builder::new()
            .prefix(&format!(".{}-", self.tool))
            .tempdir_in(cache)
            .context("cannot write to the cache")?;
        fs::write(staging.path().join("go.mod"), self.go_mod)?;
        fs::write(staging.path().join("go.sum"), self.go_sum)?;
        let bin = staging.path().join("bin");
        fs::create_dir(&bin)?;
        let log = staging.path().join("build.log");

        let label = format!("test bed: building {} ({nth})", self.binaries.join(", "));
        let started = Instant::now();
        let child = self.go_build(staging.path(), &bin, &log)?;
        let status = watch(child, &label, progress)?;
        if !status.success() {
            let log = fs::read_to_string(&log).unwrap_or_default();
            bail!("{label} failed ({status}):\n{}", last_lines(&log, 30));
        }
        fs::rename(&bin, self.folder(cache, go)).context("cannot put the binaries in place")?;
        say(
            progress,
            &format!("{label}: done in {} s", started.elapsed().as_secs()),
        );
        Ok(())
    }

    fn go_build(&self, folder: &Path, bin: &Path, log: &Path) -> Result<Child> {
        // One result is named by us, since its package may end in a version; of several, each is
        // named after its package.
        let output = match self.binaries {
            [one] => bin.join(one),
            _ => bin.join(""),
        };
        let log = File::create(log)?;
        Command::new("go")
            .args([
                "build",
                "-mod=readonly",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags",
            ])
            .arg(self.ldflags)
            .arg("-o")
            .arg(output)
            .args(self.packages)
            .current_dir(folder)
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run `go build`")
    }

    fn folder(&self, cache: &Path, go: &GoVersion) -> PathBuf {
        cache.join(format!("{}-{}", self.tool, self.key(go)))
    }

    fn key(&self, go: &GoVersion) -> String {
        let mut parts = vec![self.tool, self.go_mod, self.go_sum, self.ldflags, &go.0];
        parts.extend(self.packages);
        parts.extend(self.binaries);
        key(&parts)
    }
}

/// One folder with a link to each binary, which is never seen half done.
pub(super) fn assemble(recipes: &[Recipe], cache: &Path, go: &GoVersion) -> Result<PathBuf> {
    let keys: Vec<_> = recipes.iter().map(|recipe| recipe.key(go)).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let bin = cache.join(format!("bin-{}", key(&keys)));
    if bin.is_dir() {
        return Ok(bin);
    }
    let staging = tempfile::Builder::new().prefix(".bin-").tempdir_in(cache)?;
    let farm = staging.path().join("bin");
    fs::create_dir(&farm)?;
    for recipe in recipes {
        let folder = recipe.folder(cache, go);
        let folder = folder
            .file_name()
            .context("a cache folder without a name")?;
        for name in recipe.binaries {
            let target = Path::new("..").join(folder).join(name);
            std::os::unix::fs::symlink(target, farm.join(name))?;
        }
    }
    match fs::rename(&farm, &bin) {
        // Another process was faster, with the same result.
        Err(_) if bin.is_dir() => Ok(bin),
        other => other
            .map(|()| bin)
            .context("cannot put the binaries in place"),
    }
}

fn key(parts: &[&str]) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        hash.update(&part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finish().as_ref()[..8]
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn watch(mut child: Child, label: &str, progress: Progress) -> Result<ExitStatus> {
    let started = Instant::now();
    let live = progress == Progress::Stderr && io::stderr().is_terminal();
    if !live {
        say(progress, label);
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if live {
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "\r{label}: {} s ", started.elapsed().as_secs());
            let _ = stderr.flush();
        }
        thread::sleep(Duration::from_millis(200));
    };
    if live {
        // Back to the start of the line, which the next message overwrites.
        let _ = write!(io::stderr(), "\r");
    }
    Ok(status)
}

fn say(progress: Progress, line: &str) {
    if progress == Progress::Stderr {
        // A message that nobody can read is no reason to fail.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
