"""Registers an instance over the sidecars' own protocol, with an identity from files.

Arguments: the registry's address for proxies, the folder with chain.pem, key.pem and roots.pem, and the
service in namespace `default` that is to be registered. Prints what the registry answers. The messages
(pillion.mesh.v1) are few and small enough to be written by hand.
"""

import sys

import grpc

address, folder, service = sys.argv[1:]


def read(name):
    with open(f"{folder}/{name}", "rb") as file:
        return file.read()


def varint(number):
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


port = text(1, "http") + text(2, number(1, 8080) + text(2, "http"))
instance = text(1, "default") + text(2, service) + text(3, "forged") + text(4, "10.6.6.6") + text(5, port)
instance += number(12, 30_000) + number(13, 1)
register = text(1, number(1, 1) + text(2, instance))

credentials = grpc.ssl_channel_credentials(read("roots.pem"), read("key.pem"), read("chain.pem"))
channel = grpc.secure_channel(address, credentials)
connect = channel.stream_stream("/pillion.mesh.v1.Registration/Connect")
try:
    answer = next(connect(iter([register]), timeout=20))
    # The first field tells which answer it is: 1 registered, 3 refused.
    print({1: "registered", 3: "refused"}.get(answer[0] >> 3, "?"), answer)
except grpc.RpcError as error:
    print("failed", error.code(), error.details())
