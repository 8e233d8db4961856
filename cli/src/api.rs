//! The registry's HTTP API, as the commands use it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::http::{Answer, Origin, send};

/// The API's port.
const API_PORT: u16 = 7070;
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The file with the operator's token, in the registry's data directory.
const TOKEN_FILE: &str = "operator.token";
/// The file with the mesh's root certificates, in the registry's data directory.
const ROOTS_FILE: &str = "roots.pem";

/// How to reach the registry's API, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ApiArguments {
    /// The registry's API.
    #[arg(long, env = "PILLION_API", default_value = "http://127.0.0.1:7070", value_name = "URL", value_parser = api_origin)]
    api: Origin,
    /// The operator's token; without it, the one in the data directory on this machine.
    #[arg(long, env = "PILLION_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    trust: TrustArguments,
}

/// By what a registry behind https is known.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TrustArguments {
    /// The mesh's root certificate (PEM) for https; without it, the one in the data directory.
    #[arg(long, env = "PILLION_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The registry's data directory, where it is on this machine.
    #[arg(long, env = "PILLION_DATA_DIR", default_value_os_t = data_directory(), value_name = "DIR")]
    data_dir: PathBuf,
}

/// Where a registry keeps its state unless told otherwise: `/var/lib/pillion` for root, else the
/// user's state directory.
pub(crate) fn data_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/pillion");
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("pillion")
}

/// A client of one registry.
#[derive(Clone)]
pub(crate) struct Client {
    origin: Origin,
    tls: Option<Arc<rustls::ClientConfig>>,
    token: Option<String>,
}

impl ApiArguments {
    /// The client these arguments describe.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let origin = self.api.clone();
        let tls = self.trust.tls(&origin)?;
        let token = match &self.token {
            Some(token) => Some(token.clone()),
            None => read_token(&self.trust.data_dir.join(TOKEN_FILE))?,
        };
        if token.is_some() && !origin.tls {
            refuse_plain_token_off_loopback(&origin)?;
        }
        Ok(Client { origin, tls, token })
    }
}

impl TrustArguments {
    /// What `origin` must prove itself against; `None` for plain http.
    pub(crate) fn tls(&self, origin: &Origin) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
        if !origin.tls {
            return Ok(None);
        }
        let local = self.data_dir.join(ROOTS_FILE);
        let file = self.cacert.clone().or_else(|| Some(local).filter(|file| file.exists()));
        let file = file.context("https needs the mesh's root certificate: --cacert FILE")?;
        client_config(&file).map(Some)
    }
}

/// The origin of a registry's API.
pub(crate) fn api_origin(text: &str) -> Result<Origin, String> {
    Origin::parse(text, API_PORT).map_err(|error| format!("{error:#}"))
}

/// A bearer token in the clear is everybody's token.
fn refuse_plain_token_off_loopback(origin: &Origin) -> anyhow::Result<()> {
    let loopback = origin.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    anyhow::ensure!(
        loopback || origin.host == "localhost",
        "{origin}: a token does not travel in the clear; use https, or leave the token out"
    );
    Ok(())
}

fn read_token(file: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // Another user's registry, or none here: ask without a token, and let the registry judge.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// Trusts what the roots in `file` signed: the registry by its identity, whatever host it is on.
fn client_config(file: &Path) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read certificates from {}", file.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} holds no certificate", file.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).with_context(|| format!("a certificate of {}", file.display()))?;
    }
    let config = rustls::ClientConfig::builder_with_provider(pillion_net::tls::provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Client {
    /// A client without token for a registry on this machine.
    pub(crate) fn local(address: std::net::SocketAddr) -> Self {
        let origin = Origin { tls: false, host: address.ip().to_string(), port: address.port() };
        Self { origin, tls: None, token: None }
    }

    /// Asks for JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let answer = self.request(Method::GET, path, &[], Bytes::new()).await?;
        json(&answer)
    }

    /// Sends one request; an answer that is no success becomes an error with what the registry says.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let answer = self.any(method, path, headers, body).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(problem(&answer)) }
    }

    /// Sends one request, whatever the answer.
    pub(crate) async fn any(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body.into()).context("build the request")?;
        send(&self.origin, self.tls.clone(), request, ANSWER_TIMEOUT).await
    }
}

/// The answer's body as JSON.
pub(crate) fn json(answer: &Answer) -> anyhow::Result<serde_json::Value> {
    serde_json::from_slice(&answer.body).context("the answer is no JSON")
}

/// What an RFC 9457 problem document says, on as many lines as it has mistakes.
pub(crate) fn problem(answer: &Answer) -> anyhow::Error {
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| document[name].as_str().filter(|text| !text.is_empty());
    let said = text("detail")
        .or_else(|| text("title"))
        .map_or_else(|| answer.text().trim().to_owned(), str::to_owned);
    let mut lines = vec![format!("{}: {said}", answer.status.as_u16())];
    for mistake in document["errors"].as_array().into_iter().flatten() {
        let part = |name: &str| mistake[name].as_str().unwrap_or_default();
        let mistake = format!("{}: {}", part("field"), part("detail"));
        // The only mistake is the detail as well.
        if mistake != said {
            lines.push(format!("  {mistake}"));
        }
    }
    if answer.status == StatusCode::UNAUTHORIZED {
        lines.push(
            "  set PILLION_TOKEN to the token in operator.token of the registry's data directory".to_owned(),
        );
    }
    anyhow::anyhow!(lines.join("\n"))
}
