"""A gRPC application by grpcio: generic handlers, so that it needs no generated code."""

import time
from concurrent import futures

import grpc


def caller(context):
    metadata = dict(context.invocation_metadata())
    return metadata.get("x-forwarded-client-cert", "")


def unary(request, context):
    context.send_initial_metadata([("x-initial", "first")])
    context.set_trailing_metadata([("x-trailing", "last"), ("x-caller", caller(context))])
    return b"unary " + request


def download(request, context):
    for number in range(int(request)):
        yield b"%d" % number
    context.set_trailing_metadata([("x-trailing", "last")])


def upload(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def chat(requests, context):
    for request in requests:
        yield b"heard " + request


def fail(request, context):
    context.set_trailing_metadata([("x-reason", "nothing")])
    context.abort(grpc.StatusCode.NOT_FOUND, "there is no such thing")


stalls = {"now": 0, "ended": 0}


def stall(request, context):
    stalls["now"] += 1
    while context.is_active():
        time.sleep(0.02)
    stalls["now"] -= 1
    stalls["ended"] += 1
    return b""


def stalled(request, context):
    return b"%d" % stalls["now"]


def ended(request, context):
    return b"%d" % stalls["ended"]


def main():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Stall": grpc.unary_unary_rpc_method_handler(stall),
        "Stalled": grpc.unary_unary_rpc_method_handler(stalled),
        "Ended": grpc.unary_unary_rpc_method_handler(ended),
    }
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=32), options=[("grpc.max_receive_message_length", -1)]
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


main()
