//! What is released: for each target a static binary in an archive and its SBOM, and one OCI image of all.

mod archive;
mod build;
mod image;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use archive::Entry;
use build::Built;
pub use build::Source;

/// Build what is released: a static binary, an archive of it, its SBOM and an OCI image. The same
/// commit, toolchain and target give the same bytes.
///
/// Needs a C compiler for musl: `musl-gcc` (Debian: musl-tools) for this machine's own architecture.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Target to build for; may be repeated, and the image is then for all of them. Another
    /// architecture than this machine's needs its C compiler in `CC_<target>` and its linker in
    /// `CARGO_TARGET_<TARGET>_LINKER`.
    #[arg(long = "target", value_name = "TRIPLE", default_value = build::HOST_TARGET)]
    targets: Vec<String>,
    /// Folder that it is put into.
    #[arg(long, value_name = "DIR", default_value = "dist")]
    out: PathBuf,
}

impl Args {
    /// Builds all of it. Prints what was made.
    #[allow(clippy::unused_async, reason = "all commands are")]
    pub async fn run(self) -> Result<ExitCode> {
        // All of it waits for other programs.
        tokio::task::block_in_place(|| self.build())?;
        Ok(ExitCode::SUCCESS)
    }

    fn build(self) -> Result<()> {
        let source = Source::of_this()?;
        if source.is_dirty {
            eprintln!("warning: what is built has changes that are not committed");
        }
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        let mut made = Vec::new();
        let mut platforms = Vec::new();
        for target in &self.targets {
            let built = build::build(target, &source)?;
            let binary = fs::read(&built.binary)
                .with_context(|| format!("cannot read {}", built.binary.display()))?;
            ensure!(
                build::is_static(&binary)?,
                "{} asks for a dynamic linker: it runs in no empty image",
                built.binary.display()
            );
            let name = format!("lictor-{}-{target}", source.version);
            let entries = release(&name, binary.clone(), &built)?;
            let archive = archive::gzip(&archive::tar(&entries, source.time)?)?;
            made.push(put(&self.out, &format!("{name}.tar.gz"), &archive)?);
            made.push(put(&self.out, &format!("{name}.cdx.json"), &built.sbom)?);
            platforms.push((image::Platform::of(target)?, binary));
        }
        let image = image::layout(&platforms, &source)?;
        let name = format!("lictor-{}-oci.tar", source.version);
        made.push(put(&self.out, &name, &image)?);
        let sums: String = made.iter().map(Made::sum).collect();
        fs::write(self.out.join("SHA256SUMS"), sums).context("cannot write SHA256SUMS")?;
        for file in &made {
            println!("{:>9}  {}", file.size, file.path.display());
        }
        Ok(())
    }
}

/// A file that was made.
struct Made {
    path: PathBuf,
    name: String,
    size: usize,
    digest: String,
}

impl Made {
    /// Its line in SHA256SUMS.
    fn sum(&self) -> String {
        format!("{}  {}\n", self.digest, self.name)
    }
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> Result<Made> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Made {
        name: name.to_owned(),
        size: bytes.len(),
        digest: hex(bytes),
        path,
    })
}

/// The SHA-256 of bytes, in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What is in the archive of a release: the binary, how it is used, and what it is given under.
fn release(name: &str, binary: Vec<u8>, built: &Built) -> Result<Vec<Entry>> {
    let mut entries = vec![Entry::program(format!("{name}/lictor"), binary)];
    for file in ["LICENSE", "README.md", "CHANGELOG.md"] {
        let bytes = fs::read(file).with_context(|| format!("cannot read {file}"))?;
        entries.push(Entry::file(format!("{name}/{file}"), bytes));
    }
    let mut pages: Vec<PathBuf> = fs::read_dir("docs/man")
        .context("cannot list docs/man")?
        .map(|page| Ok(page?.path()))
        .collect::<Result<_>>()?;
    pages.sort();
    for page in pages {
        let file = page.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::read(&page).with_context(|| format!("cannot read {}", page.display()))?;
        entries.push(Entry::file(format!("{name}/man/{file}"), bytes));
    }
    let sbom = format!("{name}/lictor.cdx.json");
    entries.push(Entry::file(sbom, built.sbom.clone()));
    Ok(entries)
}
