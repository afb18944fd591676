"""`websockets`' own server, which answers one request after the other and looks at none of them.

`python -m benchmarks.bare_server SECONDS` prints its port; a reply leaves every SECONDS while somebody waits.
"""

from __future__ import annotations

import asyncio
import sys

import msgpack
import uvloop
from websockets.asyncio.server import ServerConnection, serve

from vlad_server import allocator

REPLY_BYTES = 780
"""As long as the reply of a LIBERO policy with ten actions."""


async def main(service_s: float) -> None:
    turns: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def answer(connection: ServerConnection) -> None:
        await connection.send(msgpack.packb({}))
        async for _ in connection:
            turn = asyncio.get_running_loop().create_future()
            turns.put_nowait(turn)
            await turn
            await connection.send(bytes(REPLY_BYTES))

    async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        while True:
            turn = await turns.get()
            await asyncio.sleep(service_s)
            if not turn.done():
                turn.set_result(None)


if __name__ == "__main__":
    allocator.keep_freed_memory()
    allocator.collect_seldom()
    uvloop.run(main(float(sys.argv[1])))
