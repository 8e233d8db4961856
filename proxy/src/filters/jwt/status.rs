//! What can be wrong with a token.

/// What is wrong with a token, or with the keys to check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Missing,
    NotYetValid,
    Expired,
    Format,
    HeaderBase64,
    HeaderJson,
    Algorithm,
    AlgorithmUnknown,
    KeyId,
    PayloadBase64,
    PayloadJson,
    Issuer,
    Subject,
    IssuedAt,
    IssuedAtRange,
    NotBefore,
    NotBeforeRange,
    Expiry,
    ExpiryRange,
    Id,
    Audience,
    SignatureBase64,
    SignatureLength,
    UnknownIssuer,
    AudienceNotAllowed,
    Verification,
    NoKey,
    KeyFetch,
}

impl Status {
    /// What the client is told: Envoy's words.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::Format => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::Algorithm => "Jwt header [alg] field is required and must be a string",
            Self::AlgorithmUnknown => "Jwt header [alg] is not supported",
            Self::KeyId => "Jwt header [kid] field is not a string",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Issuer => "Jwt payload [iss] field is not a string",
            Self::Subject => "Jwt payload [sub] field is not a string",
            Self::IssuedAt => "Jwt payload [iat] field is not an integer",
            Self::IssuedAtRange => "Jwt payload [iat] field is not a positive 64 bit integer",
            Self::NotBefore => "Jwt payload [nbf] field is not an integer",
            Self::NotBeforeRange => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Self::Expiry => "Jwt payload [exp] field is not an integer",
            Self::ExpiryRange => "Jwt payload [exp] field is not a positive 64 bit integer",
            Self::Id => "Jwt payload [jti] field is not a string",
            Self::Audience => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::SignatureLength => "Jwt ED25519 signature is wrong length",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::Verification => "Jwt verification fails",
            Self::NoKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::KeyFetch => "Jwks remote fetch is failed",
        }
    }
}
