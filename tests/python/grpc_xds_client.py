"""A gRPC client without a proxy: grpcio follows the registry by itself.

Arguments: the bootstrap, the target, `xds` or `plaintext` credentials. It prints where it takes
`GET /ask?n=100`, and answers that with who has answered its calls, and what failed.
"""

import collections
import http.server
import json
import os
import sys
import urllib.parse

bootstrap, target, credentials = sys.argv[1:]
os.environ["GRPC_XDS_BOOTSTRAP"] = bootstrap

import grpc  # noqa: E402  reads the environment
import grpc.experimental  # noqa: E402

options = [("grpc.enable_http_proxy", 0)]
if credentials == "xds":
    secure = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
    channel = grpc.secure_channel(target, secure, options=options)
else:
    channel = grpc.insecure_channel(target, options=options)
who = channel.unary_unary("/test.Who/Ask")


class Control(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        names, failures = collections.Counter(), collections.Counter()
        for _ in range(int(query["n"][0])):
            try:
                names[who(b"", timeout=10).decode()] += 1
            except grpc.RpcError as error:
                failures[f"{error.code().name}: {error.details()}"] += 1
        body = json.dumps({"names": names, "failures": failures}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Control)
print("listening on 127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
