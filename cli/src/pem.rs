//! A folder with an identity as PEM files, for programs that are not ours.
//!
//! The three files are replaced at once: they are links into a hidden folder, itself a link, and only
//! that one changes. A program that reads them when the folder changes, as Envoy does, never finds a
//! key beside another key's certificate.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use pillion_net::identity::Identity;
use pillion_net::tls::PeerCertificate;
use pillion_proxy::sidecar::{IdentityStore, StorageError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// `chain.pem` (the leaf first), `key.pem` (mode 0600) and `roots.pem` in one folder.
pub(crate) struct PemFolder {
    folder: PathBuf,
}

impl PemFolder {
    /// Makes the folder (mode 0700) unless it is there. Its name becomes absolute: who reads the files
    /// may be started anywhere.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<Self> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("find {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// A file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The certificate chain.
    pub(crate) fn chain(&self) -> PathBuf {
        self.file(CHAIN)
    }

    /// The key.
    pub(crate) fn key(&self) -> PathBuf {
        self.file(KEY)
    }

    /// The mesh's root certificates.
    pub(crate) fn roots(&self) -> PathBuf {
        self.file(ROOTS)
    }

    /// Replaces the three files at once.
    pub(crate) fn write(&self, identity: &Identity) -> anyhow::Result<()> {
        let version = format!("{CURRENT}-{:016x}", fastrand::u64(..));
        let made = std::fs::create_dir(self.file(&version));
        made.with_context(|| format!("create {}", self.file(&version).display()))?;
        let files = [
            (ROOTS, identity.roots_pem(), 0o644),
            (KEY, identity.key_pem(), 0o600),
            (CHAIN, identity.chain_pem(), 0o644),
        ];
        for (name, text, mode) in &files {
            write(&self.file(&version).join(name), text, *mode)?;
        }
        let old = std::fs::read_link(self.file(CURRENT)).ok();
        link(Path::new(&version), &self.file(CURRENT))?;
        for (name, _, _) in &files {
            let target = Path::new(CURRENT).join(name);
            if std::fs::read_link(self.file(name)).ok().as_ref() != Some(&target) {
                link(&target, &self.file(name))?;
            }
        }
        if let Some(old) = old {
            let old = self.folder.join(old);
            std::fs::remove_dir_all(&old).with_context(|| format!("remove {}", old.display()))?;
        }
        Ok(())
    }

    /// The certificate in the folder, expired or not; `None` where there is none.
    pub(crate) fn leaf(&self) -> anyhow::Result<Option<PeerCertificate>> {
        let file = self.chain();
        if !file.exists() {
            return Ok(None);
        }
        let read = || -> anyhow::Result<PeerCertificate> {
            let certificates = CertificateDer::pem_file_iter(&file)?.collect::<Result<Vec<_>, _>>()?;
            Ok(PeerCertificate::parse(&certificates)?)
        };
        read().map(Some).with_context(|| format!("the certificate in {} cannot be used", file.display()))
    }

    /// The identity in the folder, expired or not; `None` where a file is missing.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Identity>> {
        let files = [self.chain(), self.key(), self.roots()];
        if !files.iter().all(|file| file.exists()) {
            return Ok(None);
        }
        let [chain, key, roots] =
            files.map(|file| std::fs::read(&file).with_context(|| format!("read {}", file.display())));
        let (chain, key, roots) = (chain?, key?, roots?);
        let read = || -> anyhow::Result<Identity> {
            let certificates = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>()?;
            let leaf = PeerCertificate::parse(&certificates)?;
            let id = leaf.spiffe_id().context("the certificate names no identity of a mesh")?;
            // The zone is in no certificate, and whoever holds these files needs none.
            Ok(Identity::from_pem(&chain, &key, &roots, id.trust_domain().clone(), "")?)
        };
        let at = || format!("the certificate, key and roots in {} cannot be used", self.folder.display());
        read().map(Some).with_context(at)
    }
}

impl IdentityStore for PemFolder {
    fn load(&self) -> Result<Option<Identity>, StorageError> {
        Ok(self.read()?)
    }

    fn save(&self, identity: &Identity) -> Result<(), StorageError> {
        Ok(self.write(identity)?)
    }
}

/// Writes a file beside its place and renames it: a reader finds the old or the new one.
pub(crate) fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    write(&next(file), text, 0o644)?;
    rename(file)
}

fn write(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(mode).open(file);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("write {}", file.display()))
}

/// Makes `file` a link to `target`, whatever it was.
fn link(target: &Path, file: &Path) -> anyhow::Result<()> {
    let next = next(file);
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", next.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(target, &next).with_context(|| format!("link {}", next.display()))?;
    rename(file)
}

fn rename(file: &Path) -> anyhow::Result<()> {
    std::fs::rename(next(file), file).with_context(|| format!("replace {}", file.display()))
}

fn next(file: &Path) -> PathBuf {
    file.with_added_extension("next")
}

const CHAIN: &str = "chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "roots.pem";
/// The link to the folder with the files of the moment.
const CURRENT: &str = ".pem";
