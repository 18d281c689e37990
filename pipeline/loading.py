"""What `catvec load BUNDLE` does: a bundle becomes rows of a database, as if the run had been there.

catalog → sync → part by part, each in one transaction → what left the catalog leaves the search results → index. What
is stored already is left alone, so the same command again goes on, or finds nothing to do. No model is loaded: its
identity travels with the vectors.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from pipeline.errors import CatalogError
from pipeline.finishing import close_failed, have_index, open_up, shown_beside, warn_of_upkeep
from pipeline.records import ProductChanges
from pipeline.summary import Beside, summarise
from pipeline.waiting import take_in_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pipeline.bundle.folder import Bundle
    from pipeline.engine.stop import Stop
    from pipeline.progress import Progress
    from pipeline.records import RunSummary
    from pipeline.settings import LoadSettings
    from pipeline.store.bundle import States
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel
    from pipeline.store.removal import Removed
    from pipeline.store.stage import Differences

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the steps of one load share; `session` holds the lock on the model."""

    settings: LoadSettings
    bundle: Bundle
    model: StoredModel
    run_id: int
    url: str = field(repr=False)  # may hold a password
    session: Session
    progress: Progress


@dataclass(slots=True)
class _Written:
    """What all parts brought, see `Loaded`; ids, for an image may stand in several parts."""

    vectors: int = 0
    changed: set[int] = field(default_factory=set)
    came: set[int] = field(default_factory=set)


def load(
    settings: LoadSettings,
    folder: Path,
    *,
    url: str,
    progress: Progress,
    stop: Stop,
    wait: timedelta = timedelta(0),
) -> RunSummary:
    """Bring the database at `url` up to the bundle. Raises CatvecError; what was committed stays.

    A run with the same model is waited for as long as `wait` says, then LockedError is raised.
    """
    from pipeline.bundle.folder import open_bundle
    from pipeline.store.connect import Session, longest_away_s, translated
    from pipeline.store.migrate import migrate
    from pipeline.store.runs import begin_run, take_lock

    progress.begin("opening the bundle")
    bundle = open_bundle(folder)
    _check(settings, bundle)
    migrate(url)
    with translated(), ExitStack() as stack:
        name = _choose_name(settings, bundle, url)
        session = stack.enter_context(closing(Session(url, on_connect=partial(take_lock, model_name=name))))
        progress.find_away = partial(longest_away_s, (session,))
        take_in_time(session.connection, progress=progress, stop=stop, wait=wait)
        progress.begin("opening the bundle")
        model = session.run(partial(_register, settings, bundle, name))
        run_id = session.run(lambda connection: begin_run(connection, model, bundle.manifest.catalog))
        job = _Job(
            settings=settings,
            bundle=bundle,
            model=model,
            run_id=run_id,
            url=url,
            session=session,
            progress=progress,
        )
        try:
            return _work_off(job)
        except BaseException as error:
            close_failed(job.session, job.run_id, error)
            raise


def _check(settings: LoadSettings, bundle: Bundle) -> None:
    """Before anything is written: what is found out later leaves the row of a model that nobody has. Raises
    ConfigError, BundleError, ModelError."""
    from pipeline.models.registry import check_name

    if settings.model_name is not None:
        check_name(settings.model_name)
    bundle.check()


def _choose_name(settings: LoadSettings, bundle: Bundle, url: str) -> str:
    """As asked for, else the name under which the database has this very model, else the bundle's own."""
    from pipeline.store.connect import Session
    from pipeline.store.models import find_twin

    if settings.model_name is not None:
        return settings.model_name
    model = bundle.manifest.model
    with Session(url) as session:
        stored = session.run(lambda connection: find_twin(connection, model.spec, model.fingerprint))
    return stored.name if stored else model.name


def _register(settings: LoadSettings, bundle: Bundle, name: str, connection: Connection) -> StoredModel:
    """The row of the bundle's model, made or checked. Raises ModelError when it is another than it was."""
    from pipeline.store.models import find_model, register_model

    model, stored = bundle.manifest.model, find_model(connection, name)
    # where the weights are on the machine of the bundle says nothing about this one
    location = stored.location if stored else model.location
    spec = replace(model.spec, name=name)
    return register_model(connection, spec, model.fingerprint, location=location, storage=settings.storage)


def _work_off(job: _Job) -> RunSummary:
    from pipeline.store.bundle import count_states, record_loaded
    from pipeline.store.removal import remove_missing
    from pipeline.store.runs import end_run

    catalog = job.bundle.manifest.catalog
    differences = _sync(job)
    before = job.session.run(lambda connection: count_states(connection, job.model, catalog, run_id=job.run_id))
    job.session.run(partial(warn_of_upkeep, job.model, before.pending))
    bad_rows = sum(differences.bad_rows.values())
    job.progress.begin_images("loading vectors", total=before.images + bad_rows, untouched=before.unchanged)
    with job.progress.stage("images"):
        written = _write_parts(job)
    shown = job.session.run(partial(shown_beside, job.model))
    models = [job.model, shown] if shown else [job.model]
    removed = job.session.run(lambda connection: remove_missing(connection, models, catalog))
    after = job.session.run(
        lambda connection: count_states(connection, job.model, catalog, run_id=job.run_id, came=written.came)
    )
    _finish(job, written)
    _count(job, differences, after, changed=len(written.changed))
    summary = _summarise(job, differences, removed)

    def end(connection: Connection) -> None:
        record_loaded(connection, summary)
        end_run(connection, job.run_id, "finished", summary=summary)

    job.session.run(end)
    return summary


def _sync(job: _Job) -> Differences:
    from pipeline.bundle.catalog import read_rows
    from pipeline.store.index import refresh_statistics
    from pipeline.store.sync import sync_catalog

    job.progress.begin("syncing products")
    with job.progress.stage("sync"), _hinting():
        differences = job.session.run_once(
            lambda connection: sync_catalog(
                connection,
                read_rows(job.bundle),
                catalog=job.bundle.manifest.catalog,
                max_remove_rate=job.settings.max_remove_rate,
                partial=job.settings.partial,
            )
        )
        if differences.images.new:
            # the parts are joined with what has just come, which the planner may yet take for nothing
            job.session.run(lambda connection: refresh_statistics(connection, job.model))
    return differences


@contextmanager
def _hinting() -> Iterator[None]:
    """A catalog that is refused comes from a bundle here, and is named there."""
    try:
        yield
    except CatalogError as error:
        raise CatalogError(
            error.message,
            hint="if they are really gone, raise --max-remove-rate; if the bundle holds only a part of the catalog, "
            "add --partial; if it is another catalog beside the first, make it under a name of its own: catvec run "
            "CATALOG --to FOLDER --catalog-name NAME",
        ) from error


def _write_parts(job: _Job) -> _Written:
    """All parts, those that hold nothing new included: only the database knows what it has."""
    from pipeline.bundle.parts import read_contents, read_part
    from pipeline.store.bundle import write_part
    from pipeline.store.work import find_known

    total = _Written()
    contents = read_contents(job.bundle)
    wanted = _wanted(job, contents.shown)
    shown = job.session.run(partial(shown_beside, job.model))
    paths = job.bundle.parts()
    for done, path in enumerate(paths):
        job.progress.step(done, len(paths), unit="parts")
        with job.progress.stage("read"):
            part = read_part(job.bundle, path)
        with job.progress.stage("write"):
            known = find_known(job.session, job.model, part.hashes)
            fresh = [n for n, sha256 in enumerate(part.hashes) if sha256 in wanted and sha256 not in known]
            loaded = job.session.run(
                partial(
                    write_part,
                    model=job.model,
                    run_id=job.run_id,
                    images=contents.latest(part.images),
                    hashes=[part.hashes[n] for n in fresh],
                    vectors=part.vectors[fresh],
                    shown=shown,
                )
            )
        total.vectors += loaded.vectors
        total.changed |= loaded.changed
        total.came |= loaded.came
    return total


def _wanted(job: _Job, shown: Mapping[bytes, bytes]) -> set[bytes]:
    """The contents that the catalog's images show: of products that left it meanwhile, or belong to another catalog
    of this database, the vectors stay behind."""
    from pipeline.bundle.catalog import image_key, read_images
    from pipeline.store.bundle import find_refused

    refused = job.session.run(partial(find_refused, catalog=job.bundle.manifest.catalog))
    images = (image for image in read_images(job.bundle) if image.product_id not in refused)
    keys = (image_key(image.product_id, image.url) for image in images)
    return {shown[key] for key in keys if key in shown}


def _finish(job: _Job, written: _Written) -> None:
    """As at the end of a run, but that texts, which need the model itself, are left to others."""
    from pipeline.store.index import refresh_statistics
    from pipeline.store.queries import find_missing
    from pipeline.store.roles import is_owner

    if written.vectors:
        job.session.run(lambda connection: refresh_statistics(connection, job.model))
    owns = job.session.run(is_owner)
    if job.settings.build_index:
        have_index(job.session, job.model, job.progress, url=job.url, owns=owns)
    missing = job.session.run(lambda connection: find_missing(connection, job.model)) if job.model.has_text else []
    if missing:
        logger.warning(
            "%d stored texts have no vector under this model; with its weights: catvec queries refresh --model %s",
            len(missing),
            job.model.name,
        )
    job.session.run(partial(open_up, job.model, owns))


def _count(job: _Job, differences: Differences, after: States, *, changed: int) -> None:
    """Count the images by what the load did to them: law 1 holds, for each is counted by what it is now."""
    job.progress.begin_images(
        "finishing",
        total=after.images + sum(differences.bad_rows.values()),
        untouched=after.unchanged,
    )
    job.progress.add(embedded=after.embedded, reused=after.reused, changed=changed)
    for code, count in (*differences.bad_rows.items(), *after.failed.items()):
        job.progress.fail(code, count)


def _summarise(job: _Job, differences: Differences, removed: Removed) -> RunSummary:
    products, moved = differences.products, differences.images.moved
    return summarise(
        job.progress,
        Beside(
            moved=moved,
            removed=removed.images - min(removed.replaced, moved),
            products=ProductChanges(new=products.new, changed=products.changed, removed=removed.products),
        ),
        run_id=job.run_id,
        model=job.model.name,
        dims=job.model.dims,
    )
