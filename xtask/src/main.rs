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

mod bench;
mod cargo;
mod demo;
mod dist;
mod fields;
mod r#gen;
mod image;
mod test;
mod testbed;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Lictor's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    Bench(bench::Args),
    Demo(demo::Args),
    Dist(dist::Args),
    Gen(r#gen::Args),
    Image(image::Args),
    Test(test::Args),
    Testbed(testbed::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    run(Task::parse()).await.unwrap_or_else(|error| {
        // Without the backtrace that anyhow adds on request: it is for a person, not a programmer.
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("  because: {cause}");
        }
        ExitCode::FAILURE
    })
}

async fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Bench(args) => args.run().await,
        Task::Demo(args) => args.run().await,
        Task::Dist(args) => args.run().await,
        Task::Gen(args) => args.run().await,
        Task::Image(args) => args.run().await,
        Task::Test(args) => args.run().await,
        Task::Testbed(args) => args.run().await,
    }
}
