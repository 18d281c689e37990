"""What a run would find to do, counted from the same joins that a run writes by. Nothing stored is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.store.work import WorkCount, count_work_in

if TYPE_CHECKING:
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel
    from pipeline.store.work import Scope

# beside the temporary tables of `stage`
STAYING = " WHERE NOT EXISTS (SELECT FROM gone_images gone WHERE gone.image_id = task.image_id)"

COUNT_COMING = """
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new)
  FROM differing_images
 WHERE NOT was_there
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """Image references that the catalog brings: never seen before, or back from among those that had left."""

    new: int
    back: int


def count_staying(connection: Connection, model: StoredModel, scope: Scope) -> WorkCount:
    """The work on images that are stored and that the staged catalog still names."""
    return count_work_in(connection, model, scope, only=STAYING)


def count_coming(connection: Connection) -> Coming:
    [(new, back)] = connection.execute(COUNT_COMING).fetchall()
    return Coming(new=new, back=back)
