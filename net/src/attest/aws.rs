//! Proof by AWS credentials: a request for GetCallerIdentity, signed with Signature Version 4 and given to
//! the registry, which sends it.

use std::time::SystemTime;

use aws_lc_rs::hmac;
use pillion_xds::mesh::AwsProof;
use serde_json::Value;

use crate::fetch::Origin;
use crate::resolve::Resolver;
use crate::tls::{hex, sha256};

/// The body of the request, always.
pub const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
/// Its type.
pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// The header that ties the request to one certificate request, in lower-case hex.
pub const CSR_HEADER: &str = "x-pillion-csr-sha256";

/// An access key.
#[derive(Clone)]
pub struct Credentials {
    /// Its id.
    pub key_id: String,
    /// Its secret.
    pub secret: String,
    /// With temporary credentials, the session's token.
    pub token: Option<String>,
}

/// The endpoint for which a request is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sts {
    /// As in the `host` header.
    pub host: String,
    /// The region in the signature's scope.
    pub region: String,
}

impl Credentials {
    /// From the environment (`AWS_ACCESS_KEY_ID` and its kin), else from the endpoint of the container's
    /// role (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `…_FULL_URI`), as ECS and EKS set it.
    pub(super) async fn find(resolver: &Resolver) -> Result<Self, String> {
        if let (Some(key_id), Some(secret)) =
            (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        {
            return Ok(Self { key_id, secret, token: variable("AWS_SESSION_TOKEN") });
        }
        let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let url = relative.map(|path| format!("{CONTAINER_ENDPOINT}{path}"));
        let url = url.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")).ok_or(
            "no credentials: want AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the container \
             (AWS_CONTAINER_CREDENTIALS_RELATIVE_URI)",
        )?;
        let mut request = http::Request::get("/");
        let file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
        let token = match file {
            Some(file) => {
                Some(std::fs::read_to_string(&file).map_err(|error| format!("read {file}: {error}"))?)
            }
            None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        if let Some(token) = token {
            request = request.header(http::header::AUTHORIZATION, token.trim());
        }
        let origin = Origin::new(&url, None).map_err(|error| error.to_string())?;
        let answer =
            origin.send(resolver, request, "", ANSWER_MAX).await.map_err(|error| error.to_string())?;
        let read: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |field: &str| read[field].as_str().map(str::to_owned);
        match (text("AccessKeyId"), text("SecretAccessKey")) {
            (Some(key_id), Some(secret)) => Ok(Self { key_id, secret, token: text("Token") }),
            _ => Err(format!("{url} answers {} without credentials", answer.status)),
        }
    }
}

impl Sts {
    /// The endpoint of `AWS_ENDPOINT_URL_STS`, else that of the region (`AWS_REGION`), else the global one.
    pub(super) fn from_environment() -> Result<Self, String> {
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let host = match (variable("AWS_ENDPOINT_URL_STS"), &region) {
            (Some(url), _) => {
                let origin =
                    Origin::new(&url, None).map_err(|error| format!("AWS_ENDPOINT_URL_STS: {error}"))?;
                origin.authority().to_owned()
            }
            (None, Some(region)) => format!("sts.{region}.amazonaws.com"),
            (None, None) => "sts.amazonaws.com".to_owned(),
        };
        Ok(Self { host, region: region.unwrap_or_else(|| "us-east-1".to_owned()) })
    }
}

/// Signs the request (AWS General Reference, Signature Version 4) for this certificate request.
pub fn sign(credentials: &Credentials, sts: &Sts, csr: &[u8], now: SystemTime) -> AwsProof {
    let at = stamp(now);
    let (day, csr) = (&at[..8], hex(&sha256(csr)));
    let mut headers =
        vec![("content-type", CONTENT_TYPE), ("host", &sts.host), ("x-amz-date", &at), (CSR_HEADER, &csr)];
    if let Some(token) = &credentials.token {
        headers.insert(3, ("x-amz-security-token", token));
    }
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hex(&sha256(BODY.as_bytes())));
    let scope = format!("{day}/{}/sts/aws4_request", sts.region);
    let to_sign = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
    let mut key = format!("AWS4{}", credentials.secret).into_bytes();
    for part in [day, &sts.region, "sts", "aws4_request", &to_sign] {
        key = mac(&key, part);
    }
    let signature = hex(&key);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.key_id
    );
    let sent = headers.iter().filter(|(name, _)| !["host", "content-type"].contains(name));
    let sent = sent.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    AwsProof { headers: sent.chain([("authorization".to_owned(), authorization)]).collect() }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// `20260102T030405Z`.
pub fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "")
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

const CONTAINER_ENDPOINT: &str = "http://169.254.170.2";
const ANSWER_MAX: usize = 64 * 1024;
