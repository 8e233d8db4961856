//! Envoy's format operators (`%REQ(:PATH)%`), compiled when configuration is: used by access logs
//! and by header changes alike.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use super::path_of;
use crate::record::Record;

/// A compiled format.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Operator { operator: Operator, length_max: Option<usize> },
}

/// What a value is computed from.
pub(crate) struct Context<'a> {
    /// What is known of the exchange so far.
    pub(crate) record: &'a Record,
    /// Request headers.
    pub(crate) request: &'a HeaderMap,
    /// Response headers, once there are any.
    pub(crate) response: Option<&'a HeaderMap>,
    /// Response trailers, once there are any.
    pub(crate) trailers: Option<&'a HeaderMap>,
}

/// A computed value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// Nothing to show: `-` in texts, `null` in JSON.
    Absent,
    /// A whole number.
    Number(u64),
    /// A text.
    Text(Cow<'a, str>),
}

/// A name of a header or of a part of the request line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Method,
    Path,
    Authority,
    Scheme,
    Header(HeaderName),
}

#[derive(Clone, Debug)]
enum Operator {
    StartTime(Vec<TimePiece>),
    Request(Field, Option<Field>),
    Response(HeaderName, Option<HeaderName>),
    Trailer(HeaderName, Option<HeaderName>),
    Constant(String),
    Simple(Simple),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TimePiece {
    Text(String),
    Field(char),
    Fraction(usize),
}

macro_rules! simple {
    ($($name:ident = $text:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Simple { $($name),* }
        impl Simple {
            const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$name)),*];
        }
    };
}

simple! {
    Protocol = "PROTOCOL";
    ResponseCode = "RESPONSE_CODE";
    ResponseCodeDetails = "RESPONSE_CODE_DETAILS";
    ResponseFlags = "RESPONSE_FLAGS";
    BytesReceived = "BYTES_RECEIVED";
    BytesSent = "BYTES_SENT";
    Duration = "DURATION";
    RequestDuration = "REQUEST_DURATION";
    ResponseDuration = "RESPONSE_DURATION";
    ResponseTxDuration = "RESPONSE_TX_DURATION";
    UpstreamHost = "UPSTREAM_HOST";
    UpstreamRemoteAddress = "UPSTREAM_REMOTE_ADDRESS";
    UpstreamCluster = "UPSTREAM_CLUSTER";
    UpstreamAttempts = "UPSTREAM_REQUEST_ATTEMPT_COUNT";
    UpstreamFailure = "UPSTREAM_TRANSPORT_FAILURE_REASON";
    RouteName = "ROUTE_NAME";
    Remote = "DOWNSTREAM_REMOTE_ADDRESS";
    RemoteIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    RemotePort = "DOWNSTREAM_REMOTE_PORT";
    DirectRemote = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    DirectRemoteIp = "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    DirectRemotePort = "DOWNSTREAM_DIRECT_REMOTE_PORT";
    Local = "DOWNSTREAM_LOCAL_ADDRESS";
    LocalIp = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    LocalPort = "DOWNSTREAM_LOCAL_PORT";
    ServerName = "REQUESTED_SERVER_NAME";
    TlsVersion = "DOWNSTREAM_TLS_VERSION";
    TlsCipher = "DOWNSTREAM_TLS_CIPHER";
    PeerUri = "DOWNSTREAM_PEER_URI_SAN";
    PeerDns = "DOWNSTREAM_PEER_DNS_SAN";
    PeerSubject = "DOWNSTREAM_PEER_SUBJECT";
    PeerFingerprint = "DOWNSTREAM_PEER_FINGERPRINT_256";
    ConnectionId = "CONNECTION_ID";
    FilterChain = "FILTER_CHAIN_NAME";
    Listener = "LISTENER_NAME";
    GrpcStatusNumber = "GRPC_STATUS_NUMBER";
    GrpcStatus = "GRPC_STATUS";
}

impl Format {
    /// Compiles `text`.
    ///
    /// # Errors
    ///
    /// What is wrong with which operator.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (operator, length_max, after) = parse_operator(rest)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Operator { operator, length_max });
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self { pieces })
    }

    /// The text, if the format holds no operator.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Request headers the format reads.
    pub(crate) fn request_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.pieces.iter().flat_map(|piece| {
            let (first, second) = match piece {
                Piece::Operator { operator: Operator::Request(first, second), .. } => {
                    (Some(first), second.as_ref())
                }
                _ => (None, None),
            };
            [first, second].into_iter().flatten().filter_map(|field| match field {
                Field::Header(name) => Some(name),
                _ => None,
            })
        })
    }

    /// Response headers the format reads.
    pub(crate) fn response_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.pieces.iter().flat_map(|piece| {
            let (first, second) = match piece {
                Piece::Operator { operator: Operator::Response(first, second), .. } => {
                    (Some(first), second.as_ref())
                }
                _ => (None, None),
            };
            [first, second].into_iter().flatten()
        })
    }

    /// Appends the formatted text to `out`; absent values become `absent`.
    pub(crate) fn write(&self, context: &Context<'_>, absent: &str, out: &mut String) {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Operator { operator, length_max } => match operator.value(context) {
                    Value::Absent => out.push_str(absent),
                    Value::Number(number) => {
                        let _ = write!(out, "{number}");
                    }
                    Value::Text(text) => out.push_str(truncate(&text, *length_max)),
                },
            }
        }
    }

    /// One value with its type, if the format is one operator; else a text.
    pub(crate) fn value<'a>(&self, context: &Context<'a>) -> Value<'a> {
        if let [Piece::Operator { operator, length_max }] = self.pieces.as_slice() {
            return match operator.value(context) {
                Value::Text(text) => Value::Text(truncate(&text, *length_max).to_owned().into()),
                other => other,
            };
        }
        let mut text = String::new();
        self.write(context, "-", &mut text);
        Value::Text(text.into())
    }
}

fn truncate(text: &str, length_max: Option<usize>) -> &str {
    match length_max {
        Some(max) if text.len() > max => &text[..text.floor_char_boundary(max)],
        _ => text,
    }
}

/// Reads `NAME(argument):length%` and gives the rest.
fn parse_operator(text: &str) -> Result<(Operator, Option<usize>, &str), String> {
    let name_end = text
        .find(|char: char| !(char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_'))
        .ok_or_else(|| format!("`%{text}` is not closed by `%`"))?;
    let (name, mut rest) = text.split_at(name_end);
    let mut argument = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let end = inner.find(')').ok_or_else(|| format!("`%{text}` has no closing `)`"))?;
        argument = Some(&inner[..end]);
        rest = &inner[end + 1..];
    }
    let mut length_max = None;
    if let Some(number) = rest.strip_prefix(':') {
        let end = number.find('%').unwrap_or(number.len());
        let parsed = number[..end].parse().map_err(|_| format!("`%{text}`: bad length"))?;
        length_max = Some(parsed);
        rest = &number[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| format!("`%{text}` is not closed by `%`"))?;
    Ok((operator(name, argument)?, length_max, rest))
}

fn operator(name: &str, argument: Option<&str>) -> Result<Operator, String> {
    let needed = || argument.ok_or_else(|| format!("%{name}% needs an argument, as in %{name}(X)%"));
    Ok(match name {
        "START_TIME" => Operator::StartTime(parse_time(argument.unwrap_or("%Y-%m-%dT%H:%M:%S.%3fZ"))?),
        "REQ" => {
            let (first, second) = alternatives(needed()?);
            Operator::Request(field(first)?, second.map(field).transpose()?)
        }
        "RESP" => {
            let (first, second) = alternatives(needed()?);
            Operator::Response(header(first)?, second.map(header).transpose()?)
        }
        "TRAILER" => {
            let (first, second) = alternatives(needed()?);
            Operator::Trailer(header(first)?, second.map(header).transpose()?)
        }
        "ENVIRONMENT" => Operator::Constant(std::env::var(needed()?).unwrap_or_else(|_| "-".to_owned())),
        "HOSTNAME" => Operator::Constant(
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "-".to_owned(), |name| name.trim().to_owned()),
        ),
        _ => Operator::Simple(
            Simple::ALL
                .iter()
                .find(|(text, _)| *text == name)
                .map(|&(_, simple)| simple)
                .ok_or_else(|| format!("format operator %{name}% is not supported"))?,
        ),
    })
}

fn alternatives(argument: &str) -> (&str, Option<&str>) {
    match argument.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (argument, None),
    }
}

fn field(name: &str) -> Result<Field, String> {
    Ok(match name.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path,
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        _ => Field::Header(header(name)?),
    })
}

fn header(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes())
        .map_err(|_| format!("`{name}` is not a header name"))
}

fn parse_time(format: &str) -> Result<Vec<TimePiece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut chars = format.chars().peekable();
    while let Some(char) = chars.next() {
        if char != '%' {
            plain.push(char);
            continue;
        }
        if !plain.is_empty() {
            pieces.push(TimePiece::Text(std::mem::take(&mut plain)));
        }
        match chars.next() {
            Some('%') => plain.push('%'),
            Some('f') => pieces.push(TimePiece::Fraction(9)),
            Some(digit @ '1'..='9') if chars.next_if_eq(&'f').is_some() => {
                pieces.push(TimePiece::Fraction(digit.to_digit(10).map_or(9, |digits| digits as usize)));
            }
            Some(field @ ('Y' | 'm' | 'd' | 'H' | 'M' | 'S' | 's' | 'T' | 'F')) => {
                pieces.push(TimePiece::Field(field));
            }
            other => {
                let other = other.map_or_else(String::new, String::from);
                return Err(format!("time format %{other} is not supported (Y m d H M S T F s f 1f to 9f)"));
            }
        }
    }
    if !plain.is_empty() {
        pieces.push(TimePiece::Text(plain));
    }
    Ok(pieces)
}

impl Operator {
    fn value<'a>(&self, context: &Context<'a>) -> Value<'a> {
        match self {
            Self::StartTime(pieces) => Value::Text(format_time(pieces, context.record.started_at).into()),
            Self::Request(first, second) => request_field(context, first)
                .or_else(|| second.as_ref().and_then(|field| request_field(context, field)))
                .map_or(Value::Absent, Value::Text),
            Self::Response(first, second) => lookup(context.response, first, second.as_ref()),
            Self::Trailer(first, second) => lookup(context.trailers, first, second.as_ref()),
            Self::Constant(text) => Value::Text(text.clone().into()),
            Self::Simple(simple) => simple.value(context),
        }
    }
}

fn lookup<'a>(headers: Option<&'a HeaderMap>, first: &HeaderName, second: Option<&HeaderName>) -> Value<'a> {
    let Some(headers) = headers else { return Value::Absent };
    [Some(first), second]
        .into_iter()
        .flatten()
        .find_map(|name| headers.get(name))
        .map_or(Value::Absent, |value| Value::Text(String::from_utf8_lossy(value.as_bytes())))
}

fn request_field<'a>(context: &Context<'a>, field: &Field) -> Option<Cow<'a, str>> {
    let record = context.record;
    match field {
        Field::Method => Some(record.method.as_str().into()),
        Field::Path => record.path.as_ref().map(|path| path_of(path).into()),
        Field::Authority => record.authority.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes())),
        Field::Scheme => Some(record.scheme.into()),
        Field::Header(name) => {
            context.request.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()))
        }
    }
}

impl Simple {
    fn value<'a>(self, context: &Context<'a>) -> Value<'a> {
        let record = context.record;
        let connection = &record.connection;
        let text = |text: Option<&'a str>| text.map_or(Value::Absent, |text| Value::Text(text.into()));
        let owned = |text: String| Value::Text(text.into());
        let millis =
            |duration: Duration| Value::Number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let since = |moment: Option<tokio::time::Instant>| {
            moment.map_or(Value::Absent, |moment| millis(moment.duration_since(record.started)))
        };
        let peer = connection.peer_certificate();
        match self {
            Self::Protocol => text(record.protocol()),
            Self::ResponseCode => Value::Number(u64::from(record.status)),
            Self::ResponseCodeDetails => {
                text(record.details.as_deref().filter(|details| !details.is_empty()))
            }
            Self::ResponseFlags => Value::Text(record.flags.text()),
            Self::BytesReceived => Value::Number(record.bytes_received),
            Self::BytesSent => Value::Number(record.bytes_sent),
            Self::Duration => millis(record.started.elapsed()),
            Self::RequestDuration => since(record.request_complete()),
            Self::ResponseDuration => since(record.response_started),
            Self::ResponseTxDuration => {
                record.response_started.map_or(Value::Absent, |started| millis(started.elapsed()))
            }
            Self::UpstreamHost | Self::UpstreamRemoteAddress => {
                text(record.upstream_host.as_ref().map(|host| &**host))
            }
            Self::UpstreamCluster => text(record.upstream_cluster()),
            Self::UpstreamAttempts => Value::Number(u64::from(record.attempts)),
            Self::UpstreamFailure => text(record.upstream_failure.as_deref()),
            Self::RouteName => text(record.route_name().filter(|name| !name.is_empty())),
            Self::Remote => owned(record.remote.to_string()),
            Self::RemoteIp => owned(record.remote.ip().to_string()),
            Self::RemotePort => Value::Number(u64::from(record.remote.port())),
            Self::DirectRemote => owned(connection.remote.to_string()),
            Self::DirectRemoteIp => owned(connection.remote.ip().to_string()),
            Self::DirectRemotePort => Value::Number(u64::from(connection.remote.port())),
            Self::Local => owned(connection.local.to_string()),
            Self::LocalIp => owned(connection.local.ip().to_string()),
            Self::LocalPort => Value::Number(u64::from(connection.local.port())),
            Self::ServerName => text(connection.server_name()),
            Self::TlsVersion => text(connection.tls.as_ref().map(|tls| tls.version)),
            Self::TlsCipher => text(connection.tls.as_ref().map(|tls| tls.cipher)),
            Self::PeerUri => peer
                .filter(|peer| !peer.uri_sans.is_empty())
                .map_or(Value::Absent, |peer| owned(peer.uri_sans.join(","))),
            Self::PeerDns => peer
                .filter(|peer| !peer.dns_sans.is_empty())
                .map_or(Value::Absent, |peer| owned(peer.dns_sans.join(","))),
            Self::PeerSubject => text(peer.map(|peer| peer.subject.as_str())),
            Self::PeerFingerprint => text(peer.map(|peer| peer.sha256_hex.as_str())),
            Self::ConnectionId => Value::Number(connection.id),
            Self::FilterChain => owned(connection.chain().name.clone()),
            Self::Listener => owned(connection.listener.to_string()),
            Self::GrpcStatusNumber => {
                record.grpc_status.map_or(Value::Absent, |status| Value::Number(u64::from(status)))
            }
            Self::GrpcStatus => record.grpc_status.map_or(Value::Absent, |status| {
                Value::Text(grpc_status_name(status).map_or_else(|| status.to_string().into(), Cow::Borrowed))
            }),
        }
    }
}

fn grpc_status_name(status: u32) -> Option<&'static str> {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(usize::try_from(status).ok()?).copied()
}

fn format_time(pieces: &[TimePiece], time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::with_capacity(24);
    for piece in pieces {
        let _ = match piece {
            TimePiece::Text(text) => out.write_str(text),
            TimePiece::Field('Y') => write!(out, "{year:04}"),
            TimePiece::Field('m') => write!(out, "{month:02}"),
            TimePiece::Field('d') => write!(out, "{day:02}"),
            TimePiece::Field('H') => write!(out, "{hour:02}"),
            TimePiece::Field('M') => write!(out, "{minute:02}"),
            TimePiece::Field('S') => write!(out, "{second:02}"),
            TimePiece::Field('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            TimePiece::Field('F') => write!(out, "{year:04}-{month:02}-{day:02}"),
            TimePiece::Field(_) => write!(out, "{seconds}"),
            TimePiece::Fraction(digits) => {
                let text = format!("{:09}", since.subsec_nanos());
                out.write_str(&text[..*digits])
            }
        };
    }
    out
}

/// Year, month and day of the day `days` after 1970-01-01 (Hinnant's `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        for (seconds, nanos, format, want) in [
            (0, 0, "%Y-%m-%dT%H:%M:%S.%3fZ", "1970-01-01T00:00:00.000Z"),
            (951_782_400, 1_500_000, "%FT%T.%6f", "2000-02-29T00:00:00.001500"),
            (1_795_230_000, 0, "%s", "1795230000"),
        ] {
            let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(format_time(&parse_time(format).unwrap(), time), want);
        }
    }

    #[test]
    fn mistakes_in_formats_name_the_operator() {
        for (text, want) in [
            ("%NOPE%", "%NOPE% is not supported"),
            ("%REQ%", "needs an argument"),
            ("%REQ(X", "no closing"),
            ("%PROTOCOL", "not closed"),
            ("%START_TIME(%q)%", "time format %q"),
            ("%REQ(X):y%", "bad length"),
        ] {
            let error = Format::compile(text).expect_err(text);
            assert!(error.contains(want), "{text}: {error}");
        }
        assert_eq!(Format::compile("100%% plain").unwrap().literal(), Some("100% plain"));
    }
}
