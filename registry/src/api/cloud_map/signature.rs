//! Checks AWS Signature Version 4, with the operator's token as the secret access key.
//!
//! Any access key id, region and session token will do: the secret alone proves who asks. What was
//! signed must cover the host, the date, the call and the body.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use axum::http::{HeaderMap, header};
use pillion_net::tls::{hex, sha256};

/// The one algorithm there is.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// The service in a signature's scope.
const SERVICE: &str = "servicediscovery";
/// How far clocks may differ, as at AWS; also how long a request can be said again.
const SKEW_MAX: Duration = Duration::from_secs(5 * 60);
/// Headers that must be covered.
const COVERED: [&str; 3] = ["host", "x-amz-date", "x-amz-target"];

/// A request as it was signed.
pub(super) struct Signed<'a> {
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// `:authority` of HTTP/2, which stands for the host.
    pub(super) host: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// Whether a request says that it is signed.
pub(super) fn is_signed(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(ALGORITHM.as_bytes()))
}

/// Checks the signature of a POST.
///
/// # Errors
///
/// What is wrong, for whoever asks.
pub(super) fn verify(secret: &str, request: &Signed<'_>, now: SystemTime) -> Result<(), String> {
    let text = request.text("authorization").ok_or("Authorization is not text")?;
    let parts = Parts::read(&text).ok_or("Authorization: want Credential, SignedHeaders and Signature")?;
    let [_key, day, region, service, "aws4_request"] = parts.credential[..] else {
        return Err("Credential: want <key>/<date>/<region>/servicediscovery/aws4_request".to_owned());
    };
    if service != SERVICE {
        return Err(format!("Credential: signed for {service}, want {SERVICE}"));
    }
    let mut signed = parts.signed_headers.split(';');
    if let Some(missing) = COVERED.iter().find(|name| !signed.clone().any(|have| have == **name)) {
        return Err(format!("SignedHeaders: {missing} is not covered"));
    }
    if request.query.is_some_and(|query| !query.is_empty()) {
        return Err("a query is not part of any call".to_owned());
    }
    let date = request.text("x-amz-date").ok_or("x-amz-date is missing")?;
    if !date.starts_with(day) {
        return Err("Credential: signed for another day than x-amz-date".to_owned());
    }
    let at = instant(&date).ok_or("x-amz-date: want a time such as 20261121T150000Z")?;
    let apart = now.duration_since(at).unwrap_or_else(|error| error.duration());
    if apart > SKEW_MAX {
        return Err(format!("signed {apart:.0?} from now, want at most {SKEW_MAX:?}: are the clocks right?"));
    }

    let mut canonical = format!("POST\n{}\n\n", request.path);
    signed.try_for_each(|name| {
        let value = request.text(name).ok_or_else(|| format!("SignedHeaders: {name} was not sent"))?;
        writeln!(canonical, "{name}:{value}").map_err(|error| error.to_string())
    })?;
    let scope = format!("{day}/{region}/{SERVICE}/aws4_request");
    let body = hex(&sha256(request.body));
    let canonical = format!("{canonical}\n{}\n{body}", parts.signed_headers);
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
    let mut key = mac(format!("AWS4{secret}").as_bytes(), day);
    for part in [region, SERVICE, "aws4_request"] {
        key = mac(key.as_ref(), part);
    }
    let want = hex(mac(key.as_ref(), &to_sign).as_ref());
    verify_slices_are_equal(want.as_bytes(), parts.signature.as_bytes()).map_err(|_| {
        "the signature is not right: the secret access key is the operator's token, which is in \
         operator.token in the registry's data directory"
            .to_owned()
    })
}

impl Signed<'_> {
    /// A header as it is signed: trimmed, runs of spaces as one, several values with commas.
    fn text(&self, name: &str) -> Option<String> {
        if name == "host"
            && let Some(host) = self.host
        {
            return Some(host.to_owned());
        }
        let mut values = self.headers.get_all(name).iter().peekable();
        values.peek()?;
        let tidy = |value: &str| value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let values: Option<Vec<_>> = values.map(|value| value.to_str().ok().map(tidy)).collect();
        Some(values?.join(","))
    }
}

/// What stands in `Authorization`.
struct Parts<'a> {
    credential: Vec<&'a str>,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let fields = text.strip_prefix(ALGORITHM)?.split(',').map(str::trim);
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields {
            match field.split_once('=')? {
                ("Credential", value) => credential = Some(value.split('/').collect()),
                ("SignedHeaders", value) => signed_headers = Some(value),
                ("Signature", value) => signature = Some(value),
                _ => return None,
            }
        }
        Some(Self { credential: credential?, signed_headers: signed_headers?, signature: signature? })
    }
}

/// Reads `20261121T150000Z`.
fn instant(text: &str) -> Option<SystemTime> {
    let digits = |from: usize, to: usize| text.get(from..to);
    let (day, time) = (
        format!("{}-{}-{}", digits(0, 4)?, digits(4, 6)?, digits(6, 8)?),
        format!("{}:{}:{}", digits(9, 11)?, digits(11, 13)?, digits(13, 15)?),
    );
    let well_formed = text.len() == 16 && digits(8, 9) == Some("T") && digits(15, 16) == Some("Z");
    well_formed.then(|| humantime::parse_rfc3339(&format!("{day}T{time}Z")).ok()).flatten()
}

fn mac(key: &[u8], message: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const BODY: &str = r#"{"ServiceId": "orders.shop", "InstanceId": "a", "Attributes": {"AWS_INSTANCE_IPV4": "10.0.0.1"}, "CreatorRequestId": "9d5dcb63-b314-4957-88aa-718fa18601e0"}"#;
    const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=pillion/20261121/local/servicediscovery/aws4_request, SignedHeaders=content-type;host;x-amz-date;x-amz-target, Signature=a974d3be6f2f437c259bef9254c350e4afaaa0e4c321f81e2a4cb57095a4c441";
    const SENT: [(&str, &str); 5] = [
        ("host", "127.0.0.1:39173"),
        ("content-type", "application/x-amz-json-1.1"),
        ("x-amz-date", "20261121T154559Z"),
        ("x-amz-target", "Route53AutoNaming_v20170314.RegisterInstance"),
        ("authorization", AUTHORIZATION),
    ];

    fn check(secret: &str, change: Option<(&str, &str)>, body: &str, late: u64) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for (name, value) in SENT.into_iter().chain(change) {
            headers.insert(
                HeaderName::from_bytes(name.as_bytes()).expect("a name"),
                HeaderValue::from_str(value).expect("a value"),
            );
        }
        let request = Signed { path: "/", query: None, host: None, headers: &headers, body: body.as_bytes() };
        let sent = instant("20261121T154559Z").expect("a time");
        verify(secret, &request, sent + Duration::from_secs(late))
    }

    #[test]
    fn what_botocore_signed_is_right_and_anything_else_is_not() {
        assert_eq!(check("secret", None, BODY, 0), Ok(()));
        assert_eq!(check("secret", None, BODY, 299), Ok(()));
        let short = AUTHORIZATION.replace("host;", "");
        let elsewhere = AUTHORIZATION.replace("servicediscovery", "s3");
        for (secret, change, body, late, want) in [
            ("Secret", None, BODY, 0, "not right"),
            ("secret", None, &BODY[1..], 0, "not right"),
            ("secret", None, BODY, 301, "clocks"),
            (
                "secret",
                Some(("x-amz-target", "Route53AutoNaming_v20170314.ListServices")),
                BODY,
                0,
                "not right",
            ),
            ("secret", Some(("host", "elsewhere")), BODY, 0, "not right"),
            ("secret", Some(("x-amz-date", "20261121T154600Z")), BODY, 0, "not right"),
            ("secret", Some(("x-amz-date", "20261122T154600Z")), BODY, 0, "another day"),
            ("secret", Some(("authorization", &short)), BODY, 0, "host is not covered"),
            ("secret", Some(("authorization", &elsewhere)), BODY, 0, "signed for s3"),
            ("secret", Some(("authorization", "AWS4-HMAC-SHA256 nonsense")), BODY, 0, "want Credential"),
            ("secret", Some(("authorization", "AWS4-HMAC-SHA256 Credential=a")), BODY, 0, "want Credential"),
        ] {
            let refused = check(secret, change, body, late).expect_err("refused");
            assert!(refused.contains(want), "{change:?}: no `{want}` in {refused}");
        }
    }
}
