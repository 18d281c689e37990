"""Parquet, a batch of rows at a time."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.catalog.rows import Row, Table
from pipeline.catalog.source import CUT_OFF_HINT, SourceError, open_bytes
from pipeline.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BATCH_ROWS = 1024
"""rows made into Python objects at once"""


@contextmanager
def open_parquet(path: Path | None, stdin: BinaryIO | None, name: str) -> Iterator[Table]:
    """The table in a file, or on standard input, which is spooled to disk first: its index is at its end.

    Raises ConfigError without pyarrow, CatalogError for what is no Parquet, and SourceError from the rows.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            "Parquet catalogs need the package pyarrow", hint="pip install 'catvec[parquet]'"
        ) from error
    with open_bytes(path, stdin) as stream, tempfile.TemporaryFile() as spool:
        if path is None:
            shutil.copyfileobj(stream, spool)
            spool.seek(0)
        try:
            file = pq.ParquetFile(spool if path is None else stream)
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(f"{name} is no whole Parquet file: {_first_line(error)}", hint=CUT_OFF_HINT) from error
        with file:
            yield Table(names=tuple(file.schema_arrow.names), rows=_rows(file, pa))


def _rows(file: Any, pa: Any) -> Iterator[Row]:
    row = 0
    try:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            for values in _in_microseconds(batch, pa).to_pylist():
                row += 1
                yield Row(row=row, values=values)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"cannot be read further ({_first_line(error)})") from error


def _in_microseconds(batch: Any, pa: Any) -> Any:
    """Python's datetime has no nanoseconds; pyarrow refuses rather than to round them."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            rounded = batch.column(place).cast(pa.timestamp("us", tz=field.type.tz), safe=False)
            batch = batch.set_column(place, field.name, rounded)
    return batch


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
