"""A folder of photos over HTTP on loopback, as a process of its own, so that it shares no interpreter lock.

    with serve(folder) as base_url: …

    python -m benchmarks.photo_server FOLDER     prints its URL, and ends when its standard input does

Answers have ETag and Last-Modified, and 304 to those who have them already.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The base URL of a server of this folder, without a slash at its end."""
    command = [sys.executable, "-m", "benchmarks.photo_server", str(folder.resolve())]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        base_url = process.stdout.readline().strip()
        if not base_url:
            raise SystemExit("the photo server did not start")
        try:
            yield base_url
        finally:
            process.stdin.close()
            process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder on loopback.")
    parser.add_argument("folder", type=Path)
    asyncio.run(serve_until_input_ends(parser.parse_args().folder))


async def serve_until_input_ends(folder: Path) -> None:
    application = web.Application()
    application.router.add_static("/", folder)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    # the input ends also when whoever started this is killed
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


if __name__ == "__main__":
    main()
