"""Shares of a catalog: the same everywhere and for ever, every product in exactly one."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import ConfigError
from pipeline.inputs import read_rows
from pipeline.settings import CatalogSettings, RunSettings
from pipeline.shard import Shard, parse_shard, share_of

if TYPE_CHECKING:
    from pathlib import Path

GOLDEN = {
    # first four bytes of sha256sum of the id, modulo 2, 3, 4 and 1000
    "SKU-1": (0x75BBB0F6, (0, 0, 2, 806)),
    "P0000": (0x0EAE901F, (1, 0, 3, 183)),
    "": (0xE3B0C442, (0, 2, 2, 610)),
    "Größe 7/½": (0xA0B6B9C8, (0, 1, 0, 672)),
    " spaced ": (0x101876D4, (0, 1, 0, 740)),
}


@pytest.mark.parametrize("product_id", GOLDEN)
def test_a_product_is_in_the_same_share_for_ever(product_id: str) -> None:
    number, shares = GOLDEN[product_id]

    assert tuple(share_of(product_id, count) for count in (2, 3, 4, 1000)) == shares
    assert share_of(product_id, 2**32) == number


def test_every_product_is_in_exactly_one_share_and_the_shares_are_alike() -> None:
    products = [f"SKU-{number:06}" for number in range(20_000)]
    for count in (1, 2, 3, 7, 16):
        shards = [Shard(number=number, count=count) for number in range(1, count + 1)]
        holders = Counter(sum(shard.holds(product_id) for shard in shards) for product_id in products)
        sizes = [sum(shard.holds(product_id) for product_id in products) for shard in shards]

        assert holders == {1: len(products)}
        assert max(sizes) - min(sizes) < 0.1 * len(products) / count + 200


def test_a_row_without_an_id_is_of_the_first_share() -> None:
    assert [Shard(number=number, count=3).holds(None) for number in (1, 2, 3)] == [True, False, False]


def test_a_shard_is_written_as_it_is_read() -> None:
    assert str(parse_shard(" 2/16 ")) == "2/16"
    assert parse_shard("1/1") == Shard(number=1, count=1)


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "0/0", "x", "", "1", "1/", "-1/4", "1/4/4", "1.0/4", "١/٤", "1/99999"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_shard(text)

    assert caught.value.message.startswith(f"--shard is {text!r}, expected ")


def test_the_most_shards_are_named() -> None:
    assert parse_shard("9999/9999").count == 9999
    for text in ("1/10000", "1/1000000"):
        with pytest.raises(ConfigError) as caught:
            parse_shard(text)
        assert caught.value.message == f"--shard is {text!r}, expected at most 9,999 shards"


def test_the_hint_says_which_shards_there_are() -> None:
    assert [_hint("0/4"), _hint("9/8"), _hint("0/0")] == [
        "the shards of 4 are 1/4, 2/4, 3/4, 4/4",
        "the shards of 8 are 1/8 to 8/8",
        None,
    ]


def _hint(text: str) -> str | None:
    with pytest.raises(ConfigError) as caught:
        parse_shard(text)
    return caught.value.hint


def test_the_shards_part_the_rows_of_a_catalog_and_of_the_deleted_ids(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.csv"
    catalog.write_text(
        "id,image\n" + "".join(f"P{number},{number}.jpg\n" for number in range(50)) + ",lost.jpg\nB,\n"
    )
    deleted = tmp_path / "deleted.txt"
    deleted.write_text("".join(f"D{number}\n" for number in range(20)))

    def read(shard: Shard | None, **more: Any) -> list[tuple[str, str | None]]:
        settings = RunSettings(
            catalog=CatalogSettings(uri=str(catalog)), deleted_ids=deleted, recheck=timedelta(0), shard=shard, **more
        )
        return [(type(row).__name__, row.product_id) for row in read_rows(settings, None)]

    parts = [read(Shard(number=number, count=3)) for number in (1, 2, 3)]

    assert all(parts)
    assert ("BadRow", None) in parts[0]
    assert sorted(str(row) for part in parts for row in part) == sorted(map(str, read(None)))
