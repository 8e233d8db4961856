//! Proof by AWS credentials: a signed GetCallerIdentity, which is sent to the one STS endpoint that this
//! registry is configured with.

use std::time::{Duration, SystemTime};

use pillion_net::attest::aws::{BODY, CONTENT_TYPE, CSR_HEADER};
use pillion_net::fetch::Origin;
use pillion_net::resolve::Resolver;
use pillion_net::tls::{hex, sha256};
use pillion_xds::mesh::AwsProof;
use pillion_xds::mesh::issue_request::Proof;
use tokio::sync::Semaphore;

use super::seen::Seen;
use super::{Attestor, Bound, Method, Proven, Refusal};

pub(super) struct Aws {
    pub(super) sts: Origin,
    pub(super) resolver: Resolver,
    pub(super) seen: Seen,
    /// Questions to STS at a time.
    pub(super) asking: Semaphore,
}

#[async_trait::async_trait]
impl Attestor for Aws {
    fn method(&self) -> Method {
        Method::Aws
    }

    async fn prove(&self, proof: &Proof, request: &Bound<'_>) -> Result<Proven, Refusal> {
        let Proof::Aws(proof) = proof else { return Err(Method::Aws.refuse("it is no signed request")) };
        check(proof, request).map_err(|reason| Method::Aws.refuse(reason))?;
        let signature = proof.headers.get(AUTHORIZATION).map_or(&b""[..], |text| text.as_bytes());
        self.seen.note(signature, request.now, AGE_MAX * 2).map_err(|reason| Method::Aws.refuse(reason))?;
        let arn = self.ask(proof).await?;
        Ok(Proven { method: Method::Aws, facts: facts(arn) })
    }
}

impl Aws {
    /// Who STS says signed it.
    async fn ask(&self, proof: &AwsProof) -> Result<String, Refusal> {
        let unavailable = |reason: String| Refusal::Unavailable { method: Method::Aws, reason };
        let _turn =
            self.asking.try_acquire().map_err(|_| unavailable("too many proofs at a time".to_owned()))?;
        let mut request = http::Request::post("/").header(http::header::CONTENT_TYPE, CONTENT_TYPE);
        for (name, value) in &proof.headers {
            request = request.header(name, value);
        }
        let answer = self.sts.send(&self.resolver, request, BODY, ANSWER_BYTES_MAX).await;
        let answer = answer.map_err(|error| unavailable(error.to_string()))?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status.is_server_error() || answer.status == http::StatusCode::TOO_MANY_REQUESTS {
            return Err(unavailable(format!("{} answers {}", self.sts.authority(), answer.status)));
        }
        let arn = element(&text, "Arn").filter(|arn| answer.status.is_success() && arn.starts_with("arn:"));
        arn.map(str::to_owned).ok_or_else(|| {
            let code = element(&text, "Code").unwrap_or("no reason");
            Method::Aws.refuse(format!(
                "{} does not know who signed it ({}, {code}); want a request signed for that host",
                self.sts.authority(),
                answer.status
            ))
        })
    }
}

/// Whether it was signed for this request, a moment ago, and carries nothing else.
fn check(proof: &AwsProof, request: &Bound<'_>) -> Result<(), String> {
    if let Some(name) = proof.headers.keys().find(|name| !HEADERS.contains(&name.as_str())) {
        return Err(format!("header `{name}` is not taken; want only {}", HEADERS.join(", ")));
    }
    let header = |name: &str| {
        let value = proof.headers.get(name).ok_or_else(|| format!("header `{name}` is missing"))?;
        if value.len() > HEADER_BYTES_MAX {
            return Err(format!("header `{name}` is longer than {HEADER_BYTES_MAX} bytes"));
        }
        Ok(value)
    };
    let authorization = header(AUTHORIZATION)?;
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").unwrap_or_default().split(',');
    let mut signed = fields.filter_map(|field| field.trim().strip_prefix("SignedHeaders="));
    let (Some(signed), None) = (signed.next(), signed.next()) else {
        return Err("it is not signed with AWS4-HMAC-SHA256".to_owned());
    };
    for name in ["host", "x-amz-date", CSR_HEADER] {
        if !signed.split(';').any(|signed| signed == name) {
            return Err(format!("header `{name}` is not signed"));
        }
    }
    if *header(CSR_HEADER)? != hex(&sha256(request.csr)) {
        return Err(format!("`{CSR_HEADER}` is not that of this certificate request"));
    }
    let date = header("x-amz-date")?;
    let at =
        moment(date).ok_or_else(|| format!("x-amz-date `{date}` is no date such as 20260102T030405Z"))?;
    let off = request.now.duration_since(at).unwrap_or_else(|before| before.duration());
    if off > AGE_MAX {
        return Err(format!(
            "it was signed at {date}, {} s off; want {} s at most",
            off.as_secs(),
            AGE_MAX.as_secs()
        ));
    }
    Ok(())
}

fn moment(date: &str) -> Option<SystemTime> {
    let digits = |range| date.get(range).filter(|part: &&str| part.bytes().all(|byte| byte.is_ascii_digit()));
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    let text = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    (date.len() == 16).then(|| humantime::parse_rfc3339(&text).ok()).flatten()
}

/// The ARN, and for a session that of its role: `arn:aws:sts::1:assumed-role/web/i-0` is of
/// `arn:aws:iam::1:role/web`. STS leaves out the role's path.
fn facts(arn: String) -> Vec<String> {
    let role = role(&arn);
    std::iter::once(arn).chain(role).collect()
}

fn role(arn: &str) -> Option<String> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [_, partition, _, _, account, resource] = parts[..] else { return None };
    let name = resource.strip_prefix("assumed-role/")?.split('/').next()?;
    Some(format!("arn:{partition}:iam::{account}:role/{name}"))
}

/// The text of the first element of that name. Names and ARNs hold nothing that XML would have to escape.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once("</").map(|(inside, _)| inside.trim())
}

const AUTHORIZATION: &str = "authorization";
const HEADERS: [&str; 4] = [AUTHORIZATION, "x-amz-date", "x-amz-security-token", CSR_HEADER];
/// Session tokens are long.
const HEADER_BYTES_MAX: usize = 8192;
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Either way: clocks differ.
const AGE_MAX: Duration = Duration::from_secs(300);
/// Questions to STS at a time.
pub(super) const ASKING_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_of_its_role() {
        let of = |arn: &str| facts(arn.to_owned());
        assert_eq!(
            of("arn:aws:sts::123456789012:assumed-role/web/i-0abc"),
            ["arn:aws:sts::123456789012:assumed-role/web/i-0abc", "arn:aws:iam::123456789012:role/web"]
        );
        assert_eq!(of("arn:aws:iam::1:user/a:b"), ["arn:aws:iam::1:user/a:b"]);
    }

    #[test]
    fn dates_are_read_strictly() {
        assert!(moment("20260102T030405Z").is_some());
        for bad in ["", "20260102T030405", "2026-01-02T03:04Z", "20261302T030405Z", "é0260102T030405Z"] {
            assert_eq!(moment(bad), None, "{bad}");
        }
    }
}
