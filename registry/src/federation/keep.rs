//! Looks after every Federation: fetches bundles and exports, judges them, and puts the good ones in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use pillion_config::Federation;
use pillion_config::federation::{HttpsUrl, Profile};
use pillion_model::matcher::StringMatcher;
use pillion_model::name::{SpiffeId, TrustDomain};
use pillion_model::tls::{
    Certificate, NameKind, NameMatcher, Roots as RootsSource, SVID_SECRET, TlsVersion, UpstreamTls,
    Validation, federated_secret,
};
use pillion_net::https::{Fetch, FetchError};
use pillion_net::identity::IdentityWatch;
use pillion_net::resolve::{Resolver, Target};
use pillion_net::tls::{Roots, Secrets, client_config, hex, sha256};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bundle::{Bundle, BundleError, end, unexpired};
use super::exports::Exports;
use super::status::{Book, FederationStatus, Part};
use crate::ca::{Authority, CaError, TrustedBundle};
use crate::catalog::Catalog;
use crate::store::{Key, Op, Space, StoreError, Transaction};

/// The federations of one registry process.
pub struct Federations {
    catalog: Arc<Catalog>,
    authority: Arc<Authority>,
    identity: IdentityWatch,
    resolver: Resolver,
    book: Book,
}

/// Why nothing new is in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("its sequence number is {found}, and {have} is in force")]
    Older { found: u64, have: u64 },
    #[error("it says something else than before under the same sequence number {0}")]
    Conflicting(u64),
    #[error("{0}")]
    Malformed(String),
    #[error("no TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Refusal {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Fetch(error) if error.is_distrust() => "untrusted",
            Self::Tls(_) => "untrusted",
            Self::Fetch(_) | Self::Status(_) => "unreachable",
            Self::Bundle(BundleError::Expired) => "expired",
            Self::Bundle(_) | Self::Malformed(_) => "malformed",
            Self::Older { .. } => "older",
            Self::Conflicting(_) => "conflicting",
            Self::Store(_) | Self::Ca(_) => "store",
        }
    }
}

impl Federations {
    /// None is looked after yet: see [`Federations::run`].
    pub fn new(
        catalog: Arc<Catalog>,
        authority: Arc<Authority>,
        identity: IdentityWatch,
        metrics: &prometheus::Registry,
    ) -> Arc<Self> {
        let (resolver, book) = (Resolver::system(), Book::new(metrics));
        Arc::new(Self { catalog, authority, identity, resolver, book })
    }

    /// What is known of a federation.
    pub fn status(&self, domain: &TrustDomain) -> FederationStatus {
        self.book.status(domain)
    }

    /// Looks after the Federations there are, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut identity = self.identity.clone();
        if stop.run_until_cancelled(identity.first()).await.is_none() {
            return;
        }
        let mut changes = self.catalog.changes();
        changes.mark_changed();
        let mut running: BTreeMap<TrustDomain, (Federation, CancellationToken)> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut seen = None;
        while stop.run_until_cancelled(changes.changed()).await.is_some_and(|changed| changed.is_ok()) {
            while tasks.try_join_next().is_some() {}
            let resources = Arc::clone(&self.catalog.world().resources);
            if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &resources)) {
                continue;
            }
            let wanted = self.wanted(&resources.set);
            running.retain(|domain, (federation, stop)| {
                let stays = wanted.get(domain) == Some(federation);
                if !stays {
                    stop.cancel();
                }
                stays
            });
            self.forget(&wanted).await;
            for (domain, federation) in wanted {
                running.entry(domain.clone()).or_insert_with(|| {
                    let (ours, federations) = (stop.child_token(), Arc::clone(&self));
                    let (theirs, of) = (ours.clone(), federation.clone());
                    tasks.spawn(async move {
                        let both = async {
                            tokio::join!(
                                federations.follow_bundle(&of, &domain),
                                federations.follow_services(&of, &domain)
                            )
                        };
                        theirs.run_until_cancelled(both).await;
                    });
                    (federation, ours)
                });
            }
            seen = Some(resources);
        }
        tasks.shutdown().await;
    }

    /// The Federations of trust domains that are not ours.
    fn wanted(&self, set: &pillion_config::ResourceSet) -> BTreeMap<TrustDomain, Federation> {
        let own = self.authority.settings().trust_domain;
        let named =
            set.federations().filter_map(|it| Some((TrustDomain::parse(&it.trust_domain).ok()?, it.clone())));
        named.filter(|(domain, _)| *domain != own).collect()
    }

    /// Whoever is not federated any more is trusted no more, and told nothing from.
    async fn forget(&self, wanted: &BTreeMap<TrustDomain, Federation>) {
        for domain in self.authority.federated().into_keys().filter(|domain| !wanted.contains_key(domain)) {
            match self.authority.drop_federated(&domain).await {
                Ok(()) => tracing::info!(trust_domain = %domain, "federation is over"),
                Err(error) => tracing::error!(trust_domain = %domain, %error, "cannot end a federation"),
            }
            self.book.forget(&domain);
        }
        let stays = |domain: &TrustDomain| wanted.get(domain).is_some_and(|it| it.services.is_some());
        for domain in self.catalog.world().imports.keys().filter(|domain| !stays(domain)) {
            let mut transaction = Transaction::default();
            transaction.push(Op::delete(Key::new(Space::Federation, domain.as_str())));
            if let Err(error) = self.catalog.commit(transaction).await {
                tracing::error!(trust_domain = %domain, %error, "cannot forget the exports of another mesh");
            }
        }
    }

    async fn follow_bundle(&self, federation: &Federation, domain: &TrustDomain) {
        let mut failures = 0;
        loop {
            let pause = match self.refresh(federation, domain).await {
                Ok(pause) => {
                    failures = 0;
                    self.book.good(domain, Part::Bundle);
                    pause
                }
                Err(error) => {
                    failures += 1;
                    self.book.refused(domain, Part::Bundle, error.reason(), &error.to_string());
                    backoff(failures)
                }
            };
            tokio::time::sleep(jittered(pause.min(self.until_an_end(domain)))).await;
        }
    }

    /// Takes a step: the operator's own word first, then what has expired, then what the endpoint says.
    /// How long until the next one.
    async fn refresh(&self, federation: &Federation, domain: &TrustDomain) -> Result<Duration, Refusal> {
        let have = self.basis(federation, domain).await?;
        let document = self.fetch_bundle(federation, domain, &have.roots).await?;
        let found = Bundle::parse(&document, domain, SystemTime::now())?;
        let differs = judge(&have, &found)?;
        if differs || found.sequence != have.sequence {
            let since = if differs { SystemTime::now() } else { have.since };
            let next = TrustedBundle {
                revision: 0,
                sequence: found.sequence,
                roots: found.roots,
                since,
                basis: have.basis,
            };
            self.put(domain, &next, (have.revision != 0).then_some(have.revision)).await?;
        }
        Ok(found.refresh_hint.unwrap_or(REFRESH_DEFAULT).clamp(REFRESH_MIN, REFRESH_MAX))
    }

    /// The bundle in force, without roots that are over; the one that the operator trusts to begin with if
    /// that is another one than before.
    async fn basis(&self, federation: &Federation, domain: &TrustDomain) -> Result<TrustedBundle, Refusal> {
        let have = self.authority.federated().remove(domain);
        let given = federation.bundle.trusted.as_deref();
        let basis = hex(&sha256(given.unwrap_or(&federation.bundle.url).as_bytes()));
        let now = SystemTime::now();
        let instead_of = have.as_ref().map(|have| have.revision);
        if let Some(mut have) = have.filter(|have| have.basis == basis) {
            let good = unexpired(&have.roots, now);
            if good.len() < have.roots.len() {
                tracing::warn!(trust_domain = %domain, left = good.len(), "roots of another mesh have expired");
                have.roots = good;
                self.put(domain, &have, instead_of).await?;
                have = self.authority.federated().remove(domain).unwrap_or(have);
            }
            self.book.in_force(domain, have.sequence, have.roots.len());
            return if have.roots.is_empty() && federation.bundle.profile == Profile::HttpsSpiffe {
                Err(BundleError::Expired.into())
            } else {
                Ok(have)
            };
        }
        let (sequence, roots) = match given {
            Some(given) => {
                let first = Bundle::parse(given.as_bytes(), domain, now)?;
                (first.sequence, first.roots)
            }
            None => (None, Vec::new()),
        };
        let first = TrustedBundle { revision: 0, sequence, roots, since: now, basis };
        self.put(domain, &first, instead_of).await?;
        Ok(self.authority.federated().remove(domain).unwrap_or(first))
    }

    async fn put(
        &self,
        domain: &TrustDomain,
        bundle: &TrustedBundle,
        instead_of: Option<u64>,
    ) -> Result<(), Refusal> {
        match self.authority.put_federated(domain, bundle, instead_of).await {
            Ok(()) => {
                let (sequence, roots) = (bundle.sequence, bundle.roots.len());
                tracing::info!(trust_domain = %domain, ?sequence, roots, "the bundle of another mesh is in force");
                self.book.in_force(domain, sequence, roots);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_bundle(
        &self,
        federation: &Federation,
        domain: &TrustDomain,
        roots: &[CertificateDer<'static>],
    ) -> Result<bytes::Bytes, Refusal> {
        let url = HttpsUrl::parse(&federation.bundle.url).map_err(Refusal::Malformed)?;
        let validation = match federation.bundle.profile {
            Profile::HttpsSpiffe => {
                let registry = SpiffeId::registry(domain.clone()).to_string();
                let id = federation.bundle.spiffe_id.clone().unwrap_or(registry);
                let name = NameMatcher { kind: NameKind::Uri, matcher: StringMatcher::exact(id) };
                Validation { roots: RootsSource::Secret(federated_secret(domain)), names: vec![name] }
            }
            Profile::HttpsWeb => {
                let is_address = url.host.parse::<std::net::IpAddr>().is_ok();
                let kind = if is_address { NameKind::Ip } else { NameKind::Dns };
                let name = NameMatcher { kind, matcher: StringMatcher::exact(url.host.clone()) };
                Validation { roots: RootsSource::System, names: vec![name] }
            }
        };
        let roots = Roots::federated(domain, roots.to_vec());
        let roots = Arc::new(roots.map_err(|error| Refusal::Malformed(error.to_string()))?);
        let tls = client_config(&upstream(None, validation, &url.host), &Only(roots));
        let tls = tls.map_err(|error| Refusal::Tls(error.to_string()))?;
        let target = Target { host: url.host, port: url.port };
        let fetch = Fetch { target: &target, path: &url.path, body_max: BUNDLE_BYTES_MAX, time: FETCH_TIME };
        match fetch.get(&self.resolver, tls).await? {
            (StatusCode::OK, body) => Ok(body),
            (status, _) => Err(Refusal::Status(status)),
        }
    }

    async fn follow_services(&self, federation: &Federation, domain: &TrustDomain) {
        let Some(target) = federation.services.as_deref().and_then(|text| Target::parse(text, 0).ok()) else {
            return;
        };
        let mut failures = 0;
        loop {
            let asked = Instant::now();
            match self.ask_services(&target, domain).await {
                Ok(()) => {
                    failures = 0;
                    self.book.good(domain, Part::Services);
                    // Whoever answers at once, again and again, is asked no more often than this.
                    tokio::time::sleep_until(asked + SERVICES_MIN).await;
                }
                Err(error) => {
                    failures += 1;
                    self.book.refused(domain, Part::Services, error.reason(), &error.to_string());
                    tokio::time::sleep(jittered(backoff(failures))).await;
                }
            }
        }
    }

    /// Waits for exports other than those that are known, for a while.
    async fn ask_services(&self, target: &Target, domain: &TrustDomain) -> Result<(), Refusal> {
        let have = self.catalog.world().imports.get(domain).cloned();
        let since = have.as_ref().map(|have| have.version()).unwrap_or_default();
        let name = NameMatcher {
            kind: NameKind::Uri,
            matcher: StringMatcher::exact(SpiffeId::registry(domain.clone()).to_string()),
        };
        let validation =
            Validation { roots: RootsSource::Secret(federated_secret(domain)), names: vec![name] };
        let context = upstream(Some(SVID_SECRET), validation, &target.host);
        let identity = self.identity.current().ok_or_else(|| Refusal::Tls("no identity yet".to_owned()))?;
        let tls = client_config(&context, &*identity).map_err(|error| Refusal::Tls(error.to_string()))?;
        let path = format!("/v1/exports?since={since}&wait={}", SERVICES_WAIT.as_secs());
        let time = SERVICES_WAIT + FETCH_TIME;
        let fetch = Fetch { target, path: &path, body_max: SERVICES_BYTES_MAX, time };
        let body = match fetch.get(&self.resolver, tls).await? {
            (StatusCode::NOT_MODIFIED, _) => return Ok(()),
            (StatusCode::OK, body) => body,
            (status, _) => return Err(Refusal::Status(status)),
        };
        let told: Exports =
            serde_json::from_slice(&body).map_err(|error| Refusal::Malformed(format!("exports: {error}")))?;
        told.check().map_err(Refusal::Malformed)?;
        if have.is_none_or(|have| *have != told) {
            let services = told.services.len();
            let value = serde_json::to_vec(&told).expect("plain fields have a JSON form");
            let mut transaction = Transaction::default();
            transaction.push(Op::put(Key::new(Space::Federation, domain.as_str()), value));
            self.catalog.commit(transaction).await?;
            tracing::info!(trust_domain = %domain, services, "another mesh tells what it exports to us");
        }
        Ok(())
    }

    /// Time until the first root in force is over.
    fn until_an_end(&self, domain: &TrustDomain) -> Duration {
        let roots = self.authority.federated().remove(domain).map(|have| have.roots).unwrap_or_default();
        let first = roots.iter().filter_map(end).min();
        let left = first.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        left.map_or(REFRESH_MAX, |left| left.max(REFRESH_MIN))
    }
}

/// Whether a bundle that was found differs from the one in force, whose place it may take.
pub(super) fn judge(have: &TrustedBundle, found: &Bundle) -> Result<bool, Refusal> {
    let differs = found.roots != have.roots;
    match (found.sequence, have.sequence) {
        (Some(found), Some(have)) if found < have => Err(Refusal::Older { found, have }),
        (None, Some(have)) => Err(Refusal::Older { found: 0, have }),
        (Some(found), Some(have)) if found == have && differs => Err(Refusal::Conflicting(found)),
        _ => Ok(differs),
    }
}

/// TLS of our own to another mesh's registry, or to a web server.
fn upstream(certificate: Option<&str>, validation: Validation, host: &str) -> UpstreamTls {
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    UpstreamTls {
        certificate: certificate.map(|name| Certificate::Secret(name.to_owned())),
        validation: Some(validation),
        sni: if is_address { String::new() } else { host.to_owned() },
        alpn: vec!["http/1.1".to_owned()],
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
    }
}

/// Knows one bundle.
struct Only(Arc<Roots>);

impl Secrets for Only {
    fn certificate(&self, _name: &str) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn roots(&self, _name: &str) -> Option<Arc<Roots>> {
        Some(Arc::clone(&self.0))
    }
}

fn backoff(failures: u32) -> Duration {
    (REFRESH_MIN * 2_u32.saturating_pow(failures.saturating_sub(1))).min(RETRY_MAX)
}

/// 80 to 100 % of the time, so that many registries do not come at once.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.2 * fastrand::f64())
}

const REFRESH_DEFAULT: Duration = Duration::from_secs(300);
const REFRESH_MIN: Duration = Duration::from_secs(1);
const REFRESH_MAX: Duration = Duration::from_secs(3600);
const RETRY_MAX: Duration = Duration::from_secs(30);
const FETCH_TIME: Duration = Duration::from_secs(10);
/// Least time between two questions for exports.
const SERVICES_MIN: Duration = Duration::from_secs(1);
/// How long exports are waited for.
const SERVICES_WAIT: Duration = Duration::from_secs(30);
const BUNDLE_BYTES_MAX: usize = 256 << 10;
const SERVICES_BYTES_MAX: usize = 16 << 20;
