"""Asks a registry what it serves, by gRPC's own client of server reflection.

Arguments: the registry's address for proxies, and a folder with the client's chain, key and roots.
"""

import json
import pathlib
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

address, folder = sys.argv[1], pathlib.Path(sys.argv[2])
chain, key, roots = [(folder / name).read_bytes() for name in ("chain.pem", "key.pem", "roots.pem")]
member = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, key, chain))

# gRPC's client speaks v1alpha, whose messages are those of v1 under another name.
database = ProtoReflectionDescriptorDatabase(member)
pool = DescriptorPool(database)
services = sorted(database.get_services())
methods = {
    service: [method.name for method in pool.FindServiceByName(service).methods]
    for service in services
    if not service.startswith("grpc.")
}
request = reflection_pb2.ServerReflectionRequest
v1 = member.stream_stream(
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    request_serializer=request.SerializeToString,
    response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
)
answer = next(v1(iter([request(list_services="")]), timeout=20))
said = {"services": services, "methods": methods}
said["v1"] = sorted(service.name for service in answer.list_services_response.service)
anonymous = grpc.secure_channel(address, grpc.ssl_channel_credentials(roots))
try:
    ProtoReflectionDescriptorDatabase(anonymous).get_services()
except grpc.RpcError as error:
    said["anonymous"] = error.code().name
print(json.dumps(said))
