//! `lictor completions`.

use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Failure;

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell that is to complete the words of `lictor`
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        // Written at once: the generator panics where it cannot write, as into a pipe that was closed.
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut super::Cli::command(),
            "lictor",
            &mut script,
        );
        std::io::stdout()
            .write_all(&script)
            .context("cannot print the script")?;
        Ok(())
    }
}
