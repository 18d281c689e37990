"""Neighbours in SQL at 100,000 products: how many are right, how long they take, with and without filters.

python -m benchmarks.similar [--vectors N] [--queries N] [--builds N] [--results FOLDER]

The truth is an exact search in numpy over the full vectors. Beside catvec's functions stands what people write
without them: a plain ORDER BY … LIMIT on the view with a WHERE, under the server's settings. Latencies are those of a
client on the same machine, connection open.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import HalfVector
from psycopg import sql

from benchmarks.clip_like import Cloud, draw_cloud, draw_texts, mean_cosine
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.vector_shop import SHARES, fill_shop, stored
from pipeline.store.build import index_expression
from pipeline.store.connect import Session
from pipeline.store.index import build_index, drop_index, find_index, replace_index, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.store.connect import Connection

K = 10
ASKED = {
    "recall without filter": 0.98,
    "recall with filters": 0.95,
    "median ms without filter": 5,
    "median ms with the worst filter": 25,
    "build seconds": 90,
    "default build : catvec's build": 3,
}

SEARCH = "SELECT product_id FROM catvec.search_by_vector(%(vector)s, %(k)s)"
SEARCH_BY_HAND = "SELECT product_id FROM catvec.image_embeddings ORDER BY embedding <=> %(vector)s LIMIT %(k)s"
FUNCTION = "SELECT product_id FROM catvec.similar_products(%(product)s, %(k)s, %(filter)s)"
BY_HAND = """
SELECT v.product_id
  FROM catvec.image_embeddings v
  JOIN catvec.products p ON p.product_id = v.product_id
 WHERE p.active
   AND v.product_id <> %(product)s
   AND {condition}
 ORDER BY v.embedding <=> (SELECT embedding FROM catvec.image_embeddings WHERE product_id = %(product)s)
 LIMIT %(k)s
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Filter:
    """`kept` bool [N]: which products pass; `condition` is the same in SQL, by hand."""

    name: str
    asked: bool
    conditions: dict[str, Any]
    condition: str
    kept: NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    wanted = parser.parse_args()
    cloud = draw_cloud(wanted.vectors)
    with embedded_server() as server, empty_database(server) as database:
        fill_shop(database.url, cloud)
        with Session(database.url) as session:
            connection = session.connection()
            builds = measure_builds(connection, wanted.builds)
            answers = measure_answers(connection, cloud, wanted.queries)
            texts = measure_texts(connection, cloud, wanted.queries)
            binary = measure_binary(connection, cloud, wanted.queries)
        result = {
            "database": describe_server(database.url),
            "vectors": wanted.vectors,
            "dimensions": cloud.vectors.shape[1],
            "mean_cosine": round(mean_cosine(cloud.vectors), 3),
            "k": K,
            "queries": wanted.queries,
            "build": builds,
            "hnsw": answers,
            "texts": texts,
            "binary": binary,
        }
    print(write_result("similar", result | {"asked": ASKED, "reached": reached(builds, answers)}, wanted.results))


def measure_builds(connection: Connection, repeats: int) -> dict[str, Any]:
    """The same index as catvec builds it, and under the server's default settings. Catvec's stays."""
    model = stored(connection, "drawn")
    seconds: list[float] = []
    for _ in range(repeats):
        drop_index(connection, model)
        with timed(seconds):
            build_index(connection, model)
    state = find_index(connection, model)
    default: list[float] = []
    connection.execute("SET maintenance_work_mem = '64MB'; SET max_parallel_maintenance_workers = 2")
    create = sql.SQL(
        "CREATE INDEX CONCURRENTLY by_default ON catvec_store.emb_drawn USING hnsw ({expression})"
        " WITH (m = {m}, ef_construction = {ef})"
    ).format(
        expression=index_expression(connection, model, "hnsw"),
        m=sql.Literal(state.m),
        ef=sql.Literal(state.ef_construction),
    )
    with timed(default):
        connection.execute(create)
    connection.execute("RESET maintenance_work_mem; RESET max_parallel_maintenance_workers")
    connection.execute("DROP INDEX catvec_store.by_default")
    return {
        "m": state.m,
        "ef_construction": state.ef_construction,
        "size_mb": round(state.size_bytes / 2**20, 1),
        "catvec_seconds": spread(seconds),
        "default_seconds": spread(default),
        "default_is": "maintenance_work_mem 64 MB, max_parallel_maintenance_workers 2",
        "ratio": round(default[0] / float(np.median(seconds)), 2),
    }


def measure_answers(connection: Connection, cloud: Cloud, queries: int) -> list[dict[str, Any]]:
    """Each filter, asked by the function and by hand."""
    asked = np.random.default_rng(5).choice(len(cloud.vectors), queries, replace=False)
    return [
        {
            "filter": entry.name,
            "asked": entry.asked,
            "kept": round(float(entry.kept.mean()), 5),
            "function": ask(connection, FUNCTION, cloud, entry, asked),
            "by_hand": ask(connection, BY_HAND.replace("{condition}", entry.condition), cloud, entry, asked),
        }
        for entry in filters(connection, cloud)
    ]


def measure_texts(connection: Connection, cloud: Cloud, queries: int) -> list[dict[str, Any]]:
    """Vectors like those of words, which lie off the images: by the function, and by hand."""
    texts = draw_texts(cloud, queries)
    truths = [
        {f"P{place}" for place in np.argpartition(-similarity, K)[:K]} for similarity in texts @ cloud.vectors.T
    ]
    found = []
    for name, query in (("function", SEARCH), ("by_hand", SEARCH_BY_HAND)):
        shares: list[float] = []
        seconds: list[float] = []
        for text, truth in zip(texts, truths, strict=True):
            with timed(seconds):
                rows = connection.execute(query, {"vector": HalfVector(text), "k": K}).fetchall()
            shares.append(len({row[0] for row in rows} & truth) / K)
        found.append(
            {
                "asked_by": name,
                "recall": round(float(np.mean(shares)), 4),
                "least_recall": min(shares),
                "median_ms": round(1000 * float(np.median(seconds)), 2),
            }
        )
    return found


def measure_binary(connection: Connection, cloud: Cloud, queries: int) -> dict[str, Any]:
    """The same through an index of one bit a dimension; the index is replaced beside readers, and back."""
    model = stored(connection, "drawn")
    seconds: list[float] = []
    with timed(seconds):
        state = replace_index(connection, model, replace(settings_of(model), kind="binary"))
    asked = np.random.default_rng(5).choice(len(cloud.vectors), queries, replace=False)
    answers = [
        {"filter": entry.name, "kept": round(float(entry.kept.mean()), 5)}
        | ask(connection, FUNCTION, cloud, entry, asked)
        for entry in filters(connection, cloud)
        if entry.asked
    ]
    replace_index(connection, stored(connection, "drawn"), settings_of(model))
    return {
        "size_mb": round(state.size_bytes / 2**20, 1),
        "replaced_in_seconds": round(seconds[0], 1),
        "answers": answers,
    }


def filters(connection: Connection, cloud: Cloud) -> Iterator[Filter]:
    """Shares of all products at random, as asked for; and categories, which leave out whole regions."""
    yield Filter(name="none", asked=True, conditions={}, condition="true", kept=np.ones(len(cloud.vectors), bool))
    rows = connection.execute("SELECT product_id, attrs -> 'share' FROM catvec.products").fetchall()
    shares = {product_id: set(found) for product_id, found in rows}
    for share in SHARES:
        name = f"{share:g}"
        yield Filter(
            name=f"{100 * share:g} % at random",
            asked=True,
            conditions={"share": [name]},
            condition=f"""p.attrs @> '{{"share": ["{name}"]}}'""",
            kept=np.array([name in shares[f"P{place}"] for place in range(len(cloud.vectors))]),
        )
    for count in (1, 5, 60):
        names = [f"c{cluster}" for cluster in range(count)]
        listed = ", ".join(f"'{name}'" for name in names)
        yield Filter(
            name=f"{count} of 200 categories",
            asked=False,
            conditions={"category": names},
            condition=f"p.category IN ({listed})",
            kept=cloud.clusters < count,
        )


def ask(connection: Connection, query: str, cloud: Cloud, entry: Filter, places: NDArray[np.int64]) -> dict[str, Any]:
    """Recall of the k nearest, latency, and how many answers had fewer rows than exist."""
    shares: list[float] = []
    seconds: list[float] = []
    short = 0
    for place in places:
        parameters = {"product": f"P{place}", "k": K, "filter": json.dumps(entry.conditions)}
        with timed(seconds):
            rows = connection.execute(query, parameters).fetchall()
        truth = nearest(cloud, entry.kept, int(place))
        shares.append(len({row[0] for row in rows} & truth) / max(1, len(truth)))
        short += len(rows) < len(truth)
    return {
        "recall": round(float(np.mean(shares)), 4),
        "short_answers": short,
        "median_ms": round(1000 * float(np.median(seconds)), 2),
        "p95_ms": round(1000 * float(np.quantile(seconds, 0.95)), 2),
    }


def nearest(cloud: Cloud, kept: NDArray[np.bool_], place: int) -> set[str]:
    """The products that an exact search finds."""
    similarity = np.where(kept, cloud.vectors @ cloud.vectors[place], -2)
    similarity[place] = -2
    best = np.argpartition(-similarity, K)[:K]
    return {f"P{found}" for found in best if similarity[found] > -2}


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    began = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - began)


def reached(builds: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, float]:
    """The numbers that were asked for."""
    found = [line["function"] for line in answers if line["asked"]]
    return {
        "recall without filter": found[0]["recall"],
        "recall with filters": min(line["recall"] for line in found[1:]),
        "median ms without filter": found[0]["median_ms"],
        "median ms with the worst filter": max(line["median_ms"] for line in found[1:]),
        "answers with fewer rows than exist": sum(line["function"]["short_answers"] for line in answers),
        "build seconds": builds["catvec_seconds"]["median"],
        "default build : catvec's build": builds["ratio"],
    }


if __name__ == "__main__":
    main()
