"""Products that are no longer there: by a word in their row, or by a file of their ids.

Nothing is deleted by a misunderstanding: a word that is neither yes nor no makes a bad row, and a file that is no
list of ids is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.catalog.source import check_exists, lines, located, open_text
from pipeline.catalog.values import MAX_INDEXED_CHARACTERS, as_text
from pipeline.errors import CatalogError, RowError
from pipeline.records import Deletion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# t and f are what Postgres' own COPY writes for a boolean
YES = ("true", "t", "yes", "y", "1", "deleted", "removed", "x")
NO = ("false", "f", "no", "n", "0", "active", "null")

_HINT = "save it as UTF-8 text with one product id on each line"


def says_deleted(value: object, column: str) -> bool:
    """Whether a cell says that the product of its row is no longer there; one without a word does not.

    Raises RowError, bad_deleted, for any other word and for a list or object.
    """
    word = (as_text(value) or NO[0]).casefold()
    if word in (*YES, *NO) and not isinstance(value, (list, dict)):
        return word in YES
    raise RowError(
        "bad_deleted",
        f"column {column!r} is {value!r}, expected {', '.join(YES)} for a product that is gone, "
        f"{', '.join(NO)} or nothing for one that is not",
    )


def read_deleted_ids(path: Path) -> Iterator[Deletion]:
    """The ids in a UTF-8 text file, one on each line; `row` counts the lines, and blank ones are left out.

    Raises CatalogError: at once for a file that is not there, and from the iterator for one that is no such list.
    """
    check_exists(path)
    return _deletions(path)


def _deletions(path: Path) -> Iterator[Deletion]:
    name = repr(str(path))
    try:
        with open_text(path, None, encoding="utf-8-sig", name=name) as text:
            yield from located(_ids(lines(text), name), name, unit="line")
    except CatalogError as error:
        # the hints for catalogs name options that this file does not have
        raise CatalogError(error.message, hint=_HINT if error.hint else None) from error


def _ids(text: Iterable[str], name: str) -> Iterator[Deletion]:
    for row, line in enumerate(text, start=1):
        product_id = line.strip()
        if "\0" in product_id or len(product_id) > MAX_INDEXED_CHARACTERS:
            found = "a NUL character" if "\0" in product_id else f"{len(product_id):,} characters"
            expected = f"a product id of at most {MAX_INDEXED_CHARACTERS} characters"
            raise CatalogError(f"line {row:,} of {name} has {found}, expected {expected}", hint=_HINT)
        if product_id:
            yield Deletion(row=row, product_id=product_id)
