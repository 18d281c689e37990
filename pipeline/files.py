"""Files that are replaced whole or not at all: the page of `--report`, the numbers of `--metrics-file`.

Whoever reads one sees the earlier contents or the new ones, also when the disk is full or the machine stops.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

from pipeline.errors import CatvecError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def check_writable(path: Path, option: str) -> None:
    """Raise ConfigError when `path`, the value of `option`, cannot become a file; to be asked before any work."""
    try:
        _create_beside(_target(path)).unlink()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{option} is {str(path)!r}, which cannot be written: {_reason(error)}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Put the content (text as UTF-8) where `path` is, in one step; what was there stays when that fails.

    Raises CatvecError that names the path and the reason.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _replace(_target(path), data)
    except (OSError, RuntimeError) as error:
        raise CatvecError(f"{str(path)!r} cannot be written: {_reason(error)}") from error


def _target(path: Path) -> Path:
    """The file to replace: a symbolic link goes on to lead where it led.

    Raises OSError, or RuntimeError for links in a circle before Python 3.13.
    """
    target = path.resolve()
    if target.is_dir():
        raise OSError(errno.EISDIR, "it is a folder, expected a file")
    if not target.parent.is_dir():
        raise OSError(errno.ENOENT, f"there is no folder {str(target.parent)!r}")
    if target.exists() and not target.is_file():
        # /dev/null, for example
        raise OSError(errno.EINVAL, "it is no plain file, and would be replaced by one")
    return target


def _replace(target: Path, data: bytes) -> None:
    temporary = _create_beside(target)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # else a machine that stops may keep the new name with nothing behind it
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _create_beside(target: Path) -> Path:
    """A new empty file in the same folder, with the rights that the umask gives.

    tempfile would close it to everybody else, and the page and the numbers are for others. Its name ends in nothing
    that anybody collects: node_exporter reads every *.prom.
    """
    temporary = target.with_name(f".catvec-{secrets.token_hex(6)}.new")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def _reason(error: OSError | RuntimeError) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return reason[:1].lower() + reason[1:]
