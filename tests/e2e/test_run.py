"""`catvec run` from a catalog to neighbours, as its users live with it."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
import pytest

from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.http import ImageServer

VECTORS = """
SELECT v.product_id, v.url, v.position, v.embedding::text
  FROM catvec.image_embeddings v
 ORDER BY v.product_id, v.position, v.url
"""
STATISTICS = "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relname LIKE 'emb\\_%'"


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()  # type: ignore[arg-type]


def test_a_catalog_becomes_searchable_and_the_same_command_changes_nothing(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str, image_server: ImageServer
) -> None:
    catalog = shop_catalog(40)
    command = ("run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--json")

    first = catvec(*command)

    assert first.code == 0, first.err
    summary = first.json()
    assert {key: summary[key] for key in ("finished", "seen", "unchanged", "reused", "embedded", "failed")} == {
        "finished": True,
        "seen": 40,
        "unchanged": 0,
        "reused": 0,
        "embedded": 40,
        "failed": 0,
    }
    assert re.match('next: catvec similar PRODUCT_ID.*, or catvec search "WORDS"', first.err.splitlines()[-1])
    vectors = query(database_url, VECTORS)
    assert [row[0] for row in vectors] == [f"P{number:04}" for number in range(40)]
    statistics = query(database_url, STATISTICS)
    requests = image_server.requests.total()

    second = catvec(*command)

    assert second.code == 0
    assert second.json()["unchanged"] == 40
    assert second.json()["embedded"] == 0
    assert query(database_url, VECTORS) == vectors
    assert query(database_url, STATISTICS) == statistics == [(40, 0, 0)]
    assert image_server.requests.total() == requests

    hits = catvec("similar", "P0003", "-k", 5, "--db", database_url, "--json").json()["hits"]
    assert len(hits) == 5
    assert "P0003" not in {hit["product_id"] for hit in hits}
    assert [hit["similarity"] for hit in hits] == sorted((hit["similarity"] for hit in hits), reverse=True)
    odd = catvec(
        "similar", "P0003", "--filter", '{"category": "odd", "price": {"max": 9}}', "--db", database_url, "--json"
    )
    assert {hit["product_id"] for hit in odd.json()["hits"]} == {"P0001", "P0005", "P0007"}

    picture = catalog.parent / "query.jpg"
    picture.write_bytes(photo(7))
    found = catvec("search", "--image", picture, "-k", 1, "--db", database_url, "--json").json()
    assert found["hits"][0]["product_id"] == "P0007"
    assert found["hits"][0]["similarity"] > 0.999
    assert len(catvec("search", "a red thing", "-k", 3, "--db", database_url, "--json").json()["hits"]) == 3
    table = catvec("search", "a red thing", "-k", 3, "--db", database_url).out
    assert "similarity" in table
    assert "thing " in table


def test_failures_are_rows_and_the_others_go_on(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str, image_server: ImageServer
) -> None:
    catalog = shop_catalog(10)
    with catalog.open("a", encoding="utf-8") as file:
        file.write(f"GONE,gone,odd,{image_server.url('/gone.jpg')},1,red\n")
        file.write(f"PAGE,page,odd,{image_server.url('/nasty/page.jpg')},1,red\n")
        file.write("NONE,no image,odd,,1,red\n")
        file.write(",no id,odd,x.jpg,1,red\n")
    image_server.serve("/p/3.jpg", photo(3)[:500])
    command = ("run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--json")

    outcome = catvec(*command)

    summary = outcome.json()
    assert outcome.code == 3  # 5 of 14 is more than is tolerated
    assert (summary["seen"], summary["embedded"], summary["failed"]) == (14, 9, 5)
    assert summary["failures_by_code"] == {
        "missing_id": 1,
        "no_image": 1,
        "http_404": 1,
        "not_an_image": 1,
        "truncated": 1,
    }
    assert "catvec failures" in outcome.err
    again = catvec(*command, "--tolerate-failures", "0.5")
    assert (again.code, again.json()["failed"], again.json()["deferred"]) == (0, 5, 3)
    listed = {row["code"]: row for row in catvec("failures", "--db", database_url, "--json").json()["failures"]}
    assert set(listed) == set(summary["failures_by_code"])
    assert listed["http_404"]["product_id"] == "GONE"
    assert listed["http_404"]["attempts"] == 1
    assert "http_404" in catvec("failures", "--code", "http_404", "--db", database_url).out

    image_server.serve("/gone.jpg", photo(99))
    image_server.serve("/p/3.jpg", photo(3))
    assert catvec("retry", "--db", database_url).code == 0
    summary = catvec(*command).json()
    assert (summary["unchanged"], summary["embedded"], summary["failed"]) == (9, 2, 3)


def test_the_same_bytes_under_many_urls_are_encoded_once(
    catvec: Catvec, tmp_path: Path, tiny_clip: Path, database_url: str, image_server: ImageServer
) -> None:
    rows = []
    for number in range(60):
        image_server.serve(f"/{number}.jpg", photo(number % 3))
        rows.append({"id": f"P{number}", "image": image_server.url(f"/{number}.jpg")})
    catalog = write_catalog(tmp_path / "twins.csv", rows)

    summary = catvec(
        *("run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--json")
    ).json()

    assert (summary["seen"], summary["embedded"], summary["reused"]) == (60, 3, 57)
    assert query(database_url, "SELECT count(*) FROM catvec.image_embeddings") == [(60,)]


def test_a_twin_of_a_broken_image_fails_like_it(
    catvec: Catvec, tmp_path: Path, tiny_clip: Path, database_url: str
) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(photo(1)[:400])
    catalog = write_catalog(
        tmp_path / "twins.csv", [{"id": name, "image": name} for name in ("a.jpg", "b.jpg", "c.jpg")]
    )

    outcome = catvec("run", catalog, "--db", database_url, "--model", tiny_clip, "--json")

    assert outcome.json()["failures_by_code"] == {"truncated": 3}
    assert "nothing could be embedded" in outcome.err
    assert query(database_url, "SELECT state FROM catvec.models") == [("loading",)]


def test_a_second_model_fills_its_table_beside_the_first(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, tiny_siglip: Path, database_url: str
) -> None:
    catalog = shop_catalog(12)
    options = ("--db", database_url, "--allow-private-hosts", "--json")
    catvec("run", catalog, "--model", tiny_clip, "--model-name", "old", *options)
    before = query(database_url, VECTORS)

    summary = catvec("run", catalog, "--model", tiny_siglip, "--model-name", "new", *options).json()

    assert (summary["model"], summary["embedded"]) == ("new", 12)
    assert query(database_url, VECTORS) == before
    models = catvec("models", "--db", database_url, "--json").json()["models"]
    assert [(model["name"], model["state"]) for model in models] == [("old", "active"), ("new", "ready")]
    assert catvec("models", "activate", "new", "--db", database_url).code == 0
    assert query(database_url, VECTORS) != before
    pinned = catvec("similar", "P0001", "--model", "old", "--db", database_url, "--json")
    assert len(pinned.json()["hits"]) == 10


def test_several_devices_give_the_vectors_of_one(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str, empty_database_url: str
) -> None:
    options = ("--model", tiny_clip, "--allow-private-hosts", "--json", "--precision", "fp32", "--batch-size", "4")
    command = ("run", shop_catalog(40), *options)
    assert catvec(*command, "--db", database_url, "--device", "cpu").code == 0

    summary = catvec(*command, "--db", empty_database_url, "--device", "cpu,cpu").json()

    assert (summary["embedded"], summary["device"], summary["batch_size"]) == (40, "cpu, cpu", 4)
    numbers = "SELECT embedding::vector::real[] FROM catvec.image_embeddings ORDER BY product_id"
    one, two = (np.array(query(url, numbers))[:, 0] for url in (database_url, empty_database_url))
    np.testing.assert_allclose(two, one, atol=1e-3)  # a last bit of 16


def test_a_model_without_text_says_so(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_image_only: Path, database_url: str
) -> None:
    catalog = shop_catalog(5)
    run = catvec("run", catalog, "--db", database_url, "--model", tiny_image_only, "--allow-private-hosts")
    assert run.code == 0, run.err

    outcome = catvec("search", "red dress", "--db", database_url)

    assert outcome.code == 1
    assert "has no text side" in outcome.err
    assert "hint: search with --image FILE" in outcome.err
    assert len(catvec("similar", "P0001", "--db", database_url, "--json").json()["hits"]) == 4


def test_changed_weights_under_the_same_name_are_refused(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, tiny_clip_other: Path, database_url: str
) -> None:
    catalog = shop_catalog(5)
    options = ("--db", database_url, "--allow-private-hosts", "--model-name", "mine")
    assert catvec("run", catalog, "--model", tiny_clip, *options).code == 0
    before = query(database_url, VECTORS)

    outcome = catvec("run", catalog, "--model", tiny_clip_other, *options)

    assert outcome.code == 1
    assert "model 'mine' in this database was made by another model" in outcome.err
    assert "--model-name" in outcome.err
    assert query(database_url, VECTORS) == before


@pytest.mark.slow
def test_two_runs_at_once_the_second_names_the_first(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    database_url: str,
    image_server: ImageServer,
) -> None:
    catalog = shop_catalog(5)
    with catalog.open("a", encoding="utf-8") as file:
        file.write(f"HANG,hang,odd,{image_server.url('/nasty/hang.jpg')},1,red\n")
    command = ("run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts")
    first = catvec_process(*command)
    wait_until(lambda: image_server.requests["/nasty/hang.jpg"] > 0, first)

    second = catvec(*command)

    assert second.code == 75
    assert f"process {first.pid}" in second.err
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "to go on, run the same command again" in err
    assert "catvec_test_owner" not in err  # the password of the URL


@pytest.mark.slow
def test_sigterm_drains_and_the_next_run_goes_on(
    catvec: Catvec,
    catvec_process: Starter,
    shop_catalog: ShopCatalog,
    tiny_clip: Path,
    database_url: str,
    image_server: ImageServer,
) -> None:
    catalog = shop_catalog(30)
    rows = catalog.read_text(encoding="utf-8")
    catalog.write_text(rows + f"HANG,hang,odd,{image_server.url('/nasty/hang.jpg')},1,red\n", encoding="utf-8")
    command = ("run", catalog, "--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--json")
    process = catvec_process(*command)
    wait_until(lambda: image_server.requests["/nasty/hang.jpg"] > 0, process)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 143, err
    assert time.monotonic() - started < 10
    summary = json.loads(out.splitlines()[-1])
    assert summary["finished"] is False
    assert summary["pending"] == summary["seen"] - summary["embedded"] >= 1
    assert query(database_url, "SELECT state FROM catvec.run_status") == [("stopped",)]

    image_server.serve("/nasty/hang.jpg", photo(1000))
    summary_2 = catvec(*command).json()
    assert summary_2["finished"] is True
    assert summary_2["embedded"] == summary["pending"]
