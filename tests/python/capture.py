"""Captures what goes over loopback to and from a port that must be TLS, and one that is plain for comparison.

Usage: capture.py TLS_PORT PLAIN_PORT CANARY

Says `capturing` when it does, or `not permitted`. When it is told to end (SIGTERM) it says how many TLS
handshakes began at the port of TLS, how many segments there begin as HTTP does, and in how many segments of
either port the canary stood.
"""

import ctypes
import json
import signal
import socket
import struct
import sys

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
HANDSHAKE = b"\x16\x03"
HTTP = (b"GET ", b"POST", b"PRI ", b"HTTP", b"CONN")


def attach(capture: socket.socket, ports: list[int]) -> None:
    """IPv4, TCP, one of the ports as source or destination (classic BPF)."""
    tests = [(offset, port) for offset in (14, 16) for port in ports]
    code = [(0x28, 0, 0, 12), (0x15, 0, 255, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 255, 6), (0xB1, 0, 0, 14)]
    for offset, port in tests:
        code += [(0x48, 0, 0, offset), (0x15, 254, 0, port)]
    code += [(0x06, 0, 0, 0), (0x06, 0, 0, 0x40000)]
    refuse, accept = len(code) - 2, len(code) - 1
    target = {255: refuse, 254: accept}
    fixed = [
        (op, target[jt] - at - 1 if jt in target else jt, target[jf] - at - 1 if jf in target else jf, k)
        for at, (op, jt, jf, k) in enumerate(code)
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in fixed))
    header = struct.pack("HL", len(fixed), ctypes.addressof(program))
    capture.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)


def main(tls: int, plain: int, canary: bytes) -> None:
    try:
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        attach(capture, [tls, plain])
        capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        capture.bind(("lo", 0))
    except PermissionError:
        print("not permitted", flush=True)
        return
    handshakes, as_http, found = 0, 0, {tls: 0, plain: 0}

    def tell(*_: object) -> None:
        told = {"handshakes": handshakes, "http": as_http, "canaries": found[tls], "compared": found[plain]}
        print("saw " + json.dumps(told), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, tell)
    print("capturing", flush=True)
    while True:
        ip = capture.recv(1 << 17)[14:]
        length = (ip[0] & 15) * 4
        segment = ip[length : struct.unpack("!H", ip[2:4])[0]]
        ports = struct.unpack("!HH", segment[:4])
        payload = segment[(segment[12] >> 4) * 4 :]
        found[tls if tls in ports else plain] += canary in payload
        if tls in ports:
            handshakes += payload[:2] == HANDSHAKE
            as_http += payload[:4] in HTTP


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode())
