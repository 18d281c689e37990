"""Vectors per second into PostgreSQL, near and 40 ms away: catvec's way beside others that one might take.

    python -m benchmarks.write_path [--vectors N] [--rounds N] [--results FOLDER]

Every contender writes the same outcomes of new contents: vectors of 512 dimensions as halfvec, what is known of
their images, and the counters of the run, in one transaction for each chunk, into a fresh database with as many
images. They differ in how the vectors travel; `catvec` is `pipeline.store.vectors.write_outcomes` as `catvec run`
calls it, and the others use its statements for all the rest. The far server is the near one behind a proxy that
delays each direction by 20 ms. Client, proxy and server share the cores. As information: other chunks, no waiting
for the disk (synchronous_commit), and with an HNSW index on the table, as nightly runs meet it.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from pgvector import HalfVector
from psycopg import sql

from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.delay_proxy import delayed
from pipeline.engine.local import WRITE_IMAGES
from pipeline.progress import Progress
from pipeline.records import Content, Embedding, ImageRef, ModelSpec, Outcomes, PreprocessSpec
from pipeline.store import vectors
from pipeline.store.connect import Session
from pipeline.store.index import build_index
from pipeline.store.migrate import migrate
from pipeline.store.models import register_model
from pipeline.store.runs import begin_run
from pipeline.store.wire import vector_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.store.embedded import EmbeddedServer
    from pipeline.store.models import StoredModel

    Cursor = psycopg.Cursor[tuple[Any, ...]]

DIMS = 512
DELAY_S = 0.02
ASKED = {"near": 20_000, "40 ms away": 2_500}
CHUNKS = (2048, 8192)
"""beside that of a run"""
OWN, SLOW = "catvec", "COPY text"
INDEXED = 2_048
"""vectors that are written into a table with an HNSW index: each takes about a millisecond there"""

PREPROCESS = PreprocessSpec(
    resize="shortest_edge", resize_size=224, height=224, width=224, resample=3, rescale=1 / 255,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
)  # fmt: skip
SPEC = ModelSpec(name="drawn", source="folder", revision="none", dims=DIMS, preprocess=PREPROCESS, has_text=False)

INSERT_ONE = """
INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)
VALUES (%s, %s, %s)
    ON CONFLICT (content_sha256) DO NOTHING
"""
CREATE_STAGE = "CREATE TEMPORARY TABLE stage (content_sha256 bytea, embedding halfvec) ON COMMIT DROP"
INSERT_STAGE = """
INSERT INTO catvec_store.{table} (content_sha256, embedding, run_id)
SELECT content_sha256, embedding, %s
  FROM stage
    ON CONFLICT (content_sha256) DO NOTHING
"""
FILL = """
INSERT INTO catvec_store.products (product_id, catalog)
SELECT 'P' || n, 'default' FROM generate_series(1, {images}) n;
INSERT INTO catvec_store.images (product_id, url, position)
SELECT 'P' || n, 'https://shop.example/images/' || n || '.jpg', 0 FROM generate_series(1, {images}) n ORDER BY n;
ANALYZE catvec_store.products, catvec_store.images
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a contender writes."""

    session: Session
    model: StoredModel
    run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure; `setting` is run in its session before."""

    name: str
    place: str
    chunk: int
    setting: str = ""
    is_indexed: bool = False

    @property
    def key(self) -> str:
        return f"{self.place}, chunks of {self.chunk}"


# ---- the contenders


def catvec(target: Target, outcomes: Outcomes) -> None:
    vectors.write_outcomes(target.session, target.model, target.run_id, outcomes)


def executemany(target: Target, outcomes: Outcomes) -> None:
    """catvec's way until then."""
    connection = target.session.connection()
    with connection.transaction(), connection.pipeline(), connection.cursor() as cursor:
        rows = [(row.content.sha256, HalfVector(row.vector), target.run_id) for row in outcomes.embedded]
        cursor.executemany(_of_table(INSERT_ONE, target), rows)
        _write_rest(cursor, target, outcomes)


def copy_binary(target: Target, outcomes: Outcomes) -> None:
    _copy(target, outcomes, "COPY stage FROM STDIN (FORMAT BINARY)", binary_rows(outcomes.embedded))


def copy_text(target: Target, outcomes: Outcomes) -> None:
    lines = [f"\\\\x{row.content.sha256.hex()}\t{HalfVector(row.vector).to_text()}\n" for row in outcomes.embedded]
    _copy(target, outcomes, "COPY stage FROM STDIN", "".join(lines).encode())


def unnest_in_transaction(target: Target, outcomes: Outcomes) -> None:
    """The arrays of catvec's way, with psycopg's own transaction around the pipeline."""
    connection = target.session.connection()
    with connection.transaction(), connection.pipeline(), connection.cursor() as cursor:
        rows = outcomes.embedded
        array = vector_array(connection, target.model.storage, [row.vector for row in rows])
        query = _of_table(vectors.INSERT_VECTORS, target)
        cursor.execute(query, ([row.content.sha256 for row in rows], array, target.run_id))
        _write_rest(cursor, target, outcomes)


CONTENDERS: dict[str, Callable[[Target, Outcomes], None]] = {
    OWN: catvec,
    "executemany": executemany,
    "COPY BINARY": copy_binary,
    SLOW: copy_text,
    "arrays, psycopg's transaction": unnest_in_transaction,
}


def _copy(target: Target, outcomes: Outcomes, statement: str, data: bytes) -> None:
    connection = target.session.connection()
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(CREATE_STAGE)
        with cursor.copy(statement) as copy:
            copy.write(data)
        with connection.pipeline():
            cursor.execute(_of_table(INSERT_STAGE, target), (target.run_id,))
            _write_rest(cursor, target, outcomes)


def binary_rows(embedded: Sequence[Embedding]) -> bytes:
    """What COPY takes: for each row the number of its fields, and each field after its length."""
    kinds = [("fields", ">i2"), ("key_bytes", ">i4"), ("key", "V32"), ("bytes", ">i4")]
    vector = [("dims", ">u2"), ("unused", ">u2"), ("numbers", ">f2", (DIMS,))]
    rows = np.zeros(len(embedded), kinds + vector)
    rows["fields"], rows["key_bytes"], rows["bytes"], rows["dims"] = 2, 32, 4 + 2 * DIMS, DIMS
    rows["key"] = np.frombuffer(b"".join(row.content.sha256 for row in embedded), "V32")
    rows["numbers"] = np.stack([row.vector for row in embedded])
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff"


def _write_rest(cursor: Cursor, target: Target, outcomes: Outcomes) -> None:
    token = uuid.uuid4()
    cursor.execute(vectors.BY_KEY)
    vectors.write_contents(cursor, outcomes, sql.Composed([sql.SQL(vectors.UPDATE_IMAGES)]))
    ids = [row.image.image_id for row in outcomes.embedded]
    cursor.execute(vectors.DELETE_FAILURES, (target.model.model_id, ids))
    cursor.execute(vectors.COUNT, (len(ids), 0, 0, 0, token, target.run_id, token))


def _of_table(query: str, target: Target) -> sql.Composed:
    return sql.SQL(query).format(table=sql.Identifier(target.model.table))


# ---- the measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    embedded = draw(arguments.vectors)
    cases = list_cases()
    rates: dict[Case, list[float]] = {case: [] for case in cases}
    with embedded_server() as server:
        measure(server, cases[0], embedded)  # warm-up
        for number in range(arguments.rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                rates[case].append(measure(server, case, embedded))
            print(f"round {number + 1} of {arguments.rounds} done", flush=True)
        result: dict[str, Any] = {"server": describe_server(server.url())}
    result |= {"vectors": len(embedded), "dims": DIMS, "chunk_of_run": WRITE_IMAGES, "round_trip_ms": 2000 * DELAY_S}
    result |= summarize(rates)
    for case, found in rates.items():
        print(f"{case.name:32} {case.key:32} {spread(found)}")
    print(write_result("write_path", result, arguments.results))


def list_cases() -> list[Case]:
    cases = [Case(name=name, place=place, chunk=WRITE_IMAGES) for place in ASKED for name in CONTENDERS]
    others = [name for name in CONTENDERS if name != SLOW]
    cases += [Case(name=name, place=place, chunk=chunk) for chunk in CHUNKS for place in ASKED for name in others]
    for place in ASKED:
        name, setting = f"{OWN}, no wait for the disk", "SET synchronous_commit = off"
        cases.append(Case(name=name, place=place, chunk=WRITE_IMAGES, setting=setting))
    return [*cases, Case(name=f"{OWN}, with HNSW", place="near", chunk=WRITE_IMAGES, is_indexed=True)]


def draw(count: int) -> list[Embedding]:
    numbers = np.random.default_rng(7).standard_normal((count, DIMS), dtype=np.float32)
    unit = numbers / np.linalg.norm(numbers, axis=1, keepdims=True)
    return [_embedding(place + 1, vector) for place, vector in enumerate(unit)]


def _embedding(number: int, vector: np.ndarray[Any, np.dtype[np.float32]]) -> Embedding:
    image = ImageRef(image_id=number, product_id=f"P{number}", url=f"https://shop.example/images/{number}.jpg")
    content = Content(
        image=image,
        sha256=hashlib.sha256(str(number).encode()).digest(),
        size_bytes=50_000 + number,
        mime="image/jpeg",
        etag=f'"{number:x}-5f3a"',
        last_modified="Wed, 21 Oct 2015 07:28:00 GMT",
    )
    return Embedding(content=content, width=400, height=533, vector=vector)


def measure(server: EmbeddedServer, case: Case, embedded: Sequence[Embedding]) -> float:
    """Vectors/s, without connecting."""
    with ExitStack() as stack:
        database = stack.enter_context(empty_database(server))
        images = len(embedded)
        model, run_id = prepare(database.url, images)
        if case.is_indexed:
            embedded = index_most(database.url, model, run_id, embedded)
        url = database.url
        if case.place != "near":
            url = stack.enter_context(delayed(url, delay_s=DELAY_S))
        session = stack.enter_context(Session(url))
        if case.setting:
            session.connection().execute(case.setting)
        target = Target(session=session, model=model, run_id=run_id)
        write = CONTENDERS.get(case.name, catvec)
        began = time.perf_counter()
        for start in range(0, len(embedded), case.chunk):
            write(target, Outcomes(embedded=tuple(embedded[start : start + case.chunk])))
        seconds = time.perf_counter() - began
        check(database.url, model, images)
    return len(embedded) / seconds


def prepare(url: str, images: int) -> tuple[StoredModel, int]:
    migrate(url)
    with Session(url) as session:
        session.connection().execute(sql.SQL(FILL).format(images=sql.Literal(images)))
        model = session.run(lambda connection: register_model(connection, SPEC, "none", location="/nowhere"))
        return model, session.run(lambda connection: begin_run(connection, model, "default"))


def index_most(url: str, model: StoredModel, run_id: int, embedded: Sequence[Embedding]) -> Sequence[Embedding]:
    """Write and index all but the last few; returns these."""
    with Session(url) as session:
        vectors.write_outcomes(session, model, run_id, Outcomes(embedded=tuple(embedded[:-INDEXED])))
        build_index(session.connection(), model, Progress())
    return embedded[-INDEXED:]


def check(url: str, model: StoredModel, images: int) -> None:
    query = sql.SQL("SELECT count(*) FROM catvec_store.{} e JOIN catvec_store.images i USING (content_sha256)")
    with psycopg.connect(url) as connection:
        found = connection.execute(query.format(sql.Identifier(model.table))).fetchone()
    if found != (images,):
        raise SystemExit(f"{found} images have their vectors, expected {images}")


def summarize(rates: dict[Case, list[float]]) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = {}
    for case, found in rates.items():
        table.setdefault(case.key, {})[case.name] = spread([round(rate) for rate in found])
    checks = {
        f"{asked:,} vectors/s {place}": table[f"{place}, chunks of {WRITE_IMAGES}"][OWN]["median"] >= asked
        for place, asked in ASKED.items()
    }
    return {"vectors_per_s": table, "checks": checks}


if __name__ == "__main__":
    main()
