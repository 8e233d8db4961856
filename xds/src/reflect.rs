//! Descriptors of the services that a registry serves, for those who ask it what it can be asked
//! (gRPC server reflection).

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The files that define the services, and what they import, as an encoded `FileDescriptorSet`.
///
/// Far less than all of Envoy's API: what is not needed is not kept in memory.
pub fn services() -> Vec<u8> {
    let all = FileDescriptorSet::decode(crate::json::DESCRIPTORS).expect("what xtask wrote");
    let files: BTreeMap<&str, &FileDescriptorProto> =
        all.file.iter().map(|file| (file.name(), file)).collect();
    let (mut wanted, mut open) = (BTreeSet::new(), SERVICES.to_vec());
    while let Some(name) = open.pop() {
        if wanted.insert(name) {
            let imports = files.get(name).into_iter().flat_map(|file| &file.dependency);
            open.extend(imports.map(String::as_str));
        }
    }
    let file = all.file.iter().filter(|file| wanted.contains(file.name())).cloned().collect();
    FileDescriptorSet { file }.encode_to_vec()
}

/// Where they are defined.
const SERVICES: [&str; 4] = [
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/load_stats/v3/lrs.proto",
    "envoy/service/status/v3/csds.proto",
    "pillion/mesh/v1/mesh.proto",
];
