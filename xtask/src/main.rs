//! The project's own commands, run as `cargo xtask <command>`.
//!
//! A command is a file with a clap `Args` that has `async fn run(self) -> Result<ExitCode>`, and a
//! variant of [`Task`]. What a command answers goes to standard output; how it gets on goes to
//! standard error.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these commands talk to a person at a terminal"
)]

mod test;
mod testbed;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Lictor's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    Test(test::Args),
    Testbed(testbed::Args),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Task::parse() {
        Task::Test(args) => args.run().await,
        Task::Testbed(args) => args.run().await,
    }
}
