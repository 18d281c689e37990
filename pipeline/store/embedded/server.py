"""Who may start, use and stop the embedded server when; `cluster` does it. The package says which file is what."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.store.embedded import binaries, flocks
from pipeline.store.embedded.cluster import START_TIMEOUT_S, STOP_TIMEOUT_S, Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.store.embedded.bootstrap import Note


def default_home(*, is_root: bool, environ: Mapping[str, str]) -> Path:
    """Where the server lives unless CATVEC_HOME says otherwise.

    For root below /var/lib, because the server runs as another user, which cannot enter /root.
    """
    if is_root:
        return Path("/var/lib/catvec")
    share = Path(environ.get("XDG_DATA_HOME", ""))
    if share.is_absolute():  # the XDG specification: a relative one is ignored
        return share / "catvec"
    return Path(environ.get("HOME") or Path.home()) / ".local" / "share" / "catvec"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What can be seen of the server from outside; None where it was never started."""

    home: Path
    running: bool
    explicit: bool
    """it stays when the last user leaves"""
    users: int
    """processes that use it now"""
    pid: int | None
    version: str | None
    port: int | None
    socket: Path | None
    """the folder with the socket"""
    data: Path
    log: Path


@contextlib.contextmanager
def lease(home: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Use the server below `home`, started if need be; yields its URL.

    Whoever leaves last stops it, unless it was started explicitly. A process that is killed no longer counts,
    and then the next that leaves stops the server.
    """
    server = EmbeddedServer(home=home, settings=settings or {})
    with contextlib.ExitStack() as stay:
        with server._managed():
            stay.enter_context(flocks.presence(server._users))
            note = server._cluster.start(server.settings)
        try:
            yield note.url()
        finally:
            with server._managed():
                stay.close()
                server._stop_if_unused()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServer:
    """The server below one CATVEC_HOME; any number of processes may call any of this at once."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """PostgreSQL settings on top of ours, if it is this object that starts the server"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", Path(self.home).expanduser().resolve())

    def start(self, *, explicit: bool = False) -> str:
        """Start the server unless it runs, and return its URL; `explicit`: it stays until `stop`."""
        with self._managed():
            note = self._cluster.start(self.settings)
            if explicit:
                self._cluster.write_note(replace(note, explicit=True))
        return note.url()

    def stop(self) -> bool:
        """Stop the server, whoever uses it; says whether one was running."""
        with _explained(self.home):
            if not (self.home / "manager.lock").exists():
                return False
        with self._managed():
            was_running = self._cluster.stop()
            note = self._cluster.note()
            if note and note.explicit:
                self._cluster.write_note(replace(note, explicit=False))
            return was_running

    def url(self) -> str:
        """The URL of the running server, for psql, psycopg and whatever else speaks PostgreSQL."""
        return self._running().url()

    def admin_url(self, database: str = "postgres") -> str:
        """The URL of the superuser, for making roles and databases."""
        return self._running().admin_url(database)

    def status(self) -> ServerStatus:
        with _explained(self.home):
            note = self._cluster.note()
            is_running = self._cluster.is_ready()
            return ServerStatus(
                home=self.home,
                running=is_running,
                explicit=note.explicit if note else False,
                users=flocks.present(self._users),
                pid=int(self._cluster.postmaster()[0]) if is_running else None,
                version=note.version if note else None,
                port=note.port if note else None,
                socket=Path(note.socket) if note else None,
                data=self._cluster.data,
                log=self._cluster.log,
            )

    @property
    def _cluster(self) -> Cluster:
        return Cluster(home=self.home)

    @property
    def _users(self) -> Path:
        return self.home / "users"

    def _running(self) -> Note:
        with _explained(self.home):
            note = self._cluster.note()
            if note and self._cluster.is_ready():
                return note
        raise StoreError(f"no embedded server runs in {str(self.home)!r}", hint="start it with: catvec db start")

    @contextlib.contextmanager
    def _managed(self) -> Iterator[None]:
        """Be the only one that starts or stops the server, or comes or leaves."""
        with _explained(self.home):
            self._make_home()
            patience_s = START_TIMEOUT_S + 2 * STOP_TIMEOUT_S
            with flocks.held(self.home / "manager.lock", patience_s=patience_s):
                flocks.make_folder(self._users)
                yield

    def _make_home(self) -> None:
        """Make the folder, closed to all but its owner and, under root, the server's user passing through.

        The mode of a folder that is there already is its owner's business: everything inside is private.
        """
        if self.home.exists():
            return
        nearest = next(folder for folder in self.home.parents if folder.exists())
        account = binaries.server_account(nearest)
        binaries.require_reachable(account, nearest)
        self.home.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.home.mkdir(mode=0o700)
            if account.uid == nearest.stat().st_uid:
                os.chown(self.home, account.uid, account.gid)
            elif account.is_other:
                os.chown(self.home, -1, account.gid)
                self.home.chmod(0o710)

    def _stop_if_unused(self) -> None:
        flocks.forget_absent(self._users)
        note = self._cluster.note()
        if note and not note.explicit and not flocks.present(self._users):
            self._cluster.stop()


@contextlib.contextmanager
def _explained(home: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error with a cure."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(
            f"{error.filename or str(home)!r} belongs to another user or is closed to this one",
            hint=f"set CATVEC_HOME to a folder of your own, or {binaries.OTHER_DATABASE}",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"{Path(error.cmd[0]).name} took over {error.timeout:g} s") from error
    except OSError as error:
        raise StoreError(
            f"cannot use CATVEC_HOME {str(home)!r}: {error.strerror or error}",
            hint=f"free some space or set CATVEC_HOME to another folder, or {binaries.OTHER_DATABASE}",
        ) from error
