//! An authority whose certificate and key are in files: a root, or an intermediate that another root
//! signed, such as a company's. Pillion keeps neither of them, and changes neither.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillion_config::DurationText;
use rcgen::KeyPair;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;

use super::root::{Signer, key_hash};

/// Where the authority is kept, PEM. They are read once, at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFiles {
    /// The certificate that signs; what follows it counts as part of the chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Every certificate above it up to the root. Further roots are trusted as well.
    pub chain: Option<PathBuf>,
}

/// Why files make no authority.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {reason}")]
pub struct FilesError {
    flag: &'static str,
    path: String,
    reason: String,
}

/// An authority from files, checked.
pub(super) struct Given {
    pub(super) signer: Arc<Signer>,
    /// What goes with each leaf: the signer itself unless it is a root, and everything above it that is none.
    pub(super) above: Vec<CertificateDer<'static>>,
    /// Who is trusted, the signer's root first.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// SHA-256 of their public keys.
    pub(super) hashes: Vec<[u8; 32]>,
    /// Whether the path has no room for an authority of this registry: then this one signs leaves itself.
    pub(super) signs_leaves: bool,
}

impl CaFiles {
    /// Reads and checks them.
    ///
    /// # Errors
    ///
    /// [`FilesError`] names the file, what is wrong with it, and what would be right.
    pub(super) fn read(&self, now: SystemTime) -> Result<Given, FilesError> {
        let mut certificates = certificates("--ca-cert", &self.certificate)?;
        let wrong = |reason| FilesError::new("--ca-cert", &self.certificate, reason);
        if certificates.is_empty() {
            return Err(wrong("it holds no certificate in PEM".to_owned()));
        }
        let mut others = certificates.split_off(1);
        let certificate = certificates.remove(0);
        check_signer(&certificate, now).map_err(wrong)?;
        let key = self.key()?;
        let signer = Signer::read(certificate.clone(), key).map_err(|_| {
            FilesError::new("--ca-key", &self.key, "it is not the key of --ca-cert's certificate".to_owned())
        })?;
        if let Some(chain) = &self.chain {
            others.extend(self::certificates("--ca-chain", chain)?);
        }
        let above = |reason| match &self.chain {
            Some(chain) => FilesError::new("--ca-chain", chain, reason),
            None => wrong(reason),
        };
        let path = path(certificate, &others, now).map_err(above)?;
        let room = room(&path).map_err(above)?;
        let mut roots = vec![path[path.len() - 1].clone()];
        let mut sent = path[..path.len() - 1].to_vec();
        for other in others {
            let parsed = parse(&other).map_err(above)?;
            let list = if is_root(&parsed) { &mut roots } else { &mut sent };
            if !list.contains(&other) {
                check_authority(&parsed, now).map_err(above)?;
                list.push(other);
            }
        }
        let hashes = roots.iter().map(key_hash).collect::<Result<_, _>>();
        let hashes = hashes.map_err(|error| above(error.to_string()))?;
        Ok(Given { signer: Arc::new(signer), above: sent, roots, hashes, signs_leaves: room == 0 })
    }

    fn key(&self) -> Result<KeyPair, FilesError> {
        let wrong = |reason: &str| FilesError::new("--ca-key", &self.key, reason.to_owned());
        let text = std::fs::read(&self.key).map_err(|error| wrong(&error.to_string()))?;
        if text.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
            return Err(wrong("the key is encrypted; want it in the clear, as `openssl pkey` writes it"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(&text).map_err(|_| wrong("it holds no private key in PEM"))?;
        KeyPair::try_from(&key).map_err(|_| wrong(WANT_KEY))
    }
}

impl FilesError {
    fn new(flag: &'static str, path: &Path, reason: String) -> Self {
        Self { flag, path: path.display().to_string(), reason }
    }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let wrong = |reason| FilesError::new(flag, path, reason);
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| wrong(format!("it cannot be read as PEM: {error}")))?;
    if all.len() > CERTIFICATES_MAX {
        return Err(wrong(format!("it holds {} certificates; want {CERTIFICATES_MAX} at most", all.len())));
    }
    Ok(all)
}

/// From the signer up to its root, both included.
fn path(
    signer: CertificateDer<'static>,
    others: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut path = vec![signer];
    loop {
        let below = parse(&path[path.len() - 1])?;
        if is_root(&below) {
            return Ok(path);
        }
        let named = |other: &&CertificateDer<'static>| {
            !path.contains(other)
                && parse(other).is_ok_and(|above| above.subject().as_raw() == below.issuer().as_raw())
        };
        let candidates: Vec<_> = others.iter().filter(named).collect();
        let signed = |other: &&&CertificateDer<'static>| {
            parse(other).is_ok_and(|above| below.verify_signature(Some(above.public_key())).is_ok())
        };
        let above = candidates.iter().find(signed).copied();
        // A key that is too weak verifies nothing.
        if let (None, Some(candidate)) = (above, candidates.first()) {
            check_authority(&parse(candidate)?, now)?;
        }
        let Some(above) = above else {
            return Err(format!(
                "the certificate of `{}`, which signed `{}`, is missing; want every one up to the root \
                 (--ca-chain)",
                below.issuer(),
                below.subject()
            ));
        };
        check_authority(&parse(above)?, now)?;
        path.push(above.clone());
    }
}

/// How many authorities fit between the signer and a leaf.
fn room(path: &[CertificateDer<'static>]) -> Result<u32, String> {
    let mut room = u32::MAX;
    for (below, certificate) in path.iter().enumerate() {
        let parsed = parse(certificate)?;
        let constraints = parsed.basic_constraints().map_err(|error| error.to_string())?;
        let Some(limit) = constraints.and_then(|found| found.value.path_len_constraint) else { continue };
        let below = u32::try_from(below).unwrap_or(u32::MAX);
        room = room.min(limit.checked_sub(below).ok_or_else(|| {
            format!(
                "`{}` allows {limit} authorities below it (pathlen), and there are {below}",
                parsed.subject()
            )
        })?);
    }
    Ok(room)
}

/// The one that signs: we make its signatures, so its key is one that we handle.
fn check_signer(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<(), String> {
    let parsed = parse(certificate)?;
    check_authority(&parsed, now)?;
    match parsed.public_key().parsed() {
        Ok(PublicKey::EC(point)) if [256, 384].contains(&point.key_size()) => Ok(()),
        _ => Err(format!("{WANT_KEY}; it has {}", key_kind(&parsed))),
    }
}

/// What holds for every certificate on the path.
fn check_authority(parsed: &X509Certificate<'_>, now: SystemTime) -> Result<(), String> {
    let subject = parsed.subject();
    let constraints = parsed.basic_constraints().map_err(|error| error.to_string())?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err(format!("`{subject}` is no authority; want basicConstraints CA:TRUE"));
    }
    let usage = parsed.key_usage().map_err(|error| error.to_string())?;
    if !usage.is_some_and(|found| found.value.key_cert_sign()) {
        return Err(format!("`{subject}` may not sign certificates; want keyUsage keyCertSign"));
    }
    match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < RSA_BITS_MIN => {
            return Err(format!(
                "`{subject}` has a weak key, {}; want RSA of {RSA_BITS_MIN} bits or more, or ECDSA",
                key_kind(parsed)
            ));
        }
        Ok(PublicKey::RSA(_) | PublicKey::EC(_)) => {}
        _ => return Err(format!("`{subject}` has {}; want an RSA or ECDSA key", key_kind(parsed))),
    }
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let apart = |seconds: i64| DurationText(Duration::from_secs(seconds.unsigned_abs()));
    let validity = parsed.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if end <= seconds {
        return Err(format!("`{subject}` expired {} ago", apart(seconds - end)));
    }
    if begin > seconds {
        return Err(format!(
            "`{subject}` becomes valid in {}; are the clocks right?",
            apart(begin - seconds)
        ));
    }
    Ok(())
}

fn key_kind(parsed: &X509Certificate<'_>) -> String {
    match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA of {} bits", key.key_size()),
        Ok(PublicKey::EC(point)) => format!("ECDSA of {} bits", point.key_size()),
        _ => format!("a key of kind {}", parsed.public_key().algorithm.algorithm),
    }
}

fn is_root(parsed: &X509Certificate<'_>) -> bool {
    parsed.subject().as_raw() == parsed.issuer().as_raw() && parsed.verify_signature(None).is_ok()
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|error| format!("a certificate cannot be read: {error}"))
}

const CERTIFICATES_MAX: usize = 16;
const RSA_BITS_MIN: usize = 2048;
const ENCRYPTED: &[u8] = b"ENCRYPTED";
const WANT_KEY: &str = "want a key of ECDSA P-256 (best) or P-384";
