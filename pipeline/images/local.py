"""Images that need no network: files below the image root, and data URIs."""

from __future__ import annotations

import base64
import binascii
import errno
import mimetypes
import os
import stat
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from pipeline.errors import FetchError
from pipeline.images.body import Body, too_large

if TYPE_CHECKING:
    from pathlib import Path

# a FIFO must not block the opening; the flags are missing on Windows
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_TICK_NS = 2_000_000_000


def read_file(name: str, root: Path, max_bytes: int, known: str | None = None) -> Body | None:
    """Read `name` below `root`: its bytes, the media type that its ending means, and a validator; None if the file
    still has the validator `known`.

    Raises:
        FetchError: outside_root, file_not_found, not_a_file, too_large, unreadable_file.
    """
    path = _resolve(name, root)
    try:
        if known is not None and _validator(os.stat(path)) == known:  # noqa: PTH116
            return None
        with open(os.open(path, _FLAGS), "rb") as file:  # noqa: PTH123 - Path.open takes no flags
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise FetchError("not_a_file", f"{name!r} is no regular file")
            if state.st_size > max_bytes:
                raise too_large(state.st_size, max_bytes)
            validator = None if _is_racy(state) else _validator(state)
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise _translated(error, name) from error
    if len(data) > max_bytes:
        raise too_large(len(data), max_bytes)
    return Body(data=data, mime=mimetypes.guess_type(name)[0], etag=validator)


def read_data_uri(uri: str, max_bytes: int) -> Body:
    """Decode a data URI (RFC 2397), base64 or percent-encoded: its bytes and media type.

    Raises:
        FetchError: bad_data_uri, too_large.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise FetchError("bad_data_uri", "the data URI has no comma, expected data:[type][;base64],…")
    words = [word.strip().lower() for word in head[len("data:") :].split(";")]
    # before decoding: 4 characters of base64 are 3 bytes, and a percent-encoded byte has up to 3
    if len(body) > 3 * max_bytes + 4:
        raise too_large(len(body) * 3 // 4 if words[-1] == "base64" else len(body) // 3, max_bytes)
    data = unquote_to_bytes(body)
    if words[-1] == "base64":
        data = _from_base64(data)
    if len(data) > max_bytes:
        raise too_large(len(data), max_bytes)
    return Body(data=data, mime=words[0] if "/" in words[0] else None)


def _validator(state: os.stat_result) -> str:
    """Size and mtime in nanoseconds, in the form of an ETag. Other bytes of the same size and mtime pass for the
    same, as they do for rsync: what copies mtimes along can hide a change until the file is read whatever it says.
    """
    return f'"{state.st_size}-{state.st_mtime_ns}"'


def _is_racy(state: os.stat_result) -> bool:
    """Say whether the file can yet be written without getting another mtime: the clocks of file systems tick every
    4 ms (ext4) to 2 s (FAT), and writes within one tick get the same. An mtime in the future counts too: it comes
    from a clock that differs, so that nobody knows how long ago it was.
    """
    return time.time_ns() - state.st_mtime_ns < _TICK_NS


def _resolve(name: str, root: Path) -> str:
    # pathlib would take 46 µs for what takes 32 here, and a nightly run looks at every file
    try:
        home = os.path.realpath(root)
        path = os.path.realpath(os.path.join(home, name))  # noqa: PTH118
    except (OSError, ValueError) as error:  # a NUL character
        raise FetchError("file_not_found", f"{name[:200]!r} is no possible path") from error
    if path != home and not path.startswith(home.rstrip(os.sep) + os.sep):
        raise FetchError("outside_root", f"{name!r} leads outside the image root")
    return path


def _from_base64(data: bytes) -> bytes:
    compact = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except binascii.Error as error:
        raise FetchError("bad_data_uri", "what follows the comma of the data URI is no base64") from error


def _translated(error: OSError, name: str) -> FetchError:
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}:
        return FetchError("file_not_found", f"there is no file {name[:200]!r} in the image root")
    if error.errno in {errno.ENXIO, errno.EISDIR}:  # a socket; a directory on some systems
        return FetchError("not_a_file", f"{name!r} is no regular file")
    reason = os.strerror(error.errno or 0).lower()
    is_denied = error.errno in {errno.EACCES, errno.EPERM}
    return FetchError("unreadable_file", f"{name!r} cannot be read: {reason}", is_retryable=not is_denied)
