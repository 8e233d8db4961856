//! Reads what ADS carries into the model.

use pillion_xds::decode::{
    DecodeError, Decoded, decode_cluster, decode_endpoints, decode_listener, decode_routes, decode_service,
};
use pillion_xds::type_url::{CLUSTER, ENDPOINTS, LISTENER, ROUTE, SERVICE};

use super::state::Item;

/// Reads one resource; the error lists the fields that are refused, by path.
pub(super) fn read(type_url: &str, name: &str, body: &[u8]) -> Result<Item, String> {
    match type_url {
        LISTENER => item(decode_listener(body), name, |it| &it.name, |it| Item::Listener(Box::new(it))),
        CLUSTER => item(decode_cluster(body), name, |it| &it.name, |it| Item::Cluster(Box::new(it))),
        ROUTE => item(decode_routes(body), name, |it| &it.name, Item::Routes),
        ENDPOINTS => item(decode_endpoints(body), name, |it| &it.cluster, Item::Endpoints),
        // A service is named by any of its names: the resource's own says which was asked for.
        SERVICE => decode_service(body).map(|it| Item::Service(it.value)).map_err(|error| error.to_string()),
        _ => Err(format!("type {type_url:?} is not one this proxy asks for")),
    }
}

fn item<T>(
    decoded: Result<Decoded<T>, DecodeError>,
    name: &str,
    own_name: impl Fn(&T) -> &String,
    wrap: impl Fn(T) -> Item,
) -> Result<Item, String> {
    let Decoded { value, references, .. } = decoded.map_err(|error| error.to_string())?;
    if references.iter().any(|named| matches!(&named.from, Some(from) if !from.is_discovery())) {
        return Err("names a file; want ads or self".to_owned());
    }
    match own_name(&value) {
        own if own == name => Ok(wrap(value)),
        own => Err(format!("the resource says its name is {own:?}")),
    }
}

#[cfg(test)]
mod tests {
    use pillion_xds::encode::{
        Dialect, encode_cluster, encode_endpoints, encode_listener, encode_routes, encode_service,
    };

    use super::*;
    use crate::control::tests::fixture;

    #[test]
    fn what_the_registry_encodes_is_read_and_must_carry_its_own_name() {
        let service = fixture::service("r", &["c"]);
        for (encoded, want) in [
            (
                encode_listener(&fixture::listener("l"), Dialect::Pillion),
                Item::Listener(Box::new(fixture::listener("l"))),
            ),
            (
                encode_cluster(&fixture::cluster("c"), Dialect::Pillion),
                Item::Cluster(Box::new(fixture::cluster("c"))),
            ),
            (
                encode_routes(&fixture::routes("r", &[]), Dialect::Pillion),
                Item::Routes(fixture::routes("r", &[])),
            ),
            (
                encode_endpoints(&fixture::endpoints("c"), Dialect::Pillion),
                Item::Endpoints(fixture::endpoints("c")),
            ),
            (encode_service(&service, "web.shop"), Item::Service(service.clone())),
        ] {
            let body = &encoded.body;
            let read_as = |name: &str| read(&body.type_url, name, &body.value);
            assert_eq!(read_as(&encoded.name), Ok(want), "{}", body.type_url);
            if body.type_url != SERVICE {
                let error = read_as("other").expect_err("not its name");
                assert!(error.starts_with("the resource says its name is"), "{error}");
            }
            assert!(
                read(&body.type_url, &encoded.name, b"\xff").is_err(),
                "{} cannot be read",
                body.type_url
            );
        }
        assert!(read("type.googleapis.com/other", "a", b"").is_err());
    }
}
