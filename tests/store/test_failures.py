"""What failed, grouped and one by one, and making it due again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import StoreError
from pipeline.records import BadRow
from pipeline.status import retry
from pipeline.store.connect import Session
from pipeline.store.failures import (
    FailureFilter,
    FailureSample,
    count_failures,
    group_failures,
    list_failures,
    retry_failures,
)
from tests.fixtures.failures import CDN, SHOP, ailing, fail
from tests.fixtures.roles import READER, WRITER, grant, login
from tests.fixtures.store import model_spec, product

if TYPE_CHECKING:
    from tests.fixtures.store import Shop

DUE = """
SELECT i.product_id
  FROM catvec_store.failures f
  JOIN catvec_store.images i USING (image_id)
 WHERE f.next_try_at <= now()
 ORDER BY i.product_id
"""


def due(shop: Shop) -> list[str]:
    return [row[0] for row in shop.all(DUE)]


def test_failures_are_grouped_by_code_and_host_the_most_frequent_first(shop: Shop) -> None:
    ailing(shop)

    groups = group_failures(shop.session.connection())

    assert [(group.code, group.host, group.stage, group.kind, group.failures, group.due) for group in groups] == [
        ("http_404", "cdn.example.com", "fetch", "permanent", 3, 0),
        ("http_503", "cdn.example.com", "fetch", "transient", 1, 0),
        ("missing_id", None, "catalog", "permanent", 1, 0),
        ("timeout", "shop.example:8080", "fetch", "transient", 1, 1),
    ]
    missing, busy, row, _ = groups
    assert (missing.attempts_least, missing.attempts_most, missing.next_try_at) == (1, 3, None)
    assert missing.samples == tuple(
        FailureSample(product_id=f"P{number}", url=f"{CDN}/{number}.jpg", detail="not there") for number in (1, 2, 3)
    )
    assert busy.next_try_at == shop.one("SELECT next_try_at FROM catvec_store.failures WHERE code = 'http_503'")
    assert row.samples == (FailureSample(product_id=None, url="row 6", detail="has no id"),)


def test_a_large_group_has_three_samples_the_newest(shop: Shop) -> None:
    shop.sync(*(product(f"P{number}", f"{CDN}/{number}.jpg", row=number) for number in range(9)))
    model = shop.register()
    for number in range(9):
        fail(
            shop,
            model,
            f"{CDN}/{number}.jpg",
            code="http_404",
            kind="permanent",
            age_s=100 * abs(number - 6) + number,
        )

    [group] = group_failures(shop.session.connection())

    assert group.failures == 9
    assert [sample.product_id for sample in group.samples] == ["P6", "P5", "P7"]


@pytest.mark.parametrize(
    ("wanted", "products"),
    [
        ({"code": "http_404"}, ["P1", "P2", "P3"]),
        ({"host": "CDN.example.com"}, ["P1", "P2", "P3", "P4"]),
        ({"host": "shop.example:8080"}, ["Q"]),
        ({"host": "shop.example"}, ["Q"]),
        ({"host": "example.com"}, []),
        ({"kind": "transient"}, ["P4", "Q"]),
        ({"product_id": "P2"}, ["P2"]),
        ({"code": "http_404", "product_id": "P2"}, ["P2"]),
        ({"code": "http_404", "kind": "ours"}, []),
        ({"model": "tiny"}, [None, "P1", "P2", "P3", "P4", "Q"]),
        ({"model": "other"}, [None]),
        ({"catalog": "default", "kind": "transient"}, ["P4", "Q"]),
        ({"catalog": "other"}, []),
        ({"code": "missing_id"}, [None]),
    ],
)
def test_a_filter_holds_for_lists_groups_and_retries(
    shop: Shop, wanted: dict[str, Any], products: list[str | None]
) -> None:
    ailing(shop)
    shop.session.connection().execute("UPDATE catvec_store.failures SET next_try_at = NULL")
    wanted_failures = FailureFilter(**wanted)
    connection = shop.session.connection()

    assert [found.product_id for found in list_failures(connection, wanted_failures)] == products
    assert sum(group.failures for group in group_failures(connection, wanted_failures)) == len(products)
    images = [product_id for product_id in products if product_id is not None]
    assert shop.session.run(lambda connection: retry_failures(connection, wanted_failures)) == len(images)
    assert due(shop) == images


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pa@ss@host/x.jpg", "https://***@host/x.jpg"),
        ("HTTPS://user@host/x.jpg", "HTTPS://***@host/x.jpg"),
        ("https://host/a@2x.jpg", "https://host/a@2x.jpg"),
        ("https://host//a@2x.jpg", "https://host//a@2x.jpg"),
        ("shots/a@2x.jpg", "shots/a@2x.jpg"),
        ("https://host/x?w=9&X-Amz-Signature=abc&sig=def&h=8", "https://host/x?w=9&X-Amz-Signature=***&sig=***&h=8"),
        ("https://host/x?Access_Token=abc#top", "https://host/x?Access_Token=***#top"),
        ("https://host/x?design=classic", "https://host/x?design=classic"),
        ("data:image/png;base64," + "A" * 1000, "data:image/png;base64," + "A" * 38 + "…"),
    ],
)
def test_secrets_in_urls_are_not_shown(shop: Shop, url: str, shown: str) -> None:
    shop.sync(product("A", "a.jpg"), BadRow(row=2, code="bad_url", detail="no URL", url=url))

    [found] = list_failures(shop.session.connection())
    [group] = group_failures(shop.session.connection())

    assert found.url == shown
    assert group.samples[0].url == shown


def test_single_failures_come_newest_first_up_to_a_limit(shop: Shop) -> None:
    ailing(shop)

    found = list_failures(shop.session.connection(), limit=4)
    [timeout] = list_failures(shop.session.connection(), FailureFilter(code="timeout"))

    assert [(failure.code, failure.is_due) for failure in found][1:] == [("http_404", False)] * 3
    assert (timeout.url, timeout.host, timeout.kind, timeout.is_due) == (
        "http://***@shop.example:8080/q.jpg?width=9&token=***",
        "shop.example:8080",
        "transient",
        True,
    )


def test_counts_part_what_is_due_from_what_is_deferred(shop: Shop) -> None:
    ailing(shop)

    counts = count_failures(shop.session.connection())

    assert [(count.stage, count.code, count.failures, count.due, count.deferred) for count in counts] == [
        ("fetch", "http_404", 3, 0, 3),
        ("catalog", "missing_id", 1, 0, 0),
        ("fetch", "http_503", 1, 0, 1),
        ("fetch", "timeout", 1, 1, 0),
    ]


def test_a_retry_under_one_model_leaves_the_other_alone(shop: Shop) -> None:
    model = ailing(shop)
    other = shop.register(model_spec("other", revision="sha256:2"))
    fail(shop, other, f"{CDN}/1.jpg", code="http_404", kind="permanent")

    shop.session.run(lambda connection: retry_failures(connection, FailureFilter(model="other")))

    query = "SELECT model_id FROM catvec_store.failures WHERE next_try_at <= now() AND code = 'http_404'"
    assert shop.all(query) == [(other.model_id,)]
    shop.session.run(retry_failures)
    assert sorted(shop.all(query)) == [*[(model.model_id,)] * 3, (other.model_id,)]


def test_what_left_the_catalog_is_not_tried_again(shop: Shop) -> None:
    ailing(shop)
    shop.session.connection().execute(
        "UPDATE catvec_store.images SET missing_since = now() WHERE product_id IN ('P1', 'P2')"
    )

    assert shop.session.run(retry_failures) == 3
    assert due(shop) == ["P3", "P4", "Q"]


@pytest.mark.usefixtures("roles")
def test_a_writer_may_retry_and_a_reader_may_look(shop: Shop, database_url: str) -> None:
    ailing(shop)
    grant(database_url)

    with Session(login(database_url, READER)) as session:
        assert len(group_failures(session.connection())) == 4
        assert len(list_failures(session.connection())) == 6
    with pytest.raises(StoreError) as caught:
        retry(login(database_url, READER), FailureFilter())
    assert "permission denied" in caught.value.message
    assert due(shop) == ["Q"]

    result = retry(login(database_url, WRITER), FailureFilter())

    assert (result.due, result.catalog_rows) == (5, 1)
    assert due(shop) == ["P1", "P2", "P3", "P4", "Q"]


def test_a_password_is_in_nothing_that_is_shown(shop: Shop) -> None:
    ailing(shop)
    connection = shop.session.connection()

    shown = f"{list_failures(connection)} {group_failures(connection)} {count_failures(connection)}"

    assert SHOP.startswith("http://user:s3cret@")
    assert "s3cret" not in shown
    assert "t0ken" not in shown
