//! Reads tokens (RFC 7519, in the compact form of RFC 7515 section 7.1). Nothing is verified here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::status::Status;

/// A token as it claims to be.
pub(super) struct Token<'a> {
    /// What is signed: header and payload.
    pub(super) signed: &'a str,
    /// The payload as it came.
    pub(super) payload: &'a str,
    pub(super) algorithm: Algorithm,
    /// Empty: not said.
    pub(super) key_id: String,
    pub(super) signature: Vec<u8>,
    /// The fields of its header.
    pub(super) header: Map<String, Value>,
    pub(super) claims: Map<String, Value>,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    /// Seconds since 1970; 0: not said.
    not_before: u64,
    /// Seconds since 1970; 0: not said.
    expiry: u64,
}

/// How a token is signed (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    const ALL: [(&'static str, Self); 13] = [
        ("HS256", Self::Hs256),
        ("HS384", Self::Hs384),
        ("HS512", Self::Hs512),
        ("RS256", Self::Rs256),
        ("RS384", Self::Rs384),
        ("RS512", Self::Rs512),
        ("PS256", Self::Ps256),
        ("PS384", Self::Ps384),
        ("PS512", Self::Ps512),
        ("ES256", Self::Es256),
        ("ES384", Self::Es384),
        ("ES512", Self::Es512),
        ("EdDSA", Self::EdDsa),
    ];

    /// The algorithm of that name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(text, _)| *text == name).map(|&(_, algorithm)| algorithm)
    }
}

impl<'a> Token<'a> {
    /// Reads `text`.
    pub(super) fn parse(text: &'a str) -> Result<Self, Status> {
        let mut sections = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (sections.next(), sections.next(), sections.next(), sections.next())
        else {
            return Err(Status::Format);
        };
        if header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(Status::Format);
        }
        let fields = object(header, Status::HeaderBase64, Status::HeaderJson)?;
        let Some(Value::String(algorithm)) = fields.get("alg") else { return Err(Status::Algorithm) };
        let algorithm = Algorithm::parse(algorithm).ok_or(Status::AlgorithmUnknown)?;
        let key_id = text_of(&fields, "kid", Status::KeyId)?;
        let claims = object(payload, Status::PayloadBase64, Status::PayloadJson)?;
        let issuer = text_of(&claims, "iss", Status::Issuer)?;
        let subject = text_of(&claims, "sub", Status::Subject)?;
        number_of(&claims, "iat", Status::IssuedAt, Status::IssuedAtRange)?;
        let not_before = number_of(&claims, "nbf", Status::NotBefore, Status::NotBeforeRange)?;
        let expiry = number_of(&claims, "exp", Status::Expiry, Status::ExpiryRange)?;
        text_of(&claims, "jti", Status::Id)?;
        let audiences = audiences(&claims)?;
        let signature = BASE64.decode(signature).map_err(|_| Status::SignatureBase64)?;
        let signed = &text[..header.len() + 1 + payload.len()];
        Ok(Self {
            signed,
            payload,
            algorithm,
            key_id,
            signature,
            header: fields,
            claims,
            issuer,
            subject,
            audiences,
            not_before,
            expiry,
        })
    }

    /// Whether it is good at `now`, give or take `skew` seconds.
    pub(super) fn check_time(&self, now: u64, skew: u64) -> Result<(), Status> {
        if now + skew < self.not_before {
            return Err(Status::NotYetValid);
        }
        if self.expiry != 0 && now > self.expiry.saturating_add(skew) {
            return Err(Status::Expired);
        }
        Ok(())
    }

    /// Whether it says when it ends, if it has to, and that is no later than `max` from `now`.
    pub(super) fn ends_in_time(&self, now: u64, required: bool, max: Option<Duration>) -> bool {
        match max {
            Some(max) => self.expiry != 0 && self.expiry <= now.saturating_add(max.as_secs()),
            None => !required || self.expiry != 0,
        }
    }

    /// A claim as a header's value; `path`: names joined by dots.
    pub(super) fn claim(&self, path: &str) -> Option<String> {
        let value = match self.claims.get(path) {
            Some(value) => value,
            None => {
                let mut names = path.split('.');
                let first = self.claims.get(names.next()?)?;
                names.try_fold(first, |value, name| value.get(name))?
            }
        };
        match value {
            Value::Null => None,
            Value::Bool(value) => Some(value.to_string()),
            Value::Number(value) => number_text(value),
            Value::String(value) => Some(value.clone()),
            Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(value.to_string())),
        }
    }
}

/// Base64url as lenient as Envoy's: with and without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
use base64::engine::general_purpose::STANDARD;

#[expect(clippy::cast_possible_truncation, reason = "checked to be whole and within the range")]
/// As Envoy writes numbers: whole ones without a point, others with six digits behind it.
fn number_text(value: &serde_json::Number) -> Option<String> {
    let number = value.as_f64()?;
    let is_whole = number.fract() == 0.0 && number.abs() < 9e18;
    Some(if is_whole { (number as i64).to_string() } else { format!("{number:.6}") })
}

fn object(section: &str, base64: Status, json: Status) -> Result<Map<String, Value>, Status> {
    let bytes = BASE64.decode(section).map_err(|_| base64)?;
    serde_json::from_slice(&bytes).map_err(|_| json)
}

fn text_of(fields: &Map<String, Value>, name: &str, wrong: Status) -> Result<String, Status> {
    match fields.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong),
    }
}

fn number_of(fields: &Map<String, Value>, name: &str, wrong: Status, range: Status) -> Result<u64, Status> {
    let Some(value) = fields.get(name) else { return Ok(0) };
    let number = value.as_f64().ok_or(wrong)?;
    if !(0.0..1.8e19).contains(&number) {
        return Err(range);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(number as u64)
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Status> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(Status::Audience);
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!("{}.{}.AA", BASE64.encode(header), BASE64.encode(payload))
    }

    #[test]
    fn hostile_tokens_are_refused_by_what_is_wrong() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
        let huge = "a".repeat(1 << 20);
        for (text, want) in [
            (String::new(), Status::Format),
            ("a.b".to_owned(), Status::Format),
            ("a..c".to_owned(), Status::Format),
            ("a.b.c.d".to_owned(), Status::Format),
            (format!("{huge}.b.c"), Status::HeaderJson),
            (format!("{}.b.c", "!".repeat(100)), Status::HeaderBase64),
            (token("[]", "{}"), Status::HeaderJson),
            (token("{}", "{}"), Status::Algorithm),
            (token(r#"{"alg":1}"#, "{}"), Status::Algorithm),
            (token(r#"{"alg":"none"}"#, "{}"), Status::AlgorithmUnknown),
            (token(r#"{"alg":"RS256","kid":1}"#, "{}"), Status::KeyId),
            (token(r#"{"alg":"RS256"}"#, &deep), Status::PayloadJson),
            (token(r#"{"alg":"RS256"}"#, r#"{"exp":-1}"#), Status::ExpiryRange),
            (token(r#"{"alg":"RS256"}"#, r#"{"exp":1e300}"#), Status::ExpiryRange),
            (token(r#"{"alg":"RS256"}"#, r#"{"exp":"1"}"#), Status::Expiry),
            (token(r#"{"alg":"RS256"}"#, r#"{"iss":{}}"#), Status::Issuer),
            (token(r#"{"alg":"RS256"}"#, r#"{"aud":[1]}"#), Status::Audience),
        ] {
            let short: String = text.chars().take(60).collect();
            assert_eq!(Token::parse(&text).err(), Some(want), "{short}");
        }
    }

    #[test]
    fn time_is_checked_with_a_skew() {
        let text = token(r#"{"alg":"RS256"}"#, r#"{"nbf":100,"exp":200}"#);
        let token = Token::parse(&text).unwrap_or_else(|status| panic!("{status:?}"));
        for (now, want) in
            [(39, Err(Status::NotYetValid)), (40, Ok(())), (260, Ok(())), (261, Err(Status::Expired))]
        {
            assert_eq!(token.check_time(now, 60), want, "{now}");
        }
    }

    #[test]
    fn claims_become_values() {
        let text =
            token(r#"{"alg":"RS256"}"#, r#"{"a":{"b":7,"c":[1]},"d.e":true,"f":1.5,"g":null,"h":"x"}"#);
        let token = Token::parse(&text).unwrap_or_else(|status| panic!("{status:?}"));
        for (path, want) in [
            ("a.b", Some("7")),
            ("a.c", Some("WzFd")),
            ("d.e", Some("true")),
            ("f", Some("1.500000")),
            ("g", None),
            ("h", Some("x")),
            ("h.i", None),
            ("z", None),
        ] {
            assert_eq!(token.claim(path).as_deref(), want, "{path}");
        }
    }
}
