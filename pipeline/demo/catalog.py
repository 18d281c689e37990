"""Write the made-up shop as a catalog: one CSV file, a folder of images, and the faults of a real catalog.

Most images are JPEGs; some are PNGs without background or WebPs, one each is grey, CMYK and turned by EXIF.
One product shares the bytes of another's images. `held_out` says yes of combinations that the demo's model has not
learned from. `BROKEN` names the entries that cannot get a vector.
"""

from __future__ import annotations

import csv
import io
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.demo.drawing import COLOURS, draw_product
from pipeline.demo.patterns import PATTERNS
from pipeline.demo.shapes import KINDS
from pipeline.errors import CatalogError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

BROKEN: tuple[str, ...] = ("missing", "truncated", "html", "empty", "no-image", "outside")
"""every entry that fails, each in its own way; its product id is `broken-…`"""

SHOWCASE, SHOWCASE_TITLE = "demo-0013", "navy striped t-shirt"
"""a product of every catalog that is large enough, for examples to ask for"""

_COLUMNS = ("product_id", "title", "kind", "category", "brand", "price", "colour", "pattern", "held_out", "images")
_BRANDS = ("Kitewell", "Tallgrass", "Northpier", "Bluehour", "Pinegate", "Oddsock & Daughters")
SIZES = ((240, 320), (240, 320), (256, 256), (320, 240), (272, 304))
_HELD_OUT_EVERY = 10
_CMYK, _TURNED, _TWIN = 2, 3, 1
"""places in the catalog of the special JPEGs, and of a product with two images that the last one copies"""
_JPEG_QUALITY = 88
_EXIF_ORIENTATION, _EXIF_TURN_CLOCKWISE = 0x0112, 6
_HTML = b"<!doctype html>\n<title>404 Not Found</title>\n<h1>This picture has moved</h1>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """What a product is; `is_held_out` keeps it out of training, so that it can test composition."""

    kind: str
    colour: str
    pattern: str
    is_held_out: bool

    @property
    def title(self) -> str:
        return f"{self.colour} {self.pattern} {self.kind}"


def combinations() -> list[Combination]:
    """Return every kind in every colour and pattern, a tenth of them held out.

    The split is a diagonal through the grid: every kind, colour and pattern, and every two of them together,
    stay in training. Kinds, colours and patterns added at the end of their lists leave it as it is.
    """
    return [
        Combination(
            kind=kind,
            colour=colour,
            pattern=pattern,
            is_held_out=(kind_index + colour_index + 3 * pattern_index) % _HELD_OUT_EVERY == 0,
        )
        for kind_index, kind in enumerate(KINDS)
        for colour_index, colour in enumerate(COLOURS)
        for pattern_index, pattern in enumerate(PATTERNS)
    ]


def write_demo_catalog(folder: Path, *, products: int = 300, seed: int = 7) -> Path:
    """Write `catalog.csv` and `images/` into `folder`, and return the path of the CSV file.

    `products` counts the sound ones; the entries of `BROKEN` come on top, spread between them. The same
    arguments give the same bytes. Images already there under the same names are replaced.

    Raises:
        ConfigError: `products` is less than 1.
        CatalogError: the folder cannot be written.
    """
    if products < 1:
        raise ConfigError(f"products is {products!r}, expected at least 1")
    rng = random.Random(f"catalog {seed}")  # noqa: S311 - a drawing, not a secret
    images = folder / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
        rows = _write_sound(images, products=products, seed=seed, rng=rng)
        broken = [_write_broken(images, fault, seed=seed, rng=rng) for fault in BROKEN]
        for index, row in enumerate(broken, start=1):
            rows.insert(index * products // (len(broken) + 1) + index - 1, row)
        return _write_rows(folder / "catalog.csv", rows)
    except OSError as error:
        raise CatalogError(
            f"the demo catalog cannot be written to {str(folder)!r}: {error.strerror or error}",
            hint="choose another folder",
        ) from error


def _write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _write_sound(images: Path, *, products: int, seed: int, rng: random.Random) -> list[dict[str, str]]:
    chosen = _choose(products, rng)
    grey = next((index for index, one in enumerate(chosen[:-1]) if _suits_grey(index, one)), None)
    rows: list[dict[str, str]] = []
    for index, combination in enumerate(chosen):
        name = _product_id(index)
        if index > _TWIN and index == products - 1:
            rows.append(_write_twin(images, rows[_TWIN], name, chosen[_TWIN], rng))
            continue
        size = rng.choice(SIZES)
        files = _draw_images(images, name, combination, seed=seed + index, size=size, index=index)
        _make_special(images / files[0], index=index, is_grey=index == grey)
        rows.append(_row(name, combination, files, rng))
    return rows


def _write_twin(
    images: Path, row: dict[str, str], name: str, combination: Combination, rng: random.Random
) -> dict[str, str]:
    """Sell a product again under another id, brand and price, with copies of its images."""
    files = []
    for cell in row["images"].split("|"):
        source = images.parent / cell
        files.append(source.name.replace(row["product_id"], name))
        (images / files[-1]).write_bytes(source.read_bytes())
    return _row(name, combination, files, rng)


def _choose(products: int, rng: random.Random) -> list[Combination]:
    """Draw without repeating until every combination was there."""
    chosen: list[Combination] = []
    while len(chosen) < products:
        every = combinations()
        rng.shuffle(every)
        chosen.extend(every)
    _put_showcase(chosen, products)
    return chosen[:products]


def _put_showcase(chosen: list[Combination], products: int) -> None:
    place = next(index for index in range(len(chosen)) if _product_id(index) == SHOWCASE)
    if place < products:
        asked = next(index for index, one in enumerate(chosen) if one.title == SHOWCASE_TITLE)
        chosen[place], chosen[asked] = chosen[asked], chosen[place]


def _product_id(index: int) -> str:
    return f"demo-{index + 1:04}"


def _draw_images(
    images: Path, name: str, combination: Combination, *, seed: int, size: tuple[int, int], index: int
) -> list[str]:
    views = 3 if index % 20 == 9 else 2 if index % 4 == 1 else 1
    suffix = "png" if index % 12 == 5 else "webp" if index % 10 == 7 else "jpg"
    files = []
    for view in range(views):
        picture = draw_product(
            combination.kind,
            combination.colour,
            combination.pattern,
            seed=seed,
            size=size,
            view=view,
            is_cut_out=suffix == "png",
        )
        files.append(f"{name}.{suffix}" if view == 0 else f"{name}-view{view + 1}.{suffix}")
        save_picture(picture, images / files[-1])
    return files


def save_picture(picture: Image.Image, path: Path) -> None:
    if path.suffix == ".png":
        picture.save(path, compress_level=6)
    elif path.suffix == ".webp":
        picture.save(path, quality=_JPEG_QUALITY, method=2)  # 4, the default, takes twice the time
    else:
        picture.save(path, quality=_JPEG_QUALITY)


def _suits_grey(index: int, combination: Combination) -> bool:
    """A JPEG whose title stays true without colour, and no other special."""
    is_jpeg = index > _TURNED and index % 12 != 5 and index % 10 != 7
    return is_jpeg and combination.colour in ("black", "grey") and combination.pattern != "floral"


def _make_special(path: Path, *, index: int, is_grey: bool) -> None:
    """Save a product's first JPEG again in one of the forms that decoders trip over."""
    if index not in (_CMYK, _TURNED) and not is_grey:
        return
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if index == _CMYK:
        picture.convert("CMYK").save(path, quality=_JPEG_QUALITY)
    elif index == _TURNED:
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = _EXIF_TURN_CLOCKWISE
        picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=_JPEG_QUALITY, exif=exif)
    else:
        picture.convert("L").save(path, quality=_JPEG_QUALITY)


def _row(product_id: str, combination: Combination, files: list[str], rng: random.Random) -> dict[str, str]:
    kind = KINDS[combination.kind]
    price = Decimal(round(kind.price * rng.uniform(0.75, 1.35))) - Decimal("0.10")
    return {
        "product_id": product_id,
        "title": combination.title,
        "kind": combination.kind,
        "category": kind.category,
        "brand": rng.choice(_BRANDS),
        "price": str(price),
        "colour": combination.colour,
        "pattern": combination.pattern,
        "held_out": "yes" if combination.is_held_out else "no",
        "images": "|".join(f"images/{file}" for file in files),
    }


def _write_broken(images: Path, fault: str, *, seed: int, rng: random.Random) -> dict[str, str]:
    combination = rng.choice(combinations())
    row = _row(f"broken-{fault}", combination, [f"broken-{fault}.jpg"], rng)
    if fault == "no-image":
        return row | {"images": ""}
    if fault == "outside":
        return row | {"images": "../outside.jpg"}
    if fault == "html":
        (images / "broken-html.jpg").write_bytes(_HTML)
    elif fault == "empty":
        (images / "broken-empty.jpg").write_bytes(b"")
    elif fault == "truncated":
        memory = io.BytesIO()
        drawn = draw_product(combination.kind, combination.colour, combination.pattern, seed=seed)
        drawn.save(memory, "JPEG", quality=_JPEG_QUALITY)
        (images / "broken-truncated.jpg").write_bytes(memory.getvalue()[: memory.tell() // 2])
    return row
