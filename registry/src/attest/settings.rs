//! The file of `--attestation`: which proofs are taken, and what they are good for.

use std::path::{Path, PathBuf};

use pillion_config::{Diagnostics, Style, document};
use pillion_net::fetch::Origin;
use pillion_net::resolve::Resolver;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};

use super::aws::{ASKING_MAX, Aws};
use super::kubernetes::{Kubernetes, Source, Url};
use super::rules::{Rule, Rules};
use super::seen::Seen;
use super::x509::X509;
use super::{Attestor, Method};

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("--attestation {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// What it says is wrong.
    #[error("--attestation: {0}")]
    Content(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct X509File {
    /// Whose certificates are taken, PEM.
    ca: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KubernetesFile {
    issuer: String,
    /// Default `pillion`.
    audience: Option<String>,
    /// The issuer's keys: a URL, or a file.
    jwks: String,
    /// Whom to trust at the URL, PEM; absent: whom the system trusts.
    ca: Option<PathBuf>,
    /// A file with a token to ask with.
    token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AwsFile {
    /// The endpoint, such as `https://sts.eu-central-1.amazonaws.com`.
    sts: String,
    /// Whom to trust there, PEM; absent: whom the system trusts.
    ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleFile {
    x509: Option<String>,
    kubernetes: Option<String>,
    aws: Option<String>,
    service: String,
    instance: Option<String>,
}

type Opened = (Vec<Box<dyn Attestor>>, Rules);

pub(super) fn open(path: &Path) -> Result<Opened, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|error| SettingsError::File {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    parse(&text, &path.display().to_string())
        .map_err(|mistakes| SettingsError::Content(mistakes.render(Style::Plain).trim_end().to_owned()))
}

/// Every mistake of the file at once.
fn parse(text: &str, name: &str) -> Result<Opened, Diagnostics> {
    let document = document::parse(text, name)?;
    let mut mistakes = Vec::new();
    let mut wrong = |path: &str, reason: String| mistakes.push(document.diagnostic(path, reason));
    let empty = serde_json::Map::new();
    let fields = document.value.as_object().unwrap_or(&empty);
    if !document.value.is_object() {
        wrong("", format!("want an object with {}", FIELDS.join(", ")));
    }
    for field in fields.keys().filter(|field| !FIELDS.contains(&field.as_str())) {
        wrong(field, format!("is not a field; the fields are {}", FIELDS.join(", ")));
    }
    let mut attestors: Vec<Box<dyn Attestor>> = Vec::new();
    let mut take = |method: Method, open: fn(&Value) -> Result<Box<dyn Attestor>, String>| {
        let Some(value) = fields.get(method.as_str()) else { return };
        match open(value) {
            Ok(attestor) => attestors.push(attestor),
            Err(reason) => wrong(method.as_str(), reason),
        }
    };
    take(Method::X509, x509);
    take(Method::Kubernetes, kubernetes);
    take(Method::Aws, aws);
    let rules = fields.get("rules").and_then(Value::as_array);
    if rules.is_none_or(Vec::is_empty) {
        wrong("rules", "want at least one; without rules nobody may be anything".to_owned());
    }
    let mut read = Rules::default();
    for (at, value) in rules.into_iter().flatten().enumerate() {
        match rule(value) {
            Ok(rule) if !fields.contains_key(rule.method.as_str()) => {
                let method = rule.method;
                wrong(&format!("rules[{at}].{method}"), format!("the file has no section `{method}`"));
            }
            Ok(rule) => read.0.push(rule),
            Err((field, reason)) => wrong(&format!("rules[{at}]{field}"), reason),
        }
    }
    if mistakes.is_empty() { Ok((attestors, read)) } else { Err(Diagnostics(mistakes)) }
}

fn rule(value: &Value) -> Result<Rule, (String, String)> {
    let file: RuleFile = read(value).map_err(|reason| (String::new(), reason))?;
    let facts = [(Method::X509, file.x509), (Method::Kubernetes, file.kubernetes), (Method::Aws, file.aws)];
    let mut facts = facts.into_iter().filter_map(|(method, fact)| Some((method, fact?)));
    let (Some((method, fact)), None) = (facts.next(), facts.next()) else {
        return Err((String::new(), "want one of x509, kubernetes, aws".to_owned()));
    };
    let wanted = match method {
        Method::X509 if !["uri:", "dns:", "ou:"].iter().any(|kind| fact.starts_with(kind)) => {
            Some("want uri:…, dns:… or ou:…")
        }
        Method::Kubernetes if fact.matches('/').count() != 1 => Some("want <namespace>/<service account>"),
        Method::Aws if !fact.starts_with("arn:") => {
            Some("want an ARN, such as arn:aws:iam::123456789012:role/web")
        }
        _ => None,
    };
    if let Some(want) = wanted {
        return Err((format!(".{method}"), format!("got `{fact}`, {want}")));
    }
    let rule = Rule { method, fact, service: file.service, instance: file.instance };
    rule.check().map_err(|(field, reason)| (format!(".{field}"), reason))?;
    Ok(rule)
}

fn x509(value: &Value) -> Result<Box<dyn Attestor>, String> {
    let file: X509File = read(value)?;
    Ok(Box::new(X509::open(&file.ca)?))
}

fn kubernetes(value: &Value) -> Result<Box<dyn Attestor>, String> {
    let file: KubernetesFile = read(value)?;
    let keys = match file.jwks.contains("://") {
        true => Source::Url(Box::new(Url {
            origin: origin(&file.jwks, file.ca.as_deref())?,
            resolver: Resolver::system(),
            bearer: file.token_file,
        })),
        false => Source::File(PathBuf::from(&file.jwks)),
    };
    let audience = file.audience.unwrap_or_else(|| "pillion".to_owned());
    Ok(Box::new(Kubernetes { issuer: file.issuer, audience, keys, known: Mutex::default() }))
}

fn aws(value: &Value) -> Result<Box<dyn Attestor>, String> {
    let file: AwsFile = read(value)?;
    let sts = origin(&file.sts, file.ca.as_deref())?;
    let asking = Semaphore::new(ASKING_MAX);
    Ok(Box::new(Aws { sts, resolver: Resolver::system(), seen: Seen::default(), asking }))
}

fn origin(url: &str, ca: Option<&Path>) -> Result<Origin, String> {
    Origin::new(url, ca).map_err(|error| error.to_string())
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| error.to_string())
}

const FIELDS: [&str; 4] = ["x509", "kubernetes", "aws", "rules"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let text = "kubernetes: {issuer: i, jwks: /keys.json}\naws: {sts: 'ftp://x'}\nmore: 1\nrules:\n\
            - {kubernetes: shop, service: web.shop}\n- {aws: role, service: web.shop}\n\
            - {kubernetes: a/b, service: web}\n- {kubernetes: a/b, aws: 'arn:', service: a.b}\n\
            - {x509: 'dns:a', service: a.b}\n- {kubernetes: a/b, service: a.b, port: 1}\n";
        let told = parse(text, "a.yaml").err().expect("mistakes").render(Style::Plain);
        for want in [
            "more: is not a field",
            "`ftp://x` is no URL",
            "want <namespace>/<service account>",
            "want an ARN",
            "rules[2].service",
            "want one of x509, kubernetes, aws",
            "the file has no section `x509`",
            "unknown field `port`",
        ] {
            assert!(told.contains(want), "no `{want}` in\n{told}");
        }
        let sound =
            "kubernetes: {issuer: i, jwks: /keys.json}\nrules: [{kubernetes: '*/*', service: '{2}.{1}'}]\n";
        let (attestors, rules) =
            parse(sound, "a.yaml").unwrap_or_else(|told| panic!("{}", told.render(Style::Plain)));
        assert_eq!((attestors.len(), rules.0.len()), (1, 1));
    }
}
