"""Making a cluster: initdb, then role, database and extension, before any server listens.

Apps get the URL of the role `catvec`, which owns the database `catvec` but is no superuser: a superuser may run
any program on this machine, and what works here shall also work on a managed database. The superuser `postgres`
makes and updates the extension, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import StoreError
from pipeline.store.embedded import flocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.store.embedded.binaries import Programs

ROLE = DATABASE = "catvec"
ADMIN = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is remembered of the server, in server.json."""

    port: int
    socket: str
    """the folder with the socket"""
    version: str
    explicit: bool
    password: str = field(repr=False)
    admin_password: str = field(repr=False)

    def url(self) -> str:
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def admin_url(self, database: str) -> str:
        return f"postgresql://{ADMIN}:{self.admin_password}@127.0.0.1:{self.port}/{database}"


def memory_bytes() -> int:
    """The memory of this machine or container, whichever is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def tuning(memory: int) -> dict[str, str]:
    """Settings written into a new cluster's postgresql.conf, where its owner may change them."""
    megabytes = memory // 1024**2
    return {
        # a sixteenth each: the encoder beside it needs the memory more
        "shared_buffers": f"{min(max(megabytes // 16, 64), 1024)}MB",
        # an HNSW graph that fits is built several times faster
        "maintenance_work_mem": f"{min(max(megabytes // 16, 64), 1024)}MB",
        "max_wal_size": "4GB",
        # parallel index builds fail in the 64 MB that Docker gives /dev/shm
        "dynamic_shared_memory_type": "mmap",
    }


def make_cluster(programs: Programs, data: Path, note: Note, *, sync: bool) -> None:
    """Make the cluster beside `data` and move it there when it is whole: a killed start leaves no half one."""
    partial = data.with_name("data.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    if programs.account.is_other:
        os.chown(partial, programs.account.uid, programs.account.gid)
    try:
        _fill(programs, partial, note, sync=sync)
    except StoreError:
        shutil.rmtree(partial, ignore_errors=True)  # most often the disk is full
        raise
    partial.rename(data)


def _fill(programs: Programs, data: Path, note: Note, *, sync: bool) -> None:
    _initdb(programs, data, note, sync=sync)
    # CREATEROLE reaches only roles that it made itself (PostgreSQL 16 and later), such as an app's reader
    role = f"CREATE ROLE {ROLE} LOGIN CREATEROLE"
    _execute(programs, data, role, f"CREATE DATABASE {DATABASE} OWNER {ROLE}", sync=sync)
    _execute(programs, data, "CREATE EXTENSION vector", database=DATABASE, sync=sync)
    set_passwords(programs, data, note, sync=sync)
    # last: each of the steps before would have to lay out the large shared memory
    with (data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.writelines(f"{name} = {value}\n" for name, value in tuning(memory_bytes()).items())


def set_passwords(programs: Programs, data: Path, note: Note, *, sync: bool) -> None:
    """Give both roles the passwords of the note, in a cluster whose server does not run."""
    admin = f"ALTER ROLE {ADMIN} PASSWORD '{note.admin_password}'"
    _execute(programs, data, admin, f"ALTER ROLE {ROLE} PASSWORD '{note.password}'", sync=sync)


def _initdb(programs: Programs, data: Path, note: Note, *, sync: bool) -> None:
    with _password_file(programs, Path(note.socket), note.admin_password) as pwfile:
        made = programs.run(
            "initdb",
            f"--pgdata={data}",
            f"--username={ADMIN}",
            f"--pwfile={pwfile}",
            "--auth-local=scram-sha-256",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            # the same order of text on every machine, also after an upgrade of its C library
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            *([] if sync else ["--no-sync"]),
        )
    if made.returncode:
        raise _failed(data, made.stdout)


@contextlib.contextmanager
def _password_file(programs: Programs, folder: Path, password: str) -> Iterator[Path]:
    """The password where initdb can read it and nobody else, and where `ps` does not show it."""
    path = folder / "pwfile"
    path.unlink(missing_ok=True)
    try:
        with flocks.opened(path, os.O_WRONLY | os.O_EXCL) as descriptor:
            os.write(descriptor, password.encode())
            if programs.account.is_other:
                os.fchown(descriptor, programs.account.uid, programs.account.gid)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _execute(programs: Programs, data: Path, *statements: str, sync: bool, database: str = "postgres") -> None:
    """Run statements, a line each, without a server: in single-user mode nobody else can connect yet."""
    options = ["-c", "exit_on_error=on", "-c", f"fsync={'on' if sync else 'off'}"]
    text = "".join(f"{statement}\n" for statement in statements)
    done = programs.run("postgres", "--single", "-D", data, *options, database, text=text)
    if done.returncode:
        raise _failed(data, done.stdout)


def _failed(data: Path, output: str) -> StoreError:
    # STATEMENT lines would show the passwords
    lines = [line for line in output.splitlines() if "STATEMENT:" not in line and "PASSWORD" not in line]
    said = "".join(f"\n  {line}" for line in lines[-8:])
    return StoreError(
        f"no PostgreSQL cluster could be made in {str(data.parent)!r}{said}",
        hint="free some space or set CATVEC_HOME to another folder, then try again",
    )
