"""`catvec plan --estimate`: what a run would take, from a sample that is really fetched; and what a run cost."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.e2e.test_nightly import WRITTEN
from tests.fixtures.catalogs import photo
from tests.fixtures.http import Answer
from tests.fixtures.nights import DUMP

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.nights import NightShop

KEYS = {
    "sampled", "to_fetch", "download_bytes", "bytes_per_image", "width", "height", "fetch", "decode", "encode",
    "limited_by", "seconds", "cost", "failures", "vectors", "size",
}  # fmt: skip
TABLES = (
    "SELECT count(*) FROM pg_class WHERE relnamespace::regnamespace::text IN ('catvec', 'catvec_store', 'public')"
)


def estimate(night_shop: NightShop, *options: object) -> dict[str, Any]:
    found: dict[str, Any] = night_shop.plan("--estimate", *options)["estimate"]
    return found


def spread(found: dict[str, float]) -> bool:
    return found["low"] <= found["expected"] <= found["high"]


def test_an_estimate_of_a_small_catalog_is_near_what_the_run_then_takes(night_shop: NightShop) -> None:
    night_shop.stock(*range(120))
    sizes = [len(photo(number)) for number in range(120)]
    for number in range(120):
        night_shop.server.serve(f"/p/{number}.jpg", [Answer(body=photo(number), wait_s=0.2)])
    night_shop.server.serve("/p/5.jpg", [Answer(status=404)])
    night_shop.server.serve("/p/6.jpg", photo(6)[:400])
    before, written = night_shop.query(DUMP), night_shop.query(WRITTEN)

    found = estimate(night_shop, "--sample", 120, "--gpu-price", 2.5)

    assert set(found) == KEYS
    assert (night_shop.query(DUMP), night_shop.query(WRITTEN)) == (before, written)
    assert (found["sampled"], found["to_fetch"], found["vectors"]) == (120, 120, 118)
    assert found["failures"] == {"http_404": 1, "truncated": 1}
    assert found["download_bytes"]["expected"] == pytest.approx(sum(sizes) - sizes[5] - sizes[6] + 400)
    assert found["bytes_per_image"] == pytest.approx(sorted(sizes)[60], rel=0.1)
    assert (found["width"], found["height"]) == (80, 100)
    for name in ("fetch", "decode", "encode"):
        assert found[name]["images_per_s"] > 0
        assert spread(found[name]["seconds"])
    assert spread(found["seconds"])
    assert spread(found["cost"])
    # 16 at a time, each 0.2 s
    assert found["limited_by"] == "fetch"
    assert found["fetch"]["images_per_s"] == pytest.approx(80, rel=0.4)
    assert found["cost"]["expected"] == pytest.approx(found["seconds"]["expected"] / 3600 * 2.5, abs=1e-4)
    assert found["encode"]["source"] == "measured on cpu in bf16" or found["encode"]["source"].startswith(
        "measured on"
    )
    assert found["size"]["table_bytes"] > 118 * 64
    summary = night_shop.run("--gpu-price", 2.5).json()
    assert summary["embedded"] == 118
    took = 120 / summary["images_per_s"]
    assert took / 3 < found["seconds"]["expected"] < 3 * took


def test_a_sample_is_spread_over_the_catalog_and_always_the_same(night_shop: NightShop) -> None:
    night_shop.stock(*range(60))

    def asked() -> list[str]:
        night_shop.server.log.clear()
        night_shop.catvec(
            *("plan", night_shop.write(), *night_shop.options, "--estimate", "--sample", 12, "--images-per-s", 100)
        )
        return sorted(request.path for request in night_shop.asked)

    first = asked()

    assert len(first) == 12
    assert asked() == first
    numbers = [int(path[3:-4]) for path in first]
    assert min(numbers) < 20
    assert max(numbers) >= 40


def test_only_what_a_run_would_ask_for_is_sampled(night_shop: NightShop) -> None:
    """With the validators that the run sends: what the server says is unchanged is no download."""
    night_shop.stock(*range(20))
    night_shop.did()
    night_shop.stock(30, 31)
    night_shop.serve("/moved/2.jpg", photo(2))
    night_shop.rows["P2"]["images"] = ["/moved/2.jpg"]
    night_shop.server.log.clear()

    found = estimate(night_shop, "--recheck", "always")

    assert {request.path for request in night_shop.asked} == {
        *(f"/p/{number}.jpg" for number in (*range(20), 30, 31) if number != 2),
        "/moved/2.jpg",
    }
    assert (found["to_fetch"], found["sampled"], found["vectors"]) == (22, 22, 3)
    assert found["download_bytes"]["expected"] == pytest.approx(sum(len(photo(number)) for number in (30, 31, 2)))
    night_shop.did("--recheck", "always")
    assert estimate(night_shop, "--recheck", "never") is None  # nothing to ask for


def test_what_the_rented_machine_has_is_stated(night_shop: NightShop, empty_database_url: str) -> None:
    """Also without the model's files, and in a database that catvec has never seen."""
    night_shop.stock(*range(10))
    bench = night_shop.folder / "bench.json"
    where = {"model": "vit_l_14", "dims": 768, "device": "cuda:0", "precision": "bf16"}
    bench.write_text(json.dumps({"conditions": where, "forward": {"images_per_s": 5.0}}))
    options = ("--db", empty_database_url, "--allow-private-hosts", "--estimate", "--model", "vit-l-14", "--json")

    def found(*more: object) -> dict[str, Any]:
        plan: dict[str, Any] = night_shop.catvec("plan", night_shop.write(), *options, *more).json()
        return plan

    few, many = (found("--images-per-s", 5, "--cores", cores)["estimate"] for cores in (1, 16))

    measured = found("--bench", bench)["estimate"]["encode"]
    assert measured == few["encode"] | {"source": "from bench.json: cuda:0, bf16"}
    assert few["encode"] == many["encode"]
    assert few["encode"] == {
        "images_per_s": pytest.approx(5),
        "seconds": {"low": pytest.approx(2), "expected": pytest.approx(2), "high": pytest.approx(2)},
        "source": "as stated",
    }
    two = found("--images-per-s", 5, "--device", "cuda:0,cuda:1")["estimate"]["encode"]
    assert (two["images_per_s"], two["source"]) == (pytest.approx(10), "as stated, for 2")
    assert (many["decode"]["source"], many["limited_by"]) == ("measured on one core, for 16", "encode")
    assert many["decode"]["seconds"]["expected"] == pytest.approx(few["decode"]["seconds"]["expected"] / 16, rel=0.8)
    assert many["size"]["index_bytes"] > 10 * 768 * 2
    assert many["cost"] is None
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute(TABLES).fetchone() == (0,)


def test_a_shard_is_estimated_by_itself(night_shop: NightShop) -> None:
    night_shop.stock(*range(40))

    parts = [estimate(night_shop, "--images-per-s", 100, "--shard", shard)["to_fetch"] for shard in ("1/2", "2/2")]

    assert sum(parts) == 40
    assert all(parts)


def test_the_table_says_what_was_measured_and_no_secret(night_shop: NightShop) -> None:
    night_shop.stock(*range(4))
    secret = night_shop.server.url("/gone.jpg?token=hunter2").replace("http://", "http://user:hunter2@")
    catalog = night_shop.write()
    with catalog.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(["S", "secret", "1.00", secret])

    outcome = night_shop.catvec(
        *(
            "plan",
            catalog,
            "--db",
            night_shop.url,
            "--model",
            night_shop.model,
            "--allow-private-hosts",
            "--estimate",
        ),
        *("--images-per-s", 800, "--gpu-price", 2.5),
    )

    assert outcome.code == 0, outcome.err
    for word in ("5 sampled", "80 × 100 pixels", "800 images/s, as stated", "cost", "http_404 1", "4 vectors"):
        assert word in outcome.out
    assert "nothing was written" in outcome.err
    assert "hunter2" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("option", "value"), [("--sample", 3), ("--gpu-price", 2.5), ("--cores", 4), ("--images-per-s", 5)]
)
def test_options_of_an_estimate_are_not_passed_over(night_shop: NightShop, option: str, value: float) -> None:
    outcome = night_shop.catvec("plan", night_shop.write(), *night_shop.options, option, value)

    assert outcome.complaint() == (
        2, f"{option} does nothing without --estimate", "add --estimate, or leave it out",
    )  # fmt: skip


def test_a_device_that_is_not_here_is_a_wrong_option(night_shop: NightShop) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    night_shop.stock(0)

    outcome = night_shop.catvec("plan", night_shop.write(), *night_shop.options, "--estimate", "--device", "cuda")

    assert outcome.code == 2
    assert "--images-per-s N" in outcome.err
    assert night_shop.run("--device", "cuda").code == 2


def test_without_the_model_it_says_how_to_do_without(night_shop: NightShop, tmp_path: Path) -> None:
    night_shop.stock(0)

    outcome = night_shop.catvec(
        "plan", night_shop.write(), "--db", night_shop.url, "--model", tmp_path / "none", "--estimate"
    )

    assert outcome.code == 2
    assert "say what the device will encode: --images-per-s N" in outcome.err


def test_a_run_says_what_it_cost(night_shop: NightShop) -> None:
    night_shop.stock(*range(3))

    outcome = night_shop.run("--gpu-price", 3600)

    summary = outcome.json()
    assert summary["cost"] == pytest.approx(summary["seconds"], abs=0.01)
    [line] = [line for line in outcome.err.splitlines() if "s in all" in line]
    assert f", cost {summary['cost']:,.2f}" in line
    assert night_shop.run().json()["cost"] is None


@pytest.mark.parametrize("price", ["-1", "nan"])
def test_a_price_that_is_none_is_refused(night_shop: NightShop, price: str) -> None:
    night_shop.stock(0)

    outcome = night_shop.run("--gpu-price", price)

    assert outcome.code == 2
    assert f"error: --gpu-price is {float(price)}, expected" in outcome.err
