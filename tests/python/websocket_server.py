"""A WebSocket application by the package `websockets`: answers each message with itself."""

import asyncio

from websockets.asyncio.server import serve


async def echo(connection):
    caller = connection.request.headers.get("x-forwarded-client-cert", "")
    await connection.send(f"{connection.request.path} {caller}")
    async for message in connection:
        await connection.send(message)


async def main():
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await server.serve_forever()


asyncio.run(main())
