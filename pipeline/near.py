"""What somebody may have meant: paths that are spelled nearly like one that is not there."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LIKENESS = 0.5
"""of difflib, 0 to 1: shop.csv is 0.75 like shop.tsv; at 0.6, its default, short names find nothing"""


def near_paths(path: Path) -> list[Path]:
    """What stands where `path` does not, nearest first; folders on the way to it may be misspelled, too.

    Raises OSError for a folder that cannot be read.
    """
    folders = [path.parent] if path.parent.is_dir() or path.parent == path else near_paths(path.parent)
    found = []
    for folder in folders:
        if folder.is_dir():
            names = [entry.name for entry in folder.iterdir()]
            exact = [path.name] if path.name in names else []
            found += [folder / name for name in exact or difflib.get_close_matches(path.name, names, 3, LIKENESS)]
    return found
