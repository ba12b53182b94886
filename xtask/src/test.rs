use std::{env, ffi::OsString, num::NonZero, process::ExitCode, thread};

use anyhow::{Context, Result};
use lictor_testbed::tools::{self, Progress};

use crate::cargo;

/// How many tests run at once.
const THREADS: &str = "RUST_TEST_THREADS";

/// Whether errors that are returned carry a backtrace.
const ERROR_BACKTRACE: &str = "RUST_LIB_BACKTRACE";

/// Run all tests, after building the servers that they need (some minutes the first time).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Arguments of `cargo test`, such as `-p lictor --test e2e -- pods`; without a package, all
    /// packages are tested.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Args {
    /// Gives the exit code of `cargo test`.
    pub async fn run(self) -> Result<ExitCode> {
        let tools = tools::ensure(Progress::Stderr).await?;
        let mut command = cargo::command();
        command.arg("test").env("LICTOR_TESTBED_BIN", tools.bin);
        if env::var_os(THREADS).is_none() {
            // Tests wait for servers, for timers and for each other most of the time.
            let cores = thread::available_parallelism().map_or(2, NonZero::get);
            command.env(THREADS, (cores * 3).to_string());
        }
        if env::var_os(ERROR_BACKTRACE).is_none() {
            // Where an error was made says nothing, and hides what it says.
            command.env(ERROR_BACKTRACE, "0");
        }
        if !self.names_a_package() {
            command.arg("--workspace");
        }
        let status = command
            .args(&self.args)
            .status()
            .context("cannot run cargo")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    }

    fn names_a_package(&self) -> bool {
        let of_cargo = self.args.iter().take_while(|arg| *arg != "--");
        of_cargo
            .filter_map(|arg| arg.to_str())
            .any(|arg| arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package="))
    }
}
