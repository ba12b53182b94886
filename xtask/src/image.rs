use std::{
    process::{Command, ExitCode},
    str,
};

use anyhow::{Context, Result, ensure};

use crate::dist::Source;

/// Build the container image of the Dockerfile, where there is a builder. Elsewhere, `cargo xtask dist`
/// makes an image without one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the image is called.
    #[arg(long, value_name = "NAME", default_value = concat!("lictor:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Platforms, comma-separated, such as `linux/amd64,linux/arm64`; by default this machine's.
    #[arg(long, value_name = "LIST")]
    platform: Option<String>,
    /// Push it, which several platforms at once need.
    #[arg(long)]
    push: bool,
}

impl Args {
    /// Gives the exit code of the builder.
    #[allow(clippy::unused_async, reason = "all commands are")]
    pub async fn run(self) -> Result<ExitCode> {
        let builder = Command::new("docker").args(["buildx", "inspect"]).output();
        let builder = builder
            .context("docker cannot be run: `cargo xtask dist` makes an image without it")?;
        let why = str::from_utf8(&builder.stderr).unwrap_or_default().trim();
        ensure!(
            builder.status.success(),
            "there is no builder here ({why}): `cargo xtask dist` makes an image without one"
        );
        let source = Source::of_this()?;
        let mut build = Command::new("docker");
        build.args(["buildx", "build", "--tag", &self.tag]);
        for argument in [
            format!("VERSION={}", source.version),
            format!("REVISION={}", source.revision),
        ] {
            build.args(["--build-arg", &argument]);
        }
        if let Some(platform) = &self.platform {
            build.args(["--platform", platform]);
        }
        build.arg(if self.push { "--push" } else { "--load" });
        let status = build.arg(".").status().context("cannot run docker")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(1)))
    }
}
