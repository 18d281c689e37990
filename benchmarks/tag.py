"""Tagging 100,000 products with 50 labels: matrix products in numpy beside one statement of SQL.

python -m benchmarks.tag [--products N] [--repeats N] [--results FOLDER]

Vectors spread as CLIP's are, of 512 numbers, and label vectors in the cone of words; loading a model and encoding
labels is left out, it does not grow with the products. Both ways read the stored vectors and write the same rows into
the same table with its indexes. Then what comes after: the same command again, one product in a hundred changed, and
searches that filter by tag.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pgvector import Vector

from benchmarks.clip_like import draw_cloud, draw_texts
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.vector_shop import content_of, fill_shop, stored
from pipeline.judging import Judge
from pipeline.store.connect import Session
from pipeline.store.index import build_index, refresh_statistics
from pipeline.store.tags import Question
from pipeline.tag import Panel, Tagging, tag_by

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

DIMS, LABELS, SCALE, THRESHOLD = 512, 50, 100.0, 0.2
ASKED_SECONDS = 20
SPLITS = {"one attribute of 50 labels": (50,), "five attributes of 10 labels": (10,) * 5}

LABEL_VECTORS = "CREATE TEMPORARY TABLE label_vectors (attribute_id integer, label text, vector {vector})"

# what is written down without catvec, as one statement
BY_SQL = """
WITH products AS MATERIALIZED (
  SELECT v.product_id,
         substr(sha256(string_agg(v.content_sha256, ''::bytea ORDER BY v.content_sha256)), 1, 8) AS contents,
         l2_normalize(avg(v.embedding))::vector AS mean
    FROM catvec.image_embeddings v
    JOIN catvec_store.products p ON p.product_id = v.product_id
   WHERE p.active
   GROUP BY v.product_id),
logits AS (
  SELECT p.product_id, p.contents, l.attribute_id, l.label, -(p.mean <#> l.vector) * %(scale)s AS logit
    FROM products p CROSS JOIN label_vectors l),
powers AS (
  SELECT *, exp(logit - max(logit) OVER (PARTITION BY product_id, attribute_id)) AS power FROM logits),
shares AS (
  SELECT *, power / sum(power) OVER (PARTITION BY product_id, attribute_id) AS share FROM powers),
best AS (
  SELECT DISTINCT ON (product_id, attribute_id) product_id, attribute_id, label, share, contents
    FROM shares ORDER BY product_id, attribute_id, share DESC)
INSERT INTO catvec_store.product_tags (product_id, attribute_id, label, probability, contents)
SELECT product_id, attribute_id, CASE WHEN share >= %(threshold)s THEN label ELSE 'unknown' END, share, contents
  FROM best
"""

TAGS = "SELECT product_id, attribute, label FROM catvec.product_tags ORDER BY 1, 2"
SEARCH = "SELECT product_id FROM catvec.similar_products(%s, 10, %s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    wanted = parser.parse_args()
    cloud = draw_cloud(wanted.products, dims=DIMS)
    texts = draw_texts(cloud, LABELS)
    with embedded_server() as server, empty_database(server) as database:
        fill_shop(database.url, cloud)
        with Session(database.url) as session:
            model = stored(session.connection(), "drawn")
            refresh_statistics(session.connection(), model)
            ways = {
                name: measure(database.url, session, model, texts, sizes, wanted.repeats)
                for name, sizes in SPLITS.items()
            }
            after = measure_after(database.url, session, model, texts)
        result = {
            "database": describe_server(database.url),
            "products": wanted.products,
            "dimensions": DIMS,
            "labels": LABELS,
            "asked_seconds": ASKED_SECONDS,
            "ways": ways,
            "after": after,
        }
    print(write_result("tag", result, wanted.results))


def draw_judges(texts: NDArray[np.float32], sizes: tuple[int, ...]) -> list[Judge]:
    """One judge for each size, which share out the texts."""
    parts = np.split(texts, np.cumsum(sizes)[:-1])
    return [
        Judge(
            attribute=f"attribute {place}",
            labels=tuple(f"label {number}" for number in range(len(part))),
            layers=((SCALE * part, np.zeros(len(part), dtype=np.float32)),),
            is_exclusive=True,
            threshold=THRESHOLD,
        )
        for place, part in enumerate(parts)
    ]


def panel_of(judges: list[Judge], edition: str) -> Panel:
    questions = [
        Question(attribute=one.attribute, labels=one.labels, question=edition, threshold=THRESHOLD, temperature=None)
        for one in judges
    ]
    return Panel(questions=tuple(questions), seat=lambda: judges)


def tag_with(url: str, model: StoredModel, judges: list[Judge], edition: str = "first") -> Tagging:
    return tag_by(url, model, panel_of(judges, edition), calibrate={})


def measure(
    url: str, session: Session, model: StoredModel, texts: NDArray[np.float32], sizes: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    """Both ways in turn, each into an empty table; the first round is not counted."""
    connection, judges = session.connection(), draw_judges(texts, sizes)
    seconds: dict[str, list[float]] = {"numpy": [], "sql": []}
    agree = 0.0
    for turn in range(repeats + 1):
        connection.execute("TRUNCATE catvec_store.tag_attributes CASCADE")
        by_numpy = tag_with(url, model, judges).seconds
        found = connection.execute(TAGS).fetchall()
        by_sql = tag_by_sql(connection, judges)
        agree = sum(one == other for one, other in zip(found, connection.execute(TAGS), strict=True)) / len(found)
        if turn:
            seconds["numpy"].append(by_numpy)
            seconds["sql"].append(by_sql)
    return {"seconds": {way: spread(took) for way, took in seconds.items()}, "same_labels": round(agree, 5)}


def tag_by_sql(connection: Connection, judges: list[Judge]) -> float:
    """Empty the table, and fill it by one statement; the seconds of that."""
    connection.execute("TRUNCATE catvec_store.product_tags")
    connection.execute("DROP TABLE IF EXISTS label_vectors")
    connection.execute(LABEL_VECTORS.format(vector=f"vector({DIMS})"))
    ids = dict(connection.execute("SELECT attribute, attribute_id FROM catvec_store.tag_attributes").fetchall())
    for judge in judges:
        weights, _ = judge.layers[0]
        rows = [
            (ids[judge.attribute], label, Vector(row / SCALE))
            for label, row in zip(judge.labels, weights, strict=True)
        ]
        connection.cursor().executemany("INSERT INTO label_vectors VALUES (%s, %s, %s)", rows)
    connection.execute("ANALYZE label_vectors")
    began = time.perf_counter()
    connection.execute(BY_SQL, {"scale": SCALE, "threshold": THRESHOLD})
    return time.perf_counter() - began


def measure_after(url: str, session: Session, model: StoredModel, texts: NDArray[np.float32]) -> dict[str, Any]:
    """The same command again, one product in a hundred with another picture, and searches by tag."""
    connection, judges = session.connection(), draw_judges(texts, (LABELS,))
    connection.execute("TRUNCATE catvec_store.tag_attributes CASCADE")
    products = tag_with(url, model, judges).products
    again = tag_with(url, model, judges)
    changed = range(0, products, 100)
    connection.cursor().executemany(
        "UPDATE catvec_store.images SET content_sha256 = %s WHERE product_id = %s",
        [(content_of(place + 1), f"P{place}") for place in changed],
    )
    few = tag_with(url, model, judges)
    if few.tagged != len(changed):
        raise SystemExit(f"{few.tagged} products were judged, expected the {len(changed)} that changed")
    connection.execute("ANALYZE catvec_store.product_tags")
    build_index(connection, model)
    counts = few.attributes[0].products_by_label
    return {
        "nothing_changed_s": again.seconds,
        "one_in_a_hundred_changed_s": few.seconds,
        "searches": [measure_search(connection, label, count / products) for label, count in counts.items()],
    }


def measure_search(connection: Connection, label: str, kept: float) -> dict[str, Any]:
    """Milliseconds of similar products with one label."""
    took = []
    for place in range(110):
        began = time.perf_counter()
        rows = connection.execute(SEARCH, (f"P{place}", f'{{"tag:attribute 0": "{label}"}}')).fetchall()
        took.append(1000 * (time.perf_counter() - began))
    return {"label": label, "kept": round(kept, 5), "rows_of_the_last": len(rows), "ms": spread(took[10:])}


if __name__ == "__main__":
    main()
