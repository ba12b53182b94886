//! `lictor reference`, which is not shown: the command line as a page of documentation, or as man pages.
//! `cargo xtask gen` keeps both in the repository.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::StyledStr;
use clap::{Arg, Args, Command, CommandFactory as _};

use super::Failure;

#[derive(Args, Debug)]
pub(super) struct Reference {
    /// Write man pages into this folder, instead of printing a page in Markdown
    #[arg(long, env = "LICTOR_MAN", value_name = "DIR")]
    man: Option<PathBuf>,
}

impl Reference {
    pub(super) fn execute(&self) -> Result<(), Failure> {
        let mut cli = super::Cli::command().disable_help_subcommand(true);
        if let Some(folder) = &self.man {
            clap_mangen::generate_to(cli, folder)
                .with_context(|| format!("cannot write into {}", folder.display()))?;
            return Ok(());
        }
        cli.build();
        let page = markdown(&cli);
        std::io::stdout()
            .write_all(page.as_bytes())
            .context("cannot print the page")?;
        Ok(())
    }
}

const INTRODUCTION: &str = "\
Every flag can be given as a variable of the environment, too, where one is named; a flag wins over it. Exit
codes: 0 where all went well, 1 where not, 2 as `lictor plan` says, and 64 for a command line that is not
understood. Colours are used on a terminal only.
";

/// All commands with all their flags.
fn markdown(cli: &Command) -> String {
    let mut page =
        format!("# Command line\n\n{INTRODUCTION}\n| command | what it does |\n|---|---|\n");
    let commands = || cli.get_subcommands().filter(|it| !it.is_hide_set());
    for command in commands() {
        let name = command.get_name();
        let about = cell(command.get_about());
        let _ = writeln!(page, "| [`lictor {name}`](#lictor-{name}) | {about} |");
    }
    for command in commands() {
        page.push_str(&section(command));
    }
    page
}

fn section(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let mut section = format!(
        "\n## lictor {}\n\n{about}.\n\n```text\n{usage}\n```\n",
        command.get_name()
    );
    let arguments = command.get_arguments();
    let shown = arguments.filter(|it| !it.is_hide_set() && it.get_id() != "help");
    let (named, placed): (Vec<_>, Vec<_>) = shown.partition(|it| it.get_long().is_some());
    for argument in placed {
        let _ = writeln!(section, "\n`{argument}`: {}.", meaning(argument));
    }
    if !named.is_empty() {
        section.push_str("\n| flag | variable | default | meaning |\n|---|---|---|---|\n");
    }
    for flag in named {
        let env = flag.get_env().map(|name| format!("`{}`", name.display()));
        let default = flag.get_default_values().iter();
        let default: Vec<_> = default
            .map(|value| format!("`{}`", value.display()))
            .collect();
        let _ = writeln!(
            section,
            "| `{}` | {} | {} | {} |",
            signature(flag),
            env.unwrap_or_default(),
            if flag.get_action().takes_values() {
                default.join(" ")
            } else {
                String::new()
            },
            meaning(flag),
        );
    }
    section
}

/// A flag as it is written: `-f, --filename FILE`.
fn signature(flag: &Arg) -> String {
    let short = flag.get_short().map(|short| format!("-{short}, "));
    let long = flag.get_long().unwrap_or_default();
    let mut text = format!("{}--{long}", short.unwrap_or_default());
    if flag.get_action().takes_values() {
        for name in flag.get_value_names().unwrap_or_default() {
            let _ = write!(text, " {name}");
        }
    }
    // It would end the cell.
    text.replace('|', "\\|")
}

/// What an argument means, and which values it takes where these are few.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let mut text = cell(help);
    let values = argument.get_possible_values();
    let takes_one_of = argument.get_action().takes_values() && !values.is_empty();
    if takes_one_of {
        let values = values.iter().filter(|value| !value.is_hide_set());
        let values = values.map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), cell(Some(help))),
            None => format!("`{}`", value.get_name()),
        });
        let values: Vec<_> = values.collect();
        let _ = write!(text, ". One of: {}", values.join("; "));
    }
    text
}

/// Text in one cell of a table.
fn cell(text: Option<&StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_and_each_flag_has_its_place_and_its_meaning() {
        let mut cli = super::super::Cli::command().disable_help_subcommand(true);
        cli.build();
        let page = markdown(&cli);
        for command in cli.get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = command.get_name();
            assert!(page.contains(&format!("\n## lictor {name}\n")), "{name}");
            let of_ours = |it: &&Arg| !it.is_hide_set() && it.get_id() != "help";
            for argument in command.get_arguments().filter(of_ours) {
                let help = argument.get_help().map(ToString::to_string);
                let about = format!("{name} {argument}");
                assert!(help.is_some_and(|help| help.len() > 10), "{about}");
            }
        }
        let flag = "| `--lease-namespace NAMESPACE` | `LICTOR_LEASE_NAMESPACE` |  | Namespace of the Lease";
        assert!(page.contains(flag), "{page}");
        assert!(page.contains("| `-f, --filename FILE\\|DIR` |"), "{page}");
        assert!(page.contains("`lease`: By a Lease in Kubernetes"), "{page}");
    }
}
