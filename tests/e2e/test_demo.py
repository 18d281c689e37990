"""`catvec demo`, and the commands around catvec's own server that it leads to."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from pipeline.store.psql import find_psql
from tests.fixtures.store import product, unit

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec
    from tests.fixtures.store import Shop


@pytest.mark.slow
def test_the_demo_finds_tags_and_shows_its_broken_entries_without_database_or_network(
    catvec: Catvec, embedded_home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"

    outcome = catvec("demo", "--products", 40, "--folder", folder, "--home", embedded_home)

    assert outcome.code == 0, outcome.err
    *searches, tags = [table.strip().splitlines() for table in re.split(r"\n +\n +\n", outcome.out)]
    assert [table[0].split()[:2] for table in searches] == [["product", "similarity"]] * 4
    assert re.match(r" *demo-0013 +0\.\d+ +navy striped t-shirt ", searches[0][2])
    assert [line.split()[0] for line in tags[2:]] == ["kind", "colour", "pattern"]
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "navy striped t-shirt" in page
    assert page.count('<img src="data:image/jpeg;base64,') > 4 * 5 + 12
    assert "://" not in re.sub(r'"data:[^"]*"', "", page)
    assert f"search &#39;navy striped t-shirt&#39; -k 5 --home {embedded_home}" in page
    again = catvec("tag", folder / "labels.yaml", "--home", embedded_home, "--json").json()
    assert (again["products"], again["tagged"]) == (40, 0)
    (folder / "own.yaml").write_text("style: {labels: [plain, striped], exclusive: false}\n")
    assert catvec("tag", folder / "own.yaml", "--home", embedded_home).code == 0
    failures = catvec("failures", "--home", embedded_home, "--json").json()["failures"]
    assert sorted((row["product_id"], row["code"]) for row in failures) == [
        ("broken-empty", "empty"),
        ("broken-html", "not_an_image"),
        ("broken-missing", "file_not_found"),
        ("broken-no-image", "no_image"),
        ("broken-outside", "outside_root"),
        ("broken-truncated", "truncated"),
    ]

    again = catvec("demo", "--products", 40, "--folder", folder, "--home", embedded_home)
    assert again.code == 0
    assert ", 0 embedded, 6 failed" in again.err
    # the last command stopped the server it had started
    assert catvec("db", "status", "--home", embedded_home, "--json").json()["running"] is False


@pytest.mark.slow
def test_the_demo_touches_nothing_of_a_shop(
    catvec: Catvec,
    shop: Shop,
    database_url: str,
    old_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at all by the environment's database, and nothing but its own beside it when that is asked for."""
    shop.sync(product("A", "a.jpg"), product("B", "b.jpg", row=2))
    model = shop.register()
    shop.embed(model, [unit(1, 0, 0, 0), unit(1, 1, 0, 0)])
    shop.activate(model)
    monkeypatch.setenv("CATVEC_DATABASE_URL", database_url)
    options = ("demo", "--products", 20, "--folder", tmp_path / "demo")

    assert catvec(*options, "--home", old_home).code == 0
    assert shop.one("SELECT count(*) FROM catvec.products") == 2

    by_wish = catvec(*options, "--db", database_url)
    assert by_wish.code == 0, by_wish.err
    assert by_wish.out.count("similarity") == 4
    assert "catvec similar demo-0001 -k 5 --model demo" in by_wish.err
    assert database_url not in by_wish.err
    assert shop.all("SELECT name FROM catvec.models WHERE is_active") == [("tiny",)]
    assert shop.all("SELECT product_id FROM catvec.similar_products('A', 5)") == [("B",)]


@pytest.mark.slow
def test_the_servers_life_by_command(catvec: Catvec, embedded_home: Path, tmp_path: Path) -> None:
    home = ("--home", embedded_home)
    stopped = catvec("db", "url", *home)
    assert (stopped.code, stopped.out) == (1, "")
    assert "hint: start it with: catvec db start" in stopped.err

    assert catvec("db", "start", *home).code == 0
    assert catvec("db", "migrate", *home).code == 0
    status = catvec("db", "status", *home, "--json").json()
    assert (status["running"], status["explicit"]) == (True, True)
    url = catvec("db", "url", *home).out.strip()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM catvec.products").fetchone() == (0,)
    by_psql = subprocess.run([find_psql(), url, "-Atc", "SELECT 1"], capture_output=True, text=True, check=False)
    assert by_psql.stdout == "1\n", by_psql.stderr
    assert catvec("db", "psql", *home, "-At", "-c", "SELECT 40 + 2", "-o", tmp_path / "answer").code == 0
    assert (tmp_path / "answer").read_text(encoding="utf-8") == "42\n"
    assert "no run yet" in catvec("status", *home).err
    assert catvec("db", "status", *home, "--json").json()["running"] is True

    assert catvec("db", "stop", *home).err == "stopped\n"
    assert catvec("db", "stop", *home).err == "it was not running\n"
    assert json.loads(catvec("db", "status", *home, "--json").out)["running"] is False
