"""A whole catalog of real photos, from an HTTP server on loopback, as its owner would run it.

    python -m benchmarks.real_catalog CATALOG.CSV [--db URL] [--photos N] [--model FOLDER]

`catvec run`, the same command again, `catvec similar`; then what the tables, the index and /proc say. Writes
results/real_catalog.json, and the commands with all that they printed to results/real_catalog.txt. Ends with 1
when anything is not as it was asked for. `--db` names an empty database; without it catvec uses a PostgreSQL of
its own in a fresh home, which runs already when the first command starts. Linux only, for the memory.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg import sql

from benchmarks.catalog import describe_sizes, write_catalog
from benchmarks.command import Place, run_catvec, working_folder
from benchmarks.conditions import RESULTS, write_result
from benchmarks.database import describe_server, whole_database
from benchmarks.memory import mark, sample_memory
from benchmarks.photo_server import serve
from benchmarks.row_changes import Changes, count_changes, settle
from pipeline.store.connect import Session
from pipeline.store.index import index_name
from pipeline.store.models import choose_model

if TYPE_CHECKING:
    from benchmarks.command import Outcome
    from benchmarks.database import Database
    from benchmarks.memory import Sample
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel

MOST_MEMORY_MB = 2500
MOST_GROWTH_MB = 50
GROWTH_IMAGES = (1000, 3000)
TIMELINE_S = 5.0

SCANS = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelid = to_regclass(%s)"

COUNTS = """
SELECT (SELECT count(*) FROM catvec.image_embeddings),
       (SELECT count(*)
          FROM catvec.products p
         WHERE p.active
           AND NOT EXISTS (SELECT FROM catvec.image_embeddings v WHERE v.product_id = p.product_id))
"""

# as an app asks that does without the functions
NEIGHBOURS = """
SELECT product_id, url
  FROM catvec.image_embeddings
 ORDER BY embedding <=> (SELECT embedding FROM catvec.image_embeddings WHERE product_id = {} LIMIT 1)
 LIMIT 10
"""
EXPLAIN = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where the commands run, and the catalog's first product."""

    place: Place
    database: Database
    product_id: str

    def run(self) -> Run:
        command = ("run", "catalog.csv", "--model", self.place.model, "--allow-private-hosts", "--json")
        samples: list[Sample] = []
        outcome = run_catvec(
            *command,
            folder=self.place.folder,
            environment=self.database.environment,
            watch=lambda process: samples.extend(sample_memory(process, self.database.url)),
        )
        return Run(outcome=outcome, samples=samples)

    def similar(self) -> Outcome:
        command = ("similar", self.product_id, "-k", "5")
        return run_catvec(*command, folder=self.place.folder, environment=self.database.environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One `catvec run` and its memory."""

    outcome: Outcome
    samples: list[Sample]

    def describe(self) -> dict[str, Any]:
        peak_mb = max(sample.peak_mb for sample in self.samples)
        seconds = round(self.outcome.seconds, 1)
        return {"wall_seconds": seconds, "peak_mb": peak_mb, "summary": self.outcome.json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the database says after the first run, the second one and `catvec similar`."""

    again: Run
    similar: Outcome
    changes: tuple[Changes, Changes]
    """before and after the second run"""
    scans: tuple[int, int]
    """of the HNSW index, before and after `catvec similar`"""
    index: str
    plan: str
    vectors: int
    products_without_vector: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Run catvec on a whole catalog of real photos.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column `image`")
    parser.add_argument("--db", help="an empty database; default: catvec's own PostgreSQL in a temporary home")
    parser.add_argument("--photos", type=int, help="so many rows of the catalog; default: all")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of ViT-B/32's size")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    arguments = parser.parse_args()
    with (
        working_folder(arguments.model) as place,
        whole_database(arguments.db) as database,
        serve(arguments.catalog.parent) as base_url,
    ):
        photos = write_catalog(arguments.catalog, place.folder / "catalog.csv", base_url, photos=arguments.photos)
        stand = Stand(place=place, database=database, product_id=photos[0].product_id)
        first = stand.run()
        evidence = examine(stand)
        server = describe_server(database.url)
    result = {"model": place.model, "photos": describe_sizes(photos), "server": server} | describe(first, evidence)
    result["checks"] = check(result, len(photos))
    arguments.results.mkdir(exist_ok=True)
    transcript = arguments.results / "real_catalog.txt"
    transcript.write_text(write_transcript(first, evidence, stand.product_id), encoding="utf-8")
    print_result(result)
    print(transcript, write_result("real_catalog", result, arguments.results), sep="\n")
    sys.exit(1 if False in result["checks"].values() else 0)


def examine(stand: Stand) -> Evidence:
    """Run the same command again, ask for neighbours, and compare what PostgreSQL counted before and after."""
    with Session(stand.database.url) as session:
        connection = session.connection()
        model = choose_model(connection, None)
        before = count_changes(connection, f"catvec_store.{model.table}")
        again = stand.run()
        after = count_changes(connection, f"catvec_store.{model.table}")
        scans_before = count_scans(connection, model)
        similar = stand.similar()
        scans_after = count_scans(connection, model)
        query = sql.SQL(EXPLAIN + NEIGHBOURS).format(sql.Literal(stand.product_id))
        plan = "\n".join(line for (line,) in connection.execute(query).fetchall())
        [(vectors, products_without_vector)] = connection.execute(COUNTS).fetchall()
    return Evidence(
        again=again,
        similar=similar,
        changes=(before, after),
        scans=(scans_before, scans_after),
        index=index_name(model),
        plan=plan,
        vectors=vectors,
        products_without_vector=products_without_vector,
    )


def count_scans(connection: Connection, model: StoredModel) -> int:
    settle(connection)
    [row] = connection.execute(SCANS, (f"catvec_store.{index_name(model)}",)).fetchall()
    return int(row[0])


# ---- the result


def describe(first: Run, evidence: Evidence) -> dict[str, Any]:
    before, after = evidence.changes
    return {
        "first": first.describe(),
        "again": evidence.again.describe(),
        "memory": describe_memory(first.samples),
        "vector_table": {"before": asdict(before), "after": asdict(after)},
        "vectors": evidence.vectors,
        "products_without_vector": evidence.products_without_vector,
        "similar": {
            "wall_seconds": round(evidence.similar.seconds, 2),
            "index": evidence.index,
            "index_scans": {"before": evidence.scans[0], "after": evidence.scans[1]},
            "plan_of_the_view": evidence.plan.splitlines(),
        },
    }


def describe_memory(samples: list[Sample]) -> dict[str, Any]:
    """MB of the client at two numbers of images, what it grew between them, and the curve."""
    marks = {images: mark(samples, images) for images in GROWTH_IMAGES}
    start, end = marks.values()
    timeline, next_s = [], 0.0
    for sample in samples:
        if sample.seconds >= next_s:
            timeline.append({"seconds": sample.seconds, "images": sample.images, "rss_mb": sample.rss_mb})
            next_s = sample.seconds + TIMELINE_S
    return {
        "at_images": {str(images): found for images, found in marks.items()},
        "growth_mb": round(end["rss_mb"] - start["rss_mb"], 1) if start and end else None,
        "timeline": timeline,
    }


def check(result: dict[str, Any], photos: int) -> dict[str, bool | None]:
    """What was asked for; None is what a short catalog cannot show."""
    first, again = result["first"]["summary"], result["again"]["summary"]
    table, similar = result["vector_table"], result["similar"]
    growth_mb, scans = result["memory"]["growth_mb"], similar["index_scans"]
    ends = ("unchanged", "reused", "embedded", "failed")
    return {
        "the first run saw every photo": first["seen"] == photos and first["finished"],
        "its summary adds up": first["seen"] == sum(first[key] for key in ends),
        "the tables agree with it": result["vectors"] == first["seen"] - first["failed"],
        "every product has its vector": result["products_without_vector"] == 0,
        f"the client's memory stays under {MOST_MEMORY_MB} MB": result["first"]["peak_mb"] < MOST_MEMORY_MB,
        f"it grows by at most {MOST_GROWTH_MB} MB": None if growth_mb is None else growth_mb <= MOST_GROWTH_MB,
        "the same command finds everything unchanged": again["unchanged"] == again["seen"] == photos,
        "it writes no row of the vector table": table["before"] == table["after"],
        "catvec similar reads the index": scans["after"] > scans["before"],
        "so does a query of the view": any(
            f"Index Scan using {similar['index']}" in line for line in similar["plan_of_the_view"]
        ),
    }


def write_transcript(first: Run, evidence: Evidence, product_id: str) -> str:
    """The commands and what they printed; standard error first, because talk comes before data."""
    parts = [
        f"$ {outcome.command}\n{outcome.err}{outcome.out}\n({outcome.seconds:.1f} s)\n"
        for outcome in (first.outcome, evidence.again.outcome, evidence.similar)
    ]
    query = NEIGHBOURS.strip().format(f"'{product_id}'")
    text = "\n".join([*parts, f"{EXPLAIN}\n{query};\n\n{evidence.plan}\n"])
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def print_result(result: dict[str, Any]) -> None:
    for name in ("first", "again"):
        told, summary = result[name], result[name]["summary"]
        rate = f", {summary['images_per_s']:.1f} images/s" if summary["embedded"] else ""
        print(f"{name:6} {told['wall_seconds']:7.1f} s{rate}, peak {told['peak_mb']:,.0f} MB")
    for images, found in result["memory"]["at_images"].items():
        shown = f"{found['rss_mb']:,.0f} MB, peak so far {found['peak_mb']:,.0f} MB" if found else "not reached"
        print(f"memory at image {images}: {shown}")
    print(f"similar {result['similar']['wall_seconds']:6.2f} s")
    for name, met in result["checks"].items():
        print({True: "yes", False: "NO ", None: "–  "}[met], name)


if __name__ == "__main__":
    main()
