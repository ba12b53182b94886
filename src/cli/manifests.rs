//! Manifests in files, folders and standard input.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::complain;
use crate::preview::manifests;

/// The largest file that is read.
const LARGEST: u64 = 64 << 20;

/// All objects of the files.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in files {
        if path.as_os_str() == "-" {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                complain("reading manifests from standard input");
            }
            objects.extend(read_one(stdin, "standard input")?);
            continue;
        }
        for file in found(path)? {
            let name = file.display().to_string();
            let opened =
                File::open(&file).with_context(|| format!("cannot read {name}: see --filename"))?;
            objects.extend(read_one(opened, &name)?);
        }
    }
    Ok(objects)
}

/// All objects of one file. A part of one would be taken for all that there is.
fn read_one(file: impl Read, name: &str) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    file.take(LARGEST + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {name}: see --filename"))?;
    if text.len() as u64 > LARGEST {
        let most = LARGEST >> 20;
        bail!("{name} is larger than {most} MiB: name the files that hold manifests");
    }
    manifests::parse(&text, name)
}

/// A file itself; of a folder all that may be manifests, in the order of their names.
fn found(path: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut folders = vec![path.to_owned()];
    if !path.is_dir() {
        return Ok([path.to_owned()].into());
    }
    while let Some(folder) = folders.pop() {
        let name = folder.display();
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {name}: see --filename"))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {name}: see --filename"))?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let extension = path.extension().and_then(|it| it.to_str());
            if kind.is_dir() {
                folders.push(path);
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                files.insert(path);
            }
        }
    }
    if files.is_empty() {
        let path = path.display();
        bail!("{path} has no *.yaml, *.yml or *.json: name a file, or a folder that has some");
    }
    Ok(files)
}
