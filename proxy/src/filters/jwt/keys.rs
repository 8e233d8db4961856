//! Key sets (RFC 7517) and the signatures they check. Which algorithm a key is good for is the key's
//! to say, not the token's.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use base64::Engine as _;
use serde_json::{Map, Value};

use super::status::Status;
use super::token::{Algorithm, BASE64, Token};

/// The keys of an issuer.
#[derive(Debug)]
pub(crate) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    /// Empty: not said.
    id: String,
    /// The only one it is good for; `None`: those of its type.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point, not compressed.
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
    P521,
}

/// Keys of a set that are read.
const KEYS_MAX: usize = 256;

impl Keys {
    /// Reads a key set. Keys that are not understood are left out.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in Envoy's words.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let set: Map<String, Value> = serde_json::from_slice(text).map_err(|_| "Jwks is an invalid JSON")?;
        let keys = set.get("keys").ok_or("Jwks does not have [keys] field")?;
        let keys = keys.as_array().ok_or("[keys] in Jwks is not an array")?;
        if keys.len() > KEYS_MAX {
            return Err("Jwks has more than 256 keys");
        }
        let keys: Vec<Key> = keys.iter().filter_map(|key| Key::parse(key.as_object()?)).collect();
        if keys.is_empty() {
            return Err("Jwks doesn't have any valid public key");
        }
        Ok(Self(keys))
    }

    /// Checks a token's signature.
    pub(super) fn verify(&self, token: &Token<'_>) -> Result<(), Status> {
        let mut failed = Status::NoKey;
        for key in &self.0 {
            let other_id = !token.key_id.is_empty() && !key.id.is_empty() && key.id != token.key_id;
            if other_id || key.algorithm.is_some_and(|algorithm| algorithm != token.algorithm) {
                continue;
            }
            if matches!(key.material, Material::Ed25519(_)) && token.signature.len() != 64 {
                return Err(Status::SignatureLength);
            }
            if key.material.verifies(token) {
                return Ok(());
            }
            failed = Status::Verification;
        }
        Err(failed)
    }
}

impl Key {
    fn parse(fields: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| match fields.get(name) {
            None => Some(""),
            Some(value) => value.as_str(),
        };
        let bytes =
            |name: &str| BASE64.decode(fields.get(name)?.as_str()?).ok().filter(|bytes| !bytes.is_empty());
        let algorithm = match text("alg")? {
            "" => None,
            name => Some(Algorithm::parse(name)?),
        };
        let material = match fields.get("kty")?.as_str()? {
            "RSA" => Material::Rsa { n: bytes("n")?, e: bytes("e")? },
            "EC" => {
                let curve = Curve::parse(text("crv")?)?;
                let point = curve.point(&bytes("x")?, &bytes("y")?)?;
                Material::Ec { curve, point }
            }
            "OKP" if text("crv")? == "Ed25519" => {
                Material::Ed25519(bytes("x").filter(|key| key.len() == 32)?)
            }
            "oct" => Material::Secret(bytes("k")?),
            _ => return None,
        };
        if algorithm.is_some_and(|algorithm| !material.suits(algorithm)) {
            return None;
        }
        Some(Self { id: text("kid")?.to_owned(), algorithm, material })
    }
}

impl Curve {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// SEC 1 section 2.3.3.
    fn point(self, x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
        let length: usize = match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        };
        let mut point = vec![4];
        for coordinate in [x, y] {
            point.extend(std::iter::repeat_n(0, length.checked_sub(coordinate.len())?));
            point.extend_from_slice(coordinate);
        }
        Some(point)
    }
}

impl Material {
    /// Whether it is of the type that the algorithm needs.
    fn suits(&self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        match (self, algorithm) {
            (Self::Rsa { .. }, A::Rs256 | A::Rs384 | A::Rs512 | A::Ps256 | A::Ps384 | A::Ps512)
            | (Self::Ed25519(_), A::EdDsa)
            | (Self::Secret(_), A::Hs256 | A::Hs384 | A::Hs512) => true,
            (Self::Ec { curve, .. }, algorithm) => matches!(
                (curve, algorithm),
                (Curve::P256, A::Es256) | (Curve::P384, A::Es384) | (Curve::P521, A::Es512)
            ),
            _ => false,
        }
    }

    fn verifies(&self, token: &Token<'_>) -> bool {
        use Algorithm as A;
        if !self.suits(token.algorithm) {
            return false;
        }
        let (signed, given) = (token.signed.as_bytes(), token.signature.as_slice());
        match self {
            Self::Rsa { n, e } => {
                let how = match token.algorithm {
                    A::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    A::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    A::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    A::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    A::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    _ => &signature::RSA_PKCS1_2048_8192_SHA256,
                };
                RsaPublicKeyComponents { n, e }.verify(how, signed, given).is_ok()
            }
            Self::Ec { curve, point } => {
                let how = match curve {
                    Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
                    Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
                    Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED,
                };
                UnparsedPublicKey::new(how, point).verify(signed, given).is_ok()
            }
            Self::Ed25519(key) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, given).is_ok()
            }
            Self::Secret(secret) => {
                let how = match token.algorithm {
                    A::Hs384 => hmac::HMAC_SHA384,
                    A::Hs512 => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::verify(&hmac::Key::new(how, secret), signed, given).is_ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_key_sets_are_refused() {
        for (text, want) in [
            ("", "Jwks is an invalid JSON"),
            ("[]", "Jwks is an invalid JSON"),
            ("{}", "Jwks does not have [keys] field"),
            (r#"{"keys":1}"#, "[keys] in Jwks is not an array"),
            (r#"{"keys":[]}"#, "Jwks doesn't have any valid public key"),
            (
                r#"{"keys":[1,{},{"kty":"RSA"},{"kty":"EC","crv":"P-256","x":"AA","y":1}]}"#,
                "Jwks doesn't have any valid public key",
            ),
            (r#"{"keys":[{"kty":"oct","k":"AA","alg":"RS256"}]}"#, "Jwks doesn't have any valid public key"),
        ] {
            assert_eq!(Keys::parse(text.as_bytes()).err(), Some(want), "{text}");
        }
        let many = format!(r#"{{"keys":[{}1]}}"#, "1,".repeat(300));
        assert_eq!(Keys::parse(many.as_bytes()).err(), Some("Jwks has more than 256 keys"));
    }

    #[test]
    fn a_public_key_is_no_secret() {
        // A token signed with the public key as the secret of an HMAC (CVE-2015-9235).
        let keys = Keys::parse(br#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#).expect("a key");
        let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"HS256"}"#), BASE64.encode("{}"));
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"\x01\0\x01"), signed.as_bytes());
        let text = format!("{signed}.{}", BASE64.encode(mac.as_ref()));
        let token = Token::parse(&text).unwrap_or_else(|status| panic!("{status:?}"));
        assert_eq!(keys.verify(&token), Err(Status::Verification));
    }
}
