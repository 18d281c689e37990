"""One PostgreSQL cluster below one home: its files, making it, and its server process.

Whoever changes something here holds the lock of `pipeline.store.embedded`, which says when and for whom a server
runs. `alive.lock` is inherited, and so held, by every process of the server: no process id can be mistaken for
a server that died, and a new one never starts beside what is left of the old.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.store.embedded import binaries, bootstrap, flocks
from pipeline.store.embedded.bootstrap import DATABASE, Note

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store.embedded.binaries import Account, Programs

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""recovery after a crash: 36 s were seen on a slow disk, where a limit of 10 s gave up on a healthy server"""
STOP_TIMEOUT_S = 120.0
"""the last checkpoint; after that the server is stopped without one and recovers at the next start"""
POLL_S = 0.02

PORTS = range(15432, 16432)
"""below the ports that outgoing connections take on Linux and macOS, so that a stored one stays free"""
PORT_TRIES = 3

SOCKET_FOLDER_BYTES = 80
"""sun_path holds 104 bytes on macOS and 108 on Linux, with /.s.PGSQL.15432.lock and a NUL"""

LOG_BYTES = 10 * 1024 * 1024
"""a longer log is put aside at the next start, in place of the one put aside before"""
LOG_TAIL_LINES = 12


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        if _is_free(port):
            return port
    raise StoreError(f"no free port found from {PORTS[0]} to {PORTS[-1]}", hint=binaries.OTHER_DATABASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The cluster below `home`."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def _alive(self) -> Path:
        return self.home / "alive.lock"

    # what is known of it

    def note(self) -> Note | None:
        """What is remembered; None before the first start, and when the file is damaged."""
        try:
            return Note(**json.loads((self.home / "server.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            logger.warning("%s is damaged and will be written anew", self.home / "server.json")
            return None

    def write_note(self, note: Note) -> None:
        """Replace the file in one step: others read it without a lock."""
        self._write("server.json", json.dumps(asdict(note), indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        partial = self.home / f"{name}.partial"
        with flocks.opened(partial, os.O_WRONLY | os.O_TRUNC) as descriptor:
            os.write(descriptor, text.encode())
        partial.replace(self.home / name)

    def postmaster(self) -> list[str]:
        """The lines of postmaster.pid: pid, data, start, port, socket folder, address, memory, status."""
        try:
            return [line.strip() for line in (self.data / "postmaster.pid").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def is_alive(self) -> bool:
        """Whether any process of the server lives, be it starting or stopping."""
        return flocks.is_held(self._alive)

    def is_ready(self) -> bool:
        """Whether the server takes connections."""
        lines = self.postmaster()
        return self.is_alive() and lines[7:8] == ["ready"] and _answers(lines)

    # starting

    def start(self, settings: Mapping[str, str]) -> Note:
        """Make the cluster if it is not there, start its server if it does not run."""
        note = self.note()
        if self._settled() and note:
            return note
        self._require_no_stranger()
        account = binaries.server_account(self.data, self.home)
        binaries.require_reachable(account, self.home)
        binaries.require_cpu()
        programs = binaries.usable_programs(account, self.home)
        self._require_version()
        self._clear_stale(note)
        is_unknown = note is None
        sync = settings.get("fsync") != "off"
        note = self._renewed(note, programs)
        if not self.data.exists():
            bootstrap.make_cluster(programs, self.data, note, sync=sync)
        elif is_unknown:
            bootstrap.set_passwords(programs, self.data, note, sync=sync)
        self.write_note(note)
        return self._launched(programs, note, settings)

    def _settled(self) -> bool:
        """Wait until the server is ready (True) or gone, if another has just started or stopped it."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.is_alive():
            if self.is_ready():
                return True
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the embedded server has been neither up nor down for {START_TIMEOUT_S:g} s",
                    hint=f"see {self.log}, or stop it with: catvec db stop",
                )
            time.sleep(POLL_S)
        return False

    def _require_no_stranger(self) -> None:
        lines = self.postmaster()
        if lines and _answers(lines):
            raise StoreError(
                f"a server that catvec did not start (process {lines[0]}) runs on {str(self.data)!r}",
                hint=f"stop it with: kill -INT {lines[0]}",
            )

    def _clear_stale(self, note: Note | None) -> None:
        """Remove what a killed server left, now that nothing of it lives.

        PostgreSQL itself would take a process that has got the old number, or a zombie, for a server.
        """
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for left in Path(note.socket).glob(".s.PGSQL.*") if note else ():
            left.unlink()

    def _require_version(self) -> None:
        if not self.data.exists():
            return
        found = self.data / "PG_VERSION"
        version = found.read_text().strip() if found.is_file() else None
        if version != binaries.MAJOR:
            what = f"of PostgreSQL {version!r}" if version else "without PG_VERSION"
            raise StoreError(
                f"{str(self.data)!r} is a folder {what}, expected a cluster of PostgreSQL {binaries.MAJOR!r}",
                hint="move it away, or set CATVEC_HOME to another folder; the vectors can be computed again",
            )

    def _renewed(self, note: Note | None, programs: Programs) -> Note:
        folder, version = self._socket_folder(note, programs.account), programs.version
        port = note.port if note and _is_free(note.port) else _free_port()
        if note:
            return replace(note, port=port, socket=str(folder), version=version)
        return Note(
            port=port,
            socket=str(folder),
            version=version,
            explicit=False,
            password=secrets.token_hex(24),
            admin_password=secrets.token_hex(24),
        )

    def _socket_folder(self, note: Note | None, account: Account) -> Path:
        """A folder that only `account` can enter, with a path short enough for a socket."""
        folder = self.home / "run"
        if len(os.fsencode(folder)) > SOCKET_FOLDER_BYTES:
            if note and _is_private(Path(note.socket), account):
                return Path(note.socket)
            # never a name that another user could foresee and take
            folder = Path(tempfile.mkdtemp(prefix="catvec-", dir="/tmp"))
        folder.mkdir(mode=0o700, exist_ok=True)
        if account.is_other:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)
        return folder

    def _launched(self, programs: Programs, note: Note, settings: Mapping[str, str]) -> Note:
        self._put_log_aside()
        for tries_left in reversed(range(PORT_TRIES)):
            begin = self.log.stat().st_size if self.log.exists() else 0
            self._launch(programs, note, settings)
            if self._came_up(begin):
                self._check_vector(note)
                return note
            if not tries_left or _is_free(note.port):
                break
            # somebody took the port between the look and the start
            note = replace(note, port=_free_port())
            self.write_note(note)
        raise StoreError("the embedded server did not start" + self._said(begin), hint=f"see {self.log}")

    def _launch(self, programs: Programs, note: Note, settings: Mapping[str, str]) -> None:
        """Start the server in the background, with alive.lock in its hands."""
        ours = {
            "listen_addresses": "127.0.0.1",
            "port": str(note.port),
            "unix_socket_directories": note.socket,
            "logging_collector": "off",
        }
        words = [word for pair in {**ours, **settings}.items() for word in ("-c", "=".join(pair))]
        with (
            flocks.held(self._alive, patience_s=5.0) as alive,
            flocks.opened(self.log, os.O_WRONLY | os.O_APPEND) as log,
        ):
            # the shell leaves at once, and the server belongs to nobody who could forget to wait for it
            command: list[str | Path] = [
                "/bin/sh",
                "-c",
                '"$@" &',
                "sh",
                programs.folder / "postgres",
                "-D",
                self.data,
                *words,
            ]
            binaries.run_as(programs.account, command, output=log, pass_fds=[alive])

    def _check_vector(self, note: Note) -> None:
        """Bring the extension to the wheel's version, and see whether this processor can run it."""
        import psycopg

        try:
            with psycopg.connect(note.admin_url(DATABASE), autocommit=True, connect_timeout=30) as connection:
                connection.execute("ALTER EXTENSION vector UPDATE")
                connection.execute("SELECT '[1,2]'::vector <=> '[2,1]'::vector")
        except psycopg.Error as error:
            self.stop()
            raise StoreError(
                f"the embedded server's pgvector does not work here: {error}",
                hint=f"see {self.log}, or {binaries.OTHER_DATABASE}",
            ) from error

    def _came_up(self, log_begin: int) -> bool:
        """Wait until the new server is ready; False when it gave up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if not self.is_alive():
                return False
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the embedded server was not ready after {START_TIMEOUT_S:g} s{self._said(log_begin)}",
                    hint=f"it goes on trying: see {self.log}, and start again later",
                )
            time.sleep(POLL_S)
        return True

    def _said(self, begin: int) -> str:
        """The end of what the server said since its log was `begin` bytes long."""
        with self.log.open("rb") as log:
            log.seek(begin)
            lines = log.read().decode(errors="replace").splitlines()
        return "".join(f"\n  {line}" for line in lines[-LOG_TAIL_LINES:])

    def _put_log_aside(self) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_name("server.log.1"))

    # stopping

    def stop(self) -> bool:
        """Stop the server, ending its connections; says whether one lived."""
        was_alive = self.is_alive()
        # fast: finish with a checkpoint; immediate: as after a crash, which loses nothing committed
        for how in (signal.SIGINT, signal.SIGQUIT):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            is_told = False
            while self.is_alive() and time.monotonic() < deadline:
                is_told = is_told or self._signal(how)
                time.sleep(POLL_S)
        if self.is_alive():
            raise StoreError(
                f"the embedded server did not stop within {2 * STOP_TIMEOUT_S:g} s", hint=f"see {self.log}"
            )
        note = self.note()
        if note and not Path(note.socket).is_relative_to(self.home):
            shutil.rmtree(note.socket, ignore_errors=True)
        return was_alive

    def _signal(self, how: signal.Signals) -> bool:
        """Tell the main process; False when it has not written its number yet, or is gone already."""
        lines = self.postmaster()
        if not lines or not _answers(lines):
            return False
        os.kill(int(lines[0]), how)
        return True


def _answers(lines: list[str]) -> bool:
    """Whether a server listens on the socket that postmaster.pid names."""
    if len(lines) < 5 or not lines[4]:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(f"{lines[4]}/.s.PGSQL.{lines[3]}")
        except OSError:
            return False
    return True


def _is_private(folder: Path, account: Account) -> bool:
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return found.st_uid == account.uid and found.st_mode == 0o40700
