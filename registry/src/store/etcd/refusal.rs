//! Why etcd ends connections: in TLS 1.3 a server looks at a client's certificate after the client
//! thinks that all is well, and requests then fail without a reason.

use std::sync::Arc;
use std::time::Duration;

use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{explain, server_name};
use rustls::ClientConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a member may take to refuse us.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// What the first member says that refuses our certificate, or its lack.
pub(super) async fn of_any(members: &[Target], tls: &Arc<ClientConfig>) -> Option<String> {
    for member in members {
        if let Ok(Some(reason)) = timeout(WAIT_MAX, of_one(member, tls)).await {
            return Some(reason);
        }
    }
    None
}

async fn of_one(member: &Target, tls: &Arc<ClientConfig>) -> Option<String> {
    let address = Resolver::system().sockets(member).await.ok()?.into_iter().next()?;
    let tcp = TcpStream::connect(address).await.ok()?;
    let name = server_name(&member.host, address.ip());
    let error = match TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await {
        // It waits for our first word, unless it refuses us.
        Ok(mut stream) => stream.read_u8().await.err()?,
        Err(error) => error,
    };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if !matches!(inner, Some(rustls::Error::AlertReceived(_))) {
        return None; // not a word on us
    }
    let remedy = match tls.client_auth_cert_resolver.has_certs() {
        true => "use another certificate (--store-cert, --store-key)",
        false => "it may want a client certificate: pass --store-cert and --store-key",
    };
    Some(format!("etcd at {member}: {}; {remedy}", explain(&error)))
}
