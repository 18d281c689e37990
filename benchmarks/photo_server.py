"""A folder of photos over HTTP on loopback, as a process of its own, so that it shares no interpreter lock.

    with serve(folder) as base_url: …

    python -m benchmarks.photo_server FOLDER     prints its URL, and ends when its standard input does

Answers have ETag and Last-Modified, and 304 to those who have them already. With a log, every answer leaves a line
there; `read_log` reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One line of the log; a conditional request says which version it has."""

    method: str
    path: str
    status: int
    is_conditional: bool


@contextmanager
def serve(
    folder: Path, *, port: int = 0, log: Path | None = None, delay_s: float = 0.0, uvloop: bool = False
) -> Iterator[str]:
    """The base URL of a server of this folder, without a slash at its end. Port 0 is any that is free."""
    command = [sys.executable, "-m", "benchmarks.photo_server", str(folder.resolve()), "--port", str(port)]
    command += ["--delay-s", str(delay_s), *(["--log", str(log)] if log else []), *(["--uvloop"] if uvloop else [])]
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


def read_log(path: Path) -> list[Answer]:
    """The answers so far, in the order in which they ended."""
    if not path.exists():
        return []
    answers = []
    for line in path.read_text(encoding="utf-8").splitlines():
        method, place, status, kind = line.split(" ")
        answers.append(Answer(method=method, path=place, status=int(status), is_conditional=kind == "conditional"))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder on loopback.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="file to which every answer adds a line")
    parser.add_argument("--delay-s", type=float, default=0.0, help="wait so long before each answer")
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=_uvloop() if arguments.uvloop else None) as runner:
        runner.run(serve_until_input_ends(arguments.folder, arguments.port, arguments.log, arguments.delay_s))


async def serve_until_input_ends(folder: Path, port: int, log: Path | None, delay_s: float) -> None:
    @web.middleware
    async def slow_down(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        return await handler(request)

    application = web.Application(middlewares=[slow_down] if delay_s else [])
    application.router.add_static("/", folder)
    if log is None:
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    else:
        logger = logging.getLogger("photo_server")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.FileHandler(log, encoding="utf-8"))
        runner = web.AppRunner(application, access_log=logger, access_log_class=_Log, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=512).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    # the input ends also when whoever started this is killed
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


class _Log(AbstractAccessLogger):
    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:  # noqa: ARG002
        is_conditional = hdrs.IF_NONE_MATCH in request.headers or hdrs.IF_MODIFIED_SINCE in request.headers
        kind = "conditional" if is_conditional else "plain"
        self.logger.info("%s %s %d %s", request.method, request.rel_url.raw_path, response.status, kind)


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
