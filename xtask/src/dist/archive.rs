//! Archives that are the same whenever and wherever they are made.

use std::io::Write as _;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A file in an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    path: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl Entry {
    /// A file that everybody may read.
    pub fn file(path: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            mode: 0o644,
            bytes,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A file that everybody may run.
    pub fn program(path: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            mode: 0o755,
            ..Self::file(path, bytes)
        }
    }
}

/// A tar archive of these files and the folders that they are in, all of root and of this time, in seconds
/// since 1970.
pub fn tar(entries: &[Entry], time: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut folders: Vec<&str> = Vec::new();
    for entry in entries {
        for (at, _) in entry.path.match_indices('/') {
            let folder = &entry.path[..=at];
            if !folders.contains(&folder) {
                folders.push(folder);
                let header = header(EntryType::Directory, 0o755, 0, time);
                append(&mut archive, header, folder, &[])?;
            }
        }
        let size = entry.bytes.len() as u64;
        let header = header(EntryType::Regular, entry.mode, size, time);
        append(&mut archive, header, &entry.path, &entry.bytes)?;
    }
    archive.into_inner().context("cannot end an archive")
}

fn header(kind: EntryType, mode: u32, size: u64, time: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header.set_size(size);
    header
}

fn append(
    archive: &mut Builder<Vec<u8>>,
    mut header: Header,
    path: &str,
    bytes: &[u8],
) -> Result<()> {
    archive
        .append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot put {path} into an archive"))
}

/// Compressed, with neither a name nor a time.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        // "Unknown", instead of the system that it was made on (RFC 1952).
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("cannot compress")?;
    encoder.finish().context("cannot compress")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_all_is_of_root() {
        let entries = [
            Entry::file("a/b/text", b"hello".to_vec()),
            Entry::program("a/run", vec![1]),
        ];
        let bytes = tar(&entries, 7).unwrap();
        assert_eq!(bytes, tar(&entries, 7).unwrap());
        let mut archive = tar::Archive::new(&*bytes);
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let header = entry.header();
                let of = (header.uid().unwrap(), header.mtime().unwrap());
                assert_eq!(of, (0, 7));
                (path, header.mode().unwrap(), content.len())
            })
            .collect();
        let expected = [
            ("a/", 0o755, 0),
            ("a/b/", 0o755, 0),
            ("a/b/text", 0o644, 5),
            ("a/run", 0o755, 1),
        ];
        let expected = expected.map(|(path, mode, size)| (path.to_owned(), mode, size));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_compressed_says_nothing_of_when_and_where() {
        let bytes = gzip(b"text").unwrap();
        assert_eq!(bytes[4..8], [0; 4], "time");
        assert_eq!(bytes[9], 255, "system");
        let mut text = String::new();
        let mut decoder = flate2::read::GzDecoder::new(&*bytes);
        decoder.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
}
