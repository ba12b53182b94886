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
    /// Shows what Lictor holds back from removal, or what a dead cluster left, and removes it once someone
    /// at a terminal agreed, or with --yes
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

/// A flag that is needed unless another is given.
fn given<T>(cluster: Option<T>) -> Result<T, Failure> {
    cluster.ok_or_else(|| {
        let message = "--cluster is missing: give the name that `lictor run` has for this cluster";
        Failure::Usage(message.to_owned())
    })
}

#[expect(clippy::print_stderr, reason = "the command line's own way to tell")]
fn complain(message: &str) {
    eprintln!("lictor: {message}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use crate::test_words::helps;

    #[test]
    fn the_command_line_holds_together() {
        super::Cli::command().debug_assert();
    }

    /// Flags whose variables are those of Consul's own tools.
    const OF_CONSUL: [&str; 12] = [
        "consul-http-addr",
        "consul-http-token",
        "consul-http-token-file",
        "consul-auth-method",
        "consul-bearer-token-file",
        "consul-http-ssl",
        "consul-cacert",
        "consul-client-cert",
        "consul-client-key",
        "consul-tls-server-name",
        "consul-namespace",
        "consul-partition",
    ];

    #[test]
    fn every_flag_of_every_command_has_its_twin_in_the_environment() {
        let mut cli = super::Cli::command();
        cli.build();
        let mut count = 0;
        for command in cli.get_subcommands() {
            for flag in command.get_arguments() {
                let Some(long) = flag
                    .get_long()
                    .filter(|it| !matches!(*it, "help" | "version"))
                else {
                    continue;
                };
                let name = long.replace('-', "_").to_uppercase();
                let twin = if OF_CONSUL.contains(&long) {
                    name
                } else {
                    format!("LICTOR_{name}")
                };
                let env = flag.get_env().map(|env| env.to_string_lossy());
                let command = command.get_name();
                assert_eq!(env.as_deref(), Some(&*twin), "lictor {command} --{long}");
                count += 1;
            }
        }
        assert!(count > 100, "{count}");
    }

    /// What no flag but those that take any text takes.
    const NONSENSE: &str = "\u{1}?";

    #[test]
    fn a_value_that_cannot_be_used_is_told_with_its_flag_and_what_to_give() {
        let mut cli = super::Cli::command();
        cli.build();
        let mut refused = 0;
        for command in cli.get_subcommands() {
            for flag in command.get_arguments() {
                let Some(long) = flag.get_long().filter(|_| flag.get_action().takes_values())
                else {
                    continue;
                };
                let given = format!("--{long}={NONSENSE}");
                let name = command.get_name();
                let cluster = ["--cluster=a"].into_iter().filter(|_| long != "cluster");
                let has = |id: &str| command.get_arguments().any(|it| it.get_id() == id);
                let cluster = cluster.filter(|_| has("cluster"));
                let words = ["lictor", name, &given].into_iter().chain(cluster);
                let Err(error) = super::Cli::command().try_get_matches_from(words) else {
                    continue;
                };
                refused += 1;
                let error = error.to_string();
                assert!(error.contains(&format!("--{long}")), "{name}: {error}");
                let values = flag.get_possible_values();
                let named = !values.is_empty()
                    && values.iter().all(|value| error.contains(value.get_name()));
                assert!(named || helps(&error), "lictor {name} {given:?}: {error}");
            }
        }
        assert!(refused > 50, "{refused}");
    }
}
