"""One gRPC call by grpcio in plaintext. Arguments: the address to dial, and the name that is called.

Prints who has answered, or the status.
"""

import sys

import grpc

address, authority = sys.argv[1:]
options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
channel = grpc.insecure_channel(address, options=options)
try:
    print(channel.unary_unary("/test.Who/Ask")(b"", timeout=5).decode())
except grpc.RpcError as error:
    print(error.code().name, error.details())
