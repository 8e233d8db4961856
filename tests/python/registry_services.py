"""Asks a registry for its health and for the state of a client's streams (CSDS).

Arguments: the registry's address for proxies, and a folder with the client's chain, key and roots.
"""

import json
import pathlib
import sys

import grpc
from envoy.service.discovery.v3 import ads_pb2  # noqa: F401  messages of types that are mentioned
from envoy.service.status.v3 import csds_pb2

address, folder = sys.argv[1], pathlib.Path(sys.argv[2])
chain, key, roots = [(folder / name).read_bytes() for name in ("chain.pem", "key.pem", "roots.pem")]
TIMEOUT = 20
STATUS = {b"": "UNKNOWN", b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}
ADS = b"envoy.service.discovery.v3.AggregatedDiscoveryService"


def named(name):
    return bytes([0x0A, len(name)]) + name


anonymous = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots))
check = anonymous.unary_unary("/grpc.health.v1.Health/Check")
watch = anonymous.unary_stream("/grpc.health.v1.Health/Watch")
said = {"health": STATUS[check(b"", timeout=TIMEOUT)], "watch": STATUS[next(watch(named(ADS), timeout=TIMEOUT))]}
try:
    check(named(b"nothing"), timeout=TIMEOUT)
except grpc.RpcError as error:
    said["unknown"] = error.code().name

member = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain))
status = member.unary_unary(
    "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
    request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
    response_deserializer=csds_pb2.ClientStatusResponse.FromString,
)(csds_pb2.ClientStatusRequest(), timeout=TIMEOUT)
said["nodes"] = [config.node.id for config in status.config]
said["resources"] = {
    resource.name: csds_pb2.ConfigStatus.Name(resource.config_status)
    for config in status.config
    for resource in config.generic_xds_configs
}
print(json.dumps(said))
