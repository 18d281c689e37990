"""Switching the active model back and forth under 50 reading connections: errors, slowest read, time of a switch.

    python -m benchmarks.switch [--vectors N] [--switches N] [--connections N]

Each connection asks in turn what apps ask: the plain query on the public view, `similar_products` and
`search_by_vector`, with and without a pinned model. It pauses between two reads, so that what is measured is the
switch and not a machine of few cores under full load; how much of the cores was in use is in the result. Then the
same once more while somebody holds the view in a long transaction at each switch: what waits there is the switch,
and no reader may wait for it longer than a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from benchmarks.clip_like import draw_cloud
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.vector_shop import fill_shop, stored
from pipeline.store.index import build_index
from pipeline.store.migrate import open_current
from pipeline.switch import activate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event

SLOWEST_ASKED_S = 1.0
DIMS = {"a": 512, "b": 384}
PROCESSES = 2
"""that share the reading connections, so that they wait for the server and not for each other's interpreter"""
WARM_UP_S = 6.0
"""processes start, connections open, statements are prepared, caches fill"""
BETWEEN_S = 0.5
HELD_S = 2.0
"""a long transaction holds the view at each switch past one: longer than a reader may wait"""

# The vector comes from the view in the same statement, as an app's would from where it keeps its products. A vector
# of the model before would rightly be refused.
PLAIN = """
SELECT v.product_id, vector_dims(v.embedding)
  FROM catvec.image_embeddings v
 ORDER BY v.embedding <=> (SELECT o.embedding FROM catvec.image_embeddings o WHERE o.product_id = %(product)s LIMIT 1)
 LIMIT 10
"""
BY_VECTOR = """
SELECT h.product_id
  FROM catvec.search_by_vector(
         (SELECT o.embedding FROM catvec.image_embeddings o WHERE o.product_id = %(product)s LIMIT 1), 10) h
"""
READS = {
    "plain query on the view": PLAIN,
    "similar_products": "SELECT h.product_id FROM catvec.similar_products(%(product)s, 10) h",
    "similar_products, pinned": "SELECT h.product_id FROM catvec.similar_products(%(product)s, 10, model => 'a') h",
    "search_by_vector": BY_VECTOR,
    "search_by_vector, pinned": "SELECT h.product_id FROM catvec.search_by_vector(%(vector)s, 10, model => 'b') h",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read; `began` on the machine's monotonic clock, which processes share; `fault` is what was wrong."""

    kind: str
    began: float
    seconds: float
    fault: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time, the switches made in it, and the share of the cores that was in use."""

    began: float
    ended: float
    switches_s: list[float] = field(default_factory=list)
    busy: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Switch models under reading connections.")
    parser.add_argument("--vectors", type=int, default=20_000, help="products, and vectors of each of two models")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--pause-ms", type=float, default=200, help="mean pause of a connection between two reads")
    parser.add_argument("--switches", type=int, default=20)
    parser.add_argument(
        "--held-switches", type=int, default=5, help="switches past a transaction that holds the view"
    )
    parser.add_argument("--quiet-s", type=float, default=15, help="seconds of reading without a switch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with embedded_server() as server, empty_database(server) as database:
        result = prepare(database.url, arguments.vectors)
        with readers(database.url, arguments) as reads:
            phases = measure(database.url, arguments)
        result |= summarise(reads, phases) | {
            "connections": arguments.connections,
            "mean_pause_ms": arguments.pause_ms,
            "held_s": HELD_S,
            "slowest_read_asked_s": SLOWEST_ASKED_S,
        }
    print_result(result)
    print(write_result("switch", result, arguments.results))


def prepare(url: str, vectors: int) -> dict[str, Any]:
    """Both models with their indexes; a is active."""
    fill_shop(url, draw_cloud(vectors), models=tuple(DIMS))
    with open_current(url) as session:
        connection = session.connection()
        for name in DIMS:
            build_index(connection, stored(connection, name))
        models = {name: {"dims": stored(connection, name).dims, "vectors": vectors} for name in DIMS}
    return {"server": describe_server(url), "models": models}


@contextmanager
def readers(url: str, arguments: argparse.Namespace) -> Iterator[list[Read]]:
    """The reading connections, in processes of their own; what they have read is in the list afterwards."""
    context = multiprocessing.get_context("spawn")
    stop, results = context.Event(), context.Queue()
    reads: list[Read] = []
    shares = [len(range(place, arguments.connections, PROCESSES)) for place in range(PROCESSES)]
    work = partial(read_on, url, stop, results, vectors=arguments.vectors, pause_s=arguments.pause_ms / 1000)
    processes = [context.Process(target=work, args=(share,), daemon=True) for share in shares]
    for process in processes:
        process.start()
    time.sleep(WARM_UP_S)
    yield reads
    stop.set()
    for _ in processes:
        reads += results.get(timeout=60)
    for process in processes:
        process.join(timeout=60)


def read_on(
    url: str, stop: Event, results: Queue[list[Read]], connections: int, *, vectors: int, pause_s: float
) -> None:
    """Read with so many connections until told to stop."""
    reads: list[Read] = []
    threads = [
        threading.Thread(
            target=read_in_turn, args=(url, stop, reads, number), kwargs={"vectors": vectors, "pause_s": pause_s}
        )
        for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(reads)


def read_in_turn(url: str, stop: Event, reads: list[Read], seed: int, *, vectors: int, pause_s: float) -> None:
    """One connection: each kind of read in turn, with a pause after each."""
    chance = random.Random(1000 * os.getpid() + seed)
    vector = HalfVector(np.random.default_rng(seed).standard_normal(DIMS["b"]))
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        kinds = list(READS)
        chance.shuffle(kinds)
        while not stop.is_set():
            for kind in kinds:
                values = {"product": f"P{chance.randrange(vectors)}", "vector": vector}
                reads.append(read(connection, kind, values))
                time.sleep(chance.uniform(0, 2 * pause_s))


def read(connection: psycopg.Connection[Any], kind: str, values: dict[str, object]) -> Read:
    began = time.monotonic()
    fault = None
    try:
        rows = connection.execute(READS[kind], values).fetchall()
    except psycopg.Error as error:
        fault = f"{kind}: {error.diag.message_primary or error}"
    else:
        if len(rows) != 10:
            fault = f"{kind}: {len(rows)} rows instead of 10"
        elif len({row[1:] for row in rows}) != 1:
            fault = f"{kind}: vectors of two models in one answer"
    return Read(kind=kind, began=began, seconds=time.monotonic() - began, fault=fault)


def measure(url: str, arguments: argparse.Namespace) -> dict[str, Phase]:
    """Reading alone, before and after; under switches; under switches past a long transaction."""
    switch = partial(switch_models, url)
    return {
        "no switch": watch(lambda: pass_time(arguments.quiet_s)),
        "switching": watch(lambda: switch(arguments.switches)),
        "switching past a long transaction": watch(lambda: switch(arguments.held_switches, held_s=HELD_S)),
    }


def pass_time(seconds: float) -> list[float]:
    time.sleep(seconds)
    return []


def switch_models(url: str, switches: int, *, held_s: float = 0) -> list[float]:
    """Let a and b take turns; returns the seconds that each switch took, with what `catvec models activate` tells."""
    seconds = []
    for number in range(switches):
        with view_held(url, held_s):
            began = time.monotonic()
            activate(url, "ba"[number % 2], wait_s=60)
            seconds.append(time.monotonic() - began)
        time.sleep(BETWEEN_S)
    return seconds


@contextmanager
def view_held(url: str, seconds: float) -> Iterator[None]:
    """A transaction that reads the view and stays open for so long beside the block."""
    if not seconds:
        yield
        return
    with psycopg.connect(url, application_name="monthly report") as connection:
        connection.execute("SELECT count(*) FROM catvec.image_embeddings")
        end = threading.Timer(seconds, connection.rollback)
        end.start()
        yield
        end.join()


def watch(work: Callable[[], list[float]]) -> Phase:
    idle, began = idle_s(), time.monotonic()
    switches_s = work()
    ended = time.monotonic()
    busy = 1 - (idle_s() - idle) / (ended - began) / (os.cpu_count() or 1)
    return Phase(began=began, ended=ended, switches_s=switches_s, busy=round(busy, 2))


def idle_s() -> float:
    """Seconds that the machine's cores have been idle, all together, since it started."""
    return float(Path("/proc/uptime").read_text(encoding="utf-8").split()[1])


def summarise(reads: list[Read], phases: dict[str, Phase]) -> dict[str, Any]:
    found = {}
    for name, phase in phases.items():
        inside = [each for each in reads if each.began + each.seconds >= phase.began and each.began <= phase.ended]
        found[name] = {
            "seconds": round(phase.ended - phase.began, 1),
            "busy_share_of_cores": phase.busy,
            "reads": latencies(inside),
            "by_kind": {kind: latencies([each for each in inside if each.kind == kind]) for kind in READS},
            "switch_s": spread(phase.switches_s) if phase.switches_s else None,
        }
    faults = [each.fault for each in reads if each.fault]
    return {"errors": len(faults), "first_errors": faults[:3], "reads_in_all": len(reads), "phases": found}


def latencies(reads: list[Read]) -> dict[str, float]:
    milliseconds = [1000 * each.seconds for each in reads]
    median, p99, slowest = np.percentile(milliseconds, [50, 99, 100]).round(2).tolist()
    return {"count": len(reads), "median_ms": median, "p99_ms": p99, "slowest_ms": slowest}


def print_result(result: dict[str, Any]) -> None:
    for name, phase in result["phases"].items():
        print(f"{name}, {phase['busy_share_of_cores']:.0%} of the cores busy: {phase['reads']}, {phase['switch_s']}")
    print(f"{result['errors']} errors {result['first_errors']}")


if __name__ == "__main__":
    main()
