"""A bundle's folder: opening one, making one, its lock, and its files, each checked before it is believed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.bundle.format import (
    MANIFEST,
    METADATA,
    PARTS,
    Manifest,
    check_same_model,
    digest_of_file,
    named_digest_of,
    number_of,
    parse_manifest,
    pyarrow,
)
from pipeline.errors import BundleError, CatvecError, ConfigError, LockedError
from pipeline.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = ".lock"
UNFINISHED = ".catvec-*.new"
"""what a process that was killed left of a file that it was writing"""
ROOM_HINT = "free some space, or mend what is said, and run the same command again: what is finished stays"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that is there."""

    folder: Path
    manifest: Manifest

    def parts(self) -> list[Path]:
        """The finished parts, oldest first. Raises BundleError for a file among them that is none."""
        found = [path for path in (self.folder / PARTS).glob("*.parquet") if not path.name.startswith(".")]
        return sorted(found, key=lambda path: (number_of(path), path.name))

    def catalogs(self) -> list[Path]:
        """The catalog's file; an older one before it when a run was killed between writing and removing."""
        found = self.folder.glob("catalog-*.parquet")
        return sorted(found, key=lambda path: (number_of(path), path.name))

    def open(self, path: Path) -> Any:
        """A pyarrow ParquetFile of this bundle; to be closed.

        Raises BundleError when its bytes are not those that were written, ModelError and BundleError when it comes
        from a bundle of another model or catalog.
        """
        pa = pyarrow()
        shown = repr(str(path))
        try:
            if digest_of_file(path) != named_digest_of(path):
                raise damaged(path)
            file = pa.parquet.ParquetFile(path)
        except pa.ArrowException as error:
            raise damaged(path) from error
        except OSError as error:
            raise BundleError(f"{shown} cannot be read: {_reason(error)}") from error
        try:
            self._check_identity(path, _manifest_of(file.schema_arrow, path))
        except BaseException:
            file.close()
            raise
        return file

    def check(self) -> None:
        """Open a file of each kind, so that a manifest which is none of theirs is found before it is believed.

        Raises as `open`.
        """
        for path in (*self.catalogs()[-1:], *self.parts()[:1]):
            self.open(path).close()

    def _check_identity(self, path: Path, found: Manifest) -> None:
        shown = repr(str(path))
        if _identity(found) == _identity(self.manifest):
            return
        hint = FOREIGN_FILE if self._is_believed_by_others(path) else FOREIGN_MANIFEST
        check_same_model(self.manifest.model, found.model, where=shown, hint=hint)
        if found.catalog != self.manifest.catalog:
            raise BundleError(
                f"{shown} is of catalog {found.catalog!r}, expected {self.manifest.catalog!r}", hint=hint
            )
        raise BundleError(f"{str(self.folder / MANIFEST)!r} says something else of its model than {shown}", hint=hint)

    def _is_believed_by_others(self, path: Path) -> bool:
        """Whether another file has the identity of the manifest: then it is this file that does not belong here."""
        pa, expected = pyarrow(), _identity(self.manifest)
        for other in (*self.catalogs(), *self.parts()):
            with contextlib.suppress(OSError, pa.ArrowException, BundleError):
                if other != path and _identity(_manifest_of(pa.parquet.read_schema(other), other)) == expected:
                    return True
        return False


FOREIGN_FILE = "move it out of the bundle; what it holds is made again by the same catvec run … --to"
FOREIGN_MANIFEST = (
    f"{MANIFEST} was edited, or comes from another bundle: put the one back that was there; or remove it and run the "
    "same catvec run … --to again, which writes it anew"
)


def _manifest_of(schema: Any, path: Path) -> Manifest:
    stated = (schema.metadata or {}).get(METADATA, b"")
    return parse_manifest(stated, f"the metadata of {str(path)!r}")


def _identity(manifest: Manifest) -> Manifest:
    """All of it but where the weights were, which differs from machine to machine."""
    return replace(manifest, model=replace(manifest.model, location=""))


def damaged(path: Path) -> BundleError:
    what = "part" if path.parent.name == PARTS else "file"
    return BundleError(
        f"{what} {str(path)!r} is cut off or was edited: its bytes are not those that its name stands for",
        hint="copy it again from where it is whole; or remove it and run the same catvec run … --to again, which "
        "makes anew only what it held",
    )


def find_manifest(folder: Path) -> Manifest | None:
    """The manifest of the bundle in this folder, None when there is none. Raises BundleError when it is damaged."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError(f"{str(path)!r} cannot be read: {_reason(error)}") from error
    return parse_manifest(text, repr(str(path)))


def open_bundle(folder: Path) -> Bundle:
    """The bundle in this folder. Raises ConfigError when there is none, BundleError when it is damaged."""
    pyarrow()
    manifest = find_manifest(folder)
    if manifest is None:
        what = "there is no folder" if not folder.exists() else "there is no bundle.json in"
        raise ConfigError(
            f"{what} {str(folder)!r}, expected a bundle", hint="one is made by: catvec run CATALOG --to FOLDER"
        )
    return Bundle(folder=folder, manifest=manifest)


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Make a new bundle of this identity; parts that are there already have to fit it."""
    with written(folder):
        write_atomically(folder / MANIFEST, manifest.as_json() + "\n")
    return Bundle(folder=folder, manifest=manifest)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, made if missing, as a place for a bundle that this process alone writes to.

    Raises ConfigError when something else is in it, LockedError while another process writes to it, BundleError.
    """
    pyarrow()
    _refuse_others(folder)
    is_new = not folder.exists()
    with written(folder):
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for place in (folder, folder / PARTS):
            for left in place.glob(UNFINISHED):
                left.unlink(missing_ok=True)
        try:
            yield folder
        finally:
            if not (folder / MANIFEST).exists():
                _clear_away(folder, is_new=is_new)


def _clear_away(folder: Path, *, is_new: bool) -> None:
    """Leave no trace of a bundle that did not come to be; what is in the folder besides stays."""
    with contextlib.suppress(OSError):
        (folder / PARTS).rmdir()  # not when something is in it
        (folder / LOCK).unlink()
        if is_new:
            folder.rmdir()


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is a file, expected a folder for a bundle")
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    with written(folder):
        others = [path.name for path in folder.iterdir() if not _is_own(path)]
    if others:
        raise ConfigError(
            f"folder {str(folder)!r} holds {sorted(others)[0]!r} and no bundle, expected a bundle or an empty folder",
            hint="name a folder of its own for the bundle",
        )


def _is_own(path: Path) -> bool:
    # a file system of its own begins with lost+found
    return path.name in {PARTS, LOCK, "lost+found"} or path.match(UNFINISHED) or path.match("catalog-*.parquet")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the bundle's lock, which the kernel gives up for a process that dies. Raises LockedError."""
    import fcntl

    with written(folder):
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _is_taken(folder, descriptor) from error
        if not (folder / LOCK).exists() or os.fstat(descriptor).st_ino != (folder / LOCK).stat().st_ino:
            raise _is_taken(folder, descriptor)  # its holder took it away when it ended, or another has made it anew
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Say who holds the lock; a full disk may keep it from being said, and keeps nobody from holding it."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().astimezone().isoformat()}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _is_taken(folder: Path, descriptor: int) -> LockedError:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        since = datetime.fromisoformat(holder["since"])
        who = f": process {holder['pid']} on {holder['host']}, since {since:%Y-%m-%d %H:%M:%S %Z}"
    except (ValueError, KeyError, TypeError):
        who = ""
    return LockedError(
        f"another run writes to bundle {str(folder)!r}{who}",
        hint="wait until it is done (--wait 30m does), or stop it",
    )


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """What goes wrong while a bundle is written, as BundleError with the cure."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"bundle {str(folder)!r} cannot be written: {_reason(error)}", hint=ROOM_HINT) from error
    except BundleError:
        raise
    except CatvecError as error:  # of write_atomically
        raise BundleError(f"bundle {str(folder)!r} cannot be written: {error.message}", hint=ROOM_HINT) from error


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
