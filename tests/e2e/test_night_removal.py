"""What left the catalog leaves the searches, and later the tables; and what must not leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fixtures.catalogs import photo
from tests.fixtures.http import Answer
from tests.fixtures.nights import DUMP

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.fixtures.nights import NightShop


def test_what_left_the_catalog_leaves_the_searches_at_once_and_the_tables_later(night_shop: NightShop) -> None:
    night_shop.stock(*range(30))
    night_shop.did()
    gone = night_shop.rows.pop("P7")

    assert night_shop.did() == {"unchanged": 29, "removed": 1}
    assert night_shop.found() == set(night_shop.rows)
    night_shop.later("29 days")
    assert "forgotten" not in night_shop.did("--recheck", "never")
    night_shop.later("2 days")
    assert night_shop.did("--recheck", "never") == {"unchanged": 29, "forgotten": 2}  # a product and its image
    assert night_shop.query("SELECT count(*) FROM catvec_store.products") == [(29,)]
    # its vector is kept as long again, because pictures come back
    night_shop.rows["P7"] = gone
    assert night_shop.did("--recheck", "never") == {"unchanged": 29, "reused": 1}


def test_vectors_that_nothing_shows_are_deleted_after_the_grace_period(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    night_shop.serve("/p/3.jpg", photo(99))
    night_shop.did("--recheck", "always")
    night_shop.later("31 days")

    night_shop.did("--recheck", "never")

    assert night_shop.vector_rows() == (13, 0, 1)
    assert night_shop.found() == set(night_shop.rows)


def test_a_product_that_comes_back_in_time_is_found_again_without_a_request(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    gone = night_shop.rows.pop("P7")
    night_shop.did()
    night_shop.rows["P7"] = gone

    assert night_shop.plan()["images"]["back"] == 1
    assert night_shop.did() == {"unchanged": 12}
    assert (night_shop.found(), night_shop.asked) == (set(night_shop.rows), [])


def test_a_moved_picture_stays_until_another_can_be_had(night_shop: NightShop) -> None:
    night_shop.stock(*range(24))
    night_shop.did()
    for number in range(24):
        night_shop.rows[f"P{number}"]["images"] = [f"/moved/{number}.jpg"]
        if number:
            night_shop.serve(f"/moved/{number}.jpg", photo(number))

    assert night_shop.did("--max-runtime", "0s")["pending"] == 24
    assert night_shop.found() == set(night_shop.rows)
    assert night_shop.did() == {"reused": 23, "failed": 1, "removed": 23}
    assert night_shop.found() == set(night_shop.rows)  # P0 by its old picture
    night_shop.serve("/moved/0.jpg", photo(0))
    assert night_shop.catvec("retry", "--db", night_shop.url).code == 0
    assert night_shop.did() == {"unchanged": 23, "reused": 1, "removed": 1}
    assert night_shop.found() == set(night_shop.rows)


def test_a_night_that_broke_off_does_not_make_the_next_one_refuse(night_shop: NightShop) -> None:
    night_shop.stock(*range(30))
    night_shop.did()
    for number in range(30):
        night_shop.rows[f"P{number}"]["images"] = [f"/moved/{number}.jpg"]
        night_shop.server.serve(f"/moved/{number}.jpg", [Answer(status=503)])
    night_shop.rows.pop("P0")
    assert night_shop.run().code == 4
    for number in range(30):
        night_shop.serve(f"/moved/{number}.jpg", photo(number))

    assert night_shop.plan()["products"]["removed"] == 1  # which the broken night has marked
    assert night_shop.did()["removed"] == 30
    assert night_shop.found() == set(night_shop.rows)


def test_one_dead_host_does_not_hold_up_the_others(night_shop: NightShop) -> None:
    night_shop.stock(*range(60))
    dead = {f"D{number}": {"title": "dead", "price": "1", "images": [f"/d/{number}.jpg"]} for number in range(40)}
    catalog = night_shop.folder / "two_hosts.csv"
    rows = [f"{name},http://127.0.0.1:9{row['images'][0]}" for name, row in dead.items()]
    rows += [f"{name},{night_shop.server.url(row['images'][0])}" for name, row in night_shop.rows.items()]
    catalog.write_text("id,image\n" + "\n".join(rows), encoding="utf-8")

    outcome = night_shop.catvec("run", catalog, *night_shop.options)

    summary = outcome.json()
    assert (outcome.code, summary["finished"], summary["embedded"], summary["failed"]) == (3, True, 60, 40)
    assert night_shop.found() == set(night_shop.rows)


def test_a_model_that_apps_do_not_read_yet_takes_nothing_from_the_one_they_read(
    night_shop: NightShop, tiny_siglip: Path
) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    night_shop.serve("/p/3.jpg", photo(99))
    night_shop.model, first = tiny_siglip, night_shop.model

    assert night_shop.did("--recheck", "always")["embedded"] == 12

    assert night_shop.found() == set(night_shop.rows)
    night_shop.model = first
    assert night_shop.did("--recheck", "always")["changed"] == 1
    assert night_shop.found() == set(night_shop.rows)
    night_shop.model = tiny_siglip
    assert night_shop.did("--recheck", "always") == {"unchanged": 12, "checked": 12}


def test_what_was_just_embedded_is_not_asked_for_again(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))

    assert night_shop.did("--recheck", "always") == {"embedded": 12}
    assert len(night_shop.asked) == 12


def test_many_pictures_that_turn_into_one_are_told(night_shop: NightShop, caplog: pytest.LogCaptureFixture) -> None:
    night_shop.stock(*range(24))
    night_shop.did()
    for number in range(24):
        night_shop.serve(f"/p/{number}.jpg", photo(99))

    night_shop.did("--recheck", "always")

    assert "24 pictures changed into one and the same" in caplog.text


def test_a_cut_off_catalog_is_refused_and_nothing_changes(night_shop: NightShop) -> None:
    night_shop.stock(*range(20))
    night_shop.did()
    whole = night_shop.write().read_bytes()
    before = night_shop.query(DUMP)
    command = ("run", night_shop.folder / "cut.csv", *night_shop.options)

    def refused(data: bytes) -> str:
        (night_shop.folder / "cut.csv").write_bytes(data)
        outcome = night_shop.catvec(*command)
        assert outcome.code == 1
        return outcome.err

    assert "10 of the 20 products" in refused(b"".join(whole.splitlines(keepends=True)[:11]))
    assert "--max-remove-rate" in refused(whole.splitlines()[0] + b"\n" + whole.splitlines()[1])
    assert "is cut off" in refused(whole[:-40])
    assert "cut.csv" in refused(b"")
    # the records of the runs that were refused are all that is new
    assert night_shop.query(DUMP)[0][:3] == before[0][:3]
    assert night_shop.found() == set(night_shop.rows)


def test_a_delta_feed_removes_only_what_it_names(night_shop: NightShop) -> None:
    night_shop.stock(*range(20))
    night_shop.did()
    stocked = night_shop.rows
    night_shop.rows = {}
    night_shop.stock(3, 20)
    night_shop.rows["P3"]["title"] = "renamed"
    (night_shop.folder / "gone.txt").write_text("P5\nnobody\n", encoding="utf-8")

    outcome = night_shop.run("--partial", "--deleted-ids", night_shop.folder / "gone.txt")

    summary = outcome.json()
    assert summary["products"] == {"new": 1, "changed": 1, "removed": 1}
    assert (summary["seen"], summary["embedded"], summary["removed"]) == (20, 1, 1)
    assert night_shop.found() == (set(stocked) | {"P20"}) - {"P5"}


def test_a_delta_feed_of_a_quiet_night_is_no_error(night_shop: NightShop) -> None:
    night_shop.stock(*range(12))
    night_shop.did()
    night_shop.rows = {}

    assert night_shop.did("--partial") == {"unchanged": 12}
    assert "holds no products" in night_shop.run().err


def test_a_deleted_column_removes_and_a_wrong_word_in_it_does_not(night_shop: NightShop) -> None:
    night_shop.stock(*range(20))
    night_shop.did()
    feed = night_shop.folder / "feed.csv"
    images = {name: night_shop.server.url(row["images"][0]) for name, row in night_shop.rows.items()}
    feed.write_text(
        f"id,images,deleted\nP1,,true\nP2,{images['P2']},false\nP3,{images['P3']},maybe\n", encoding="utf-8"
    )
    options = (*night_shop.options, "--partial", "--deleted-column", "deleted")

    summary = night_shop.catvec("run", feed, *options).json()

    assert (summary["removed"], summary["failures_by_code"]) == (1, {"bad_deleted": 1})
    assert night_shop.found() == set(night_shop.rows) - {"P1"}
