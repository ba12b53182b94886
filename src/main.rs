//! The `lictor` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lictor::cli::main()
}
