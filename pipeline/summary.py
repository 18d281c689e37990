"""What a run came to, put together from its counters: into a database, into a bundle, or out of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.records import ProductChanges, RunSummary

if TYPE_CHECKING:
    from pipeline.models.encoder import Encoder
    from pipeline.progress import Progress

NO_CHANGES = ProductChanges(new=0, changed=0, removed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What the counters of the progress do not say; see RunSummary."""

    stopped_by: str | None = None
    deferred: int = 0
    moved: int = 0
    removed: int = 0
    forgotten: int = 0
    products: ProductChanges = NO_CHANGES


def summarise(
    progress: Progress, beside: Beside, *, run_id: int | None, model: str, dims: int, encoder: Encoder | None
) -> RunSummary:
    """Law 1 holds by what is pending: all that was seen and came to no end."""
    counters = progress.snapshot()
    seen = counters.total or 0
    return RunSummary(
        run_id=run_id,
        finished=beside.stopped_by is None,
        stopped_by=beside.stopped_by,
        seen=seen,
        unchanged=counters.unchanged,
        reused=counters.reused,
        embedded=counters.embedded,
        failed=counters.failed,
        pending=seen - counters.done,
        checked=counters.checked,
        changed=counters.changed,
        deferred=beside.deferred,
        moved=beside.moved,
        removed=beside.removed,
        forgotten=beside.forgotten,
        products=beside.products,
        failures_by_code=counters.failures_by_code,
        seconds=round(counters.seconds, 3),
        images_per_s=round(counters.images_per_s, 1),
        model=model,
        dims=dims,
        device=encoder.device if encoder else None,
        precision=encoder.precision if encoder else None,
        batch_size=encoder.batch_size if encoder else None,
        stage_seconds=counters.stage_seconds,
    )
