"""Which kind a catalog is, and its records: the one door to this room."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.catalog.columns import find_columns
from pipeline.catalog.rows import Row, RowMapper
from pipeline.catalog.source import check_exists, located, open_text
from pipeline.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.catalog.rows import Table
    from pipeline.records import BadRow, Deletion, Product
    from pipeline.settings import CatalogSettings

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
KINDS = ("csv", "tsv", "json", "jsonl", "parquet", "folder", "sql")
_STANDARD_INPUT = "-"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(\+[A-Za-z0-9_]+)?://")
_REMOTE = ("http", "https", "ftp", "s3", "gs", "az", "file")


def read_catalog(
    settings: CatalogSettings, *, stdin: BinaryIO | None = None, may_be_empty: bool = False
) -> Iterator[Product | BadRow | Deletion]:
    """The catalog's products in its order, each followed by what is wrong with its images; in constant memory.

    A Deletion stands in the place of a product that is no longer there (`settings.deleted_column`).

    The first row is read at once, so most errors come from the call. Raises ConfigError for settings that do
    not fit the catalog, and CatalogError for one that is missing, empty, damaged or cut off (this last one
    from the iterator, after the rows before the damage).
    """
    kind = _kind_of(settings)
    records = located(_records(kind, settings, stdin), _name_of(kind, settings))
    first = next(records, None)
    if first is None and not may_be_empty:
        raise _holds_nothing(kind, settings)
    return records if first is None else chain([first], records)


def image_root(settings: CatalogSettings) -> Path | None:
    """The folder where relative image paths start: --image-root, or where the catalog is.

    None when nothing says it: standard input or a database, without --image-root. Raises ConfigError when the
    option is no folder.
    """
    if settings.image_root is not None:
        if not settings.image_root.is_dir():
            raise ConfigError(f"--image-root {str(settings.image_root)!r} is no folder")
        return settings.image_root.absolute()
    kind = _kind_of(settings)
    if kind == "sql" or settings.uri == _STANDARD_INPUT:
        return None
    path = Path(settings.uri).absolute()
    return path if kind == "folder" else path.parent


def _records(kind: str, settings: CatalogSettings, stdin: BinaryIO | None) -> Iterator[Product | BadRow | Deletion]:
    root = image_root(settings)
    if kind == "folder":
        from pipeline.catalog.folder import read_folder

        folder = Path(settings.uri).absolute()
        yield from read_folder(folder, root or folder)
        return
    with _open_table(kind, settings, stdin) as table:
        _refuse_twins(table.names, _name_of(kind, settings))
        first = next(table.rows, None)
        if first is None:
            return
        if settings.image_separator == "":
            raise ConfigError("--image-separator is empty, expected a text such as '|'")
        mapper = RowMapper(columns=find_columns(table.names, settings), separator=settings.image_separator, root=root)
        for row in chain([first], table.rows):
            if isinstance(row, Row):
                yield from mapper.map(row)
            else:
                yield row


def _refuse_twins(names: tuple[str, ...], name: str) -> None:
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise CatalogError(
            f"{name} has more than one column named {', '.join(map(repr, twice))}",
            hint="rename them, for example to image_1 and image_2",
        )


@contextmanager
def _open_table(kind: str, settings: CatalogSettings, stdin: BinaryIO | None) -> Iterator[Table]:
    name = _name_of(kind, settings)
    path = None if settings.uri == _STANDARD_INPUT else Path(settings.uri)
    if kind == "sql":
        from pipeline.catalog.sql import open_sql

        with open_sql(settings.uri, settings.query) as table:
            yield table
    elif kind == "parquet":
        from pipeline.catalog.parquet import open_parquet

        with open_parquet(path, stdin, name) as table:
            yield table
    else:
        with open_text(path, stdin, encoding=settings.encoding, name=name) as text:
            yield _read_text(kind, settings, text, name)


def _read_text(kind: str, settings: CatalogSettings, text: Iterator[str], name: str) -> Table:
    if kind in ("csv", "tsv"):
        from pipeline.catalog.csv import check_delimiter, read_csv

        delimiter = check_delimiter(settings.delimiter) or ("\t" if kind == "tsv" else None)
        return read_csv(text, delimiter=delimiter, name=name)
    from pipeline.catalog.json import read_json, read_json_lines

    return read_json(text, name) if kind == "json" else read_json_lines(text, name)


def _kind_of(settings: CatalogSettings) -> str:
    """The kind by --format, else by the look of the URI. Raises ConfigError, or CatalogError without a file."""
    uri, wanted = settings.uri, settings.format
    if wanted is not None and wanted not in KINDS:
        raise ConfigError(f"--format is {wanted!r}, expected one of {', '.join(KINDS)}")
    if uri == _STANDARD_INPUT:
        if wanted in ("folder", "sql"):
            raise ConfigError(f"--format {wanted} cannot be read from standard input")
        return wanted or "csv"  # documented: what most exports write
    scheme = _SCHEME.match(uri)
    if scheme:
        return _kind_of_url(scheme[1].lower(), wanted)
    if not uri:
        raise ConfigError("the catalog is named by an empty text", hint="give a file, a folder, a database URL or -")
    path = Path(uri)
    check_exists(path)
    if path.is_dir() != (wanted == "folder") and wanted is not None:
        found = "a folder" if path.is_dir() else "a file"
        raise ConfigError(f"{uri!r} is {found}, which --format {wanted} cannot be")
    return wanted or ("folder" if path.is_dir() else _kind_by_ending(path))


def _kind_of_url(scheme: str, wanted: str | None) -> str:
    if scheme in _REMOTE:
        raise ConfigError(
            f"a catalog at {scheme}:// cannot be read from here",
            hint="pipe it in: curl -fsS URL | catvec run - --format csv",
        )
    if wanted not in (None, "sql"):
        raise ConfigError(f"the catalog is a database URL ({scheme}://), which --format {wanted} cannot be")
    return "sql"


def _kind_by_ending(path: Path) -> str:
    endings = [suffix.lower() for suffix in path.suffixes]
    if endings[-1:] == [".gz"]:
        endings.pop()
    kind = _ENDINGS.get(endings[-1]) if endings else None
    if kind is None:
        found = f"unknown ending {endings[-1]!r} of" if endings else "no ending in"
        raise ConfigError(
            f"{found} {str(path)!r}, expected {', '.join(_ENDINGS)} (.gz may follow), a folder or a database URL",
            hint=f"name the kind with --format {'|'.join(KINDS)}; save a spreadsheet as CSV",
        )
    return kind


def _name_of(kind: str, settings: CatalogSettings) -> str:
    if settings.uri == _STANDARD_INPUT:
        return "standard input"
    return "the result of --query" if kind == "sql" else repr(settings.uri)


def _holds_nothing(kind: str, settings: CatalogSettings) -> CatalogError:
    hint = None
    if kind == "folder":
        inside = sorted(path for path in Path(settings.uri).iterdir() if path.suffix.lower() in _ENDINGS)
        hint = f"did you mean {str(inside[0])!r}?" if inside else "images are .jpg, .png, .webp, .avif and the like"
    return CatalogError(f"{_name_of(kind, settings)} holds no products", hint=hint)
