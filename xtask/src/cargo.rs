use std::{env, process::Command};

/// The cargo that runs us, to be given arguments.
///
/// It does not get what that cargo tells us about our own package: build scripts that look at it
/// would run again, and with them everything that depends on them.
pub fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let ours = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
                .iter()
                .any(|own| name.starts_with(own))
        });
        if ours {
            command.env_remove(name);
        }
    }
    command
}
