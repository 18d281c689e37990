"""A folder over HTTP on loopback by nginx, with a configuration of its own and one worker: as a CDN would send it,
and quick enough not to be what is measured.

    with serve(folder, port=free_port()) as base_url: …
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S = 10.0

# as root, nginx would read the folder as another user, who may not
CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {scratch}/pid;
error_log {scratch}/error.log;
events {{ worker_connections 1024; }}
http {{
  types {{ image/jpeg jpg; }}
  log_format status '$status';
  access_log {log};
  client_body_temp_path {scratch}/body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  keepalive_requests 1000000;
  server {{ listen 127.0.0.1:{port} backlog=512; root {folder}; }}
}}
"""


def find_nginx() -> str | None:
    """The program, also where it is on no ordinary user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def nginx_version(program: str) -> str:
    """Such as nginx/1.22.1."""
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True)
    return told.stderr.rpartition(" ")[2].strip()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serve(program: str, folder: Path, *, port: int, log: Path | None = None) -> Iterator[str]:
    """The base URL; `log` gets the status of every answer, a line each."""
    with tempfile.TemporaryDirectory(prefix="catvec-bench-nginx-") as scratch:
        configuration = CONFIGURATION.format(
            user="user root;" if os.geteuid() == 0 else "",
            scratch=scratch,
            log=f"{log} status" if log else "off",
            port=port,
            folder=folder.resolve(),
        )
        path = Path(scratch) / "nginx.conf"
        path.write_text(configuration, encoding="utf-8")
        process = subprocess.Popen([program, "-e", f"{scratch}/error.log", "-p", scratch, "-c", str(path)])
        with process:
            try:
                _wait_for(port, process)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"nginx did not answer on port {port}")
