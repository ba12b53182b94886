//! The keys of one bed: an authority, a server certificate for loopback, and the key that signs
//! the tokens of `ServiceAccount`s. They live as long as the bed's folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Where the keys of a bed are, and what a client needs of them.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The authority's certificate (PEM).
    pub ca_file: PathBuf,
    /// The authority's certificate (DER), for clients built by hand.
    pub ca_der: Vec<u8>,
    /// The certificate of the servers on 127.0.0.1 (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM).
    pub key_file: PathBuf,
    /// The key that signs the tokens of `ServiceAccount`s (PEM).
    pub sa_key_file: PathBuf,
    /// Its public half (PEM).
    pub sa_public_file: PathBuf,
}

impl Pki {
    /// Makes all keys and writes them to `folder`.
    pub fn generate(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };

        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "lictor test bed");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&ca_key)?;
        let issuer = Issuer::new(params, ca_key);

        let key = KeyPair::generate()?;
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(String::from);
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "lictor test bed server");
        let certificate = params.signed_by(&key, &issuer)?;

        let sa_key = KeyPair::generate()?;
        Ok(Self {
            ca_file: write("ca.crt", ca.pem())?,
            ca_der: ca.der().to_vec(),
            cert_file: write("server.crt", certificate.pem())?,
            key_file: write("server.key", key.serialize_pem())?,
            sa_key_file: write("sa.key", sa_key.serialize_pem())?,
            sa_public_file: write("sa.pub", sa_key.public_key_pem())?,
        })
    }
}
