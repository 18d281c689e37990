"""How `catvec run` and `catvec load` end in a database: an index is there, and the first model becomes active."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.errors import CatvecError

if TYPE_CHECKING:
    from pipeline.progress import Progress
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel

logger = logging.getLogger(__name__)


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
