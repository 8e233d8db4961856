//! Signed tokens (RFC 7519) and the keys they are checked with (RFC 7517). Which algorithm a key is good for
//! is the key's to say, never the token's; a secret is no key here.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// A token as it claims to be.
#[derive(Debug)]
pub(super) struct Token<'a> {
    signed: &'a str,
    pub(super) key_id: String,
    algorithm: String,
    claims: Value,
    signature: Vec<u8>,
}

/// The keys of an issuer.
#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: String,
    /// As tokens name it.
    algorithm: &'static str,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point, not compressed.
    Ec(Vec<u8>),
}

impl<'a> Token<'a> {
    /// Reads a token in the compact form. Nothing is verified.
    pub(super) fn parse(text: &'a str) -> Result<Self, &'static str> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err("it is too long");
        }
        let (signed, signature) = text.rsplit_once('.').ok_or("want three parts with points between")?;
        let (header, claims) = signed.split_once('.').ok_or("want three parts with points between")?;
        let json = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
            serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
        };
        let header = json(header).ok_or("its first part is no JSON object in base64url")?;
        let claims = json(claims).ok_or("its second part is no JSON object in base64url")?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "its third part is no base64url")?;
        let text = |field: &str| header[field].as_str().map(str::to_owned);
        let key_id = text("kid").ok_or("it names no key (kid)")?;
        let algorithm = text("alg").ok_or("it names no algorithm (alg)")?;
        Ok(Self { signed, key_id, algorithm, claims, signature })
    }
}

impl Keys {
    /// Reads a key set; keys of other kinds than RSA, P-256 and P-384, and those without an id, are left out.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value =
            serde_json::from_slice(text).map_err(|error| format!("they are no JWK set: {error}"))?;
        let keys = set["keys"].as_array().ok_or("they are no JWK set: `keys` is missing")?;
        let keys: Vec<Key> = keys.iter().take(KEYS_MAX).filter_map(Key::parse).collect();
        if keys.is_empty() {
            return Err("none of them is a key of RSA, P-256 or P-384 with an id".to_owned());
        }
        Ok(Self(keys))
    }

    /// Whether there is a key of this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// What the token says, if the key that it names signed it.
    pub(super) fn verify<'t>(&self, token: &'t Token<'_>) -> Result<&'t Value, String> {
        let shown = |text: &str| text.chars().take(SHOWN_MAX).collect::<String>();
        let id = shown(&token.key_id);
        let Some(key) = self.0.iter().find(|key| key.id == token.key_id) else {
            return Err(format!("key `{id}` is none that is known"));
        };
        if key.algorithm != token.algorithm {
            let (given, algorithm) = (shown(&token.algorithm), key.algorithm);
            return Err(format!("the token is signed with `{given}`, and key `{id}` is for {algorithm}"));
        }
        match key.signed(token) {
            true => Ok(&token.claims),
            false => Err(format!("the signature is not one of key `{id}`")),
        }
    }
}

impl Key {
    fn parse(value: &Value) -> Option<Self> {
        let bytes = |field: &str| URL_SAFE_NO_PAD.decode(value[field].as_str()?).ok();
        let algorithm = |fitting: &[&'static str]| match value["alg"].as_str() {
            None => fitting.first().copied(),
            Some(given) => fitting.iter().copied().find(|algorithm| *algorithm == given),
        };
        let (algorithm, material) = match (value["kty"].as_str()?, value["crv"].as_str()) {
            ("RSA", _) => {
                let material = Material::Rsa { n: bytes("n")?, e: bytes("e")? };
                (algorithm(&["RS256", "RS384", "RS512"])?, material)
            }
            ("EC", Some("P-256")) => (algorithm(&["ES256"])?, point(32, &bytes("x")?, &bytes("y")?)?),
            ("EC", Some("P-384")) => (algorithm(&["ES384"])?, point(48, &bytes("x")?, &bytes("y")?)?),
            _ => return None,
        };
        Some(Self { id: value["kid"].as_str()?.to_owned(), algorithm, material })
    }

    fn signed(&self, token: &Token<'_>) -> bool {
        let (signed, given) = (token.signed.as_bytes(), &token.signature[..]);
        match &self.material {
            Material::Rsa { n, e } => {
                let how: &RsaParameters = match self.algorithm {
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                    _ => &RSA_PKCS1_2048_8192_SHA256,
                };
                RsaPublicKeyComponents { n, e }.verify(how, signed, given).is_ok()
            }
            Material::Ec(point) => {
                let how = match self.algorithm {
                    "ES384" => &ECDSA_P384_SHA384_FIXED,
                    _ => &ECDSA_P256_SHA256_FIXED,
                };
                UnparsedPublicKey::new(how, point).verify(signed, given).is_ok()
            }
        }
    }
}

/// SEC 1 section 2.3.3.
fn point(length: usize, x: &[u8], y: &[u8]) -> Option<Material> {
    let whole = x.len() == length && y.len() == length;
    whole.then(|| Material::Ec([&[4], x, y].concat()))
}

/// Projected tokens have about a kilobyte.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
const KEYS_MAX: usize = 256;
/// Of what somebody else wrote, in messages.
const SHOWN_MAX: usize = 100;
