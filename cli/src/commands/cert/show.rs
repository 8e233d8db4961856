//! `pillion cert show`: what a certificate says, from a file or from a server.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use pillion_net::tls::PeerCertificate;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;

use super::remaining;
use crate::exit::Usage;
use crate::http::{Origin, dial};
use crate::onlooker;
use crate::output::{self, OutputArguments, Rows};

/// How long a server may take to show its certificate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `pillion cert show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A PEM file, or `host:port` of a TLS server.
    source: String,
    /// The server name to ask for; a sidecar has a certificate for `<port>.<service>.<namespace>.<zone>`.
    #[arg(long, env = "PILLION_SERVER_NAME", value_name = "NAME")]
    server_name: Option<String>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Shows it.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let chain = match Path::new(&arguments.source) {
        folder if folder.is_dir() => {
            let text = format!("{0} is a folder; want a file in it, such as {0}/chain.pem", folder.display());
            return Err(Usage(text).into());
        }
        file if file.exists() => read(file)?,
        _ => ask(&arguments.source, arguments.server_name.as_deref()).await?,
    };
    let shown = chain
        .iter()
        .map(|certificate| {
            PeerCertificate::parse(std::slice::from_ref(certificate)).context("read the certificate")
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let now = SystemTime::now();
    let value = shown.iter().map(|one| describe(one, now)).collect();
    output::print(arguments.output.format, &value, || {
        let mut rows = Rows::new(["FIELD", "VALUE"]);
        for (index, one) in shown.iter().enumerate() {
            rows.push([
                "certificate".to_owned(),
                if index == 0 { "leaf".to_owned() } else { format!("issuer {index}") },
            ]);
            rows.push(["URI names".to_owned(), one.uri_sans.join(", ")]);
            rows.push(["DNS names".to_owned(), one.dns_sans.join(", ")]);
            rows.push(["subject".to_owned(), one.subject.clone()]);
            rows.push(["SHA-256".to_owned(), one.sha256_hex.clone()]);
            rows.push(["good for".to_owned(), remaining(one.not_after, now)]);
        }
        rows
    })
}

fn describe(one: &PeerCertificate, now: SystemTime) -> serde_json::Value {
    let left = one.not_after.duration_since(now).map(|left| left.as_secs()).unwrap_or(0);
    json!({
        "uriNames": one.uri_sans,
        "dnsNames": one.dns_sans,
        "subject": one.subject,
        "sha256": one.sha256_hex,
        "secondsLeft": left,
    })
}

fn read(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| format!("read certificates from {}", file.display()))?;
    anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", file.display());
    Ok(chain)
}

async fn ask(server: &str, name: Option<&str>) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let wrong = || format!("{server} is neither a file nor host:port");
    anyhow::ensure!(server.contains(':'), wrong());
    let origin = Origin::parse(server, 443).with_context(wrong)?;
    let name = ServerName::try_from(name.unwrap_or(&origin.host).to_owned()).context("server name")?;
    let config = Arc::new(onlooker::client_config()?);
    let handshake = async {
        let stream = dial(&origin).await?;
        let stream =
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.context("TLS handshake")?;
        let chain = stream.get_ref().1.peer_certificates().context("the server showed no certificate")?;
        Ok(chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
    };
    let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {HANDSHAKE_TIMEOUT:?}")));
    outcome.with_context(|| format!("ask {server} for its certificate"))
}
