"""Nights on which something changed: what is asked for, what is read, and what is encoded."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.fixtures.catalogs import photo
from tests.fixtures.http import Answer

if TYPE_CHECKING:
    from tests.fixtures.nights import NightShop


def test_what_was_checked_lately_is_not_asked_for(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    assert night_shop.did() == {"embedded": 12}

    assert night_shop.did() == {"unchanged": 12}
    assert night_shop.asked == []


def test_a_server_that_says_not_modified_sends_no_bytes_and_no_vector_row_is_touched(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    before = night_shop.vector_rows()

    assert night_shop.did("--recheck", "always") == {"unchanged": 12, "checked": 12}

    assert all("If-None-Match" in request.headers for request in night_shop.asked)
    assert night_shop.vector_rows() == before == (12, 0, 0)
    assert night_shop.did("--recheck", "never") == {"unchanged": 12}
    assert night_shop.asked == []


def test_other_bytes_behind_the_same_url_are_found_and_encoded(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    night_shop.serve("/p/3.jpg", photo(99))

    assert night_shop.did() == {"unchanged": 12}
    assert night_shop.did("--recheck", "always") == {"unchanged": 11, "embedded": 1, "checked": 12, "changed": 1}
    assert night_shop.query("SELECT product_id FROM catvec_store.images WHERE changed_at IS NOT NULL") == [("P3",)]


def test_a_server_without_validators_is_compared_by_content(night_shop: NightShop) -> None:
    night_shop.stock(0, 1)
    night_shop.server.serve("/p/0.jpg", photo(0))
    night_shop.did()
    before = night_shop.vector_rows()

    assert night_shop.did("--recheck", "always") == {"unchanged": 2, "checked": 2}
    assert night_shop.vector_rows() == before


def test_a_moved_url_with_known_bytes_costs_no_encoding(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    before = night_shop.vector_rows()
    night_shop.serve("/moved/3.jpg", photo(3))
    night_shop.rows["P3"]["images"] = ["/moved/3.jpg"]

    assert night_shop.plan()["images"]["moved"] == 1
    assert night_shop.did() == {"unchanged": 11, "reused": 1, "moved": 1}
    assert night_shop.vector_rows() == before
    assert night_shop.found() == set(night_shop.rows)


def test_titles_and_prices_change_without_touching_vectors(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    before = night_shop.vector_rows()
    for row in night_shop.rows.values():
        row["title"], row["price"] = row["title"].upper(), "1.00"

    summary = night_shop.run().json()

    assert summary["products"] == {"new": 0, "changed": 12, "removed": 0}
    assert (summary["unchanged"], night_shop.vector_rows(), night_shop.asked) == (12, before, [])


def test_a_lying_etag_is_caught_by_the_next_full_check(night_shop: NightShop) -> None:
    night_shop.stock(0, 1)
    night_shop.serve("/p/0.jpg", photo(0), etag='"always the same"')
    night_shop.did()
    night_shop.serve("/p/0.jpg", photo(50), etag='"always the same"')

    assert "changed" not in night_shop.did("--recheck", "always")
    assert night_shop.did("--recheck", "always", "--ignore-validators")["changed"] == 1
    night_shop.serve("/p/0.jpg", photo(51), etag='"always the same"')
    night_shop.later("91 days")
    assert night_shop.did()["changed"] == 1


def test_files_are_looked_at_in_every_run(night_shop: NightShop) -> None:
    folder = night_shop.folder / "photos"
    folder.mkdir()
    for number in range(3):
        path = folder / f"{number}.jpg"
        path.write_bytes(photo(number))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    options = ("--db", night_shop.url, "--model", night_shop.model, "--json")

    def run(*more: object) -> tuple[int, ...]:
        summary = night_shop.catvec("run", folder, *options, *more).json()
        return tuple(summary[name] for name in ("unchanged", "embedded", "checked", "changed"))

    assert run() == (0, 3, 0, 0)
    assert run() == (3, 0, 3, 0)
    (folder / "0.jpg").write_bytes(photo(7))
    os.utime(folder / "1.jpg")  # touched, nothing else
    assert run("--recheck", "never") == (3, 0, 0, 0)
    assert run() == (2, 1, 3, 1)


def test_a_clock_that_went_back_hides_nothing(night_shop: NightShop) -> None:
    """Everything was checked, and is to be tried again, years after now."""
    night_shop.stock(*range(3))
    night_shop.server.serve("/p/2.jpg", [Answer(status=503)])
    night_shop.did("--max-failure-rate", 1, code=3)
    night_shop.later("-3 years")
    night_shop.serve("/p/1.jpg", photo(50))
    night_shop.serve("/p/2.jpg", photo(2))

    assert night_shop.did() == {"unchanged": 1, "embedded": 2, "checked": 2, "changed": 1}


def test_a_night_without_changes_does_not_even_import_torch(night_shop: NightShop) -> None:
    night_shop.stock(0, 1)
    night_shop.did()
    code = (
        "import sys, cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = ["run", str(night_shop.write()), *map(str, night_shop.options), "--recheck", "always"]

    subprocess.run([sys.executable, "-c", code, *command], check=True, timeout=60)
