"""Checks of what catvec keeps in a database: models, their vectors and indexes, runs, failures, statistics."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.doctor.finding import Verdict, ok, problem, skipped, warning
from pipeline.doctor.server import span
from pipeline.records import EXACT_ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.connect import Connection
    from pipeline.store.health import RunSign, TableStatistics
    from pipeline.store.models import StoredModel

SILENCE = timedelta(minutes=15)
"""a run gives a sign of life with every batch; only the index build of millions of rows takes longer"""
FAILED_SHARE = 0.05
"""what `catvec run` tolerates unless told otherwise"""
DEAD_SHARE = 0.2
"""dead rows still take places among an HNSW search's candidates; autovacuum comes at a twentieth"""
DEAD_ROWS = 1_000

OPERATORS = {"hnsw": ("hnsw", "halfvec_cosine_ops"), "binary": ("hnsw", "bit_hamming_ops")}
"""by the kind of index that the functions ask for"""
REBUILD = "catvec index build {}"


def check_active(models: Sequence[StoredModel]) -> Verdict:
    active = next((model for model in models if model.is_active), None)
    if active:
        others = f"; beside it {len(models) - 1} more" if len(models) > 1 else ""
        return ok(f"{active.name}, {active.dims} dimensions{others}")
    if not models:
        return warning("there is no model yet", "begin with: catvec run CATALOG")
    ready = next((model.name for model in models if model.state == "ready"), None)
    if ready:
        return problem(f"none, although {ready} is ready: searches find nothing", f"catvec models activate {ready}")
    names = ", ".join(f"{model.name} is {model.state}" for model in models)
    return warning(f"none yet: {names}", "run the same catvec run again, to its end")


def check_weights(model: StoredModel) -> Verdict:
    from pipeline.models.health import locate_model

    folder = locate_model(source=model.source, revision=model.revision, location=model.location)
    if folder is not None:
        return ok(str(folder))
    if model.source == "folder":
        return warning(
            f"no whole model in {model.location!r} on this machine",
            "if it was moved, name its new place: catvec run --model FOLDER, catvec search --weights FOLDER",
        )
    return warning(
        f"{model.source} is not in this machine's cache",
        "the next catvec run or search downloads it; without network copy the cache and set HF_HOME",
    )


def check_vectors(connection: Connection, model: StoredModel) -> Verdict:
    """Whether the table is right, and which images have no vector."""
    from pipeline.store.health import count_failed_images
    from pipeline.store.models import check_table
    from pipeline.store.work import count_coverage

    check_table(connection, model)
    coverage = count_coverage(connection, model)
    detail = f"{coverage.embedded:,} of {coverage.images:,} images have one"
    missing = coverage.images - coverage.embedded
    # a model that waits for its turn is allowed to lag behind
    if not missing or model.state not in {"active", "loading"}:
        return ok(detail)
    failed = count_failed_images(connection, model)
    if failed >= missing:
        return _judge_failures(failed, coverage.images, detail)
    return warning(
        f"{detail}; {failed:,} failed, {missing - failed:,} not tried yet", "run the same catvec run again"
    )


def _judge_failures(failed: int, images: int, detail: str) -> Verdict:
    detail = f"{detail}; {failed:,} failed"
    if failed <= FAILED_SHARE * images:
        return ok(detail)
    return warning(detail, "see why with: catvec failures; then run the same catvec run again")


def check_index(connection: Connection, model: StoredModel) -> Verdict:
    from pipeline.store.health import count_vectors, see_index_kind
    from pipeline.store.index import find_builder, find_index, find_leftovers

    state = find_index(connection, model)
    kind = see_index_kind(connection, state.name)
    if kind is None:
        return _judge_no_index(model, count_vectors(connection, model, at_most=EXACT_ROWS + 1))
    if not state.is_valid and state.is_being_built:
        return ok(f"{state.name} is being built")
    if not state.is_valid:
        return problem(
            f"{state.name} is what a broken off build left: every write pays for it, no search uses it",
            REBUILD.format(model.name),
        )
    expected = OPERATORS[model.index_kind]
    if state.kind != model.index_kind:
        return problem(
            f"{state.name} is {kind.method} with {kind.operators}, expected {' with '.join(expected)}",
            f"catvec index rebuild {model.name}",
        )
    leftovers = [] if find_builder(connection, model) else find_leftovers(connection, model)
    if leftovers:
        return warning(
            f"{' and '.join(leftovers)}: left of a rebuild that broke off, every write pays for it",
            REBUILD.format(model.name),
        )
    return ok(f"{state.name}, {state.size_bytes / 2**20:,.1f} MB")


def _judge_no_index(model: StoredModel, vectors: int) -> Verdict:
    if model.state == "loading":
        return ok("none yet; it is built when the first load is done")
    if vectors > EXACT_ROWS:
        return problem(
            f"none, for more than {EXACT_ROWS:,} vectors: every search reads them all", REBUILD.format(model.name)
        )
    if not vectors:
        return ok("none, for no vector")
    return warning(
        f"none; {vectors:,} vectors are searched exactly, which is quick up to {EXACT_ROWS:,}",
        REBUILD.format(model.name),
    )


def check_use(connection: Connection, model: StoredModel, *, vector_schema: str) -> Verdict:
    """Whether plain SQL of other apps gets the index."""
    from pipeline.store.health import count_vectors, explain_plain_search
    from pipeline.store.index import find_index

    if count_vectors(connection, model, at_most=EXACT_ROWS + 1) <= EXACT_ROWS:
        return ok(f"not needed up to {EXACT_ROWS:,} vectors: an exact search is right")
    state = find_index(connection, model)
    if not state.is_valid or state.kind != model.index_kind:
        return skipped("there is no valid index to use")
    query = "ORDER BY embedding <=> … LIMIT 10 on catvec.image_embeddings"
    found = explain_plain_search(connection, vector_schema=vector_schema)
    if found.verdict == "index":
        return ok(f"{query} reads the index")
    reason = next(iter(found.reasons), None)
    if reason is not None and reason.key == "binary_index":
        return ok("for the functions only: a binary index answers no plain query")
    why = f": {reason.why}" if reason else ""
    return warning(f"{query} {found.summary}{why}", (reason and reason.cure) or "see: catvec explain")


def check_index_memory(connection: Connection, models: Sequence[StoredModel]) -> Verdict:
    """Whether the index that searches read stays in memory, and what building it anew takes."""
    from pipeline.store.health import see_server
    from pipeline.store.index import find_index

    server = see_server(connection)
    size = max((find_index(connection, model).size_bytes for model in models if model.is_active), default=0)
    buffers_mb, size_mb = server.shared_buffers / 2**20, size / 2**20
    if not size:
        return ok(f"shared_buffers {buffers_mb:,.0f} MB, no index yet")
    detail = f"shared_buffers {buffers_mb:,.0f} MB, index {size_mb:,.1f} MB"
    if size > server.shared_buffers:
        return warning(
            f"{detail}: searches read from outside the server's memory",
            f"set shared_buffers to {2 * size_mb:,.0f} MB or more, and restart the server",
        )
    if server.shared_memory == "posix":
        return ok(f"{detail}; a parallel build shares as much in /dev/shm (Docker: 64 MB unless shm_size is set)")
    return ok(detail)


def check_tags(connection: Connection, models: Sequence[StoredModel]) -> Verdict:
    """Whether apps find the attributes under the active model that they found under one before."""
    from pipeline.store.tags import list_tagged

    tagged = list_tagged(connection)
    active = next((model.name for model in models if model.is_active), None)
    if active is None:
        return ok("apps read no model yet")
    own = tagged.get(active, [])
    # tags of a model that apps have not read yet are no loss
    before = {model.name: tagged.get(model.name, []) for model in models if model.activated_at is not None}
    lacking = {attribute: name for name, names in before.items() for attribute in names if attribute not in own}
    if not lacking:
        return ok(f"{', '.join(own)} under {active}" if own else "none")
    where = ", ".join(f"{attribute} under {name}" for attribute, name in lacking.items())
    return warning(
        f"catvec.product_tags has {where}, not under {active}, which apps read",
        f"catvec tag LABELS --model {active}, with the labels or the head of each",
    )


def check_run(sign: RunSign) -> Verdict:
    what = f"run {sign.run_id} of catalog {sign.catalog!r}"
    where = f"process {sign.pid} on {sign.host}"
    if sign.state == "finished":
        return ok(f"{what} finished {span(sign.age)} ago")
    if sign.state == "running":
        return _judge_running(sign, what, where)
    if sign.state == "stopped":
        return warning(f"{what} was stopped {span(sign.age)} ago", "to go on, run the same command again")
    if sign.state == "lost":
        return warning(
            f"{what} ({where}) disappeared {span(sign.age)} ago",
            "to go on, run the same command again; if it was killed for memory, with a smaller --batch-size",
        )
    return problem(f"{what} failed {span(sign.age)} ago: {sign.error}", "mend that, then run the same command again")


def _judge_running(sign: RunSign, what: str, where: str) -> Verdict:
    if not sign.is_locked:
        return warning(
            f"{what} says it is running, but {where} is gone; last sign of life {span(sign.silence)} ago",
            "to go on, run the same command again: it starts where that one ended",
        )
    if sign.silence > SILENCE:
        return warning(
            f"{what} ({where}) has given no sign of life for {span(sign.silence)}",
            "look at that process: it hangs, or builds a very large index",
        )
    return ok(f"{what} is going on, {where}; last sign of life {span(sign.silence)} ago")


def check_failures(connection: Connection) -> Verdict:
    from pipeline.store.failures import count_failures

    counts = count_failures(connection)
    if not counts:
        return ok("none")
    failures = sum(count.failures for count in counts)
    codes = ", ".join(f"{count.code} {count.failures:,}" for count in counts[:4])
    more = ", …" if len(counts) > 4 else ""
    what = "image or row" if failures == 1 else "images or rows"
    return ok(f"{failures:,} {what}: {codes}{more}", "see each with: catvec failures")


def check_statistics(connection: Connection, models: Sequence[StoredModel]) -> Verdict:
    from pipeline.store.health import see_tables

    tables = see_tables(connection, models)
    for table in tables:
        if table.dead > DEAD_ROWS and table.dead > DEAD_SHARE * (table.live + table.dead):
            return _judge_dead(table)
    unknown = [table.table for table in tables if table.live > EXACT_ROWS and table.analyzed_at is None]
    if unknown:
        names = ", ".join(f"catvec_store.{name}" for name in unknown)
        return warning(f"{', '.join(unknown)} were never analyzed: plans are guesses", f"ANALYZE {names};")
    dead = sum(table.dead for table in tables)
    return ok(f"{dead:,} dead rows in {len(tables)} tables")


def _judge_dead(table: TableStatistics) -> Verdict:
    share = table.dead / (table.live + table.dead)
    if table.table.startswith("emb_"):
        cure = f"catvec index rebuild {table.table.removeprefix('emb_')}"
    else:
        cure = f"VACUUM (ANALYZE) catvec_store.{table.table}"
    return warning(
        f"{table.table} is {share:.0%} dead rows: searches are slower and less complete",
        f"{cure}; and look why autovacuum does not come",
    )
