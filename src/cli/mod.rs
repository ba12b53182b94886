//! The command line: flags into validated settings, one file a subcommand.

mod acl_policy;
mod check;
mod completions;
mod consul;
mod crds;
mod election;
mod gc;
mod kubernetes;
mod look;
mod manifests;
mod migrate;
mod plan;
mod planning;
mod reference;
mod run;
mod scope;
mod status;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::Runtime;

/// Exit code for a command line that is not understood (`EX_USAGE` of BSD's sysexits).
const USAGE: u8 = 64;

/// Keeps Consul equal to what Kubernetes asks for: registrations and their health, and removes what
/// nothing claims any more.
#[derive(Debug, Parser)]
#[command(name = "lictor", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watches Kubernetes and keeps Consul equal to it, until stopped
    Run(Box<run::Run>),
    /// Shows what `run` would change in Consul, from the cluster or from manifests, and changes nothing
    Plan(Box<plan::Plan>),
    /// Shows what Lictor has in Consul for this cluster, service by service: health, what differs from what
    /// Kubernetes asks for, what is held back, and who writes
    Status(Box<status::Status>),
    /// Shows what Lictor holds back from removal, or what a dead cluster left, and with --yes removes
    /// it
    Gc(Box<gc::Gc>),
    /// Looks whether `lictor run` could work: reaches Kubernetes and Consul, reads only, and names every right
    /// that is missing
    Check(Box<check::Check>),
    /// Prints the ACL policy that Lictor needs in Consul, and no more, ready for
    /// `consul acl policy create -rules -`
    AclPolicy(acl_policy::AclPolicy),
    /// Prints what manifests of other tools ask for as objects and annotations of Lictor: of consul-k8s
    /// `Registration`, `ServiceIntentions` and synced Services, and workloads with the annotations of katalog-sync
    /// or kube-consul-register
    Migrate(migrate::Migrate),
    /// Prints the custom resource definitions, ready for `kubectl apply -f -`
    Crds,
    /// Prints the script by which a shell completes the words of `lictor`
    Completions(completions::Completions),
    /// Prints this command line as a page of documentation
    #[command(hide = true)]
    Reference(reference::Reference),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done where not even this can be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let succeeded = |()| ExitCode::SUCCESS;
    let done = match cli.command {
        Command::Run(run) => run.execute().map(succeeded),
        Command::Plan(plan) => plan.execute(),
        Command::Status(status) => status.execute().map(succeeded),
        Command::Gc(gc) => gc.execute().map(succeeded),
        Command::Check(check) => check.execute().map(succeeded),
        Command::AclPolicy(policy) => policy.execute().map(succeeded),
        Command::Migrate(migrate) => migrate.execute().map(succeeded),
        Command::Crds => crds::execute().map(succeeded),
        Command::Completions(completions) => completions.execute().map(succeeded),
        Command::Reference(reference) => reference.execute().map(succeeded),
    };
    match done {
        Ok(code) => code,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(Failure::Usage(message)) => {
            complain(&message);
            ExitCode::from(USAGE)
        }
        Err(Failure::Other(error)) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// How a command shows what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Lines for people, in colours on a terminal
    Text,
    /// One JSON object
    Json,
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// What a command that does one thing and ends runs on.
fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// A flag has a value that cannot be used.
    Usage(String),
    /// What is wrong is in the output already.
    Told,
    /// Anything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

#[expect(clippy::print_stderr, reason = "the command line's own way to tell")]
fn complain(message: &str) {
    eprintln!("lictor: {message}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_holds_together() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_twin_in_the_environment() {
        let cli = super::Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        let flags = run.get_arguments().filter_map(|arg| {
            let long = arg.get_long().filter(|long| *long != "help")?;
            Some((
                long.to_owned(),
                arg.get_env().map(|env| env.to_string_lossy()),
            ))
        });
        for (long, env) in flags {
            let name = long.replace('-', "_").to_uppercase();
            let twin = match &*name {
                name if name.starts_with("CONSUL_") && name != "CONSUL_WRITE_RATE" => {
                    name.to_owned()
                }
                name => format!("LICTOR_{name}"),
            };
            assert_eq!(env.as_deref(), Some(&*twin), "--{long}");
        }
    }
}
