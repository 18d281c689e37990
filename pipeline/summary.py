"""What a run came to, put together from its counters: into a database, into a bundle, or out of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.encoding import usable_cores
from pipeline.limits import Circumstances, name_limit
from pipeline.pace import cost_of
from pipeline.records import ProductChanges, RunSummary

if TYPE_CHECKING:
    from pipeline.on_demand import ModelOnDemand
    from pipeline.progress import Progress, Snapshot
    from pipeline.settings import RunSettings

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
    progress: Progress,
    beside: Beside,
    *,
    run_id: int | None,
    model: str,
    dims: int,
    settings: RunSettings | None = None,
    on_demand: ModelOnDemand | None = None,
) -> RunSummary:
    """Law 1 holds by what is pending: all that was seen and came to no end. What only copies vectors has no settings
    and no model."""
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
        cost=cost_of(counters.seconds, settings.gpu_price) if settings else None,
        shard=str(settings.shard) if settings and settings.shard else None,
        model=model,
        dims=dims,
        device=on_demand.device if on_demand else None,
        precision=on_demand.precision if on_demand else None,
        batch_size=on_demand.batch_size() if on_demand and on_demand.device else None,
        stage_seconds=counters.stage_seconds,
        stage_loads=counters.loads(),
        limit=_name_limit(counters, beside, settings, on_demand) if settings and on_demand else None,
    )


def _name_limit(counters: Snapshot, beside: Beside, settings: RunSettings, on_demand: ModelOnDemand) -> str | None:
    if beside.stopped_by == "failure_rate":
        return None
    circumstances = Circumstances(
        settings=settings,
        device=on_demand.device,
        precision=on_demand.precision,
        hosts=counters.hosts,
        cores=usable_cores(),
    )
    limit = name_limit(counters, circumstances)
    return limit.sentence if limit else None
