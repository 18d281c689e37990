"""What `catvec run` does: a catalog becomes searchable vectors.

catalog → sync → work list → fetch → decode → encode → write, then the index, and the first model becomes the
active one. Whatever interrupts it, the same command again goes on: the work list is what has no vector yet.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline.errors import CatvecError
from pipeline.records import RunSummary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from pipeline.engine.local import Fetcher
    from pipeline.engine.stop import Stop
    from pipeline.models.encoder import Encoder
    from pipeline.progress import Progress
    from pipeline.records import BadRow, Outcomes, Product
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the steps of one run share. `writer` holds the lock; the others feed the engine beside it."""

    settings: RunSettings
    encoder: Encoder
    model: StoredModel
    run_id: int
    url: str = field(repr=False)  # may hold a password
    writer: Session
    feeder: Session
    lookup: Session
    progress: Progress
    stop: Stop


def ingest(
    settings: RunSettings, *, url: str, progress: Progress, stop: Stop, stdin: BinaryIO | None = None
) -> RunSummary:
    """Bring the database at `url` up to the catalog. Raises CatvecError; what was committed stays."""
    from pipeline.catalog.open import read_catalog
    from pipeline.models.registry import model_name
    from pipeline.store.connect import Session, translated
    from pipeline.store.migrate import migrate
    from pipeline.store.runs import take_lock

    progress.begin("reading the catalog")
    lock = partial(take_lock, model_name=model_name(settings.model))
    rows = read_catalog(settings.catalog, stdin=stdin)  # a wrong file is told before a model is loaded
    migrate(url)
    with translated(), ExitStack() as stack:
        writer = stack.enter_context(Session(url, on_connect=lock, give_up=stop.is_asked))
        feeder, lookup = (stack.enter_context(Session(url, give_up=stop.is_asked)) for _ in range(2))
        progress.begin("loading the model")
        encoder = _load_encoder(settings, writer)
        model, run_id = writer.run(partial(_register, settings, encoder))
        job = _Job(
            settings=settings,
            encoder=encoder,
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
            _close_failed(job, error)
            raise


def _load_encoder(settings: RunSettings, session: Session) -> Encoder:
    from pipeline.models.encoder import load_encoder
    from pipeline.models.registry import model_name
    from pipeline.models.self_test import self_test
    from pipeline.store.models import find_model

    stored = session.run(lambda connection: find_model(connection, model_name(settings.model)))
    encoder = load_encoder(settings.model, registered_revision=stored.revision if stored else None)
    self_test(encoder)
    return encoder


def _register(settings: RunSettings, encoder: Encoder, connection: Connection) -> tuple[StoredModel, int]:
    """The stored model, made or checked, and a new run of it; one transaction."""
    from pipeline.models.preprocess import fingerprint
    from pipeline.models.registry import hub_id
    from pipeline.store.models import register_model
    from pipeline.store.runs import begin_run

    wanted = settings.model.model
    location = wanted if hub_id(wanted) else str(Path(wanted).expanduser().resolve())
    spec = encoder.spec
    model = register_model(
        connection, spec, fingerprint(spec.preprocess), location=location, storage=settings.storage
    )
    return model, begin_run(connection, model, settings.catalog_name)


def _work_off(job: _Job, rows: Iterator[Product | BadRow]) -> RunSummary:
    from pipeline.store.runs import end_run

    removed = _sync(job, rows)
    _encode_missing(job)
    finished = not job.stop.is_asked()
    if finished:
        _complete(job)
    job.writer.run(lambda connection: end_run(connection, job.run_id, "finished" if finished else "stopped"))
    return _summarise(job, removed=removed, finished=finished)


def _sync(job: _Job, rows: Iterator[Product | BadRow]) -> int:
    """Bring products and images up to the catalog; returns how many images left the search results."""
    from pipeline.store.runs import record_synced
    from pipeline.store.sync import sync_catalog
    from pipeline.store.work import count_work

    settings, progress = job.settings, job.progress
    progress.begin("syncing products")
    with progress.stage("sync"):
        synced = job.writer.run_once(
            lambda connection: sync_catalog(
                connection, rows, catalog=settings.catalog_name, max_remove_rate=settings.max_remove_rate
            )
        )
        count = count_work(job.feeder, job.model, settings.catalog_name)
    bad_rows = sum(synced.bad_rows.values())
    unchanged = count.images - count.missing
    progress.begin("encoding images", total=count.images + bad_rows)
    progress.add(unchanged=unchanged)
    for code, rows_of_code in synced.bad_rows.items():
        progress.fail(code, rows_of_code)
    job.writer.run(
        lambda connection: record_synced(
            connection,
            job.run_id,
            seen=count.images + bad_rows,
            unchanged=unchanged,
            failed=bad_rows,
            removed=synced.removed,
        )
    )
    return synced.removed


def _encode_missing(job: _Job) -> None:
    from pipeline.engine.local import LocalEngine, Stages
    from pipeline.images.decode import decode
    from pipeline.store.vectors import write_outcomes
    from pipeline.store.work import find_known, read_work

    settings, encoder = job.settings, job.encoder

    def write(outcomes: Outcomes) -> Outcomes:
        return write_outcomes(job.writer, job.model, job.run_id, outcomes)

    stages = Stages(
        open_fetcher=partial(_open_fetcher, settings),
        find_known=partial(find_known, job.lookup, job.model),
        decode=lambda fetched: decode(fetched, encoder.spec.preprocess, settings.decode),
        encode=encoder.encode_images,
        write=write,
    )
    engine = LocalEngine(
        stages,
        job.progress,
        job.stop,
        window=settings.fetch.concurrency + 2 * encoder.batch_size,
        decode_threads=settings.decode_threads or _usable_cores(),
        batch_size=encoder.batch_size,
    )
    with job.progress.stage("images"), job.stop.draining():
        engine.run(read_work(job.feeder, job.model, settings.catalog_name))


def _open_fetcher(settings: RunSettings) -> AbstractAsyncContextManager[Fetcher]:
    from pipeline.catalog.open import image_root
    from pipeline.images.fetch import Fetcher as ImageFetcher

    return ImageFetcher(settings.fetch, image_root(settings.catalog))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _complete(job: _Job) -> None:
    """Everything was tried: have an index, and let the first model be the active one."""
    from pipeline.store.index import refresh_statistics
    from pipeline.store.roles import is_owner

    counters = job.progress.snapshot()
    if counters.embedded or counters.reused:
        job.writer.run(lambda connection: refresh_statistics(connection, job.model))
    owns = job.writer.run(is_owner)
    if job.settings.build_index:
        _have_index(job, owns=owns)
    if job.model.has_text:
        _encode_queries(job)
    job.writer.run(partial(_open_up, job.model, owns))


def _have_index(job: _Job, *, owns: bool) -> None:
    from pipeline.store.build import watched
    from pipeline.store.index import build_index, find_index
    from pipeline.store.models import has_vectors

    connection = job.writer.connection()
    if not has_vectors(connection, job.model):
        return  # an index on nothing would only make the first load slow
    if owns:
        job.progress.begin("building the index")
        with job.progress.stage("index"), watched(job.url, job.model, job.progress):
            build_index(connection, job.model, job.progress)
    elif not find_index(connection, job.model).is_valid:
        logger.warning(
            "model %s has no index, so searches read every vector; user %r may not build it: the owner of catvec's "
            "tables runs once: catvec index build",
            job.model.name,
            connection.info.user,
        )


def _open_up(model: StoredModel, owns: bool, connection: Connection) -> None:
    """Let the model be activated, and do so when apps read none yet."""
    from pipeline.store.models import activate_model, has_vectors, list_models, mark_ready

    if not has_vectors(connection, model):
        return  # nothing to search in: apps keep what they have
    mark_ready(connection, model)
    if any(other.is_active for other in list_models(connection)):
        return
    if owns:
        activate_model(connection, model.name)
    else:
        logger.warning(
            "apps read no model yet; the owner of catvec's tables runs: catvec models activate %s", model.name
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
                encode_queries(job.writer, missing, job.model, job.encoder)
    except (CatvecError, RuntimeError) as error:  # RuntimeError: torch's, such as a device without memory left
        logger.warning(
            "stored texts are not encoded: %s; later: catvec queries refresh --model %s", error, job.model.name
        )


def _close_failed(job: _Job, error: BaseException) -> None:
    """Leave word in the runs table; without the database the next run closes this one as lost."""
    from pipeline.store.runs import end_run

    state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    reason = error.message if isinstance(error, CatvecError) else f"{type(error).__name__}: {error}"
    try:
        job.writer.run_once(lambda connection: end_run(connection, job.run_id, state, reason))
    except CatvecError as second:
        logger.debug("the failed run could not be closed: %s", second)


def _summarise(job: _Job, *, removed: int, finished: bool) -> RunSummary:
    counters, encoder = job.progress.snapshot(), job.encoder
    seen = counters.total or 0
    return RunSummary(
        run_id=job.run_id,
        finished=finished,
        seen=seen,
        unchanged=counters.unchanged,
        reused=counters.reused,
        embedded=counters.embedded,
        failed=counters.failed,
        pending=seen - counters.done,
        removed=removed,
        failures_by_code=counters.failures_by_code,
        seconds=round(counters.seconds, 3),
        images_per_s=round(counters.images_per_s, 1),
        model=job.model.name,
        dims=job.model.dims,
        device=encoder.device,
        precision=encoder.precision,
        batch_size=encoder.batch_size,
        stage_seconds=counters.stage_seconds,
    )
