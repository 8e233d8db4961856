//! Checks JSON Web Tokens: which request needs which is decided by rules, or by its route.
//!
//! Everything is checked at once against keys in hand; only where a token gets as far as keys that
//! have to be asked for does a request wait, before anything of it is changed.

mod keys;
mod metadata;
mod places;
mod remote;
mod status;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderName, Method, StatusCode};
use pillion_model::jwt::{JwtAuthn, JwtKeys, JwtOverride, JwtProvider, JwtRequirement};
use pillion_model::matcher::RequestView;
use pillion_model::tls::DataSource;

use self::keys::Keys;
pub(crate) use self::places::percent_decoded;
use self::places::{Found, Place, Places};
use self::remote::Remote;
use self::status::Status;
use self::token::Token;
use super::{overrides, route};
use crate::chain::Step;
use crate::exchange::{Exchange, Head};
use crate::headers::names::ORIGINAL_PATH;
use crate::local_reply::LocalReply;

/// Compiled [`JwtAuthn`].
pub(crate) struct Jwt {
    pub(crate) settings: JwtAuthn,
    providers: BTreeMap<String, Provider>,
    /// Whether any of them does.
    reroutes: bool,
    /// What came of requests.
    pub(crate) counts: Counts,
}

/// What came of requests.
#[derive(Default)]
pub(crate) struct Counts {
    /// Sent on.
    pub(crate) allowed: AtomicU64,
    /// Preflights that needed no token.
    pub(crate) bypassed: AtomicU64,
    /// Refused.
    pub(crate) denied: AtomicU64,
}

impl Counts {
    /// By Envoy's names.
    pub(crate) fn read(&self) -> [(&'static str, u64); 3] {
        [
            ("allowed", self.allowed.load(Relaxed)),
            ("cors_preflight_bypassed", self.bypassed.load(Relaxed)),
            ("denied", self.denied.load(Relaxed)),
        ]
    }
}

struct Provider {
    settings: JwtProvider,
    places: Places,
    keys: Source,
    payload_header: Option<HeaderName>,
    claim_headers: Vec<(HeaderName, String)>,
}

enum Source {
    Local(Arc<Keys>),
    Remote(Arc<Remote>),
}

impl Jwt {
    /// Compiles; local keys are read.
    pub(crate) fn compile(settings: &JwtAuthn) -> Result<Self, String> {
        let provider = |(name, provider): (&String, &JwtProvider)| {
            let compiled =
                Provider::compile(provider).map_err(|error| format!("JWT provider `{name}`: {error}"))?;
            Ok::<_, String>((name.clone(), compiled))
        };
        Ok(Self {
            providers: settings.providers.iter().map(provider).collect::<Result<_, _>>()?,
            reroutes: settings.providers.values().any(|provider| provider.clear_route_cache),
            settings: settings.clone(),
            counts: Counts::default(),
        })
    }

    /// What a request needs; `Err`: its route names what there is not.
    fn requirement(&self, x: &Exchange) -> Result<Option<&JwtRequirement>, String> {
        let routed = x.record.routed.clone();
        let said = overrides(x, routed.as_ref()).and_then(|overrides| overrides.jwt());
        match said {
            None => {
                let rule = self.settings.rules.iter().find(|rule| rule.matches.is_match(&x.head, x.draw));
                Ok(rule.and_then(|rule| rule.requires.as_ref()))
            }
            Some(JwtOverride::Disabled) => Ok(None),
            Some(JwtOverride::Requirement(name)) => {
                self.settings.requirements.get(name).map(Some).ok_or_else(|| {
                    let known: Vec<&str> = self.settings.requirements.keys().map(String::as_str).collect();
                    format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","))
                })
            }
        }
    }

    /// Every provider that `need` speaks of.
    fn involved<'a>(&'a self, need: &'a JwtRequirement, into: &mut Vec<&'a Provider>) {
        match need {
            JwtRequirement::Provider { name, .. } => into.extend(self.providers.get(name)),
            JwtRequirement::Any(all) | JwtRequirement::All(all) => {
                all.iter().for_each(|one| self.involved(one, into));
            }
            JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed => {
                into.extend(self.providers.values());
            }
            JwtRequirement::Named(name) => {
                if let Some(inner) = self.settings.requirements.get(name) {
                    self.involved(inner, into);
                }
            }
        }
    }

    /// Whether a token that `need` speaks of has a say in where the request goes.
    fn reroutes(&self, need: &JwtRequirement) -> bool {
        if !self.reroutes {
            return false;
        }
        let mut involved = Vec::new();
        self.involved(need, &mut involved);
        involved.iter().any(|provider| provider.reroutes())
    }

    fn check(&self, head: &mut Head, need: &JwtRequirement) -> Result<(), Status> {
        match need {
            JwtRequirement::Provider { name, audiences } => {
                let provider = self.providers.get(name).ok_or(Status::UnknownIssuer)?;
                self.check_tokens(head, Some((provider, audiences)), false)
            }
            JwtRequirement::All(all) => all.iter().try_for_each(|one| self.check(head, one)),
            JwtRequirement::Any(all) => self.check_any(head, all),
            JwtRequirement::AllowMissing => match self.check_tokens(head, None, true) {
                Err(Status::Missing) => Ok(()),
                other => other,
            },
            JwtRequirement::AllowMissingOrFailed => {
                let _either = self.check_tokens(head, None, true);
                Ok(())
            }
            JwtRequirement::Named(name) => match self.settings.requirements.get(name) {
                Some(inner) => self.check(head, inner),
                None => Err(Status::UnknownIssuer),
            },
        }
    }

    /// The first that is met; else the failure that says most.
    fn check_any(&self, head: &mut Head, all: &[JwtRequirement]) -> Result<(), Status> {
        let mut worst = Status::Missing;
        for one in all {
            match one {
                JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed => continue,
                _ => {}
            }
            match self.check(head, one) {
                Ok(()) => return Ok(()),
                Err(Status::Missing) => {}
                Err(Status::UnknownIssuer) if worst != Status::Missing => {}
                Err(status) => worst = status,
            }
        }
        let has = |want: &JwtRequirement| all.contains(want);
        let forgiven = has(&JwtRequirement::AllowMissingOrFailed)
            || (has(&JwtRequirement::AllowMissing) && worst == Status::Missing);
        if forgiven { Ok(()) } else { Err(worst) }
    }

    /// Checks every token at the places of `only`, or at all; `lenient`: one that fails does not keep
    /// the others from being checked.
    fn check_tokens(
        &self,
        head: &mut Head,
        only: Option<(&Provider, &Vec<String>)>,
        lenient: bool,
    ) -> Result<(), Status> {
        let mut found = Vec::new();
        match only {
            Some((provider, _)) => provider.places.find(&head.headers, head.query(), &mut found),
            None => {
                for provider in self.providers.values() {
                    provider.places.find(&head.headers, head.query(), &mut found);
                }
            }
        }
        let mut outcome = Err(Status::Missing);
        while let Some(one) = found.pop() {
            outcome = self.check_token(head, &one, only);
            if outcome.is_err() && !lenient {
                break;
            }
        }
        outcome
    }

    fn check_token(
        &self,
        head: &mut Head,
        found: &Found,
        only: Option<(&Provider, &Vec<String>)>,
    ) -> Result<(), Status> {
        let (token, provider) = self.up_to_keys(found, only)?;
        let keys = provider.keys.held().ok_or(Status::KeyFetch)?;
        keys.verify(&token)?;
        provider.pass_on(head, &token, &found.place);
        Ok(())
    }

    /// Everything that can be said of a token without keys.
    fn up_to_keys<'a, 'b>(
        &'b self,
        found: &'a Found,
        only: Option<(&'b Provider, &Vec<String>)>,
    ) -> Result<(Token<'a>, &'b Provider), Status> {
        let token = Token::parse(&found.text)?;
        let takes = |provider: &&Provider| {
            provider.places.has(&found.place)
                && (provider.settings.issuer.is_empty() || provider.settings.issuer == token.issuer)
        };
        let provider = match only {
            Some((provider, _)) => Some(provider).filter(takes),
            None => {
                let mut all = self.providers.values().filter(takes);
                let exact = |provider: &&Provider| !provider.settings.issuer.is_empty();
                all.clone().find(exact).or_else(|| all.next())
            }
        };
        let provider = provider.ok_or(Status::UnknownIssuer)?;
        let settings = &provider.settings;
        if settings.subjects.as_ref().is_some_and(|subjects| !subjects.is_match(&token.subject))
            || !token.ends_in_time(now(), settings.require_expiration, settings.max_lifetime)
        {
            return Err(Status::Verification);
        }
        token.check_time(now(), settings.clock_skew_seconds.into())?;
        let allowed = match only {
            Some((_, own)) if !own.is_empty() => own,
            _ => &provider.settings.audiences,
        };
        if !allowed.is_empty() && !token.audiences.iter().any(|audience| fits(audience, allowed)) {
            return Err(Status::AudienceNotAllowed);
        }
        Ok((token, provider))
    }
}

/// Audiences are compared without their scheme and a slash at their end, as in Envoy.
fn fits(audience: &str, allowed: &[String]) -> bool {
    fn bare(text: &str) -> &str {
        let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        text.strip_suffix('/').unwrap_or(text)
    }
    allowed.iter().any(|one| bare(one) == bare(audience))
}

impl Provider {
    fn compile(settings: &JwtProvider) -> Result<Self, String> {
        let header = |name: &String| {
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name"))
        };
        let claim = |(name, path): &(String, String)| Ok::<_, String>((header(name)?, path.clone()));
        Ok(Self {
            places: Places::compile(settings)?,
            keys: match &settings.keys {
                JwtKeys::Local(source) => Source::Local(Arc::new(local(source)?)),
                JwtKeys::Remote(remote) => Source::Remote(Arc::new(Remote::compile(remote)?)),
            },
            payload_header: match settings.payload_header.as_str() {
                "" => None,
                _ => Some(header(&settings.payload_header)?),
            },
            claim_headers: settings.claim_headers.iter().map(claim).collect::<Result<_, _>>()?,
            settings: settings.clone(),
        })
    }

    /// Changes a request whose token is good.
    fn pass_on(&self, head: &mut Head, token: &Token<'_>, place: &Place) {
        metadata::note(head, &self.settings, token);
        let headers = &mut head.headers;
        if let Some(name) = &self.payload_header {
            let payload = if self.settings.pad_payload_header {
                let bare = token::BASE64.decode(token.payload).unwrap_or_default();
                HeaderValue::try_from(URL_SAFE.encode(bare))
            } else {
                HeaderValue::from_str(token.payload)
            };
            headers.extend(payload.ok().map(|payload| (name.clone(), payload)));
        }
        for (name, path) in &self.claim_headers {
            let value = token.claim(path).filter(|value| !value.is_empty());
            let value = value.and_then(|value| HeaderValue::try_from(value).ok());
            headers.extend(value.map(|value| (name.clone(), value)));
        }
        match place {
            _ if self.settings.forward => {}
            Place::Header(name, _) => {
                headers.remove(name);
            }
            Place::Param(name) => {
                let rest = places::without(head.query().unwrap_or_default(), name);
                let path = head.path();
                let path = rest.map_or_else(|| path.to_owned(), |rest| format!("{path}?{rest}"));
                // A part of a path that was one is one.
                let _same = head.set_path(&path);
            }
            Place::Cookie(_) => {}
        }
    }
}

impl Provider {
    fn reroutes(&self) -> bool {
        let settings = &self.settings;
        settings.clear_route_cache
            && !(settings.claim_headers.is_empty() && settings.payload_metadata.is_empty())
    }
}

impl Source {
    fn held(&self) -> Option<Arc<Keys>> {
        match self {
            Self::Local(keys) => Some(Arc::clone(keys)),
            Self::Remote(remote) => remote.keys(),
        }
    }
}

fn local(source: &DataSource) -> Result<Keys, String> {
    let text = match source {
        DataSource::Inline(text) => text.clone(),
        DataSource::File(path) => {
            std::fs::read(path).map_err(|error| format!("local_jwks `{path}`: {error}"))?
        }
        DataSource::Environment(name) => {
            std::env::var(name).map_err(|error| format!("local_jwks `{name}`: {error}"))?.into_bytes()
        }
    };
    Keys::parse(&text).map_err(|error| format!("local_jwks: {error}"))
}

/// Lets through what has the token that it needs.
pub(super) async fn check(x: &mut Exchange, jwt: &Jwt) -> Step {
    // What only a token may say nobody else says.
    for provider in jwt.providers.values() {
        let claims = provider.claim_headers.iter().map(|(name, _)| name);
        for name in provider.payload_header.iter().chain(claims) {
            x.head.headers.remove(name);
        }
    }
    if jwt.settings.bypass_cors_preflight && is_preflight(&x.head) {
        jwt.counts.bypassed.fetch_add(1, Relaxed);
        return Ok(());
    }
    let need = match jwt.requirement(x) {
        Ok(Some(need)) => need,
        Ok(None) => {
            jwt.counts.allowed.fetch_add(1, Relaxed);
            return Ok(());
        }
        Err(wrong) => {
            jwt.counts.denied.fetch_add(1, Relaxed);
            let details = details(&wrong);
            let body = Bytes::from(format!("Failed JWT authentication: {wrong}"));
            let mut reply = LocalReply::direct(StatusCode::FORBIDDEN, body, "");
            reply.details = details.into();
            return Err(reply);
        }
    };
    let realm = realm(&x.head);
    ask_for_keys(x, jwt, need).await?;
    match jwt.check(&mut x.head, need) {
        Ok(()) => {
            jwt.counts.allowed.fetch_add(1, Relaxed);
            if jwt.reroutes(need) {
                route::again(x);
            }
            Ok(())
        }
        Err(status) => {
            jwt.counts.denied.fetch_add(1, Relaxed);
            Err(refusal(jwt, status, &realm))
        }
    }
}

/// Waits for keys that a token of the request will need.
async fn ask_for_keys(x: &mut Exchange, jwt: &Jwt, need: &JwtRequirement) -> Step {
    let mut involved = Vec::new();
    jwt.involved(need, &mut involved);
    for provider in involved {
        let Source::Remote(remote) = &provider.keys else { continue };
        if remote.keys().is_some() {
            remote.look_ahead(x);
            continue;
        }
        let mut found = Vec::new();
        provider.places.find(&x.head.headers, x.head.query(), &mut found);
        // For an audience of the requirement's own the provider's may be the wrong ones.
        let any = Vec::from(["".to_owned()]);
        let needed = |one: &Found| match jwt.up_to_keys(one, Some((provider, &any))) {
            Ok(_) | Err(Status::AudienceNotAllowed) => true,
            Err(_) => false,
        };
        if !found.iter().any(needed) {
            continue;
        }
        tokio::select! {
            () = remote.refresh(x) => {}
            expired = x.timers.expired(None) => return Err(x.timers.cause(expired).into()),
        }
    }
    Ok(())
}

fn refusal(jwt: &Jwt, status: Status, realm: &str) -> LocalReply {
    let code = match status {
        Status::AudienceNotAllowed => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    let strip = jwt.settings.strip_failure_response;
    let body = if strip { "" } else { status.text() };
    let mut reply = LocalReply::direct(code, Bytes::from_static(body.as_bytes()), "");
    reply.details = details(status.text()).into();
    if strip {
        return reply;
    }
    let mut challenge = format!("Bearer realm=\"{realm}\"");
    if status != Status::Missing {
        challenge.push_str(", error=\"invalid_token\"");
    }
    match HeaderValue::try_from(challenge) {
        Ok(challenge) => reply.header(WWW_AUTHENTICATE, challenge),
        Err(_) => reply,
    }
}

fn details(reason: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", reason.replace(' ', "_"))
}

/// The URI that was asked for.
fn realm(head: &Head) -> String {
    let original = head.headers.get(&ORIGINAL_PATH).and_then(|path| path.to_str().ok());
    let path = original.or_else(|| head.uri.path_and_query().map(|path| path.as_str())).unwrap_or_default();
    let path = &path[..path.floor_char_boundary(PATH_SHOWN_MAX)];
    format!("{}://{}{path}", head.scheme, head.authority())
}

/// Bytes of a path that a client is told.
const PATH_SHOWN_MAX: usize = 256;

fn is_preflight(head: &Head) -> bool {
    let given = |name: HeaderName| head.headers.get(name).is_some_and(|value| !value.is_empty());
    head.method == Method::OPTIONS && given(ORIGIN) && given(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
