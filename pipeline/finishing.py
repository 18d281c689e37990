"""How `catvec run` and `catvec load` end in a database: an index is there, and the first model becomes active.

And what is to be known of that at their beginning: an index that is there is kept up with each vector.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.errors import CatvecError

if TYPE_CHECKING:
    from pipeline.progress import Progress
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)


UPKEEP_LEAST = 10_000
"""new vectors from which on it is worth a word: half a minute"""
UPKEEP_RATE, BUILD_RATE = 300, 3_800
"""vectors/s that come into a table with an HNSW index (benchmarks/results/write_path.json: 253 of 512 dimensions, 347
at best), and that an index is built of (similar.json: 100,000 in 26 s); on two cores, more on larger servers"""
CLEARLY = 2.0


def warn_of_upkeep(model: StoredModel, new: int, connection: Connection) -> None:
    """Say so when an index makes so many `new` vectors slower than they need be, and what to do about it."""
    from pipeline.report.words import span
    from pipeline.store.build import count_vectors
    from pipeline.store.index import find_index

    if new < UPKEEP_LEAST or not find_index(connection, model).exists:
        return
    stored = count_vectors(connection, model)
    kept_up_s, built_s = new / UPKEEP_RATE, (stored + new) / BUILD_RATE
    if kept_up_s > CLEARLY * built_s:
        logger.warning(
            "%s new vectors go into a table of %s that has an index, which takes some hundred a second: about %s; "
            "building it anew takes about %s, and vectors without one next to nothing; if searches may be slow "
            "meanwhile: stop this, catvec index drop --model %s, and the same command again builds it at its end",
            f"{new:,}",
            f"{stored:,}",
            span(kept_up_s),
            span(built_s),
            model.name,
        )


def shown_beside(model: StoredModel, connection: Connection) -> StoredModel | None:
    """The model that apps read, when it is another than this one."""
    from pipeline.store.models import list_models

    others = (other for other in list_models(connection) if other.model_id != model.model_id)
    return next((other for other in others if other.is_active), None)


def have_index(session: Session, model: StoredModel, progress: Progress, *, url: str, owns: bool) -> None:
    """Build the index if it is missing; `owns` says that this user may."""
    from pipeline.store.build import watched
    from pipeline.store.index import build_index, find_index
    from pipeline.store.models import has_vectors

    connection = session.connection()
    if not has_vectors(connection, model):
        return  # an index on nothing would only make the first load slow
    if owns:
        if not find_index(connection, model).is_valid:
            progress.begin("building the index")
        with progress.stage("index"), watched(url, model, progress):
            build_index(connection, model, progress)
    elif not find_index(connection, model).is_valid:
        logger.warning(
            "model %s has no index, so searches read every vector; user %r may not build it: the owner of catvec's "
            "tables runs once: catvec index build",
            model.name,
            connection.info.user,
        )


def open_up(model: StoredModel, owns: bool, connection: Connection) -> None:
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


def close_failed(session: Session, run_id: int, error: BaseException) -> None:
    """Leave word in the runs table; without the database the next run closes this one as lost."""
    from pipeline.store.runs import end_run

    state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
    reason = error.message if isinstance(error, CatvecError) else f"{type(error).__name__}: {error}"
    try:
        session.run_once(lambda connection: end_run(connection, run_id, state, error=reason))
    except CatvecError as second:
        logger.debug("run %d, which failed, could not be closed: %s", run_id, second)
