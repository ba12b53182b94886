//! The demo, run as a newcomer runs it: it fails by itself if a step does not happen in time.

use std::process::Command;

#[test]
fn every_step_of_the_demo_happens() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("demo")
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{shown}\n{told}");
    for step in 1..=6 {
        assert!(shown.contains(&format!("\n{step}. ")), "{shown}");
    }
    assert!(!shown.contains('\x1b'), "colours without a terminal");
}
