"""A shop that changes from night to night: a catalog of real photos, copied so that they can change, and their host.

What it does to itself it counts, so that what catvec should find is known without asking catvec.
"""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from PIL import Image, ImageDraw

from benchmarks.nginx import free_port
from benchmarks.photo_server import read_log, serve

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.photo_server import Answer

COLUMNS = ("product_id", "title", "category", "price", "image")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A product; `photo` is relative to the shop's folder."""

    product_id: str
    title: str
    category: str
    price: str
    photo: str


@dataclass(slots=True, kw_only=True)
class Shop:
    """`entries` are in the catalog, `coming` not yet; `gone` were."""

    folder: Path
    entries: list[Entry]
    coming: list[Entry]
    gone: list[Entry] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, products: int) -> list[Entry]:
        new, self.coming = self.coming[:products], self.coming[products:]
        if len(new) < products:
            raise SystemExit("the catalog has too few products for seven nights")
        self.entries += new
        return new

    def drop(self, products: int) -> list[Entry]:
        """Some but never the first, who is asked for neighbours every night."""
        leaving = self.chance.sample(self.entries[1:], products)
        self.entries = [entry for entry in self.entries if entry not in leaving]
        self.gone += leaving
        return leaving

    def reword(self, products: int) -> None:
        """Other titles and prices."""
        for place in self.chance.sample(range(len(self.entries)), products):
            entry = self.entries[place]
            price = f"{float(entry.price) * 0.9:.2f}"
            self.entries[place] = replace(entry, title=f"{entry.title} – now cheaper", price=price)

    def retouch(self, photos: int) -> None:
        """Other pictures behind the same paths."""
        for number, entry in enumerate(self.chance.sample(self.entries, photos)):
            path = self.folder / entry.photo
            with Image.open(path) as image:
                changed = image.convert("RGB")
            ImageDraw.Draw(changed).ellipse((20, 20, 150, 150), fill=(number * 5 % 256, 40, 200))
            changed.save(path, "JPEG", quality=88)

    def move(self, photos: int) -> None:
        """The same bytes at other paths, and nothing at the old ones."""
        for place in self.chance.sample(range(len(self.entries)), photos):
            entry = self.entries[place]
            moved = f"moved/{entry.photo}"
            (self.folder / moved).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / entry.photo).rename(self.folder / moved)
            self.entries[place] = replace(entry, photo=moved)

    def contents(self, entries: Iterable[Entry] | None = None) -> set[bytes]:
        """SHA-256 of the pictures that the catalog shows, or that some entries do."""
        shown = self.entries if entries is None else entries
        return {hashlib.sha256((self.folder / entry.photo).read_bytes()).digest() for entry in shown}

    def write(self, target: Path, base_url: str, *, share: float = 1.0) -> None:
        """The catalog as CSV, or its first part."""
        with target.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for entry in self.entries[: round(share * len(self.entries))]:
                url = f"{base_url}/{quote(entry.photo)}"
                writer.writerow((entry.product_id, entry.title, entry.category, entry.price, url))


def open_shop(catalog: Path, folder: Path, *, products: int | None, first: float) -> Shop:
    """Copy photos into `folder`; `first` is the share of the products that are in the catalog from the beginning."""
    with catalog.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if products is not None and len(rows) < products:
        raise SystemExit(f"{catalog.name} has {len(rows)} rows, expected at least {products}")
    rows = random.Random(0).sample(rows, len(rows) if products is None else products)
    entries = []
    for number, row in enumerate(rows):
        (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(catalog.parent / row["image"], folder / row["image"])
        entries.append(
            Entry(
                product_id=row["product_id"],
                title=row["title"],
                category=row["category"],
                price=f"{10 + number % 90}.90",
                photo=row["image"],
            )
        )
    start = round(first * len(entries))
    return Shop(folder=folder, entries=entries[:start], coming=entries[start:])


@dataclass(slots=True, kw_only=True)
class PhotoHost:
    """The shop's image server on one port: it can be down, or slow, and says what it answered."""

    folder: Path
    log: Path
    port: int = field(default_factory=free_port)
    _running: ExitStack = field(default_factory=ExitStack)
    _read: int = 0
    _last: list[Answer] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, delay_s: float = 0.0) -> None:
        self.stop()
        self._running.enter_context(serve(self.folder, port=self.port, log=self.log, delay_s=delay_s))

    def stop(self) -> None:
        """From now on connections are refused."""
        self._running.close()

    def take_answers(self) -> list[Answer]:
        """Those since it was asked last."""
        answers = read_log(self.log)
        self._last, self._read = answers[self._read :], len(answers)
        return self._last

    def answered(self) -> set[str]:
        """The paths whose bytes were among the answers taken last."""
        return {answer.path for answer in self._last if answer.status == 200}
