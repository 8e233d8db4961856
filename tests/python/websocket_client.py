"""A WebSocket client by the package `websockets`: talks to the application of websocket_server.py.

Arguments: the URL; how to reach it (`proxy` or `direct`), and the outbound port's host and port.
"""

import asyncio
import sys

from websockets.asyncio.client import connect

url, way, host, port = sys.argv[1:]


def open_connection():
    if way == "proxy":
        return connect(url, proxy=f"http://{host}:{port}", max_size=None)
    return connect(url, proxy=None, host=host, port=int(port), max_size=None)


async def main():
    async with open_connection() as connection:
        print(await connection.recv())
        for message in ["text", b"\x00\xff", "x" * 1_000_000, "é" * 1000]:
            await connection.send(message)
            assert await connection.recv() == message
        pong = await connection.ping()
        await pong
    print("closed", connection.close_code)


asyncio.run(asyncio.wait_for(main(), 20))
