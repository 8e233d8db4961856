//! Seals the keys of roots: what the store, its backups and its copies hold is of no use without the
//! sealing key, which is in a file of its own.

use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

/// A sealing key: AES-256-GCM, with a random nonce for each sealing.
pub struct Seal(RandomizedNonceKey);

/// The file of the sealing key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("--seal-key-file {path}: {reason}; want 64 hex digits, as `openssl rand -hex 32` prints them")]
pub struct SealError {
    path: String,
    reason: String,
}

impl Seal {
    /// Reads the key from a file.
    ///
    /// # Errors
    ///
    /// [`SealError`] if it cannot be read or holds no key.
    pub fn open_file(path: &Path) -> Result<Self, SealError> {
        let failed = |reason: String| SealError { path: path.display().to_string(), reason };
        let text = read(path).map_err(|error| failed(error.to_string()))?;
        let digits = text.trim().as_bytes();
        if digits.len() != 2 * KEY_LEN || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(failed(format!("it holds {} characters that are no such key", digits.len())));
        }
        let nibble = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
        let key: Vec<u8> = digits.chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect();
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key);
        Ok(Self(key.map_err(|_| failed("it is not usable as a key".to_owned()))?))
    }

    /// Seals a key for the certificate it belongs to: nonce, ciphertext, tag.
    pub(super) fn seal(&self, key: &[u8], certificate: &[u8]) -> Vec<u8> {
        let mut sealed = key.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(certificate), &mut sealed);
        let nonce = nonce.expect("a key of a few hundred bytes can be sealed");
        [&nonce.as_ref()[..], &sealed].concat()
    }

    /// The key that was sealed for this certificate; `None` by another sealing key, or if it was changed.
    pub(super) fn unseal(&self, sealed: &[u8], certificate: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        self.0.open_in_place(nonce, Aad::from(certificate), &mut sealed).ok().map(|key| key.to_vec())
    }
}

/// Without the key.
impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Reads a little more than a key has.
fn read(path: &Path) -> std::io::Result<String> {
    let file = std::fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & OTHERS_MAY_WRITE != 0 {
        return Err(std::io::Error::other("others than its owner may write it; want chmod 600"));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

const OTHERS_MAY_WRITE: u32 = 0o022;
const FILE_BYTES_MAX: u64 = 4096;
