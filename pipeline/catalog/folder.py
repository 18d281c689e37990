"""A folder of images: each file is a product, and the folders in it are the categories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.catalog.references import IMAGE_ENDINGS
from pipeline.catalog.rows import bad_row
from pipeline.catalog.values import BAD_TEXT
from pipeline.errors import CatalogError, ConfigError
from pipeline.records import BadRow, Product

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path, PurePath


def read_folder(folder: Path, root: Path) -> Iterator[Product | BadRow]:
    """The images below `folder` in the order of their paths, which start at `root`.

    Hidden files and folders are left out. A link to a folder is not followed: what is below it has another
    name already, or lies outside, where images are not read from. Raises CatalogError for a folder that
    cannot be listed, and ConfigError when it is not below `root`.
    """
    if not folder.is_relative_to(root):
        raise ConfigError(
            f"--image-root {str(root)!r} does not contain the catalog {str(folder)!r}",
            hint="leave --image-root out: a folder of images is its own root",
        )
    for row, path in enumerate(_images(folder), start=1):
        relative = path.relative_to(folder)
        location = path.relative_to(root).as_posix()
        if BAD_TEXT.search(location):
            # os.fsdecode makes half surrogate pairs of bytes that are no UTF-8
            yield bad_row(row, "bad_text", "the file's name is not UTF-8", url=location)
            continue
        yield Product(
            row=row,
            product_id=relative.as_posix(),
            images=(location,),
            title=_words(relative),
            category=relative.parent.name or None,
        )


def _images(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries)
    except OSError as error:
        raise CatalogError(f"cannot list {str(folder)!r}: {error.strerror}") from error
    for name, is_folder, is_file in found:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _images(folder / name)
        elif is_file and name.lower().endswith(IMAGE_ENDINGS):
            yield folder / name


def _words(path: PurePath) -> str | None:
    """The words of a file name: navy_striped_t-shirt.jpg is "navy striped t-shirt"."""
    stem = path.stem
    # hyphens part words only where nothing else does
    parted = stem.replace("_", " ") if "_" in stem or " " in stem else stem.replace("-", " ")
    return " ".join(parted.split()) or None
