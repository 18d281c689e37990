"""Locks on files between processes, and who is using something, counted by the kernel.

All are flock(2): they belong to an open file, so a process that dies by any signal gives them up, no process id
is ever mistaken for another's, and a program that is started with the file open goes on holding the lock.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from typing import TYPE_CHECKING

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLL_S = 0.02
"""flock cannot wait with a timeout, so it is asked again; starting the server takes ten of these"""


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a private file, made if it is missing, and never through a link that somebody else put there."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _give(descriptor, path.parent)
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a private folder unless it is there."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        _give(path, path.parent)


def _give(made: int | Path, folder: Path) -> None:
    # in somebody's own folder root must not leave what that user cannot open
    if os.geteuid() == 0:
        os.chown(made, folder.stat().st_uid, -1)


def _try_lock(descriptor: int, *, shared: bool = False) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def held(path: Path, *, patience_s: float) -> Iterator[int]:
    """Hold the lock alone; yields the open file, for a program that shall inherit the lock.

    Raises StoreError when another process has it for `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    with opened(path, os.O_RDWR) as descriptor:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreError(f"another process has held the lock {str(path)!r} for {patience_s:g} s")
            time.sleep(POLL_S)
        yield descriptor


def is_held(path: Path) -> bool:
    """Whether any process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # shared, so that two who ask at once do not take each other for a holder
        return not _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def presence(folder: Path) -> Iterator[None]:
    """Be one of those that `present` counts, until the end of the block or of the process."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    with held(path, patience_s=5.0):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def present(folder: Path) -> int:
    """How many processes are there now; what the dead left behind counts nothing."""
    return sum(is_held(path) for path in folder.iterdir()) if folder.is_dir() else 0


def forget_absent(folder: Path) -> None:
    """Remove the files of processes that died; only while nobody can come in."""
    for path in folder.iterdir():
        if not is_held(path):
            path.unlink(missing_ok=True)
