"""A run says what limits it, and `catvec bench` measures each limit."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from PIL import Image

from pipeline.bench.measurement import Bench
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.http import Answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec
    from tests.fixtures.http import ImageServer

STATE = """
SELECT n.nspname, c.relname, pg_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname LIKE 'catvec%' ORDER BY 1, 2
"""


@pytest.fixture
def judged_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a second are long enough to be judged."""
    monkeypatch.setattr("pipeline.limits.LEAST_S", 0.3)
    monkeypatch.setattr("pipeline.limits.LEAST_IMAGES", 10)


@pytest.mark.usefixtures("judged_early")
def test_a_slow_server_is_named(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str
) -> None:
    catalog = shop_catalog(60, wait_s=0.3)
    options = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--per-host", 4, "--json")

    outcome = catvec("run", catalog, *options)

    summary = outcome.json()
    loads = {load["stage"]: load for load in summary["stage_loads"]}
    assert list(loads) == ["network", "event loop", "look up", "decode", "copy", "encode", "write"]
    assert all(load["busy"] + load["starved"] + load["blocked"] <= 1.01 for load in loads.values())
    assert loads["encode"]["starved"] > 0.5
    assert 0 < loads["copy"]["busy"] < loads["encode"]["busy"]
    assert re.fullmatch(
        r"the network limits: downloads were under way or in line \d+% of the time, and cpu waited for pictures \d+% "
        r"of the time; try --per-host 8, if its server bears it",
        summary["limit"],
    )
    assert summary["limit"] in outcome.err.splitlines()


@pytest.mark.usefixtures("judged_early")
def test_slow_decoding_is_named(catvec: Catvec, tmp_path: Path, tiny_clip: Path, database_url: str) -> None:
    Image.effect_noise((2400, 3200), 80).convert("RGB").save(tmp_path / "0.jpg", quality=95)
    data = (tmp_path / "0.jpg").read_bytes()
    for number in range(24):
        (tmp_path / f"{number}.jpg").write_bytes(data + bytes([number]))  # other bytes, the same picture
    rows = [{"sku": f"P{number}", "image": f"{number}.jpg"} for number in range(24)]
    catalog = write_catalog(tmp_path / "catalog.csv", rows)

    outcome = catvec("run", catalog, "--db", database_url, "--model", tiny_clip, "--no-reduced", "--json")

    assert outcome.json()["limit"].startswith("decoding limits: all ")
    assert outcome.json()["limit"].endswith("; try --reduced")


def test_a_short_run_and_one_that_servers_broke_off_name_nothing(
    catvec: Catvec, shop_catalog: ShopCatalog, image_server: ImageServer, tiny_clip: Path, database_url: str
) -> None:
    options = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--json")
    assert catvec("run", shop_catalog(8), *options).json()["limit"] is None

    catalog = shop_catalog(60)
    for number in range(60):
        image_server.serve(f"/p/{number}.jpg", b"", status=404)
    outcome = catvec("run", catalog, *options)

    assert (outcome.code, outcome.json()["stopped_by"], outcome.json()["limit"]) == (4, "failure_rate", None)


@pytest.fixture
def bench(catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str) -> Any:
    """`catvec bench` on 40 images, as short as can be."""
    catalog = shop_catalog(40)

    def run(*options: object) -> Any:
        fixed = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--seconds", 0.3)
        return catvec("bench", catalog, *fixed, *options)

    return run


def test_bench_measures_each_limit_and_the_whole(bench: Any, tmp_path: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        before = connection.execute(STATE).fetchall()

    outcome = bench("--images", 30, "--chart", tmp_path / "limits.png", "--json")

    found = outcome.json()
    assert outcome.code == 0, outcome.err
    assert list(found) == [entry.name for entry in fields(Bench)]
    rates = {name: found[name]["images_per_s"] for name in ("fetch", "decode", "forward", "write", "whole")}
    assert all(rate > 0 for rate in rates.values()), rates
    assert all(found[name]["slowest"] <= rates[name] * 1.01 <= found[name]["fastest"] * 1.03 for name in rates), found
    limits = {**rates, "shared cores": found["shared_cores"]}
    del limits["whole"]
    assert found["bound"] == min(limits.values()) == limits[found["bound_by"]]
    assert found["share_of_bound"] == pytest.approx(rates["whole"] / found["bound"], abs=0.001)
    pictures = found["pictures"]
    assert (pictures["images"], pictures["width"], pictures["height"]) == (30, 80, 100)
    assert (500 < pictures["size_bytes"] < 5_000, pictures["failures_by_code"]) == (True, {})
    assert found["conditions"]["dims"] == 32
    assert found["conditions"]["hosts"] == 1
    assert found["limit"]
    with Image.open(tmp_path / "limits.png") as chart:
        assert (chart.format, chart.size) == ("PNG", (1440, 720))
    with psycopg.connect(database_url) as connection:
        assert connection.execute(STATE).fetchall() == before  # nothing stored was touched, and nothing is left


def test_bench_prints_tables_and_a_sentence(bench: Any, image_server: ImageServer) -> None:
    image_server.serve("/p/7.jpg", b"", status=404)
    image_server.serve("/p/8.jpg", b"no image at all")

    outcome = bench()

    assert outcome.code == 0, outcome.err
    rows = [line.split("  ")[0].strip() for line in outcome.out.splitlines()]
    whats = ["fetch only", "decode only", "forward only", "write only", "shared cores", "everything"]
    assert [row for row in rows if row in whats] == whats
    assert [row for row in rows if row in {"network", "decode", "encode", "write"}] == [
        "network",
        "decode",
        "encode",
        "write",
    ]
    [pictures] = [line for line in outcome.err.splitlines() if "images, " in line]
    assert re.fullmatch(r"38 images, the median has 80 × 100 pixels and \d kB; 2 could not be used", pictures)
    assert "limits" in outcome.err.splitlines()[-1]


def test_bench_says_what_it_cannot_measure_with(
    bench: Any, catvec: Catvec, image_server: ImageServer, database_url: str, tmp_path: Path
) -> None:
    for number in range(40):
        image_server.serve(f"/p/{number}.jpg", [Answer(status=404)])
    assert bench().complaint() == (
        1,
        "none of the chosen images could be fetched, the last because: the server answered 404 (Not Found)",
        "by code: http_404 40",
    )
    for number in range(40):
        image_server.serve(f"/p/{number}.jpg", f"text {number}".encode())
    assert bench().complaint()[1].startswith("none of the chosen images could be decoded, the last because: ")

    (tmp_path / "a.jpg").write_bytes(photo(1))
    catalog = write_catalog(tmp_path / "one.csv", [{"sku": "A", "image": "a.jpg"}])
    assert catvec("bench", catalog, "--db", database_url, "--weights", "none").complaint()[:2] == (
        2,
        "--weights is 'none', expected random or real",
    )
    assert catvec("bench", catalog, "--db", database_url, "--weights", "random", "--model", "a/b").complaint()[
        :2
    ] == (
        2,
        "there are no random weights for model 'a/b', expected vit-b-32, vit-b-16, vit-l-14, vit-l-14-336",
    )
    assert catvec("bench", catalog, "--db", database_url, "--chart", "limits.pdf").complaint()[0] == 2


def test_one_bench_at_a_time_in_a_database(bench: Any, database_url: str) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('catvec:bench:' || current_database(), 0))")

        code, error, _ = bench().complaint()

    assert code == 75
    assert error.startswith("another catvec bench measures in database ")
