//! `lictor crds`.

use std::io::Write as _;

use super::Failure;
use crate::api;

pub(super) fn execute() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for crd in api::crds() {
        let yaml = api::crd_yaml(&crd)?;
        write!(out, "---\n{yaml}")?;
        if !yaml.ends_with('\n') {
            writeln!(out)?;
        }
    }
    Ok(())
}
