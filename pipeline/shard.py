"""A share of a catalog: `--shard 2/4` is the second of four runs, side by side, that together do all of it.

Which share a product is in follows from its id alone: the first four bytes of the SHA-256 of the id in UTF-8, as a
number, modulo the number of shares. SHA-256 and not PostgreSQL's `hashtextextended`, which nobody promises to stay
the same between releases and platforms, and which Python does not have: there the catalog's rows are parted, before
they travel to the database. `store/share.py` has the same in SQL.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pipeline.errors import ConfigError

_SPELLING = re.compile(r"(\d{1,18})/(\d{1,18})", re.ASCII)
MOST = 9_999
"""shards: the key of a shard's lock has room for so many (`store/runs.py`)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The `number`th, from 1, of `count` shares. Raises ConfigError."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count > MOST:
            raise ConfigError(f"--shard is '{self}', expected at most {MOST:,} shards")
        if not 1 <= self.number <= self.count:
            raise ConfigError(
                f"--shard is '{self}', expected a number from 1 to the number of shards, such as 1/4",
                hint=f"the shards of {self.count} are {_all(self.count)}" if self.count else None,
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, product_id: str | None) -> bool:
        """Whether a catalog row is of this share; a row without an id is of the first."""
        return self.number == 1 + (0 if product_id is None else share_of(product_id, self.count))


def share_of(product_id: str, count: int) -> int:
    """The share that a product is in, from 0 to count - 1."""
    return int.from_bytes(hashlib.sha256(product_id.encode()).digest()[:4], "big") % count


def parse_shard(text: str) -> Shard:
    """`2/4`. Raises ConfigError."""
    found = _SPELLING.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"--shard is {text!r}, expected the number of this shard and of all, such as 1/4")
    return Shard(number=int(found[1]), count=int(found[2]))


def _all(count: int) -> str:
    if count > 4:
        return f"1/{count} to {count}/{count}"
    return ", ".join(f"{number}/{count}" for number in range(1, count + 1))
