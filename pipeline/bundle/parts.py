"""The parts of a bundle: what became of images, with the vectors; and what all parts together know.

A part is written whole or not at all: what was in the process that is killed is made again, never lost in between.
"""

from __future__ import annotations

import io
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.bundle.catalog import image_key
from pipeline.bundle.folder import damaged, written
from pipeline.bundle.format import (
    EMBEDDED,
    FAILED,
    PARTS,
    REUSED,
    digest_of,
    file_name,
    number_of,
    part_schema,
    pyarrow,
)
from pipeline.errors import BundleError
from pipeline.files import write_atomically
from pipeline.records import Embedding, Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.bundle.folder import Bundle
    from pipeline.bundle.format import Manifest
    from pipeline.records import Content, Outcomes

PART_ROWS = 4_096
"""rows of a part: 8 MB of vectors of 512 numbers, the work of 2 s at 2,000 images/s"""
PART_CHARACTERS = 16 * 1024 * 1024
"""of the URLs of a part: an image in a data URI may have 20 MB"""
PART_S = 1.0
"""a part is finished with the first outcomes that come later than this: at 100 images/s it holds two seconds' work,
which is what kill -9 can cost, and 100,000 images make 500 parts"""
OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    # vectors hardly shrink, and dictionaries of what never repeats take time and room
    "use_dictionary": ["outcome", "mime", "stage", "code", "kind"],
    "write_page_checksum": True,
}
FOREIGN_TEXTS = ("mime", "etag", "last_modified", "detail")
"""what servers and libraries say, which may hold what Postgres refuses: NUL, or half a surrogate pair"""


# ---- what all parts know


@dataclass(slots=True)
class Contents:
    """What the finished parts hold: `known` contents have a vector, `shown` images show one of them, `failed` ones
    could not be had when they were looked at last, and may show what they showed before; their failure's code. Some
    hundred bytes an image: nothing of it is a vector."""

    known: set[bytes] = field(default_factory=set)
    shown: dict[bytes, bytes] = field(default_factory=dict)
    failed: dict[bytes, str] = field(default_factory=dict)

    def note(self, key: bytes, *, outcome: str, sha256: bytes, code: str) -> None:
        """One row; later ones outweigh earlier ones, but a failure does not take away the picture before it."""
        if outcome == FAILED:
            self.failed[key] = code
            return
        if outcome == EMBEDDED:
            self.known.add(sha256)
        self.shown[key] = sha256
        self.failed.pop(key, None)

    def latest(self, images: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Those rows of a part, with the columns of IMAGE_COLUMNS, that no other row of the bundle outweighs."""
        code = IMAGE_COLUMNS.index("code")
        return [row for row in images if self._is_latest(image_key(row[0], row[1]), row[3], row[code])]

    def _is_latest(self, key: bytes, sha256: bytes | None, code: str) -> bool:
        return self.failed.get(key) == code if sha256 is None else self.shown.get(key, sha256) == sha256

    def failed_bare(self) -> int:
        """How many have failed and show nothing."""
        return sum(key not in self.shown for key in self.failed)

    def forget_bare(self) -> None:
        """Drop images whose vector was in a part that is gone: they are made again."""
        for key in [key for key, sha256 in self.shown.items() if sha256 not in self.known]:
            del self.shown[key]


def read_contents(bundle: Bundle) -> Contents:
    """What the finished parts hold; each is read whole, and checked. Raises BundleError, ModelError."""
    found = Contents()
    columns = ["product_id", "url", "outcome", "content_sha256", "code"]
    for path in bundle.parts():
        with closing(bundle.open(path)) as file:
            for product_id, url, outcome, sha256, code in _columns(file, columns, path):
                found.note(image_key(product_id, url), outcome=outcome, sha256=sha256, code=code)
    found.forget_bare()
    return found


def _columns(file: Any, columns: Sequence[str], path: Path) -> Iterator[tuple[Any, ...]]:
    pa = pyarrow()
    try:
        table = file.read(columns=list(columns))
        yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    except (pa.ArrowException, KeyError) as error:
        raise damaged(path) from error


# ---- reading


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A part in memory: `images` have the columns of IMAGE_COLUMNS; `hashes` [N] of 32 bytes belong to `vectors`,
    float32 [N, D] of unit length."""

    images: tuple[tuple[Any, ...], ...]
    hashes: tuple[bytes, ...]
    vectors: NDArray[np.float32] = field(repr=False)


IMAGE_COLUMNS = (
    *("product_id", "url", "at", "content_sha256", "width", "height", "size_bytes", "mime", "etag", "last_modified"),
    *("stage", "code", "detail", "is_retryable", "kind"),
)


def read_part(bundle: Bundle, path: Path) -> Part:
    """Raises BundleError for one that is damaged, whose vectors are not finite and of unit length (law 5), or that
    holds what no database takes."""
    pa = pyarrow()
    with closing(bundle.open(path)) as file:
        _check_columns(pa, file.schema_arrow, bundle.manifest, path)
        try:
            table = file.read()
        except pa.ArrowException as error:
            raise damaged(path) from error
    _check_values(pa, table, path)
    is_embedded = pa.compute.equal(table.column("outcome"), EMBEDDED)
    embedded = table.select(["content_sha256", "embedding"]).filter(is_embedded)
    hashes = tuple(embedded.column("content_sha256").to_pylist())
    images = zip(*(table.column(name).to_pylist() for name in IMAGE_COLUMNS), strict=True)
    return Part(images=tuple(images), hashes=hashes, vectors=_vectors(embedded, bundle.manifest.model.dims, path))


REMAKE = "remove the part and run the same catvec run … --to again, which makes anew only what it held"


def _check_columns(pa: Any, schema: Any, manifest: Manifest, path: Path) -> None:
    for entry in part_schema(pa, manifest):
        found = schema.field(entry.name).type if entry.name in schema.names else "none"
        # the name of a list's elements differs from writer to writer, and stands in its type
        if _kind(pa, found) != _kind(pa, entry.type):
            raise BundleError(
                f"part {str(path)!r} has column {entry.name!r} of type {found}, expected {entry.type}", hint=REMAKE
            )


def _kind(pa: Any, found: Any) -> str:
    is_list = isinstance(found, pa.DataType) and pa.types.is_list(found)
    return f"list of {found.value_type}" if is_list else str(found)


def _check_values(pa: Any, table: Any, path: Path) -> None:
    """Each with its own words: what the database would say of them names no file."""
    for name in ("product_id", "url", "outcome", "at"):
        if table.column(name).null_count:
            raise BundleError(f"part {str(path)!r} holds a row without {name}", hint=REMAKE)
    for entry in table.schema:
        if pa.types.is_string(entry.type):
            found = pa.compute.match_substring(table.column(entry.name), "\0")
            if pa.compute.any(found).as_py():
                raise BundleError(f"part {str(path)!r} holds a NUL character in {entry.name}", hint=REMAKE)
    lengths = pa.compute.binary_length(table.column("content_sha256"))
    is_failed = pa.compute.equal(table.column("outcome"), FAILED)
    is_right = pa.compute.if_else(is_failed, pa.compute.is_null(lengths), pa.compute.equal(lengths, 32))
    if not pa.compute.all(pa.compute.fill_null(is_right, False)).as_py():
        raise BundleError(f"part {str(path)!r} holds a content_sha256 that has not 32 bytes", hint=REMAKE)


def _vectors(embedded: Any, dims: int, path: Path) -> NDArray[np.float32]:
    column = embedded.column("embedding").combine_chunks()
    numbers = np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    if numbers.size != len(embedded) * dims or any(length != dims for length in set(_lengths(column))):
        raise BundleError(f"part {str(path)!r} holds a vector that has not {dims} numbers", hint=REMAKE)
    vectors = numbers.reshape(-1, dims)
    if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < 0.01):  # NaN compares as False
        raise BundleError(f"part {str(path)!r} holds a vector that is not finite and of unit length", hint=REMAKE)
    return vectors


def _lengths(column: Any) -> list[int | None]:
    lengths: list[int | None] = pyarrow().compute.list_value_length(column).unique().to_pylist()
    return lengths


# ---- writing


class PartWriter:
    """Gathers outcomes and finishes parts of them; `write` and `find_known` are those of the engine's stages.

    What is not finished yet is on no disk: `close` finishes it.
    """

    def __init__(self, bundle: Bundle, contents: Contents) -> None:
        self._bundle = bundle
        self._contents = contents
        self._rows: list[dict[str, Any]] = []
        self._characters = 0
        self._began = 0.0
        self._is_broken = False
        # a second Ctrl-C closes while the engine's thread may yet be writing
        self._lock = threading.RLock()
        self.written = 0
        """rows taken in so far"""
        parts = bundle.parts()
        self._number = number_of(parts[-1]) if parts else 0

    def find_known(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the SHA-256 sums that have a vector in this bundle."""
        return self._contents.known.intersection(hashes)

    def write(self, outcomes: Outcomes) -> Outcomes:
        """Take them in; on the disk they are with the next part. Raises BundleError."""
        at = datetime.now(UTC)
        items: tuple[Embedding | Content | Failure, ...] = (*outcomes.embedded, *outcomes.reused, *outcomes.failed)
        with self._lock:
            for item in items:
                self.add(item, at)
            if time.monotonic() - self._began >= PART_S:
                self.finish()
        return outcomes

    def add(self, item: Embedding | Content | Failure, at: datetime) -> None:
        """One image that came to an outcome at this time; it adds nothing when the bundle knows just that of it."""
        key = image_key(item.image.product_id, item.image.url)
        if isinstance(item, Failure):
            if self._contents.failed.get(key) != item.code:
                self._add(_of_failure(item), FAILED, at)
            return
        content = item.content if isinstance(item, Embedding) else item
        if self._contents.shown.get(key) == content.sha256 and key not in self._contents.failed:
            return
        self._add_picture(item, content, at)

    def add_failing(self, item: Embedding, at: datetime, failure: Failure, failed_at: datetime) -> None:
        """An image that has a vector, and could not be had when it was looked at again."""
        key, before = image_key(item.image.product_id, item.image.url), self.written
        if self._contents.shown.get(key) != item.content.sha256:
            self._add_picture(item, item.content, at)
        if self.written > before or self._contents.failed.get(key) != failure.code:
            self._add(_of_failure(failure), FAILED, failed_at)

    def _add_picture(self, item: Embedding | Content, content: Content, at: datetime) -> None:
        if content.sha256 in self._contents.known or not isinstance(item, Embedding):
            self._add(_of_content(content), REUSED, at)
            return
        self._contents.known.add(content.sha256)
        sizes = {"width": item.width, "height": item.height}
        self._add(_of_content(content) | sizes | {"embedding": item.vector}, EMBEDDED, at)

    def _add(self, row: dict[str, Any], outcome: str, at: datetime) -> None:
        if not self._rows:
            self._began = time.monotonic()
        texts = {name: _storable(row[name]) for name in FOREIGN_TEXTS if row.get(name)}
        self.written += 1
        self._rows.append(row | texts | {"outcome": outcome, "at": at})
        self._characters += len(row["url"])
        if len(self._rows) >= PART_ROWS or self._characters >= PART_CHARACTERS:
            self.finish()

    def close(self) -> None:
        """Finish the last part. Does nothing after a part that could not be written."""
        with self._lock:
            if not self._is_broken:
                self.finish()

    def finish(self) -> None:
        """Put what was gathered on the disk. Raises BundleError; then nothing of it is there."""
        if not self._rows:
            return
        data = _as_parquet(self._bundle, self._rows)
        name = file_name("part", self._number + 1, digest_of(data))
        self._is_broken = True
        with written(self._bundle.folder):
            write_atomically(self._bundle.folder / PARTS / name, data)
        self._is_broken = False
        self._number += 1
        self._rows, self._characters = [], 0


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _of_content(content: Content) -> dict[str, Any]:
    return {
        "product_id": content.image.product_id,
        "url": content.image.url,
        "content_sha256": content.sha256,
        "size_bytes": content.size_bytes,
        "mime": content.mime,
        "etag": content.etag,
        "last_modified": content.last_modified,
    }


def _of_failure(failure: Failure) -> dict[str, Any]:
    names = ("stage", "code", "detail", "is_retryable", "kind", "etag", "last_modified")
    image = {"product_id": failure.image.product_id, "url": failure.image.url}
    return image | {name: getattr(failure, name) for name in names}


def _as_parquet(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> bytes:
    pa = pyarrow()
    schema = part_schema(pa, bundle.manifest)
    columns = [
        _embeddings(pa, rows)
        if entry.name == "embedding"
        else pa.array([row.get(entry.name) for row in rows], type=entry.type)
        for entry in schema
    ]
    stream = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_arrays(columns, schema=schema), stream, **OPTIONS)
    return stream.getvalue()


def _embeddings(pa: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """A list column out of whole vectors, without making an object of each number."""
    vectors = [row.get("embedding") for row in rows]
    there = [vector for vector in vectors if vector is not None]
    numbers = np.concatenate(there) if there else np.empty(0, np.float32)
    ends = np.cumsum([0 if vector is None else len(vector) for vector in vectors], dtype=np.int32)
    is_missing = [vector is None for vector in vectors]
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32), mask=np.array([*is_missing, False]))
    return pa.ListArray.from_arrays(offsets, pa.array(numbers.astype(np.float32, copy=False)))
