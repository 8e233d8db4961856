"""A gRPC client by grpcio: every kind of call to the application of grpc_server.py.

Arguments: the address to dial, and the name that is called. Prints what went through.
"""

import queue
import sys
import time

import grpc

address, authority = sys.argv[1:]
channel = grpc.insecure_channel(
    address,
    options=[
        ("grpc.default_authority", authority),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
    ],
)
TIMEOUT = 20

unary = channel.unary_unary("/test.Echo/Unary")
answer, call = unary.with_call(b"call", timeout=TIMEOUT)
assert answer == b"unary call", answer
assert ("x-initial", "first") in [tuple(pair) for pair in call.initial_metadata()], call.initial_metadata()
trailing = dict(call.trailing_metadata())
assert trailing["x-trailing"] == "last", trailing
print("caller", trailing["x-caller"])

download = channel.unary_stream("/test.Echo/Download")(b"50", timeout=TIMEOUT)
assert list(download) == [b"%d" % number for number in range(50)]
assert dict(download.trailing_metadata())["x-trailing"] == "last"
print("download")

upload = channel.stream_unary("/test.Echo/Upload")
assert upload(iter([b"x" * 100_000] * 30), timeout=TIMEOUT) == b"3000000"
print("upload")

# Each message is sent only when the one before it has been answered: neither side may be buffered.
waiting = queue.Queue()
chat = channel.stream_stream("/test.Echo/Chat")(iter(waiting.get, None), timeout=TIMEOUT)
for number in range(20):
    waiting.put(b"%d" % number)
    assert next(chat) == b"heard %d" % number
waiting.put(None)
assert list(chat) == []
print("chat")

try:
    channel.unary_unary("/test.Echo/Fail")(b"", timeout=TIMEOUT)
    raise AssertionError("the call did not fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "there is no such thing", error
    assert dict(error.trailing_metadata())["x-reason"] == "nothing", error
print("fail")

try:
    channel.unary_unary("/test.Echo/Stall")(b"", timeout=0.5)
    raise AssertionError("the call did not end")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
print("deadline")

try:
    channel.unary_unary("/test.Echo/Nothing")(b"", timeout=TIMEOUT)
    raise AssertionError("the call did not fail")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
print("unimplemented")

calls = [unary.future(b"%d" % number, timeout=TIMEOUT) for number in range(100)]
assert [call.result() for call in calls] == [b"unary %d" % number for number in range(100)]
print("hundred")

# A call that the caller gives up ends at the application, too: it counts those.
ended = channel.unary_unary("/test.Echo/Ended")
before = int(ended(b"", timeout=TIMEOUT))
stalled = channel.unary_unary("/test.Echo/Stall").future(b"", timeout=TIMEOUT)
while int(channel.unary_unary("/test.Echo/Stalled")(b"", timeout=TIMEOUT)) == 0:
    time.sleep(0.01)
stalled.cancel()
assert stalled.cancelled()
deadline = time.monotonic() + TIMEOUT
while int(ended(b"", timeout=TIMEOUT)) == before:
    assert time.monotonic() < deadline, "the application does not know that the call was cancelled"
    time.sleep(0.01)
print("cancelled")

large = bytes(range(256)) * (32 * 1024)
assert unary(large, timeout=TIMEOUT) == b"unary " + large
print("large")
