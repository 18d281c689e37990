"""What a shop did to itself since the last run, and what a night should do about it, by every witness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.night_table import Between, Should

if TYPE_CHECKING:
    from benchmarks.night_stand import Stand

WEEK_NIGHTS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the shop did to itself since the last run, in numbers.

    `fresh` contents have no vector yet, and `due` images are asked for again.
    """

    new: int = 0
    moved: int = 0
    retouched: int = 0
    reworded: int = 0
    fresh: int = 0
    due: int = 0

    @property
    def reused(self) -> int:
        return self.new + self.moved + self.retouched - self.fresh

    def planned(self, due: Between | int) -> Should:
        low, high = (due.low, due.high) if isinstance(due, Between) else (due, due)
        known = self.new + self.moved
        return {
            "products new": self.new,
            "products changed": self.reworded,
            "products removed": 0,
            "images new": self.new,
            "images moved": self.moved,
            "images removed": 0,
            "images recheck": due,
            "to fetch": Between(low=known + low, high=known + high),
            "refused": "no",
        }

    def expected(self, stand: Stand) -> dict[str, Should]:
        entries, written = len(stand.shop.entries), self.new + self.moved
        # a look whatever the server says: one in ninety of those that are due one day after they were read
        read_in_full = 3 + self.due // 20
        kept = self.due - self.retouched
        return {
            "run": {
                "exit code": 0,
                "seen": entries,
                "unchanged": entries - self.new - self.moved - self.retouched,
                "reused": self.reused,
                "embedded": self.fresh,
                "failed": 0,
                "checked": self.due,
                "changed": self.retouched,
                "removed": 0,
                "products new": self.new,
                "products changed": self.reworded,
                "products removed": 0,
                "adds up": "yes",
            },
            "vector rows": {"inserted": self.fresh, "updated": 0, "deleted": 0},
            # one update for what was fetched or asked, one more where known bytes lend their size; an image at an old
            # URL is marked and then leaves
            "image rows": {
                "inserted": written,
                "updated": written + self.due + self.reused + 2 * self.moved,
                "deleted": 0,
            },
            "product rows": {"inserted": self.new, "updated": self.reworded, "deleted": 0},
            "image server": {
                "requests": written + self.due,
                "200": Between(low=written + self.retouched, high=written + self.retouched + read_in_full),
                "304": Between(low=max(0, kept - read_in_full), high=kept),
                "other": 0,
            },
            "tables": {
                "active products": entries,
                "active images": entries,
                "vectors": len(stand.known),
                "orphans": 0,
                "failures": 0,
            },
            "search": {"hits": 10, "of products that left": 0},
        }


def share_of(images: int, shares: int = 1) -> Between:
    """A week's shares of so many images, spread by chance: four standard deviations to both sides."""
    part = shares / WEEK_NIGHTS
    spread = 4 * math.sqrt(images * part * (1 - part))
    return Between(low=max(0, math.floor(images * part - spread)), high=math.ceil(images * part + spread))
