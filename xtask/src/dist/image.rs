//! An OCI image, as a tar archive of its layout: `skopeo copy oci-archive:…`, `podman load` and
//! `docker load` take it.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, bail};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder,
    RootFsBuilder, SCHEMA_VERSION, Sha256Digest,
};

use serde::Serialize;

use super::archive::{self, Entry};
use super::build::Source;
use super::hex;

/// Nobody in particular; the chart gives the same.
const USER: &str = "65532:65532";
/// Where programs look for the certificates of public authorities.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// What an image runs on.
#[derive(Clone, Debug)]
pub struct Platform(Arch);

impl Platform {
    /// That of a target.
    pub fn of(target: &str) -> Result<Self> {
        match target.split('-').next() {
            Some("x86_64") => Ok(Self(Arch::Amd64)),
            Some("aarch64") => Ok(Self(Arch::ARM64)),
            _ => bail!("there is no image for {target}: x86_64 and aarch64 have one"),
        }
    }
}

/// The files of a layout, by digest those that have one.
#[derive(Default)]
struct Layout {
    entries: Vec<Entry>,
    digests: BTreeSet<String>,
}

impl Layout {
    fn blob(&mut self, media_type: MediaType, bytes: Vec<u8>) -> Result<Descriptor> {
        let (digest, size) = (hex(&bytes), bytes.len() as u64);
        if self.digests.insert(digest.clone()) {
            let path = format!("blobs/sha256/{digest}");
            self.entries.push(Entry::file(path, bytes));
        }
        DescriptorBuilder::default()
            .media_type(media_type)
            .size(size)
            .digest(digest.parse::<Sha256Digest>()?)
            .build()
            .context("cannot describe a blob")
    }
}

/// An image of these binaries.
pub fn layout(platforms: &[(Platform, Vec<u8>)], source: &Source) -> Result<Vec<u8>> {
    let mut layout = Layout::default();
    let mut manifests = Vec::new();
    for (platform, binary) in platforms {
        manifests.push(of_platform(&mut layout, platform, binary, source)?);
    }
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .annotations(labels(source)?)
        .build()?;
    // What a registry holds under the name of the image is one thing.
    let mut image = layout.blob(MediaType::ImageIndex, json(&index)?)?;
    let name = "org.opencontainers.image.ref.name".to_owned();
    image.set_annotations(Some(HashMap::from([(name, source.version.to_owned())])));
    let top = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![image])
        .build()?;
    let version = OciLayoutBuilder::default()
        .image_layout_version("1.0.0")
        .build()?;
    let mut entries = vec![
        Entry::file("oci-layout", json(&version)?),
        Entry::file("index.json", json(&top)?),
    ];
    layout.entries.sort_by_key(|entry| entry.path().to_owned());
    entries.extend(layout.entries);
    archive::tar(&entries, source.time)
}

fn of_platform(
    layout: &mut Layout,
    platform: &Platform,
    binary: &[u8],
    source: &Source,
) -> Result<Descriptor> {
    let files = [
        Entry::file(CERTIFICATES, certificates().into_bytes()),
        Entry::program("lictor", binary.to_vec()),
    ];
    let tar = archive::tar(&files, source.time)?;
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(vec![format!("sha256:{}", hex(&tar))])
        .build()?;
    let config = ConfigBuilder::default()
        .user(USER)
        .entrypoint(vec!["/lictor".to_owned()])
        // For `kubectl exec`.
        .env(vec!["PATH=/".to_owned()])
        .labels(labels(source)?)
        .build()?;
    let config = ImageConfigurationBuilder::default()
        .created(time(source)?)
        .architecture(platform.0.clone())
        .os(Os::Linux)
        .config(config)
        .rootfs(rootfs)
        .history(Vec::new())
        .build()?;
    let config = layout.blob(MediaType::ImageConfig, json(&config)?)?;
    let layer = layout.blob(MediaType::ImageLayerGzip, archive::gzip(&tar)?)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(vec![layer])
        .build()?;
    let mut manifest = layout.blob(MediaType::ImageManifest, json(&manifest)?)?;
    let platform = PlatformBuilder::default()
        .os(Os::Linux)
        .architecture(platform.0.clone())
        .build()?;
    manifest.set_platform(Some(platform));
    Ok(manifest)
}

/// The certificates that Mozilla trusts, for a Consul whose own is of a public authority.
fn certificates() -> String {
    let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    let pem =
        all.map(|certificate| pem::encode(&pem::Pem::new("CERTIFICATE", certificate.as_ref())));
    pem.collect()
}

fn time(source: &Source) -> Result<String> {
    let time = i64::try_from(source.time).context("the time is too late")?;
    Ok(jiff::Timestamp::from_second(time)?.to_string())
}

/// What is said of the image (the predefined keys of the OCI image specification).
fn labels(source: &Source) -> Result<HashMap<String, String>> {
    let labels = [
        ("title", "lictor".to_owned()),
        ("description", "Keeps Consul true to Kubernetes".to_owned()),
        ("licenses", "Apache-2.0".to_owned()),
        ("version", source.version.to_owned()),
        ("revision", source.revision.clone()),
        ("created", time(source)?),
    ];
    let key = |name: &str| format!("org.opencontainers.image.{name}");
    Ok(labels.map(|(name, value)| (key(name), value)).into())
}

/// As JSON, the keys in order: maps have none of their own.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::{Value, json};

    use super::*;

    fn source() -> Source {
        Source {
            version: "1.2.3",
            revision: "abc".to_owned(),
            time: 1_700_000_000,
            is_dirty: false,
        }
    }

    fn files(tar: &[u8]) -> HashMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, (entry.header().mode().unwrap(), bytes))
        });
        entries.collect()
    }

    /// A blob, which is what its descriptor says.
    fn blob(files: &HashMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap();
        let digest = digest.strip_prefix("sha256:").unwrap();
        let (_, bytes) = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(hex(bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    }

    fn parsed(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn each_platform_has_its_binary_and_all_is_found_by_its_digest() {
        let targets = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];
        let platforms = targets.map(|target| {
            let platform = Platform::of(target).unwrap();
            (platform, target.as_bytes().to_vec())
        });
        let image = layout(&platforms, &source()).unwrap();
        let again = layout(&platforms, &source()).unwrap();
        assert!(image == again, "it is the same each time");

        let files = files(&image);
        let version = parsed(&files["oci-layout"].1);
        assert_eq!(version["imageLayoutVersion"], "1.0.0");
        let top = parsed(&files["index.json"].1);
        let name = &top["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
        assert_eq!(name, "1.2.3");
        let index = parsed(&blob(&files, &top["manifests"][0]));
        let found = index["manifests"].as_array().unwrap().iter().map(|of| {
            let manifest = parsed(&blob(&files, of));
            let config = parsed(&blob(&files, &manifest["config"]));
            assert_eq!(config["config"]["User"], USER);
            assert_eq!(config["config"]["Entrypoint"], json!(["/lictor"]));
            assert_eq!(config["config"]["Env"], json!(["PATH=/"]));
            assert_eq!(config["created"], "2023-11-14T22:13:20Z");
            assert_eq!(config["architecture"], of["platform"]["architecture"]);
            let labels = &config["config"]["Labels"];
            assert_eq!(labels["org.opencontainers.image.revision"], "abc");
            let layer = blob(&files, &manifest["layers"][0]);
            let mut tar = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&*layer);
            decoder.read_to_end(&mut tar).unwrap();
            let diff = format!("sha256:{}", hex(&tar));
            assert_eq!(config["rootfs"]["diff_ids"], json!([diff]));
            let inside = self::files(&tar);
            let certificates = String::from_utf8(inside[CERTIFICATES].1.clone()).unwrap();
            assert!(certificates.matches("BEGIN CERTIFICATE").count() > 50);
            let (mode, binary) = &inside["lictor"];
            assert_eq!(*mode, 0o755);
            let architecture = of["platform"]["architecture"].as_str().unwrap().to_owned();
            (architecture, String::from_utf8(binary.clone()).unwrap())
        });
        let expected = ["amd64", "arm64"].into_iter().zip(targets);
        let expected = expected.map(|(of, target)| (of.to_owned(), target.to_owned()));
        assert!(found.eq(expected));
    }
}
