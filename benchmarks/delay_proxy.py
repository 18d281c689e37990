"""A TCP proxy on loopback that makes a far server out of a near one: every byte arrives so much later, in both
directions, and as many bytes are under way as the ends send (the bandwidth has no limit).

    with delayed(url, delay_s=0.02) as far_url: …     # 40 ms round trip

It runs in a process of its own, so that it does not wait for the interpreter of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 256 * 1024


@contextmanager
def delayed(url: str, *, delay_s: float) -> Iterator[str]:
    """The URL of the same database, `delay_s` away in each direction."""
    parts = urlsplit(url)
    command = [sys.executable, "-m", "benchmarks.delay_proxy", str(parts.hostname), str(parts.port), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            credentials = parts.netloc.rpartition("@")[0]
            yield parts._replace(netloc=f"{credentials}@127.0.0.1:{port}").geturl()
        finally:
            process.terminate()


async def serve(host: str, port: int, delay_s: float) -> None:
    """Print the port, then pass on until the process ends."""
    server = await asyncio.start_server(partial(_pass_on, host, port, delay_s), "127.0.0.1", 0, limit=CHUNK_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


async def _pass_on(
    host: str, port: int, delay_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    far_reader, far_writer = await asyncio.open_connection(host, port, limit=CHUNK_BYTES)
    await asyncio.gather(_one_way(reader, far_writer, delay_s), _one_way(far_reader, writer, delay_s))


async def _one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def arrive() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.close()
                return
            writer.write(data)

    arriving = asyncio.create_task(arrive())
    data = b"-"
    while data:
        try:
            data = await reader.read(CHUNK_BYTES)
        except ConnectionError:
            data = b""
        under_way.put_nowait((loop.time() + delay_s, data))
    await arriving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("delay_s", type=float)
    options = parser.parse_args()
    asyncio.run(serve(options.host, options.port, options.delay_s))


if __name__ == "__main__":
    main()
