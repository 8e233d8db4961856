"""A gRPC application that tells its name. With a bootstrap it is a member of the mesh without a proxy.

Arguments: its name, the address to listen at, and optionally the bootstrap.
"""

import os
import sys
from concurrent import futures

name, address = sys.argv[1:3]
is_member = len(sys.argv) > 3
if is_member:
    os.environ["GRPC_XDS_BOOTSTRAP"] = sys.argv[3]

import grpc  # noqa: E402  reads the environment


class Who(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method != "/test.Who/Ask":
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode())


server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Who()], xds=is_member)
if is_member:
    fallback = grpc.insecure_server_credentials()
    port = server.add_secure_port(address, grpc.xds_server_credentials(fallback))
else:
    port = server.add_insecure_port(address)
server.start()
print("listening on 127.0.0.1:%d" % port, flush=True)
server.wait_for_termination()
