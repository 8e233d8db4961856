//! Reads a Route.

use super::{
    Abort, Cors, Delay, Fault, GrpcMatch, HeaderEdits, HeaderMatch, Headers, Match, Mirror, NumberRange,
    PathMatch, QueryMatch, Redirect, RegexRewrite, Respond, Rewrite, Route, Rule, Share, ValueMatch,
};
use crate::mesh::dns_name;
use crate::policy::method;
use crate::reader::{Field, Object, header_name};
use crate::resource::Id;
use crate::service::{HOUR, MS, Retry, Timeouts};

/// Longest body of a [`Respond`]: Envoy's default for direct responses.
const BODY_BYTES_MAX: usize = 4096;

impl Route {
    pub(crate) fn read(id: Id, mut object: Object<'_>) -> Option<Self> {
        object.later("gateway", "gateways are");
        let gateway = object.has("gateway");
        let to =
            if gateway { object.optional("to", Field::name) } else { object.required("to", Field::name) };
        let port = object.optional("port", Field::label);
        let rules = object.required("rules", |field| field.list_of_some(Rule::read));
        object.finish();
        Some(Self { namespace: id.namespace, name: id.name, to: to?, port, rules: rules? })
    }
}

impl Rule {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let matches = object.optional("match", Match::read);
        let split = object.optional("split", split).unwrap_or_default();
        let has_prefix = matches.as_ref().and_then(|matches| matches.path.as_ref());
        let can_replace = !matches!(has_prefix, Some(PathMatch::Regex(_)));
        let rule = Self {
            rewrite: object.optional("rewrite", |field| Rewrite::read(field, can_replace)),
            timeout: object.optional("timeout", Timeouts::read),
            retry: object.optional("retry", retry),
            mirror: object.optional("mirror", Mirror::read),
            fault: object.optional("fault", Fault::read),
            headers: object.optional("headers", Headers::read),
            redirect: object.optional("redirect", |field| Redirect::read(field, can_replace)),
            respond: object.optional("respond", Respond::read),
            cors: object.optional("cors", Cors::read),
            matches,
            split,
        };
        object.later("rateLimits", "rate limits are");
        for action in ["redirect", "respond"] {
            if !object.has(action) {
                continue;
            }
            for name in ["split", "rewrite", "timeout", "retry", "mirror", "respond"] {
                if name != action && object.has(name) {
                    object.refuse(format!(
                        "has {action} and {name}; {action} answers by itself, want only one"
                    ));
                }
            }
        }
        object.finish();
        Some(rule)
    }
}

/// Retries of one rule: the budget is shared by all calls of a service and stands there.
fn retry(field: Field<'_>) -> Option<Retry> {
    let retry = Retry::read(field.clone())?;
    if retry.budget_percent.is_some() {
        field.refuse("has budgetPercent, which belongs to the Service: all its routes share it");
    }
    Some(retry)
}

impl Match {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let path = object.optional("path", PathMatch::read);
        let method = object.optional("method", |field| field.list_of_some(method)).unwrap_or_default();
        let headers = object.list("headers", HeaderMatch::read);
        let query = object.list("query", QueryMatch::read);
        let grpc = object.optional("grpc", GrpcMatch::read);
        object.later("source", "matching by caller is");
        if grpc.is_some() {
            object.at_most_one(&["path", "grpc"]);
        }
        object.finish();
        Some(Self { path, method, headers, query, grpc })
    }
}

impl PathMatch {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        object.exactly_one(&["prefix", "exact", "regex"]);
        let prefix = object.optional("prefix", Field::request_path).map(Self::Prefix);
        let exact = object.optional("exact", Field::request_path).map(Self::Exact);
        let regex = object.optional("regex", Field::regex).map(Self::Regex);
        object.finish();
        prefix.or(exact).or(regex)
    }
}

/// The names of [`ValueMatch`]es.
const VALUE_MATCHES: [&str; 7] = ["exact", "prefix", "suffix", "contains", "regex", "present", "range"];

impl ValueMatch {
    fn read(object: &mut Object<'_>) -> Option<Self> {
        object.exactly_one(&VALUE_MATCHES);
        let exact = object.optional("exact", Field::text).map(Self::Exact);
        let prefix = object.optional("prefix", Field::some_text).map(Self::Prefix);
        let suffix = object.optional("suffix", Field::some_text).map(Self::Suffix);
        let contains = object.optional("contains", Field::some_text).map(Self::Contains);
        let regex = object.optional("regex", Field::regex).map(Self::Regex);
        let present = object.optional("present", Field::bool).map(Self::Present);
        let range = object.optional("range", NumberRange::read).map(Self::Range);
        exact.or(prefix).or(suffix).or(contains).or(regex).or(present).or(range)
    }
}

impl NumberRange {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let start = object.required("start", Field::signed);
        let end = object.required("end", Field::signed);
        if let (Some(start), Some(end)) = (start, end)
            && start >= end
        {
            object.refuse(format!("no number is from {start} up to but without {end}"));
        }
        object.finish();
        Some(Self { start: start?, end: end? })
    }
}

impl HeaderMatch {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let name = object.required("name", |field| {
            field.checked(|text| match text {
                ":method" | ":path" | ":scheme" | ":authority" => Ok(text.to_owned()),
                _ => header_name(text),
            })
        });
        let value = ValueMatch::read(&mut object);
        let invert = object.optional("invert", Field::bool).unwrap_or_default();
        let ignore_case = object.optional("ignoreCase", Field::bool).unwrap_or_default();
        object.finish();
        Some(Self { name: name?, value: value?, invert, ignore_case })
    }
}

impl QueryMatch {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let name = object.required("name", Field::some_text);
        let value = ValueMatch::read(&mut object);
        match value {
            Some(ValueMatch::Range(_)) => object.refuse("has range, which only headers have"),
            Some(ValueMatch::Present(false)) => {
                object.refuse("has present: false, which only headers have; want present: true");
            }
            _ => {}
        }
        object.finish();
        Some(Self { name: name?, value: value? })
    }
}

impl GrpcMatch {
    fn read(field: Field<'_>) -> Option<Self> {
        let identifier = |field: Field<'_>| {
            field.checked(|text| match text {
                "" => Err("is empty"),
                _ if text.contains('/') => Err("has a `/`; want the name only, such as shop.v1.Orders"),
                _ => Ok(text.to_owned()),
            })
        };
        let mut object = field.object()?;
        let service = object.optional("service", identifier);
        let method = object.optional("method", identifier);
        if object.has("method") && !object.has("service") {
            object.refuse("has `method` without `service`; a method belongs to a service");
        }
        object.finish();
        Some(Self { service, method })
    }
}

fn split(field: Field<'_>) -> Option<Vec<Share>> {
    let shares = field.clone().list_of_some(Share::read)?;
    if !shares.is_empty() && shares.iter().all(|share| share.weight == Some(0)) {
        field.refuse("has only weights of 0; want at least one above");
    }
    Some(shares)
}

impl Share {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let share = Self {
            service: object.optional("service", service_text),
            subset: object.optional("subset", Field::label),
            weight: object.optional("weight", |field| field.integer(0..=1_000_000)),
        };
        object.finish();
        Some(share)
    }
}

/// A service's name, kept as written.
fn service_text(field: Field<'_>) -> Option<String> {
    let text = field.clone().text()?;
    field.service("default").map(|_| text)
}

impl Rewrite {
    fn read(field: Field<'_>, can_replace: bool) -> Option<Self> {
        let mut object = field.object()?;
        object.at_most_one(&["prefix", "regex"]);
        if object.has("prefix") && !can_replace {
            object.refuse("has prefix, but the match is a regular expression; want `regex`");
        }
        let rewrite = Self {
            prefix: object.optional("prefix", Field::request_path),
            regex: object.optional("regex", RegexRewrite::read),
            host: object.optional("host", host),
        };
        object.finish();
        Some(rewrite)
    }
}

/// A host, perhaps with port.
fn host(field: Field<'_>) -> Option<String> {
    let text = field.clone().text()?;
    let name = text.rsplit_once(':').map_or(text.as_str(), |(name, _)| name);
    let port_fits =
        text.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
    let node = crate::node::Node { value: crate::node::Value::Text(name.to_owned()), span: field.node.span };
    if !port_fits {
        field.refuse(format!("{text:?} has no valid port; want host or host:port"));
        return None;
    }
    dns_name(field.at(&node)).map(|_| text)
}

impl RegexRewrite {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let pattern = object.required("pattern", Field::regex);
        let substitution = object.required("substitution", Field::text);
        object.finish();
        Some(Self { pattern: pattern?, substitution: substitution? })
    }
}

impl Mirror {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let service = object.required("service", service_text);
        let subset = object.optional("subset", Field::label);
        let percent = object.optional("percent", Field::percent);
        object.finish();
        Some(Self { service: service?, subset, percent })
    }
}

impl Fault {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let abort = object.optional("abort", |field| {
            let mut object = field.object()?;
            let status = object.required("status", |field| field.integer(200..=599));
            let percent = object.optional("percent", Field::percent);
            object.finish();
            Some(Abort { status: status?, percent })
        });
        let delay = object.optional("delay", |field| {
            let mut object = field.object()?;
            let fixed = object.required("fixed", |field| field.duration(MS..=HOUR));
            let percent = object.optional("percent", Field::percent);
            object.finish();
            Some(Delay { fixed: fixed?, percent })
        });
        object.finish();
        Some(Self { abort, delay })
    }
}

impl Headers {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let headers = Self {
            request: object.optional("request", HeaderEdits::read),
            response: object.optional("response", HeaderEdits::read),
        };
        object.finish();
        Some(headers)
    }
}

impl HeaderEdits {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let values = |field: Field<'_>| {
            let map = field.map(changeable, header_value)?;
            Some(map.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
        };
        let edits = Self {
            set: object.optional("set", values).unwrap_or_default(),
            add: object.optional("add", values).unwrap_or_default(),
            remove: object.list("remove", |field| {
                field.checked(|text| changeable(text).map(|()| text.to_ascii_lowercase()))
            }),
        };
        object.finish();
        Some(edits)
    }
}

/// A header that routes may change.
fn changeable(name: &str) -> Result<(), String> {
    let name = header_name(name)?;
    match name.as_str() {
        "host" => Err("cannot be changed here; want `rewrite: {host: …}`".to_owned()),
        "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te" => {
            Err("belongs to the connection and cannot be changed".to_owned())
        }
        _ => Ok(()),
    }
}

fn header_value(field: Field<'_>) -> Option<String> {
    field.checked(|text| match text.chars().any(|c| c.is_control() && c != '\t') {
        true => Err("has a control character, which no header has"),
        false => Ok(text.to_owned()),
    })
}

impl Redirect {
    fn read(field: Field<'_>, can_replace: bool) -> Option<Self> {
        let mut object = field.object()?;
        object.at_most_one(&["path", "prefix"]);
        if object.has("prefix") && !can_replace {
            object.refuse("has prefix, but the match is a regular expression; want `path`");
        }
        let status = object.optional("status", |field| {
            let status = field.clone().integer(300..=399_u16)?;
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Some(status);
            }
            field.refuse(format!("got {status}, want 301, 302, 303, 307 or 308"));
            None
        });
        let scheme = object.optional("scheme", |field| field.choice(&[("http", "http"), ("https", "https")]));
        let redirect = Self {
            status,
            scheme: scheme.map(str::to_owned),
            host: object.optional("host", dns_name),
            port: object.optional("port", |field| field.integer(1..=u16::MAX)),
            path: object.optional("path", |field| {
                field.checked(|text| match text.starts_with('/') {
                    true => Ok(text.to_owned()),
                    false => Err("does not begin with `/`"),
                })
            }),
            prefix: object.optional("prefix", Field::request_path),
            strip_query: object.optional("stripQuery", Field::bool).unwrap_or_default(),
        };
        if !["scheme", "host", "port", "path", "prefix"].iter().any(|name| object.has(name)) {
            object.refuse("redirects to the same place; want scheme, host, port, path or prefix");
        }
        object.finish();
        Some(redirect)
    }
}

impl Respond {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let status = object.required("status", |field| field.integer(200..=599));
        let body = object.optional("body", |field| {
            field.checked(|text| match text.len() {
                0..=BODY_BYTES_MAX => Ok(text.to_owned()),
                len => Err(format!("is {len} bytes long, want at most {BODY_BYTES_MAX}")),
            })
        });
        object.finish();
        Some(Self { status: status?, body: body.unwrap_or_default() })
    }
}

impl Cors {
    fn read(field: Field<'_>) -> Option<Self> {
        let mut object = field.object()?;
        let allow_origins = object.required("allowOrigins", |field| {
            field.list_of_some(|field| {
                field.checked(|text| match text.strip_suffix('*').unwrap_or(text).contains('*') {
                    true => Err("has a `*` that is not at the end"),
                    false if text.is_empty() => Err("is empty"),
                    false => Ok(text.to_owned()),
                })
            })
        });
        let allow_methods = object.list("allowMethods", method);
        let allow_headers = object.list("allowHeaders", Field::header_name);
        let expose_headers = object.list("exposeHeaders", Field::header_name);
        let max_age = object.duration("maxAge", std::time::Duration::ZERO..=HOUR * 24);
        let allow_credentials = object.optional("allowCredentials", Field::bool).unwrap_or_default();
        object.finish();
        Some(Self {
            allow_origins: allow_origins?,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
        })
    }
}
