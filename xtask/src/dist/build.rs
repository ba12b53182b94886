//! The static binary of a target, and what is in it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lictor_testbed::tools;

use crate::cargo;

/// Static on Linux, of this machine's architecture.
#[cfg(target_arch = "aarch64")]
pub const HOST_TARGET: &str = "aarch64-unknown-linux-musl";
/// Static on Linux, of this machine's architecture.
#[cfg(not(target_arch = "aarch64"))]
pub const HOST_TARGET: &str = "x86_64-unknown-linux-musl";

/// Puts the list of all dependencies into the binary, where scanners look for it.
const AUDITABLE: Tool = Tool {
    name: "cargo-auditable",
    version: "0.7.7",
};
/// Writes the same list as `CycloneDX`.
const CYCLONEDX: Tool = Tool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
};

/// A cargo command that is installed once into the cache.
struct Tool {
    name: &'static str,
    version: &'static str,
}

/// What is built.
#[derive(Clone, Debug)]
pub struct Source {
    /// The version.
    pub version: &'static str,
    /// The commit.
    pub revision: String,
    /// Its time, or that of `SOURCE_DATE_EPOCH`, in seconds since 1970.
    pub time: u64,
    /// Whether there are changes that are not committed.
    pub is_dirty: bool,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// The binary.
    pub binary: PathBuf,
    /// What it is made of, as `CycloneDX`.
    pub sbom: Vec<u8>,
}

impl Source {
    /// What is checked out here.
    pub fn of_this() -> Result<Self> {
        let given = env::var("SOURCE_DATE_EPOCH").ok();
        let time = given.map_or_else(|| git(&["log", "-1", "--format=%ct"]), Ok)?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            revision: git(&["rev-parse", "HEAD"])?,
            time: time
                .parse()
                .with_context(|| format!("{time:?} is no time in seconds since 1970"))?,
            is_dirty: !git(&["status", "--porcelain"])?.is_empty(),
        })
    }
}

fn git(args: &[&str]) -> Result<String> {
    text_of(Command::new("git").args(args))
}

fn text_of(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

impl Tool {
    /// The folder of the installed binary.
    fn folder(&self) -> Result<PathBuf> {
        let root = tools::cache_folder()?.join(format!("{}-{}", self.name, self.version));
        if !root.join("bin").join(self.name).exists() {
            // Its release profile asks for the slowest build there is, for seconds of work.
            let mut install = cargo::command();
            install
                .args(["install", "--locked", self.name, "--version", self.version])
                .arg("--root")
                .arg(&root)
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
            run(&mut install)?;
        }
        Ok(root.join("bin"))
    }

    /// Cargo, which finds this command.
    fn cargo(&self) -> Result<Command> {
        let folder = self.folder()?;
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [folder].into_iter().chain(env::split_paths(&path));
        let mut command = cargo::command();
        command.env("PATH", env::join_paths(folders)?);
        Ok(command)
    }
}

/// Builds for a target.
pub fn build(target: &str, source: &Source) -> Result<Built> {
    add_target(target)?;
    let root = env::current_dir().context("cannot tell the current folder")?;
    let out = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut cargo = AUDITABLE.cargo()?;
    cargo
        .args(["auditable", "build", "--release", "--locked"])
        .args(["--package", "lictor", "--bin", "lictor"])
        .args(["--target", target])
        .env("SOURCE_DATE_EPOCH", source.time.to_string())
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&root)?.join("\u{1f}"))
        .env(format!("CFLAGS_{target}"), c_flags(&root)?);
    if let Some(compiler) = c_compiler(target)? {
        cargo.env(format!("CC_{target}"), compiler);
    }
    run(&mut cargo)?;
    Ok(Built {
        binary: out.join(target).join("release").join("lictor"),
        sbom: sbom(target, source, &root)?,
    })
}

/// Rustup knows the standard library of a target, where it is there.
fn add_target(target: &str) -> Result<()> {
    let installed = text_of(Command::new("rustc").args(["--print", "sysroot"]))?;
    let library = Path::new(&installed).join("lib/rustlib").join(target);
    if library.exists() {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("the standard library for {target} is not installed"))
}

/// Where sources are on this machine, and what they are called instead.
fn renamed(root: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| home.map(|home| home.join(".cargo")));
    let cargo = cargo.context("neither CARGO_HOME nor HOME is set")?;
    Ok(vec![(root.to_owned(), "/lictor"), (cargo, "/cargo")])
}

fn rust_flags(root: &Path) -> Result<Vec<String>> {
    let renamed = renamed(root)?.into_iter();
    let renamed = renamed.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    let linker = [
        "-Clink-arg=-Wl,--build-id=none",
        "-Ctarget-feature=+crt-static",
    ];
    Ok(renamed.chain(linker.map(str::to_owned)).collect())
}

fn c_flags(root: &Path) -> Result<String> {
    let renamed = renamed(root)?.into_iter();
    let flags = renamed.map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
    Ok(flags.collect::<Vec<_>>().join(" "))
}

/// The C compiler, where cargo's build scripts would not find the right one by themselves.
fn c_compiler(target: &str) -> Result<Option<&'static str>> {
    let is_given = env::var_os(format!("CC_{target}")).is_some();
    if is_given || !target.ends_with("-musl") {
        return Ok(None);
    }
    ensure!(
        target == HOST_TARGET,
        "{target} is of another architecture: give its C compiler in CC_{target} and its linker in \
         CARGO_TARGET_{}_LINKER",
        target.to_uppercase().replace('-', "_")
    );
    let compiler = "musl-gcc";
    let is_there = Command::new(compiler).arg("--version").output().is_ok();
    ensure!(
        is_there,
        "{compiler} is not installed (Debian: apt-get install musl-tools)"
    );
    Ok(Some(compiler))
}

/// What the binary is made of. What says when and where it was written is left out.
fn sbom(target: &str, source: &Source, root: &Path) -> Result<Vec<u8>> {
    let name = format!("lictor-{}-{target}", std::process::id());
    let mut cargo = CYCLONEDX.cargo()?;
    cargo
        .args(["cyclonedx", "--format", "json", "--spec-version", "1.5"])
        .args(["--no-build-deps", "--quiet", "--target", target])
        .args(["--override-filename", &name])
        .env("SOURCE_DATE_EPOCH", source.time.to_string());
    run(&mut cargo)?;
    // It writes one beside each manifest of the workspace, and nowhere else.
    let written =
        [".", "testbed", "xtask"].map(|folder| root.join(folder).join(format!("{name}.json")));
    let sbom = fs::read_to_string(&written[0])
        .with_context(|| format!("{} wrote no SBOM", CYCLONEDX.name));
    for file in written.iter().filter(|file| file.exists()) {
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    let sbom = sbom?.replace(&root.display().to_string(), "/lictor");
    let mut sbom: serde_json::Value = serde_json::from_str(&sbom)?;
    if let Some(sbom) = sbom.as_object_mut() {
        sbom.remove("serialNumber");
    }
    Ok(serde_json::to_vec_pretty(&sbom)?)
}

/// Whether a Linux binary asks for no dynamic linker: it has no program header of type `PT_INTERP`
/// (elf(5)).
pub fn is_static(binary: &[u8]) -> Result<bool> {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = binary.get(at..at + size)?;
        let digits = bytes.iter().rev();
        Some(digits.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    ensure!(
        binary.starts_with(b"\x7fELF\x02\x01"),
        "it is no little-endian 64-bit ELF binary"
    );
    let headers = (|| {
        let first = usize::try_from(number(32, 8)?).ok()?;
        let size = usize::try_from(number(54, 2)?).ok()?;
        let count = usize::try_from(number(56, 2)?).ok()?;
        (0..count)
            .map(|nth| number(first + nth * size, 4))
            .collect::<Option<Vec<u64>>>()
    })();
    let headers = headers.context("its program headers are cut off")?;
    Ok(!headers.contains(&u64::from(INTERPRETER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_needs_a_dynamic_linker_is_told() {
        // The test itself is linked as cargo does by default.
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        let by_default = cfg!(all(target_os = "linux", target_env = "gnu"));
        assert_eq!(is_static(&this).unwrap(), !by_default);
        assert!(is_static(b"#!/bin/sh").is_err());
        assert!(is_static(&this[..60]).is_err());
    }
}
