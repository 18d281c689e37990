"""What `catvec run` does: a catalog becomes searchable vectors.

catalog → sync → work list → fetch → decode → encode → write, then what left the catalog leaves the search results,
then the index, and the first model becomes the active one. Whatever interrupts it, the same command again goes on:
the work list is what has no vector yet, or has not been looked at for long.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from pipeline.encoding import require_decoder
from pipeline.errors import AwayError, BreakerError, CatvecError
from pipeline.finishing import close_failed, have_index, open_up, shown_beside, warn_of_upkeep
from pipeline.inputs import read_rows, scope_now
from pipeline.on_demand import ModelOnDemand
from pipeline.records import ProductChanges
from pipeline.summary import Beside, summarise
from pipeline.waiting import take_in_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress
    from pipeline.records import BadRow, Deletion, Product, RunSummary
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel
    from pipeline.store.removal import Removed
    from pipeline.store.stage import Differences
    from pipeline.store.work import Scope, WorkCount

logger = logging.getLogger(__name__)

SUSPICIOUS_IMAGES = 20
"""that change into one and the same picture in one run"""
LOOKUP_OUTAGE_S = 2.0
"""how long bytes wait for word whether they are known: enough to connect anew where a connection was cut"""
CUT_OFF_S = 8.25
"""what a run waits for in the database this long after it was to stop is cancelled: a lock, or a slow statement; a
second later, the connection to a server that does not even hear of it is given up"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended; with `breaker`, it stopped because too many images failed."""

    summary: RunSummary
    breaker: BreakerError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the steps of one run share. `writer` holds the lock; the others feed the engine beside it."""

    settings: RunSettings
    on_demand: ModelOnDemand
    model: StoredModel
    run_id: int
    url: str = field(repr=False)  # may hold a password
    writer: Session
    feeder: Session
    lookup: Session
    progress: Progress
    stop: Stop


def ingest(
    settings: RunSettings,
    *,
    url: str,
    progress: Progress,
    stop: Stop,
    wait: timedelta = timedelta(0),
    stdin: BinaryIO | None = None,
) -> Ended:
    """Bring the database at `url` up to the catalog. Raises CatvecError; what was committed stays.

    Another run with the same model is waited for as long as `wait` says, then LockedError is raised.
    """
    progress.begin("reading the catalog")
    from pipeline.models.registry import model_name
    from pipeline.store.connect import RUN_OUTAGE_S, Session, longest_away_s, translated
    from pipeline.store.migrate import migrate
    from pipeline.store.models import find_model
    from pipeline.store.runs import begin_run

    require_decoder(settings)
    rows = read_rows(settings, stdin)  # a wrong file is told before a model is looked for
    migrate(url)
    with translated(), ExitStack() as stack:
        writer = stack.enter_context(_locked(settings, url, progress, stop, wait))
        feeder = stack.enter_context(Session(url, give_up=stop.is_asked, patience_s=RUN_OUTAGE_S))
        lookup = stack.enter_context(Session(url, give_up=stop.is_asked, patience_s=LOOKUP_OUTAGE_S))
        progress.find_away = partial(longest_away_s, (writer, feeder))
        progress.begin("checking the model")
        stored = writer.run(lambda connection: find_model(connection, model_name(settings.model)))
        on_demand = ModelOnDemand(settings, stored, progress)
        model = writer.run(on_demand.register)
        run_id = writer.run(lambda connection: begin_run(connection, model, settings.catalog_name, settings.shard))
        job = _Job(
            settings=settings,
            on_demand=on_demand,
            model=model,
            run_id=run_id,
            url=url,
            writer=writer,
            feeder=feeder,
            lookup=lookup,
            progress=progress,
            stop=stop,
        )
        try:
            return _work_off(job, rows)
        except BaseException as error:
            close_failed(job.writer, job.run_id, error)
            raise


def _locked(settings: RunSettings, url: str, progress: Progress, stop: Stop, wait: timedelta) -> Session:
    """A session that holds the lock on the model. Raises LockedError when another holds it for too long."""
    from pipeline.models.registry import model_name
    from pipeline.store.connect import RUN_OUTAGE_S, Session
    from pipeline.store.runs import take_lock

    lock = partial(take_lock, model_name=model_name(settings.model), shard=settings.shard)
    session = Session(url, on_connect=lock, give_up=stop.is_asked, patience_s=RUN_OUTAGE_S)
    take_in_time(session.connection, progress=progress, stop=stop, wait=wait)
    return session


def _work_off(job: _Job, rows: Iterator[Product | BadRow | Deletion]) -> Ended:
    from pipeline.store.runs import end_run

    cutting_off = partial(job.stop.cutting_off, partial(_cancel, job), CUT_OFF_S)
    with cutting_off():
        differences = _sync(job, rows)
        scope = job.feeder.run(partial(scope_now, job.settings))
        work = _count(job, differences, scope)
    try:
        with cutting_off():
            _encode_missing(job, work, scope, moved=differences.images.moved)
            removed = _remove(job)
    except BreakerError as breaker:
        return _give_up(job, breaker, differences, work)
    counters = job.progress.snapshot()
    rest = (counters.total or 0) - counters.done
    finished = removed is not None and (rest <= 0 or not job.stop.is_asked())
    forgotten = 0
    if finished:
        job.progress.settle()
        forgotten = _complete(job)
    summary = _summarise(
        job,
        differences,
        work,
        stopped_by=None if finished else job.stop.reason,
        removed=removed,
        forgotten=forgotten,
    )
    state = "finished" if finished else "stopped"
    job.writer.run(lambda connection: end_run(connection, job.run_id, state, summary=summary))
    return Ended(summary=summary)


def _cancel(job: _Job) -> None:
    """All at once: a server that is frozen lets each of them wait for a second."""
    sessions = (job.lookup, job.feeder, job.writer)
    with ThreadPoolExecutor(len(sessions), thread_name_prefix="cancel") as pool:
        for session in sessions:
            pool.submit(session.cancel)


def _remove(job: _Job) -> Removed | None:
    """Take out of the search results what left the catalog; None when the stop is overdue: the next run does it."""
    from pipeline.store.removal import remove_missing

    catalog, shard = job.settings.catalog_name, job.settings.shard
    if job.stop.overdue(CUT_OFF_S):
        return None
    try:
        shown = job.feeder.run(partial(shown_beside, job.model))
        models = [job.model, shown] if shown else [job.model]
        return job.writer.run(lambda connection: remove_missing(connection, models, catalog, shard))
    except AwayError:
        if job.stop.overdue(CUT_OFF_S):
            return None
        raise


def _give_up(job: _Job, breaker: BreakerError, differences: Differences, work: WorkCount) -> Ended:
    """Too many images fail: nothing leaves the search results, and what failed is tried again by the next run."""
    from pipeline.store.runs import end_run, retry_at_once

    summary = _summarise(job, differences, work, stopped_by="failure_rate")

    def end(connection: Connection) -> None:
        retry_at_once(connection, job.run_id)
        end_run(connection, job.run_id, "failed", error=breaker.message, summary=summary)

    job.writer.run(end)
    return Ended(summary=summary, breaker=breaker)


def _sync(job: _Job, rows: Iterator[Product | BadRow | Deletion]) -> Differences:
    """Bring products and images up to the catalog."""
    from pipeline.store.sync import sync_catalog

    settings = job.settings
    job.progress.begin("syncing products")
    with job.progress.stage("sync"):
        return job.writer.run_once(
            lambda connection: sync_catalog(
                connection,
                rows,
                catalog=settings.catalog_name,
                max_remove_rate=settings.max_remove_rate,
                partial=settings.partial,
                shard=settings.shard,
            )
        )


def _count(job: _Job, differences: Differences, scope: Scope) -> WorkCount:
    """What is to be done, counted into the progress and the record of the run."""
    from pipeline.store.runs import record_synced
    from pipeline.store.work import count_work

    with job.progress.stage("sync"):
        work = count_work(job.feeder, job.model, scope)
    bad_rows = sum(differences.bad_rows.values())
    seen = work.images + bad_rows
    phase = "checking images" if work.due else "encoding images" if work.to_do else "finishing"
    for code, count in (*differences.bad_rows.items(), *work.deferred.items()):
        job.progress.fail(code, count)
    # last, because from now on what is counted is taken for work
    job.progress.begin_images(phase, total=seen, untouched=work.unchanged)
    failed = bad_rows + sum(work.deferred.values())
    job.writer.run(
        lambda connection: record_synced(connection, job.run_id, seen=seen, unchanged=work.unchanged, failed=failed)
    )
    return work


def _encode_missing(job: _Job, work: WorkCount, scope: Scope, *, moved: int) -> None:
    from pipeline.encoding import Destination, encode_work
    from pipeline.store.vectors import write_outcomes
    from pipeline.store.work import read_work

    if not work.to_do:
        return
    if work.missing > moved and not job.stop.is_asked():
        job.on_demand.prepare(work.missing - moved)  # while nothing is under way: it may fail
    job.feeder.run(partial(warn_of_upkeep, job.model, work.missing - moved))
    shown = job.feeder.run(partial(shown_beside, job.model))
    encode_work(
        read_work(job.feeder, job.model, scope, work),
        settings=job.settings,
        on_demand=job.on_demand,
        progress=job.progress,
        stop=job.stop,
        destination=Destination(
            find_known=partial(_find_known, job),
            write=partial(write_outcomes, job.writer, job.model, job.run_id, shown=shown),
            is_away=lambda: job.writer.is_away,
        ),
    )


def _find_known(job: _Job, hashes: Sequence[bytes]) -> set[bytes]:
    """Which contents have a vector; none while the database is away: a second encoding costs less than to wait."""
    from pipeline.store.work import find_known

    try:
        is_vain = job.writer.is_away or job.stop.overdue(CUT_OFF_S)
        return set() if is_vain else find_known(job.lookup, job.model, hashes)
    except AwayError:
        return set()


def _complete(job: _Job) -> int:
    """Everything was tried: forget what left long ago, have an index, and let the first model be the active one.

    Returns how many products and images were forgotten.
    """
    from pipeline.store.removal import forget
    from pipeline.store.runs import end_share

    catalog, shard, age = job.settings.catalog_name, job.settings.shard, job.settings.forget_after
    with job.progress.stage("forget"):
        forgotten = job.writer.run(lambda connection: forget(connection, catalog, age, shard))
    if job.progress.snapshot().changed >= SUSPICIOUS_IMAGES:
        job.writer.run(partial(_warn_of_placeholder, job))
    # once, and not while other shards write: each of their vectors would take a millisecond instead of nothing
    end = partial(end_share, model=job.model, catalog=catalog, run_id=job.run_id)
    if shard is None or job.writer.run(partial(end, shard=shard)):
        _complete_table(job)
    return forgotten


def _complete_table(job: _Job) -> None:
    """The model's table is whole: what concerns all of it, whatever wrote it."""
    from pipeline.store.index import refresh_statistics
    from pipeline.store.removal import forget_vectors
    from pipeline.store.roles import is_owner

    with job.progress.stage("forget"):
        forget_vectors(job.writer, job.model, job.settings.forget_after)
    counters, is_shard = job.progress.snapshot(), job.settings.shard is not None
    if counters.embedded or counters.reused or is_shard:
        job.writer.run(lambda connection: refresh_statistics(connection, job.model, if_free=is_shard))
    owns = job.writer.run(is_owner)
    if job.settings.build_index:
        have_index(job.writer, job.model, job.progress, url=job.url, owns=owns)
    if job.model.has_text:
        _encode_queries(job)
    job.writer.run(partial(open_up, job.model, owns))


def _warn_of_placeholder(job: _Job, connection: Connection) -> None:
    """Many pictures that turned into one and the same are rather the server's than the shop's doing."""
    from pipeline.store.changes import count_same_change

    images = count_same_change(connection, job.run_id)
    if images >= SUSPICIOUS_IMAGES:
        logger.warning(
            "%d pictures changed into one and the same: if their server showed a placeholder, run again with "
            "--recheck always when it shows them again",
            images,
        )


def _encode_queries(job: _Job) -> None:
    """Let apps that search by stored texts lose nothing when they come to read this model."""
    from pipeline.queries import encode_queries
    from pipeline.store.queries import find_missing

    try:
        missing = job.writer.run(lambda connection: find_missing(connection, job.model))
        if missing:
            job.progress.begin("encoding stored texts")
            with job.progress.stage("texts"):
                encode_queries(job.writer, missing, job.model, job.on_demand.load())
    except (CatvecError, RuntimeError) as error:  # RuntimeError: torch's, such as a device without memory left
        logger.warning(
            "stored texts are not encoded: %s; later: catvec queries refresh --model %s", error, job.model.name
        )


def _summarise(
    job: _Job,
    differences: Differences,
    work: WorkCount,
    *,
    stopped_by: str | None,
    removed: Removed | None = None,
    forgotten: int = 0,
) -> RunSummary:
    products = differences.products
    return summarise(
        job.progress,
        Beside(
            stopped_by=stopped_by,
            deferred=sum(work.deferred.values()),
            moved=differences.images.moved,
            removed=removed.images - min(removed.replaced, differences.images.moved) if removed else 0,
            forgotten=forgotten,
            products=ProductChanges(
                new=products.new, changed=products.changed, removed=removed.products if removed else 0
            ),
        ),
        run_id=job.run_id,
        model=job.model.name,
        dims=job.model.dims,
        settings=job.settings,
        on_demand=job.on_demand,
    )
