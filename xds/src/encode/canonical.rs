//! One encoding per message: protobuf maps are written in the order of a randomly seeded hash map,
//! and versions are hashes of bytes.
//!
//! The order of map entries is the only freedom, so putting them in order changes no length and is
//! done in place. Only the maps that the encoder fills are listed; the property test that encodes
//! everything twice finds a missing one.

use std::ops::Range;

use prost::encoding::{WireType, decode_key, decode_varint};

/// The fields of one message that hold maps, or messages with maps further down.
pub(super) struct Shape(&'static [(u32, Field)]);

enum Field {
    Message(&'static Shape),
    /// A map with values of this shape.
    Map(&'static Shape),
}

use Field::{Map, Message};

static LEAF: Shape = Shape(&[]);
static STRUCT: Shape = Shape(&[(1, Map(&VALUE))]);
static VALUE: Shape = Shape(&[(5, Message(&STRUCT)), (6, Message(&LIST))]);
static LIST: Shape = Shape(&[(1, Message(&VALUE))]);
static METADATA: Shape = Shape(&[(1, Map(&STRUCT))]);
static ROUTES: Shape = Shape(&[(2, Message(&VIRTUAL_HOST)), (16, Map(&LEAF))]);
static VIRTUAL_HOST: Shape = Shape(&[(3, Message(&ROUTE)), (15, Map(&LEAF)), (24, Message(&METADATA))]);
static ROUTE: Shape = Shape(&[(2, Message(&ROUTE_ACTION)), (4, Message(&METADATA)), (13, Map(&LEAF))]);
static ROUTE_ACTION: Shape = Shape(&[(3, Message(&WEIGHTED)), (4, Message(&METADATA))]);
static WEIGHTED: Shape = Shape(&[(1, Message(&CLUSTER_WEIGHT))]);
static CLUSTER_WEIGHT: Shape = Shape(&[(3, Message(&METADATA)), (10, Map(&LEAF))]);
static SUBSET: Shape = Shape(&[(2, Message(&STRUCT))]);
static HEALTH_CHECK: Shape = Shape(&[(4, Map(&LEAF))]);
static AUTHZ_PER_ROUTE: Shape = Shape(&[(2, Message(&CHECK_SETTINGS))]);
static CHECK_SETTINGS: Shape = Shape(&[(1, Map(&LEAF))]);
static JWT_AUTHN: Shape = Shape(&[(1, Map(&LEAF)), (5, Map(&LEAF))]);
static CLUSTER: Shape =
    Shape(&[(25, Message(&METADATA)), (33, Message(&ASSIGNMENT)), (43, Message(&TRANSPORT_MATCH))]);
static TRANSPORT_MATCH: Shape = Shape(&[(2, Message(&STRUCT))]);
static ASSIGNMENT: Shape = Shape(&[(2, Message(&LOCALITY))]);
static LOCALITY: Shape = Shape(&[(2, Message(&ENDPOINT))]);
static ENDPOINT: Shape = Shape(&[(3, Message(&METADATA))]);
static LISTENER: Shape =
    Shape(&[(3, Message(&FILTER_CHAIN)), (6, Message(&METADATA)), (25, Message(&FILTER_CHAIN))]);
static FILTER_CHAIN: Shape = Shape(&[(5, Message(&METADATA))]);
static CONNECTION_MANAGER: Shape = Shape(&[(4, Message(&ROUTES)), (38, Message(&LOCAL_REPLY))]);
static LOCAL_REPLY: Shape = Shape(&[(1, Message(&REPLY_MAPPER)), (2, Message(&LOG_FORMAT))]);
static REPLY_MAPPER: Shape = Shape(&[(4, Message(&LOG_FORMAT))]);
static RBAC: Shape = Shape(&[(2, Map(&LEAF))]);
static RBAC_FILTER: Shape = Shape(&[(1, Message(&RBAC)), (2, Message(&RBAC))]);
static RBAC_PER_ROUTE: Shape = Shape(&[(2, Message(&RBAC_FILTER))]);
static FILE_LOG: Shape = Shape(&[(5, Message(&LOG_FORMAT))]);
static LOG_FORMAT: Shape = Shape(&[(2, Message(&STRUCT))]);

/// The shape of a message that is encoded by itself: a resource, or what is packed into an `Any`.
pub(super) fn shape(full_name: &str) -> Option<&'static Shape> {
    Some(match full_name {
        "envoy.config.listener.v3.Listener" => &LISTENER,
        "envoy.config.route.v3.RouteConfiguration" => &ROUTES,
        "envoy.config.cluster.v3.Cluster" => &CLUSTER,
        "envoy.config.endpoint.v3.ClusterLoadAssignment" => &ASSIGNMENT,
        "envoy.extensions.load_balancing_policies.subset.v3.Subset" => &SUBSET,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            &CONNECTION_MANAGER
        }
        "envoy.extensions.filters.http.rbac.v3.RBAC" | "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            &RBAC_FILTER
        }
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" => &RBAC_PER_ROUTE,
        "envoy.extensions.filters.http.health_check.v3.HealthCheck" => &HEALTH_CHECK,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication" => &JWT_AUTHN,
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute" => &AUTHZ_PER_ROUTE,
        "envoy.extensions.access_loggers.file.v3.FileAccessLog" => &FILE_LOG,
        _ => return None,
    })
}

/// Puts the entries of every map in order. The bytes are our own encoding of a message of this
/// shape.
pub(super) fn order(bytes: &mut [u8], shape: &Shape) {
    if shape.0.is_empty() {
        return;
    }
    let fields = fields(bytes);
    for field in &fields {
        match find(shape, field.tag) {
            Some(Message(inner)) => order(&mut bytes[field.value.clone()], inner),
            Some(Map(value)) => order_entry(&mut bytes[field.value.clone()], value),
            None => {}
        }
    }
    let mut rest = fields.as_slice();
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|field| field.tag == first.tag).count();
        if run > 1 && matches!(find(shape, first.tag), Some(Map(_))) {
            let whole = first.whole.start..rest[run - 1].whole.end;
            let mut entries: Vec<Vec<u8>> =
                rest[..run].iter().map(|field| bytes[field.value.clone()].to_vec()).collect();
            entries.sort_unstable();
            let mut sorted = Vec::with_capacity(whole.len());
            for entry in entries {
                prost::encoding::bytes::encode(first.tag, &entry, &mut sorted);
            }
            bytes[whole].copy_from_slice(&sorted);
        }
        rest = &rest[run..];
    }
}

/// A map entry is a message: key 1, value 2.
fn order_entry(bytes: &mut [u8], value: &Shape) {
    for field in fields(bytes) {
        if field.tag == 2 {
            order(&mut bytes[field.value], value);
        }
    }
}

fn find(shape: &Shape, tag: u32) -> Option<&'static Field> {
    shape.0.iter().find(|(have, _)| *have == tag).map(|(_, field)| field)
}

/// A length-delimited field of a message.
struct Delimited {
    tag: u32,
    whole: Range<usize>,
    value: Range<usize>,
}

/// The length-delimited fields of our own encoding, in order.
fn fields(bytes: &[u8]) -> Vec<Delimited> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let start = bytes.len() - rest.len();
        let (tag, wire) = decode_key(&mut rest).expect("our own encoding");
        if wire == WireType::LengthDelimited {
            let length = decode_varint(&mut rest).expect("our own encoding");
            let length = usize::try_from(length).expect("our own encoding is in memory");
            let begin = bytes.len() - rest.len();
            rest = &rest[length..];
            found.push(Delimited { tag, whole: start..begin + length, value: begin..begin + length });
        } else {
            prost::encoding::skip_field(wire, tag, &mut rest, prost::encoding::DecodeContext::default())
                .expect("our own encoding");
        }
    }
    found
}
