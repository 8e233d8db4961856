//! Who may use the API: whoever has a token whose role suffices, or, with `--open`, everybody on this
//! machine who did not come by a web page of somebody else.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use pillion_net::tls::{hex, sha256};

use super::Api;
use super::problem::Problem;
use crate::ca::{OperatorInfo, Role};
use crate::catalog::Catalog;
use crate::store::StoreError;

/// The operator token's file in the data directory.
pub const TOKEN_FILE: &str = "operator.token";
/// How clients of Consul bring a token.
const CONSUL_TOKEN: header::HeaderName = header::HeaderName::from_static("x-consul-token");
/// Random bytes in the token.
const TOKEN_BYTES: usize = 32;

/// Who is let in.
#[derive(Clone)]
pub enum Auth {
    /// Whoever has this token, or, with a catalog, that of another registry on the same store.
    Operator(Arc<str>, Option<Arc<Catalog>>),
    /// Everybody on this machine.
    Open,
}

/// The token's file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("operator token {}: {reason}", .path.display())]
pub struct TokenFileError {
    path: PathBuf,
    reason: String,
}

impl Auth {
    /// Reads the operator's token, or makes one at the first start. Says whether it was made.
    ///
    /// # Errors
    ///
    /// [`TokenFileError`] if the file cannot be read or written, or is empty.
    pub fn operator(directory: &Path) -> Result<(Self, bool), TokenFileError> {
        let path = directory.join(TOKEN_FILE);
        let failed = |reason: String| TokenFileError { path: path.clone(), reason };
        let io = |error: std::io::Error| failed(error.to_string());
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Ok(mut file) => {
                let token = random_token().map_err(|error| failed(error.to_string()))?;
                file.write_all(format!("{token}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
                Ok((Self::Operator(token.into(), None), true))
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut text = String::new();
                std::fs::File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).map_err(io)?;
                let token = text.trim();
                if token.len() < 16 {
                    return Err(failed("it is shorter than 16 characters; remove it for a new one".into()));
                }
                Ok((Self::Operator(token.into(), None), false))
            }
            Err(error) => Err(io(error)),
        }
    }

    /// Makes the token good at every registry on the same store, where there are others: a hash of it is
    /// kept there.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store refuses.
    pub async fn share(self, catalog: &Arc<Catalog>) -> Result<Self, StoreError> {
        match self {
            Self::Operator(token, _) if !catalog.store().replica().is_empty() => {
                catalog.admit_operator(&hex(&sha256(token.as_bytes()))).await?;
                Ok(Self::Operator(token, Some(Arc::clone(catalog))))
            }
            other => Ok(other),
        }
    }

    /// Who asks; `named` knows the operators' tokens by their hashes.
    pub(super) fn admits(
        &self,
        headers: &HeaderMap,
        named: impl Fn(&str) -> Option<OperatorInfo>,
    ) -> Result<Caller, Problem> {
        match self {
            Self::Operator(token, catalog) => {
                let Some(given) = bearer(headers) else { return Err(unauthorized(headers)) };
                let hash = hex(&sha256(given));
                let shared = |catalog: &Arc<Catalog>| catalog.world().operators.contains(&hash);
                if same_secret(given, token.as_bytes()) || catalog.as_ref().is_some_and(shared) {
                    return Ok(Caller { name: "operator".to_owned(), role: Role::Admin, token: None });
                }
                let caller =
                    |it: OperatorInfo| Caller { name: it.name, role: it.role, token: Some(hash.clone()) };
                named(&hash).map(caller).ok_or_else(|| unauthorized(headers))
            }
            Self::Open => {
                // A page of another site can make a browser on this machine ask us; then the name it
                // asked, or the site it says it is from, is not ours.
                let ours = |name: header::HeaderName| {
                    headers.get(name).is_none_or(|value| value.to_str().is_ok_and(is_loopback))
                };
                if ours(header::HOST) && ours(header::ORIGIN) {
                    return Ok(Caller { name: "local".to_owned(), role: Role::Admin, token: None });
                }
                let detail = "with --open only requests to localhost or a loopback address are answered";
                Err(Problem::new(StatusCode::FORBIDDEN, detail))
            }
        }
    }
}

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) role: Role,
    /// SHA-256 of a token that can be deleted, hex.
    token: Option<String>,
}

impl Caller {
    /// Whether the role suffices.
    pub(super) fn may(&self, required: Role) -> Result<(), Problem> {
        if self.role >= required {
            return Ok(());
        }
        let Self { name, role, .. } = self;
        let detail = format!("the token `{name}` has the role {role}; this needs {required}");
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }
}

/// What stands before every operation that needs a role.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) auth: Auth,
    pub(super) api: Api,
    /// By method and path, as in the table of operations.
    pub(super) roles: Arc<HashMap<(Method, &'static str), Role>>,
}

impl Guard {
    /// What an operation needs. What is none is answered 404 or 405 to anybody.
    fn required(&self, request: &Request) -> Role {
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let Some(path) = request.extensions().get::<MatchedPath>() else { return Role::Read };
        let mut of_path = self.roles.iter().filter(|((_, at), _)| *at == path.as_str()).peekable();
        let is_known = of_path.peek().is_some();
        let found = of_path.find(|((of, _), _)| of == method);
        // A path that the table has forgotten is not for everybody.
        found.map_or(if is_known { Role::Read } else { Role::Admin }, |(_, role)| *role)
    }
}

pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let required = guard.required(&request);
    let tokens = guard.api.authority.tokens();
    let admitted = guard.auth.admits(request.headers(), |hash| tokens.operator(hash));
    let (who, token, admitted) = match admitted {
        Ok(caller) => (caller.name.clone(), caller.token.clone(), caller.may(required)),
        Err(problem) => (String::new(), None, Err(problem)),
    };
    let path = super::tokens::told(request.uri().path(), tokens);
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let from = from.map(|from| from.0.to_string()).unwrap_or_default();
    let what = format!("{} {path}", request.method());
    match admitted {
        // A heartbeat changes nothing.
        Ok(()) if required == Role::Read || path.contains("/heartbeat") => {
            let response = next.run(request).await;
            match token {
                Some(token) if is_stream(&response) => until_deleted(response, token, guard.api),
                _ => response,
            }
        }
        Ok(()) => {
            let response = next.run(request).await;
            guard.api.audit.note(&who, from, what, response.status().as_u16().to_string(), false);
            response
        }
        Err(problem) => {
            let outcome = problem.status.to_string();
            guard.api.audit.note(&who, from, what, outcome, true);
            let unauthorized = problem.status == StatusCode::UNAUTHORIZED.as_u16();
            let mut response = problem.into_response();
            if unauthorized {
                let scheme = HeaderValue::from_static("Bearer realm=\"pillion\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

fn is_stream(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream")
}

/// A stream ends with the token that it was opened with.
fn until_deleted(response: Response, token: String, api: Api) -> Response {
    let deleted = Box::pin(async move { api.authority.tokens().operator_ended(&token).await });
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(deleted)))
}

/// Before a token.
const SCHEME: &[u8] = b"Bearer ";

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    match headers.get(header::AUTHORIZATION) {
        // The scheme's case does not matter (RFC 9110, 11.1).
        Some(given) => given
            .as_bytes()
            .split_at_checked(SCHEME.len())
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME))
            .map(|(_, token)| token),
        None => headers.get(CONSUL_TOKEN).map(HeaderValue::as_bytes),
    }
}

fn unauthorized(headers: &HeaderMap) -> Problem {
    let given = headers.contains_key(header::AUTHORIZATION) || headers.contains_key(CONSUL_TOKEN);
    let what = match bearer(headers) {
        Some(_) => "this is no operator's token, or one that has ended",
        None if given => "Authorization is not a bearer token",
        None => "an operator's token is needed",
    };
    Problem::new(
        StatusCode::UNAUTHORIZED,
        format!(
            "{what}; send it as `Authorization: Bearer …` (PILLION_TOKEN); one is in {TOKEN_FILE} in the \
             registry's data directory"
        ),
    )
}

/// Compares hashes, so that time tells neither the length nor the common beginning.
fn same_secret(given: &[u8], want: &[u8]) -> bool {
    use aws_lc_rs::digest::{SHA256, digest};
    let (given, want) = (digest(&SHA256, given), digest(&SHA256, want));
    aws_lc_rs::constant_time::verify_slices_are_equal(given.as_ref(), want.as_ref()).is_ok()
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.strip_prefix("http://").unwrap_or(authority);
    if let Ok(address) = host.parse::<std::net::SocketAddr>() {
        return address.ip().is_loopback();
    }
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>() {
        return ip.is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
}

fn random_token() -> Result<String, aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; TOKEN_BYTES];
    aws_lc_rs::rand::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).expect("valid"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_token_is_made_once_and_only_its_owner_may_read_it() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (first, made) = Auth::operator(directory.path()).expect("makes one");
        let (second, again) = Auth::operator(directory.path()).expect("reads it");
        assert!(made && !again);
        let (Auth::Operator(first, _), Auth::Operator(second, _)) = (first, second) else { panic!("open") };
        assert_eq!(first, second);
        assert_eq!(first.len(), 64);
        let mode = std::fs::metadata(directory.path().join(TOKEN_FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_the_right_token_is_admitted() {
        let auth = Auth::Operator("secret-secret-secret".into(), None);
        for (given, want) in [
            (Some("Bearer secret-secret-secret"), true),
            (Some("bearer secret-secret-secret"), true),
            (Some("Basic secret-secret-secret"), false),
            (Some("B"), false),
            (Some("Bearer secret-secret-secreT"), false),
            (Some("Bearer secret-secret-secret2"), false),
            (Some("Bearer "), false),
            (Some("Basic secret-secret-secret"), false),
            (None, false),
        ] {
            let given = given.map(|given| vec![("authorization", given)]).unwrap_or_default();
            assert_eq!(auth.admits(&headers(&given), |_| None).is_ok(), want, "{given:?}");
        }
        for (given, want) in [("secret-secret-secret", true), ("Bearer secret-secret-secret", false)] {
            assert_eq!(
                auth.admits(&headers(&[("x-consul-token", given)]), |_| None).is_ok(),
                want,
                "{given}"
            );
        }
    }

    #[test]
    fn open_answers_only_what_was_asked_of_this_machine() {
        for (host, origin, want) in [
            ("127.0.0.1:7070", None, true),
            ("localhost:7070", None, true),
            ("localhost", None, true),
            ("[::1]:7070", Some("http://localhost:7070"), true),
            ("rebound.example.com:7070", None, false),
            ("127.0.0.1:7070", Some("http://evil.example.com"), false),
            ("127.0.0.1.example.com", None, false),
            ("10.0.0.1:7070", None, false),
        ] {
            let mut given = vec![("host", host)];
            given.extend(origin.map(|origin| ("origin", origin)));
            assert_eq!(Auth::Open.admits(&headers(&given), |_| None).is_ok(), want, "{given:?}");
        }
    }
}
