"""Many vectors at once, as they travel in binary: put together and taken apart by NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.string import ByteaBinaryLoader

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from psycopg import Cursor
    from psycopg.abc import Buffer, DumperKey, PyFormat

    from pipeline.store.connect import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorArray:
    """An array of halfvec or vector as it travels; `oid` is that of the array's type in this database."""

    oid: int
    data: bytes = field(repr=False)


class VectorArrayDumper(Dumper):
    """Tells psycopg the type, which is another number in each database, and hands on the bytes as they are."""

    format = Format.BINARY

    def get_key(self, obj: VectorArray, format: PyFormat) -> DumperKey:  # noqa: A002, ARG002 - psycopg's words
        return (self.cls, obj.oid)  # type: ignore[return-value]  # any hashable does

    def upgrade(self, obj: VectorArray, format: PyFormat) -> VectorArrayDumper:  # noqa: A002, ARG002
        dumper = type(self)(self.cls)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: VectorArray) -> Buffer:
        return obj.data


def vector_array(connection: Connection, storage: str, vectors: Sequence[NDArray[np.float32]]) -> VectorArray:
    """Vectors of D dimensions each as halfvec[] or vector[], whichever `storage` names; for a Session's connection.

    Each is sent as the number of its dimensions, 16 zero bits, and its numbers, the most significant byte first. One
    by one in Python that takes 5 µs a vector, of the 50 that 20,000 a second leave for everything.
    """
    import numpy as np

    info = connection.adapters.types[storage]
    numbers = np.stack(vectors)
    count, dims = numbers.shape
    number = ">f4" if storage == "vector" else ">f2"
    rows = np.zeros(count, [("bytes", ">i4"), ("dims", ">u2"), ("unused", ">u2"), ("numbers", number, (dims,))])
    rows["bytes"] = rows.dtype.itemsize - 4
    rows["dims"] = dims
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and the table refuses it
        rows["numbers"] = numbers
    # one dimension, no nulls, type of the elements, how many, where they start to be counted
    head = np.array([1, 0, info.oid, count, 1], dtype=">i4")
    return VectorArray(oid=info.array_oid, data=head.tobytes() + rows.tobytes())


def raw_cursor(connection: Connection) -> Cursor[tuple[Any, ...]]:
    """A cursor that reads halfvec, which is what views give whatever is stored, as the bytes in which it came.

    With `binary=True`; see `numbers_of`.
    """
    cursor = connection.cursor()
    cursor.adapters.register_loader(connection.adapters.types["halfvec"].oid, ByteaBinaryLoader)
    return cursor


def numbers_of(vectors: Sequence[bytes], dims: int) -> NDArray[np.float32]:
    """float32 [N, D] of what a `raw_cursor` read; all at once, as in `vector_array`."""
    import numpy as np

    rows = np.frombuffer(b"".join(vectors), [("dims", ">u2"), ("unused", ">u2"), ("numbers", ">f2", (dims,))])
    return rows["numbers"].astype(np.float32)
