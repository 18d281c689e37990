"""Seven nights in the life of a shop, and two months later: what each night did against what it should have done.

    python -m benchmarks.seven_nights CATALOG.CSV [--products N] [--model FOLDER]

Real photos, copied so that they can change, behind an HTTP server on loopback that keeps a log and can be down. Each
night has a catalog of its own; `catvec plan` is asked first, then `catvec run` as cron would. What it should do is
written down before it runs, from what the shop did to itself; what it did is taken from its --json, from
PostgreSQL's own statistics, from the image server's log and from SQL. Between nights every moment in the tables moves
back by a day.

Writes results/seven_nights.json, and the commands, their last lines and the table to results/seven_nights.txt; ends
with 1 when a night did not do what it should. The model is a tiny one with random weights unless --model names one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from benchmarks.command import working_folder
from benchmarks.conditions import RESULTS, write_result
from benchmarks.database import Database, describe_server, embedded_server, empty_database
from benchmarks.living_shop import PhotoHost, open_shop
from benchmarks.night_change import Change, share_of
from benchmarks.night_evidence import compare, find_similar, pass_days
from benchmarks.night_stand import Diary, Night, Stand, night
from benchmarks.night_table import Between, table_lines

if TYPE_CHECKING:
    import subprocess

    from benchmarks.living_shop import Entry

FIRST_SHARE = 0.85
"""three nights bring new products"""
NEW_SHARE, MOVED_SHARE, REWORDED_SHARE, GONE_SHARE = 0.05, 0.10, 0.20, 0.02
MOST_RETOUCHED = 50
GONE_WHEN_DOWN = 2
"""products that leave the catalog in the night in which the image server is down"""
KILLED = -9
SLOW_S = 64.0
"""new pictures take so long together when a run is to be killed, 16 at a time: 4 s and four commits"""
IN_FLIGHT = (64 + 2 * 32) + 2 * 32 + 32 + 64
"""images that may have been fetched and not written when a run is killed: the window of downloads, the decoded ones
that wait, the batch that is encoded, and two that were since the last commit, a second ago at most"""
LEAST_COSINE = 0.9999
"""between vectors of the same bytes that were encoded in other batches"""
MONTH_DAYS = 31


def main() -> None:
    parser = argparse.ArgumentParser(description="Live through seven nights with a shop.")
    parser.add_argument("catalog", type=Path, help="a CSV file with product_id, title, category and image")
    parser.add_argument("--products", type=int, help="so many rows of the catalog; default: all")
    parser.add_argument("--model", type=Path, help="a model folder; default: a tiny one with random weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    diary = Diary()
    with (
        working_folder(arguments.model, tiny=True) as place,
        tempfile.TemporaryDirectory(prefix="catvec-bench-photos-") as photos,
        embedded_server() as server,
    ):
        database = Database(url=server.url(), environment={"CATVEC_HOME": str(server.home)})
        shop = open_shop(arguments.catalog, Path(photos), products=arguments.products, first=FIRST_SHARE)
        host = PhotoHost(folder=Path(photos), log=place.folder / "access.log")
        products = len(shop.entries) + len(shop.coming)
        with psycopg.connect(database.url, autocommit=True) as connection, empty_database(server) as second:
            stand = Stand(
                place=place,
                database=database,
                connection=connection,
                shop=shop,
                host=host,
                diary=diary,
                products=products,
            )
            try:
                live(stand, second)
            except SystemExit as stopped:
                diary.tell(f"stopped: {stopped}")  # the transcript shows how far it came
                diary.stopped = True
            finally:
                host.stop()
        result = {"model": place.model, "products": products, "server": describe_server(server.url())}
    table = table_lines(diary.lines)
    diary.tell("\n==== all nights\n\n" + "\n".join(table) + "\n")
    result["nights"] = [line.as_json() for line in diary.lines]
    arguments.results.mkdir(exist_ok=True)
    transcript = arguments.results / "seven_nights.txt"
    text = "\n".join(diary.parts)
    transcript.write_text("".join(line.rstrip() + "\n" for line in text.splitlines()), encoding="utf-8")
    print(transcript, write_result("seven_nights", result, arguments.results), sep="\n")
    sys.exit(0 if diary.is_ok else 1)


# ---- the nights


def live(stand: Stand, second: Database) -> None:
    load(stand)
    add_products(stand)
    change_pictures(stand)
    change_words(stand)
    move_pictures(stand)
    waiting = lose_the_host(stand)
    halve_the_catalog(stand)
    kill_in_the_middle(stand, waiting, second)
    forget(stand)


def load(stand: Stand) -> None:
    shop = stand.shop
    stand.host.start()
    stand.write_catalog()
    stand.known = shop.contents()
    change = Change(new=len(shop.entries), fresh=len(stand.known))
    with night(stand, "1", f"{change.new:,} products are loaded first") as told:
        told.plan(change.planned(due=0))
        told.should(**change.expected(stand))
        told.run()


def add_products(stand: Stand) -> None:
    pass_days(stand.connection, 1)
    stand.shares_since = stand.now()
    old = len(stand.shop.entries)
    new = stand.shop.add(stand.share(NEW_SHARE))
    fresh = _learn(stand, new)
    with night(stand, "2", f"{len(new):,} new products, nothing else") as told:
        _run_as_planned(stand, told, old=old, new=len(new), fresh=fresh)


def change_pictures(stand: Stand) -> None:
    pass_days(stand.connection, 1, but_shares_since=stand.shares_since)
    entries = stand.shop.entries
    retouched = min(MOST_RETOUCHED, len(entries) // 10)
    stand.shop.retouch(retouched)
    change = Change(retouched=retouched, fresh=_learn(stand, entries), due=len(entries))
    stand.write_catalog()
    with night(stand, "3", f"{retouched} pictures change behind their URLs; --recheck always") as told:
        told.plan(change.planned(due=len(entries)), "--recheck", "always")
        told.should(**change.expected(stand))
        told.run("--recheck", "always")


def change_words(stand: Stand) -> None:
    pass_days(stand.connection, 1)  # everything was asked for
    stand.shares_since = stand.now()
    reworded = stand.share(REWORDED_SHARE)
    stand.shop.reword(reworded)
    with night(stand, "4", f"other titles and prices of {reworded:,} products, no picture") as told:
        _run_as_planned(stand, told, old=len(stand.shop.entries), reworded=reworded)


def move_pictures(stand: Stand) -> None:
    pass_days(stand.connection, 1, but_shares_since=stand.shares_since)
    moved = stand.share(MOVED_SHARE)
    stand.shop.move(moved)
    with night(stand, "5", f"{moved:,} pictures move to other URLs, the same bytes") as told:
        _run_as_planned(stand, told, old=len(stand.shop.entries) - moved, moved=moved)


def _learn(stand: Stand, entries: list[Entry]) -> int:
    """How many contents are new with these entries; from now on they count as known."""
    fresh = stand.shop.contents(entries) - stand.known
    stand.known |= fresh
    return len(fresh)


def _run_as_planned(stand: Stand, told: Night, *, old: int, **change: int) -> None:
    """A night under the default --recheck; how many are due is what the plan said, which was to be a week's share."""
    stand.write_catalog()
    plan = told.plan(Change(**change).planned(due=share_of(old)))
    told.should(**Change(**change, due=plan["images"]["recheck"]).expected(stand))
    told.run()


def lose_the_host(stand: Stand) -> list[Entry]:
    """The image server is down; gives the products that wait for it."""
    pass_days(stand.connection, 1, but_shares_since=stand.shares_since)
    shop, probe = stand.shop, stand.probe
    before, state = find_similar(stand.connection, probe), stand.state()
    old = len(shop.entries)
    shop.drop(GONE_WHEN_DOWN)
    new = shop.add(stand.share(NEW_SHARE))
    stand.host.stop()
    stand.write_catalog()
    with night(stand, "6", f"the image server is down; {len(new):,} new products, {GONE_WHEN_DOWN} gone") as told:
        due = share_of(old)
        plan = told.plan(
            {
                "products new": len(new),
                "products removed": GONE_WHEN_DOWN,
                "images new": len(new),
                "images removed": GONE_WHEN_DOWN,
                "images recheck": due,
                "to fetch": Between(low=len(new) + due.low, high=len(new) + due.high),
            }
        )
        told.should(
            run={
                "exit code": 4,
                "embedded": 0,
                "reused": 0,
                "failed": Between(low=20, high=plan["to_fetch"]),
                "removed": 0,
                "products new": len(new),
                "products removed": 0,
                "adds up": "yes",
            },
            vector_rows={"inserted": 0, "updated": 0, "deleted": 0},
            image_rows={"inserted": len(new), "updated": GONE_WHEN_DOWN, "deleted": 0},
            product_rows={"inserted": len(new), "updated": GONE_WHEN_DOWN, "deleted": 0},
            image_server={"requests": 0},
            tables={"active products": state.active_products + len(new), "vectors": state.vectors, "orphans": 0},
            words={"names the host": "yes", "searches answer as before": "yes"},
        )
        outcome, _ = told.run(code=4)
        told.did(
            words={
                "names the host": _yes(f"127.0.0.1:{stand.host.port}" in outcome.err),
                "searches answer as before": _yes(find_similar(stand.connection, probe) == before),
            }
        )
    return new


def halve_the_catalog(stand: Stand) -> None:
    before, state = find_similar(stand.connection, stand.probe), stand.state()
    stand.host.start()
    stand.write_catalog(share=0.5)
    with night(stand, "6, later", "the export breaks off in the middle of the catalog") as told:
        told.plan({"products new": 0, "products removed": state.active_products - _half(stand), "refused": "yes"})
        told.should(
            run={"exit code": 1},
            vector_rows={"inserted": 0, "updated": 0, "deleted": 0},
            image_rows={"inserted": 0, "updated": 0, "deleted": 0},
            product_rows={"inserted": 0, "updated": 0, "deleted": 0},
            image_server={"requests": 0},
            tables={"active products": state.active_products, "vectors": state.vectors, "failures": state.failures},
            words={"says that nothing was changed": "yes", "searches answer as before": "yes"},
        )
        outcome, _ = told.run(code=1)
        told.did(
            words={
                "says that nothing was changed": _yes("nothing was changed" in outcome.err),
                "searches answer as before": _yes(find_similar(stand.connection, stand.probe) == before),
            }
        )


def _half(stand: Stand) -> int:
    return round(0.5 * len(stand.shop.entries))


def kill_in_the_middle(stand: Stand, waiting: list[Entry], second: Database) -> None:
    pass_days(stand.connection, 1, but_shares_since=stand.shares_since)
    shop, state = stand.shop, stand.state()
    leaving = stand.share(GONE_SHARE)
    shop.drop(leaving)
    new = shop.add(stand.share(NEW_SHARE))
    vectors = len(stand.known)
    without_vector = [entry for entry in waiting if entry in shop.entries] + new
    fresh = _learn(stand, without_vector)
    removed = leaving + GONE_WHEN_DOWN
    stand.host.start(delay_s=min(1.0, SLOW_S / len(without_vector)))
    stand.write_catalog()
    with night(stand, "7", f"{len(new):,} new, {leaving} gone, and kill -9 in the middle") as told:
        due = Between(low=share_of(len(shop.entries)).low, high=share_of(len(shop.entries), 2).high)
        to_fetch = Between(low=len(without_vector) + due.low, high=len(without_vector) + due.high)
        told.plan(
            {"products new": len(new), "products removed": removed, "images new": len(new), "to fetch": to_fetch}
        )
        told.should(
            vector_rows={"inserted": Between(low=1, high=fresh - 1), "updated": 0, "deleted": 0},
            product_rows={"inserted": len(new), "deleted": 0},
            tables={
                "active products": state.active_products + len(new),
                "vectors": Between(low=vectors + 1, high=vectors + fresh - 1),
                "orphans": 0,
            },
        )
        told.run(code=KILLED, watch=lambda process: _kill_in_the_middle(stand, process))
        killed_at = stand.state()
    fetched = stand.host.answered()
    stand.host.start()
    with night(stand, "7, again", "the same command once more") as told:
        left = fresh - (killed_at.vectors - vectors)
        told.plan({"products new": 0, "products changed": 0, "products removed": removed, "images new": 0})
        told.should(
            run={
                "exit code": 0,
                "embedded": left,
                "failed": 0,
                "products new": 0,
                "products removed": removed,
                "removed": removed,
                "adds up": "yes",
            },
            vector_rows={"inserted": left, "updated": 0, "deleted": 0},
            product_rows={"inserted": 0, "updated": removed, "deleted": 0},
            image_server={"other": 0},
            tables={
                "active products": len(shop.entries),
                "active images": len(shop.entries),
                "vectors": len(stand.known),
                "orphans": 0,
                "failures": 0,
            },
            search={"hits": 10, "of products that left": 0},
            words={
                "the killed run is": "lost",
                "pictures fetched twice": Between(low=0, high=IN_FLIGHT),
            },
        )
        told.run()
        paths = {f"/{entry.photo}" for entry in without_vector}
        [(killed_run,)] = stand.connection.execute(
            "SELECT state FROM catvec.run_status ORDER BY run_id DESC OFFSET 1 LIMIT 1"
        ).fetchall()
        told.did(
            words={
                "the killed run is": killed_run,
                "pictures fetched twice": len(paths & fetched & stand.host.answered()),
            }
        )
    compare_with_undisturbed(stand, second)


def _kill_in_the_middle(stand: Stand, process: subprocess.Popen[bytes]) -> None:
    """SIGKILL as soon as vectors of the run are committed."""
    query = "SELECT coalesce(max(embedded), 0) FROM catvec.run_status WHERE pid = %s"
    with psycopg.connect(stand.database.url, autocommit=True) as connection:
        while process.poll() is None:
            if connection.execute(query, (process.pid,)).fetchone() != (0,):
                process.kill()
                return
            time.sleep(0.02)


def compare_with_undisturbed(stand: Stand, second: Database) -> None:
    """Another database sees nothing but the last catalog, once."""
    with night(stand, "7, beside", "an empty database that runs the last catalog undisturbed") as told:
        shown = len(stand.shop.entries)
        told.should(
            comparison={
                "rows": shown,
                "differing rows": 0,
                "vectors": len(stand.shop.contents()),
                f"cosine at least {LEAST_COSINE}": "yes",
            }
        )
        stand.catvec("run", "--json", database=second)
        with psycopg.connect(second.url, autocommit=True) as theirs:
            found = compare(stand.connection, theirs)
        told.did(
            comparison={
                "rows": found.rows,
                "differing rows": found.differing_rows,
                "vectors": found.vectors,
                f"cosine at least {LEAST_COSINE}": _yes(found.least_cosine >= LEAST_COSINE),
                "least cosine": found.least_cosine,
                "equal vectors": found.equal_vectors,
            }
        )


def forget(stand: Stand) -> None:
    shop = stand.shop
    shown, gone = shop.contents(), shop.contents(shop.gone)
    moved = sum(entry.photo.startswith("moved/") for entry in (*shop.entries, *shop.gone))
    replaced = stand.known - shown - gone
    later = (gone & stand.known) - shown
    left_images = len(shop.gone) + moved
    for name, what, forgotten, vectors in (
        ("37", "a month later: what left is forgotten, replaced pictures lose their vectors", True, replaced),
        ("68", "another month: so do those of forgotten products", False, later),
    ):
        pass_days(stand.connection, MONTH_DAYS)
        stand.known -= vectors
        products, images = (len(shop.gone), left_images) if forgotten else (0, 0)
        with night(stand, name, what) as told:
            told.plan({"products removed": 0, "images recheck": len(shop.entries), "to fetch": len(shop.entries)})
            told.should(
                run={
                    "exit code": 0,
                    "unchanged": len(shop.entries),
                    "embedded": 0,
                    "removed": 0,
                    "forgotten": products + images,
                },
                vector_rows={"inserted": 0, "updated": 0, "deleted": len(vectors)},
                # rows that leave with their product are counted with it
                image_rows={"inserted": 0, "updated": len(shop.entries), "deleted": images},
                product_rows={"inserted": 0, "updated": 0, "deleted": products},
                image_server={"requests": len(shop.entries), "other": 0},
                tables={
                    "active products": len(shop.entries),
                    "products": len(shop.entries),
                    "images": len(shop.entries),
                    "vectors": len(stand.known),
                    "unused": len(later) if forgotten else 0,
                    "orphans": 0,
                },
                search={"hits": 10, "of products that left": 0},
            )
            told.run()


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


if __name__ == "__main__":
    main()
