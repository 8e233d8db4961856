"""A SPIFFE agent that gives whoever asks what is in a folder, and gives it again when it changes.

Usage: spiffe_agent.py SOCKET FOLDER

The messages are those of the package `spiffe`. The folder holds id, svid.pem (leaf first), key.pem and
bundle.pem; a change of svid.pem is told. Without an id nobody has an identity.
"""

import base64
import pathlib
import re
import sys
import threading
import time
from concurrent import futures

import grpc
from spiffe._proto import workload_pb2, workload_pb2_grpc


def der(file: pathlib.Path) -> bytes:
    blocks = re.findall(r"-----BEGIN [A-Z ]+-----(.*?)-----END", file.read_text(), re.DOTALL)
    return b"".join(base64.b64decode(block) for block in blocks)


class Agent(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def FetchX509SVID(self, request, context):  # noqa: N802
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if not (self.folder / "id").exists():
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        told = None
        while context.is_active():
            leaf = der(self.folder / "svid.pem")
            if leaf != told:
                told = leaf
                svid = workload_pb2.X509SVID(
                    spiffe_id=(self.folder / "id").read_text().strip(),
                    x509_svid=leaf,
                    x509_svid_key=der(self.folder / "key.pem"),
                    bundle=der(self.folder / "bundle.pem"),
                )
                print("told", flush=True)
                yield workload_pb2.X509SVIDResponse(svids=[svid])
            time.sleep(0.05)


def main(socket: str, folder: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(Agent(pathlib.Path(folder)), server)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
