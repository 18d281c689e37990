"""What `catvec plan` and `run --dry-run` show: what a run would do, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from pipeline.inputs import read_rows, scope_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.estimate import Estimate
    from pipeline.records import BadRow, Deletion, ImageRef, Product
    from pipeline.settings import RunSettings
    from pipeline.store.connect import Connection
    from pipeline.store.models import StoredModel
    from pipeline.store.plan import Coming, Marked
    from pipeline.store.stage import Differences
    from pipeline.store.work import WorkCount


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductPlan:
    """Products by what a run would do to their rows; `changed` in title, price, attributes …, or back again."""

    new: int
    changed: int
    unchanged: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """Image references by what a run would do to them.

    `new` and `removed` are without the `moved`, which stand at other URLs than before within their product. `back`
    had left. `missing` are stored and lack a vector under the model. `recheck` have one and are due to be asked for
    again, `retry` failed and are due, `deferred` failed and are not. The rest is `unchanged`.
    """

    new: int
    moved: int
    back: int
    missing: int
    recheck: int
    retry: int
    deferred: int
    unchanged: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do. `to_fetch` images would be asked for; `refusal` says why the run would not begin at
    all. `estimate` is what it would take, if that was asked for."""

    catalog: str
    model: str
    is_new_model: bool
    products: ProductPlan
    images: ImagePlan
    bad_rows: Mapping[str, int]
    to_fetch: int
    refusal: str | None
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A plan, some of the images that would be asked for, and the model as the database knows it."""

    plan: Plan
    sample: Sequence[ImageRef]
    model: StoredModel | None


def make_plan(settings: RunSettings, *, url: str, stdin: BinaryIO | None = None) -> Plan:
    """Compare the catalog with the database at `url`. Raises CatvecError."""
    return look(settings, url=url, stdin=stdin).plan


def look(settings: RunSettings, *, url: str, stdin: BinaryIO | None = None, sample: int = 0) -> Look:
    """The same, with up to `sample` of the images that a run would ask for. Raises CatvecError."""
    from pipeline.store.connect import connect, translated
    from pipeline.store.migrate import current_version, require_current

    rows = read_rows(settings, stdin)
    with translated(), connect(url) as connection, connection.transaction(force_rollback=True):
        if current_version(connection) is None:
            return _plan_first(settings, connection, rows, sample)
        require_current(connection)
        return _plan(settings, connection, rows, sample)


def _plan_first(
    settings: RunSettings, connection: Connection, rows: Iterator[Product | BadRow | Deletion], sample: int
) -> Look:
    from pipeline.store.plan import Coming, Marked, sample_stated
    from pipeline.store.stage import stage_first_catalog
    from pipeline.store.work import WorkCount

    found = stage_first_catalog(connection, rows)
    nothing = WorkCount(images=0, missing=0, due=0, retries=0, deferred={})
    coming = Coming(new=found.images.stated, back=0, unknown=0)
    plan = _put_together(settings, found, nothing, coming, Marked(products=0, images=0), is_new_model=True)
    return Look(plan=plan, sample=sample_stated(connection, sample), model=None)


def _plan(
    settings: RunSettings, connection: Connection, rows: Iterator[Product | BadRow | Deletion], sample: int
) -> Look:
    from pipeline.models.registry import model_name
    from pipeline.store.models import find_model
    from pipeline.store.plan import (
        Coming,
        count_coming,
        count_marked,
        count_staying,
        sample_stated,
        sample_to_fetch,
    )
    from pipeline.store.stage import stage_catalog
    from pipeline.store.work import WorkCount

    found = stage_catalog(
        connection, rows, catalog=settings.catalog_name, partial=settings.partial, shard=settings.shard
    )
    marked = count_marked(connection, settings.catalog_name, settings.shard)
    model = find_model(connection, model_name(settings.model))
    if model is None or model.is_retired:
        nothing = WorkCount(images=0, missing=0, due=0, retries=0, deferred={})
        coming = Coming(new=found.images.stated, back=0, unknown=0)
        plan = _put_together(settings, found, nothing, coming, marked, is_new_model=True)
        return Look(plan=plan, sample=sample_stated(connection, sample), model=model)
    scope = scope_now(settings, connection)
    work, coming = count_staying(connection, model, scope), count_coming(connection, model)
    plan = _put_together(settings, found, work, coming, marked, is_new_model=False)
    return Look(plan=plan, sample=sample_to_fetch(connection, model, scope, sample), model=model)


def _put_together(
    settings: RunSettings,
    found: Differences,
    work: WorkCount,
    coming: Coming,
    marked: Marked,
    *,
    is_new_model: bool,
) -> Plan:
    from pipeline.models.registry import model_name
    from pipeline.store.sync import find_refusal

    products, moved = found.products, found.images.moved
    refusal = find_refusal(
        found, catalog=settings.catalog_name, max_remove_rate=settings.max_remove_rate, shard=settings.shard
    )
    return Plan(
        catalog=settings.catalog_name,
        model=model_name(settings.model),
        is_new_model=is_new_model,
        products=ProductPlan(
            new=products.new,
            changed=products.changed,
            unchanged=products.stated - products.new - products.changed,
            removed=products.gone + marked.products,
        ),
        images=ImagePlan(
            new=max(0, coming.new - moved),
            moved=moved,
            back=coming.back,
            missing=work.missing,
            recheck=work.due,
            retry=work.retries,
            deferred=sum(work.deferred.values()),
            unchanged=work.unchanged,
            removed=found.images.gone - moved + marked.images,
        ),
        bad_rows=found.bad_rows,
        to_fetch=coming.new + coming.unknown + work.to_do,
        refusal=refusal.message if refusal else None,
    )
