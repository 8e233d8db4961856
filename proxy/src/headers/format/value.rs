//! What each operator stands for.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Version};

use super::time::format_time;
use super::{Context, Field, Operator, Value};

macro_rules! simple {
    ($($name:ident = $text:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Simple { $($name),* }
        impl Simple {
            pub(super) const ALL: &'static [(&'static str, Self)] = &[$(($text, Self::$name)),*];
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
    LocalReplyBody = "LOCAL_REPLY_BODY";
}

impl Operator {
    /// The value, if there is one.
    pub(super) fn value<'a>(&self, context: &Context<'a>) -> Value<'a> {
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
    if record.version == Version::HTTP_09 {
        return None; // a connection that is carried as bytes
    }
    match field {
        Field::Method => Some(record.method.as_str().into()),
        Field::Path => record.path.as_ref().map(|path| path.as_str().into()),
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
            Self::UpstreamHost | Self::UpstreamRemoteAddress => text(record.upstream_host.as_deref()),
            Self::UpstreamCluster => text(record.upstream_cluster()),
            Self::UpstreamAttempts => Value::Number(u64::from(record.attempts)),
            Self::UpstreamFailure => text(record.upstream_failure.as_deref()),
            Self::RouteName => text(record.route_name().filter(|name| !name.is_empty())),
            Self::Remote => owned(record.remote.to_string()),
            Self::RemoteIp => owned(record.remote.ip().to_string()),
            Self::RemotePort => Value::Number(u64::from(record.remote.port())),
            Self::DirectRemote => owned(connection.direct.to_string()),
            Self::DirectRemoteIp => owned(connection.direct.ip().to_string()),
            Self::DirectRemotePort => Value::Number(u64::from(connection.direct.port())),
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
            Self::LocalReplyBody => {
                let body = record.local_reply.as_ref();
                body.map_or(Value::Absent, |body| Value::Text(String::from_utf8_lossy(body)))
            }
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
