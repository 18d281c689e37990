"""Vectors per second through a bundle: written as a run writes it, loaded, loaded again, exported.

    python -m benchmarks.bundle [--vectors N] [--rounds N] [--results FOLDER]

Vectors of 512 dimensions, each of a product of its own; parts of the size that a fast run makes. `load` brings them
into an empty database and builds no index; `load again` finds them there and writes nothing; `export` makes the same
bundle out of the database. Client and server share the cores. The server's start and the making of the tables are not
counted; the catalog is, for each of these commands reads or writes it. Beside them, as limits: the hashing of the
parts' bytes, with which all that reads a bundle begins, and COPY of the same vectors into a table with nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.write_path import DIMS, SPEC, binary_rows, draw
from pipeline.bundle.catalog import write_catalog
from pipeline.bundle.folder import claimed, open_bundle, write_manifest
from pipeline.bundle.format import Manifest, digest_of_file
from pipeline.bundle.parts import PART_ROWS, Contents, PartWriter
from pipeline.bundling import describe
from pipeline.engine.stop import Stop
from pipeline.exporting import export
from pipeline.loading import load
from pipeline.progress import Progress
from pipeline.records import Outcomes, Product
from pipeline.settings import LoadSettings
from pipeline.store.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.records import Embedding
    from pipeline.store.embedded import EmbeddedServer

CHUNK = 512
"""vectors that come to the writer at once, as in a run"""
WAYS = ("write", "load", "load again", "export", "limit: hash the parts", "limit: COPY alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    embedded = draw(arguments.vectors)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with embedded_server() as server, tempfile.TemporaryDirectory() as folder:
        measure(server, embedded[:PART_ROWS], Path(folder) / "warm-up")
        for number in range(arguments.rounds):
            for way, seconds in measure(server, embedded, Path(folder) / str(number)).items():
                rates[way].append(round(len(embedded) / seconds))
            print(f"round {number + 1} of {arguments.rounds} done", flush=True)
        result: dict[str, Any] = {"server": describe_server(server.url())}
    result |= {"vectors": len(embedded), "dims": DIMS, "rows_of_a_part": PART_ROWS}
    result["vectors_per_s"] = {way: spread(found) for way, found in rates.items()}
    for way, found in result["vectors_per_s"].items():
        print(f"{way:24} {found}")
    print(write_result("bundle", result, arguments.results))


def measure(server: EmbeddedServer, embedded: Sequence[Embedding], folder: Path) -> dict[str, float]:
    """Seconds of each way."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(way: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[way] = time.perf_counter() - began

    settings = LoadSettings(build_index=False)
    made, exported = folder / "made", folder / "exported"
    with timed("write"):
        make(made, embedded)
    with timed("limit: hash the parts"):
        for path in open_bundle(made).parts():
            digest_of_file(path)
    with empty_database(server) as database:
        migrate(database.url)
        with timed("load"):
            load(settings, made, url=database.url, progress=Progress(), stop=Stop())
        with timed("load again"):
            again = load(settings, made, url=database.url, progress=Progress(), stop=Stop())
        with timed("export"):
            found = export(
                exported, url=database.url, model=None, catalog="default", progress=Progress(), stop=Stop()
            )
        if (again.unchanged, found.written) != (len(embedded), len(embedded)):
            raise SystemExit(f"{again} and {found}, expected {len(embedded)} vectors in both")
        with timed("limit: COPY alone"):
            copy(database.url, embedded)
    return seconds


def make(folder: Path, embedded: Sequence[Embedding]) -> None:
    """A bundle as `catvec run --to` makes it."""
    with claimed(folder):
        bundle = write_manifest(folder, Manifest(catalog="default", model=describe(SPEC, "/nowhere")))
        rows = (
            Product(row=row, product_id=each.image.product_id, images=(each.image.url,), title=f"thing {row}")
            for row, each in enumerate(embedded, start=1)
        )
        write_catalog(bundle, rows, max_remove_rate=1)
        writer = PartWriter(bundle, Contents())
        for start in range(0, len(embedded), CHUNK):
            writer.write(Outcomes(embedded=tuple(embedded[start : start + CHUNK])))
        writer.close()


def copy(url: str, embedded: Sequence[Embedding]) -> None:
    """The same vectors by COPY into a table like that of a model, part by part, each a transaction."""
    create = f"CREATE TABLE bare (content_sha256 bytea PRIMARY KEY, embedding halfvec({DIMS}))"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(create))
        for start in range(0, len(embedded), PART_ROWS):
            with connection.transaction(), connection.cursor().copy("COPY bare FROM STDIN (FORMAT BINARY)") as into:
                into.write(binary_rows(embedded[start : start + PART_ROWS]))


if __name__ == "__main__":
    main()
