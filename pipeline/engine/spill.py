"""A file that takes what memory should not: without a name, so that nothing is left of it however a run ends."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass

FILE_BYTES = 2 * 1024 * 1024 * 1024
"""800,000 vectors of 512 numbers: ten minutes, as long as a run waits for its database, at 1,300 images/s"""
LEFT_FREE_BYTES = 512 * 1024 * 1024
"""left to the others on that disk, of whom the database may be one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something lies in the file."""

    start: int
    size_bytes: int


class SpillFile:
    """Only this process can open it: it is made with mode 0600 and unlinked at once, or never had a name."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.folder = _folder()
        self._file = tempfile.TemporaryFile(prefix="catvec-", dir=self.folder, buffering=0)  # noqa: SIM115 - see close
        self.size_bytes = 0

    def append(self, data: bytes) -> Place:
        """Raises OSError when the limit is reached or the disk is full; the file is then as it was."""
        if self.size_bytes + len(data) > FILE_BYTES:
            raise OSError(errno.EFBIG, f"it has reached {FILE_BYTES / 1e9:.1f} GB")
        if shutil.disk_usage(self.folder).free < LEFT_FREE_BYTES + len(data):
            raise OSError(errno.ENOSPC, f"less than {LEFT_FREE_BYTES / 1e6:.0f} MB would stay free")
        place = Place(start=self.size_bytes, size_bytes=len(data))
        written, rest = 0, memoryview(data)
        while written < len(data):
            written += os.pwrite(self._file.fileno(), rest[written:], place.start + written)
        self.size_bytes += len(data)
        return place

    def read(self, place: Place) -> bytes:
        return os.pread(self._file.fileno(), place.size_bytes, place.start)

    def close(self) -> None:
        """Give its room back."""
        self._file.close()


def _folder() -> str:
    """What TMPDIR names, else /var/tmp: /tmp is often memory."""
    folder = tempfile.gettempdir()
    return "/var/tmp" if folder == "/tmp" and os.access("/var/tmp", os.W_OK) else folder  # noqa: S108 - only its folder
