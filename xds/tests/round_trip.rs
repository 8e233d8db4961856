//! What a Pillion registry encodes, a Pillion proxy decodes to the same model, and the encoding of
//! a model is always the same.

#![expect(clippy::unwrap_used, reason = "a test")]

mod models;

use std::fmt::Debug;

use pillion_xds::ads::Encoded;
use pillion_xds::decode::{
    DecodeError, Decoded, decode_cluster, decode_endpoints, decode_listener, decode_routes, decode_service,
};
use pillion_xds::encode::{
    Dialect, EnvoyOptions, EnvoySecrets, encode_cluster, encode_endpoints, encode_listener, encode_routes,
    encode_service,
};
use proptest::prelude::*;

fn check<T: Debug + PartialEq>(
    model: &T,
    encode: impl Fn(&T) -> Encoded,
    decode: impl Fn(&[u8]) -> Result<Decoded<T>, DecodeError>,
) -> Result<(), TestCaseError> {
    let encoded = encode(model);
    prop_assert_eq!(&encode(model), &encoded, "the encoding differs from time to time");
    let decoded = match decode(&encoded.body.value) {
        Ok(decoded) => decoded,
        Err(error) => return Err(TestCaseError::fail(format!("refused: {error}"))),
    };
    prop_assert_eq!(&decoded.value, model);
    prop_assert_eq!(decoded.ignored, Vec::<String>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn listeners_round_trip(listener in models::listeners::listener()) {
        check(&listener, |model| encode_listener(model, Dialect::Pillion), decode_listener)?;
    }

    #[test]
    fn routes_round_trip(routes in models::routes::configuration()) {
        check(&routes, |model| encode_routes(model, Dialect::Pillion), decode_routes)?;
    }

    #[test]
    fn clusters_round_trip(cluster in models::endpoints::cluster()) {
        check(&cluster, |model| encode_cluster(model, Dialect::Pillion), decode_cluster)?;
    }

    #[test]
    fn endpoints_round_trip(endpoints in models::endpoints::endpoints()) {
        check(&endpoints, |model| encode_endpoints(model, Dialect::Pillion), decode_endpoints)?;
    }

    #[test]
    fn services_round_trip(service in models::endpoints::service()) {
        check(&service, |model| encode_service(model, "asked.for"), decode_service)?;
    }

    /// Whatever the bytes, the decoder answers.
    #[test]
    fn bytes_from_outside_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_listener(&bytes);
        let _ = decode_routes(&bytes);
        let _ = decode_cluster(&bytes);
        let _ = decode_endpoints(&bytes);
        let _ = decode_service(&bytes);
    }

    /// Real resources with a byte changed get further than noise does.
    #[test]
    fn damaged_resources_do_not_panic(
        listener in models::listeners::listener(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode_listener(&listener, Dialect::Pillion).body.value;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode_listener(&bytes);
    }

    /// What Envoys are sent is the same every time as well, and means something here.
    #[test]
    fn envoys_dialect_can_be_read_back(cluster in models::endpoints::cluster()) {
        let options = EnvoyOptions {
            secrets: EnvoySecrets::Pem {
                certificate: "chain.pem".to_owned(),
                key: "key.pem".to_owned(),
                roots: "roots.pem".to_owned(),
            },
        };
        let encoded = encode_cluster(&cluster, Dialect::Envoy(&options));
        prop_assert_eq!(&encode_cluster(&cluster, Dialect::Envoy(&options)), &encoded);
        let decoded = decode_cluster(&encoded.body.value).unwrap().value;
        prop_assert_eq!(decoded.discovery, cluster.discovery);
        prop_assert_eq!(decoded.limits, cluster.limits);
    }
}
