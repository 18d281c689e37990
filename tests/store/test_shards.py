"""Shards on one database: which runs exclude each other, who ends last, and shares in SQL as in Python."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.durations import ALWAYS
from pipeline.errors import CatalogError, LockedError
from pipeline.records import BadRow, Embedding, Outcomes
from pipeline.shard import Shard, parse_shard, share_of
from pipeline.status import read_status
from pipeline.store import removal
from pipeline.store.connect import Session, connect
from pipeline.store.removal import forget, forget_vectors, remove_missing
from pipeline.store.runs import begin_run, end_share, is_alone, take_lock
from pipeline.store.share import IS_OURS, share_values
from pipeline.store.vectors import write_outcomes
from pipeline.store.work import count_work, open_scope
from tests.fixtures.store import content, product, unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import ImageRef
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel
    from tests.fixtures.store import Shop

HALVES = (Shard(number=1, count=2), Shard(number=2, count=2))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def locked(stack: ExitStack, url: str, shard: str | None, model: str = "tiny") -> Connection:
    """A connection that holds the lock of a run."""
    connection = stack.enter_context(connect(url))
    take_lock(connection, model, parse_shard(shard) if shard else None)
    return connection


def refusal(url: str, shard: str | None) -> LockedError:
    with connect(url) as connection, pytest.raises(LockedError) as caught:
        take_lock(connection, "tiny", parse_shard(shard) if shard else None)
    return caught.value


def end(url: str, connection: Connection) -> None:
    """End a connection as a crash does, and wait until the server has noticed."""
    with connect(url) as outside:
        pid = (connection.info.backend_pid,)
        outside.execute("SELECT pg_terminate_backend(%s)", pid)
        while outside.execute("SELECT FROM pg_stat_activity WHERE pid = %s", pid).fetchone() is not None:
            time.sleep(0.01)


def test_shares_are_the_same_in_sql_and_in_python(shop: Shop) -> None:
    ids = [
        "SKU-1",
        "P0000",
        "",
        "Größe 7/½",
        " spaced ",
        "日本",
        "a'b\\c%d",
        *(f"P{number}" for number in range(500)),
    ]
    for count in (1, 2, 3, 7, 1000, 9999):
        for number in {1, count, share_of("日本", count) + 1}:
            shard = Shard(number=number, count=count)
            query = f"SELECT product_id FROM unnest(%(ids)s::text[]) AS p (product_id) WHERE {IS_OURS}"
            found = shop.session.rows(query, {"ids": ids, **share_values(shard)})  # type: ignore[arg-type]
            assert [row[0] for row in found] == [product_id for product_id in ids if shard.holds(product_id)]


def test_shards_run_side_by_side_and_exclude_what_overlaps(database_url: str, stack: ExitStack) -> None:
    locked(stack, database_url, "1/3")
    locked(stack, database_url, "3/3")
    locked(stack, database_url, "1/3", model="other")
    locked(stack, database_url, None, model="third")

    assert refusal(database_url, "1/3").message == "shard 1/3 with model 'tiny' is going on already"
    assert refusal(database_url, None).message == "another run with model 'tiny' is going on"
    assert refusal(database_url, "2/4").message == (
        "another run with model 'tiny' is going on in 3 shards; shard 2/4 overlaps with them"
    )
    assert refusal(database_url, "2/4").hint == "take one of those 3, or wait until they are done (--wait 30m does)"
    locked(stack, database_url, "2/3")  # who was refused holds nothing


def test_a_run_of_everything_excludes_shards(database_url: str, stack: ExitStack) -> None:
    whole = locked(stack, database_url, None)

    assert refusal(database_url, "1/1").message == "another run with model 'tiny' is going on"
    end(database_url, whole)
    locked(stack, database_url, "1/1")
    assert refusal(database_url, None).message == "another run with model 'tiny' is going on"


def test_the_second_of_one_number_is_told_who_is_the_first(shop: Shop, database_url: str, stack: ExitStack) -> None:
    model = shop.register()
    for shard in HALVES:
        begin_run(locked(stack, database_url, str(shard)), model, "default", shard)
    [(host, pid, since)] = shop.all("SELECT host, pid, started_at FROM catvec.run_status WHERE shard = '1/2'")

    error = refusal(database_url, "1/2")
    whole = refusal(database_url, None)

    started = f"since {since:%Y-%m-%d %H:%M:%S %Z}"
    assert error.message == f"shard 1/2 with model 'tiny' is going on already: process {pid} on {host}, {started}"
    assert error.hint == "give every box another number of the 2, or wait until that one is done (--wait 30m does)"
    assert f"process {pid} on {host} (shard 2/2), since" in whole.message


def test_a_shard_that_dies_frees_its_number_and_no_other(database_url: str, stack: ExitStack) -> None:
    dying = locked(stack, database_url, "1/2")
    locked(stack, database_url, "2/2")
    end(database_url, dying)

    assert "shard 2/2" in refusal(database_url, "2/2").message
    locked(stack, database_url, "1/2")


def test_of_many_that_begin_at_once_each_share_has_one(database_url: str) -> None:
    wanted = ["1/2", "2/2", "1/2", "2/2", "1/3", None, "2/3", "1/2"]
    start, held = threading.Barrier(len(wanted)), threading.Barrier(len(wanted))
    got: list[str | None] = []

    def begin(shard: str | None) -> None:
        with connect(database_url) as connection:
            start.wait(10)
            try:
                take_lock(connection, "tiny", parse_shard(shard) if shard else None)
                got.append(shard)
            except LockedError:
                pass
            held.wait(10)

    threads = [threading.Thread(target=begin, args=(shard,)) for shard in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    counts = {shard.partition("/")[2] if shard else None for shard in got}
    assert len(counts) == 1
    assert len(set(got)) == len(got)
    assert set(got) == {None} or set(got) in ({"1/2", "2/2"}, {"1/3", "2/3"})


def test_a_shard_closes_as_lost_what_cannot_be_alive(shop: Shop, database_url: str, stack: ExitStack) -> None:
    model = shop.register()
    for shard in (None, "1/2", "2/2", "1/3"):
        shop.session.connection().execute(
            "INSERT INTO catvec_store.runs (model_id, catalog, shard, host, pid, version)"
            " VALUES (%s, 'default', %s, 'h', 1, '0')",
            (model.model_id, shard),
        )

    begin_run(locked(stack, database_url, "1/2"), model, "default", HALVES[0])

    states = shop.all("SELECT shard, state FROM catvec.run_status ORDER BY run_id")
    assert states == [(None, "lost"), ("1/2", "lost"), ("2/2", "running"), ("1/3", "lost"), ("1/2", "running")]
    shown = {run.run_id: (run.shard, run.is_lost) for run in read_status(database_url).runs}
    assert [shown[run] for run in sorted(shown)] == [
        (None, True),
        ("1/2", True),
        ("2/2", True),  # it has no lock
        ("1/3", True),
        ("1/2", False),
    ]


def test_the_last_shard_to_see_its_share_through_is_told_so(shop: Shop) -> None:
    model = shop.register()

    def begin(number: int, count: int = 3, catalog: str = "default") -> int:
        shard = Shard(number=number, count=count)
        return shop.session.run(lambda connection: begin_run(connection, model, catalog, shard))

    def finish(run_id: int, number: int, count: int = 3, catalog: str = "default") -> bool:
        shard = Shard(number=number, count=count)
        return shop.session.run(lambda connection: end_share(connection, model, catalog, run_id, shard))

    first, second = begin(1), begin(2)
    assert not finish(first, 1)
    assert not finish(begin(1), 1)  # once more, as the third has never run
    assert not finish(begin(3, catalog="shoes"), 3, catalog="shoes")
    assert not finish(begin(3, count=4), 3, count=4)
    third = begin(3)
    assert not finish(third, 3)  # the second goes on
    assert finish(second, 2)
    begin(1)
    assert not finish(begin(2), 2)  # the first goes on, or broke off
    assert finish(begin(1), 1)


def test_who_is_alone_stays_so_until_its_transaction_ends(database_url: str, stack: ExitStack) -> None:
    first = locked(stack, database_url, "1/2")
    second = locked(stack, database_url, "2/2")
    assert not is_alone(first, "tiny")
    end(database_url, second)
    got = threading.Event()

    def come() -> None:
        with connect(database_url) as connection:
            take_lock(connection, "tiny", HALVES[1])
            got.set()

    comer = threading.Thread(target=come)
    with first.transaction():
        assert is_alone(first, "tiny")
        comer.start()
        assert not got.wait(0.3)
    assert got.wait(10)
    comer.join(10)


def test_a_shard_that_comes_does_not_wait_while_unused_vectors_are_looked_for(
    shop: Shop, database_url: str, stack: ExitStack
) -> None:
    model = shop.register()
    vectors = [unit(1, 0, 0, number) for number in range(5)]
    shop.sync(*(product(f"P{number}", f"{number}.jpg", row=number + 1) for number in range(5)))
    shop.embed(model, vectors)
    shop.session.connection().execute("UPDATE catvec_store.images SET content_sha256 = NULL WHERE url <> '0.jpg'")
    take_lock(shop.session.connection(), "tiny", HALVES[0])
    mark = "INSERT INTO catvec_store.unused_contents SELECT %s, content_sha256 FROM catvec_store.emb_tiny"
    other = stack.enter_context(connect(database_url))
    looking = threading.Thread(target=forget_vectors, args=(shop.session, model, ALWAYS))
    with other.transaction():
        other.execute(mark, (model.model_id,))  # uncommitted: who marks the same waits for it
        looking.start()
        while other.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
            time.sleep(0.01)
        comer = stack.enter_context(connect(database_url))
        comer.execute("SET lock_timeout = '3s'")
        take_lock(comer, "tiny", HALVES[1])
    looking.join(10)
    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 5  # another run is going on
    end(database_url, comer)

    forget_vectors(shop.session, model, ALWAYS)

    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 1


def test_unused_vectors_are_forgotten_some_at_a_time(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "FORGET_ROWS", 2)
    model = shop.register()
    shop.sync(*(product(f"P{number}", f"{number}.jpg", row=number + 1) for number in range(6)))
    shop.embed(model, [unit(1, 0, 0, number) for number in range(6)])
    shop.session.connection().execute("UPDATE catvec_store.images SET content_sha256 = NULL WHERE url <> '0.jpg'")

    forget_vectors(shop.session, model, ALWAYS)

    assert shop.one("SELECT count(*) FROM catvec_store.emb_tiny") == 1
    assert shop.one("SELECT count(*) FROM catvec_store.unused_contents") == 0


# ---- the steps of a run, each on its share


def sync(shop: Shop, shard: Shard | None, *ids: str, **settings: Any) -> Any:
    rows = [product(name, f"{name}.jpg", row=row) for row, name in enumerate(ids, 1)]
    own = [row for row in rows if shard is None or shard.holds(row.product_id)]
    return shop.sync(*own, shard=shard, **settings)


def test_a_shard_syncs_counts_and_removes_its_own_products_only(shop: Shop) -> None:
    names = [f"P{number}" for number in range(40)]
    first, second = ([name for name in names if shard.holds(name)] for shard in HALVES)
    model = shop.register()
    for shard in HALVES:
        found = sync(shop, shard, *names).found
        assert found.products.new == len([name for name in names if shard.holds(name)])
    work = [_count(shop, model, shard).images for shard in (*HALVES, None)]
    assert work == [len(first), len(second), 40]

    gone = sync(shop, HALVES[0], *names[3:], max_remove_rate=0.5)

    expected = [name for name in first if name in names[:3]]
    assert gone.left.products == len(expected)
    removed = shop.all("SELECT product_id FROM catvec_store.products WHERE NOT active ORDER BY product_id")
    assert [row[0] for row in removed] == expected
    assert sync(shop, HALVES[1], *names[3:], max_remove_rate=0.5).left.products == 3 - len(expected)


def test_the_guard_looks_at_the_share(shop: Shop) -> None:
    names = [f"P{number}" for number in range(100)]
    sync(shop, None, *names)
    own = [name for name in names if HALVES[0].holds(name)]

    with pytest.raises(CatalogError) as caught:
        sync(shop, HALVES[0], *own[len(own) // 2 :])

    lost = len(own) // 2
    assert caught.value.message.startswith(
        f"{lost} of the {len(own)} products stored from catalog 'default' (shard 1/2) are missing in this one, more"
    )
    sync(shop, HALVES[1], *names)


def test_bad_rows_are_replaced_by_the_shard_that_reads_them(shop: Shop) -> None:
    bad = [BadRow(row=row, code="no_image", detail="?", product_id=f"P{row}") for row in range(1, 21)]
    bad.append(BadRow(row=99, code="missing_id", detail="?"))

    def read(shard: Shard | None, rows: list[BadRow]) -> int:
        shop.sync(*(row for row in rows if shard is None or shard.holds(row.product_id)), shard=shard)
        return int(shop.one("SELECT count(*) FROM catvec_store.bad_rows"))

    assert read(None, bad) == 21
    assert [read(shard, bad) for shard in HALVES] == [21, 21]
    own = sum(HALVES[1].holds(row.product_id) for row in bad)
    assert read(HALVES[1], []) == 21 - own
    assert read(HALVES[0], []) == 0


def test_a_shard_forgets_its_own_and_the_sum_is_that_of_one_run(shop: Shop) -> None:
    names = [f"P{number}" for number in range(20)]
    sync(shop, None, *names)
    sync(shop, None, "OTHER", max_remove_rate=1)

    def leave(shard: Shard) -> int:
        shop.session.run(lambda connection: remove_missing(connection, [], "default", shard))
        return shop.session.run(lambda connection: forget(connection, "default", ALWAYS, shard))

    forgotten = [leave(shard) for shard in HALVES]

    assert all(forgotten)
    assert sum(forgotten) == 40  # products and images
    assert shop.all("SELECT product_id FROM catvec_store.products") == [("OTHER",)]


def test_two_shards_that_write_the_same_bytes_in_other_orders_do_not_lock_each_other_out(
    shop: Shop, database_url: str
) -> None:
    model = shop.register()
    sync(shop, None, *(f"P{number}" for number in range(200)))
    images = shop.work(model)
    runs = [shop.begin(model) for _ in range(2)]
    start = threading.Barrier(2)

    def write(run_id: int, own: list[ImageRef]) -> None:
        embedded = tuple(
            Embedding(content=content(image, bytes([number])), width=4, height=3, vector=unit(1, number, 0, 0))
            for number, image in enumerate(own)
        )
        with Session(database_url) as session:
            start.wait(10)
            write_outcomes(session, model, run_id, Outcomes(embedded=embedded))

    halves = (images[:100], images[:99:-1])
    writers = [threading.Thread(target=write, args=args) for args in zip(runs, halves, strict=True)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)

    assert shop.one(f"SELECT count(*) FROM catvec_store.{model.table}") == 100
    assert shop.one("SELECT count(*) FROM catvec_store.images WHERE content_sha256 IS NOT NULL") == 200
    assert shop.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


def _count(shop: Shop, model: StoredModel, shard: Shard | None) -> Any:
    def scope(connection: Connection) -> Any:
        return open_scope(connection, "default", recheck=ALWAYS, full_check=ALWAYS, shard=shard)

    return count_work(shop.session, model, shop.session.run(scope))
