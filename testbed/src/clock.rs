//! The wall clock of one process, which jumps on demand.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

const SOURCE: &str = include_str!("../clock/clock.c");

/// A wall clock for a process that is started with [`WallClock::env`]. Its monotonic clocks are the
/// machine's, as they are where an administrator, or NTP, sets the time.
///
/// A library in C (`testbed/clock/clock.c`) that is compiled here and preloaded there: it works on
/// Linux, for programs that are linked dynamically.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    path: PathBuf,
    offset: File,
}

impl WallClock {
    /// A clock that is right. Its files go to a folder, which is created.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let library = folder.join("clock.so");
        compile(&library)?;
        let path = folder.join("offset");
        let this = Self {
            library,
            offset: File::create(&path)?,
            path,
        };
        this.set(0)?;
        Ok(this)
    }

    /// The environment of a process that has this clock.
    pub fn env(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("BED_CLOCK", self.path.display().to_string()),
        ]
    }

    /// Sets the clock so many seconds before or after the machine's.
    pub fn set(&self, seconds: i64) -> Result<()> {
        // Where the process has mapped it, and at once: it never sees half of it.
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0)?;
        Ok(())
    }
}

fn compile(library: &Path) -> Result<()> {
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-x", "c"])
        .args(["-", "-o"])
        .arg(library)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cc, a C compiler")?;
    let mut stdin = compiler.stdin.take().context("a piped stdin is missing")?;
    stdin.write_all(SOURCE.as_bytes())?;
    drop(stdin);
    let output = compiler.wait_with_output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("cc cannot compile the clock: {errors}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_process_sees_the_time_that_it_is_set_to() {
        let folder = tempfile::tempdir().unwrap();
        let clock = WallClock::new(folder.path()).unwrap();
        for seconds in [0, 5 * 3600, -7 * 3600] {
            clock.set(seconds).unwrap();
            let mut date = Command::new("date");
            let output = date.arg("+%s").envs(clock.env()).output().unwrap();
            let seen = String::from_utf8(output.stdout).unwrap();
            let seen: i64 = seen.trim().parse().unwrap();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let now = i64::try_from(now.as_secs()).unwrap();
            assert!((seen - now - seconds).abs() < 60, "{seen} at {now}");
        }
    }
}
