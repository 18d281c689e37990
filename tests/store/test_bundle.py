"""A bundle beside the database: rows put together by the same rules, vectors in the very bits that COPY wants."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")

from pipeline.bundle.catalog import read_rows, write_catalog
from pipeline.bundle.folder import claimed, write_manifest
from pipeline.records import BadRow, Deletion, Product
from pipeline.store.bundle import list_catalogs, write_part
from pipeline.store.sync import sync_catalog
from tests.fixtures.store import product
from tests.unit.test_bundle import AT, image, manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.fixtures.store import Shop

STATED = (
    "SELECT product_id, title, category, price, attrs FROM catvec_store.products ORDER BY 1",
    "SELECT product_id, url, position FROM catvec_store.images ORDER BY 1, 3",
    "SELECT row_number, product_id, url, code, detail FROM catvec_store.bad_rows ORDER BY 1, 4, 5",
)


def random_rows(seed: int) -> list[Product | BadRow | Deletion]:
    """Rows in which ids come again, with the same, with less and with other values, some without a picture."""
    numbers = random.Random(seed)
    rows: list[Product | BadRow | Deletion] = []
    for row in range(1, 60):
        product_id = f"P{numbers.randrange(15)}"
        images = tuple(f"{numbers.randrange(6)}.jpg" for _ in range(numbers.choice([0, 1, 1, 2])))
        images = tuple(dict.fromkeys(images))
        kind = numbers.random()
        if kind < 0.04:
            rows.append(Deletion(row=row, product_id=product_id))
        elif kind < 0.12:
            rows.append(BadRow(row=row, code="bad_text", detail="a NUL", product_id=product_id))
        else:
            rows.append(
                product(
                    product_id,
                    *images,
                    row=row,
                    title=numbers.choice([None, "a", "a", "a", "b"]),
                    category=numbers.choice([None, "c", "c"]),
                    price=numbers.choice([None, Decimal("1.5"), Decimal("1.50")]),
                    attrs=numbers.choice([{}, {"x": 1}, {"x": 1.0}, {"x": True}, {"x": [1, {"y": 2}]}, {"x": [1]}]),
                )
            )
            if not images:
                rows.append(BadRow(row=row, code="no_image", detail="no image", product_id=product_id))
    return rows


def stated(shop: Shop, rows: Iterable[Any]) -> list[Any]:
    """What the tables say after this catalog; then they are empty again."""
    connection = shop.session.connection()
    with connection.transaction(force_rollback=True):
        sync_catalog(connection, rows, catalog="default", max_remove_rate=1)
        return [connection.execute(query).fetchall() for query in STATED]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_a_bundle_puts_rows_together_as_the_database_does(shop: Shop, tmp_path: Path, seed: int) -> None:
    rows = random_rows(seed)
    with claimed(tmp_path / "bundle") as folder:
        bundle = write_manifest(folder, manifest())
        counts = write_catalog(bundle, rows, max_remove_rate=1)

    expected = stated(shop, rows)

    assert stated(shop, read_rows(bundle)) == expected
    products, images, bad_rows = expected
    assert (counts.products, counts.images, sum(counts.bad_rows.values())) == (
        len(products),
        len(images),
        len(bad_rows),
    )


def part_image(number: int, sha256: bytes | None, **failure: Any) -> tuple[Any, ...]:
    """A row of a part as `write_part` takes it."""
    reasons = tuple(failure.get(name) for name in ("stage", "code", "detail", "is_retryable", "kind"))
    return (f"P{number}", image(number).url, AT, sha256, 4, 3, 7, "image/jpeg", None, None, *reasons)


def write(shop: Shop, images: Sequence[tuple[Any, ...]], hashes: Sequence[bytes], vectors: Any) -> Any:
    model = shop.register()
    run_id = shop.begin(model)
    return shop.session.run(
        lambda connection: write_part(
            connection,
            model,
            run_id,
            images=images,
            hashes=hashes,
            vectors=np.array(vectors, dtype=np.float32),
            shown=None,
        )
    )


def test_a_part_is_written_bit_by_bit_and_once(shop: Shop) -> None:
    shop.sync(product("P1", image(1).url), product("P2", image(2).url, row=2))
    hashes = [bytes([number]) * 32 for number in (1, 2)]
    vectors = [[0.6, -0.8, 0, 0], [1e-5, 0, 0, 1]]
    images = [part_image(1, hashes[0]), part_image(2, None, stage="fetch", code="http_404", detail="gone", is_retryable=False, kind="permanent")]  # fmt: skip  # noqa: E501

    first = write(shop, images, hashes, vectors)
    again = write(shop, images, hashes, vectors)

    assert (first.vectors, again.vectors, again.changed, again.came) == (2, 0, frozenset(), frozenset())
    stored = shop.all("SELECT content_sha256, embedding FROM catvec_store.emb_tiny ORDER BY 1")
    assert [row[0] for row in stored] == hashes
    expected = np.array(vectors, dtype=np.float16)
    assert np.array_equal(np.stack([row[1].to_numpy() for row in stored]).astype(np.float16), expected)
    assert shop.all("SELECT product_id, content_sha256, checked_at FROM catvec_store.images ORDER BY 1") == [
        ("P1", hashes[0], AT),
        ("P2", None, None),
    ]
    assert shop.all("SELECT code, attempts, last_at FROM catvec_store.failures") == [("http_404", 1, AT)]
    assert list_catalogs(shop.session.connection()) == ["default"]


def test_what_the_database_knows_from_later_stays(shop: Shop) -> None:
    shop.sync(product("P1", image(1).url))
    old, new = b"1" * 32, b"2" * 32
    write(shop, [part_image(1, old)], [old], [[1, 0, 0, 0]])
    shop.session.connection().execute(
        "UPDATE catvec_store.images SET content_sha256 = %s, checked_at = now()", (new,)
    )

    loaded = write(shop, [part_image(1, old)], [old], [[1, 0, 0, 0]])

    assert loaded.changed == frozenset()
    assert shop.one("SELECT content_sha256 FROM catvec_store.images") == new
