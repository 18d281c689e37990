"""Everything the page shows, gathered: from the database, the timeline, and the images themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pipeline import __version__
from pipeline.errors import ConfigError, StoreError
from pipeline.pace import show_cost
from pipeline.report import words
from pipeline.report.chart import draw
from pipeline.report.pictures import fetch_pictures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.records import Hit, RunSummary
    from pipeline.report.chart import Chart
    from pipeline.report.pictures import Picture
    from pipeline.settings import RunSettings
    from pipeline.store.changes import RecordedRun, RemovedProduct, ShownImage
    from pipeline.store.connect import Connection
    from pipeline.store.failures import FailureGroup
    from pipeline.timeline import Timeline

NEW_PRODUCTS: Final = 12
NEIGHBOURS: Final = 5
CHANGED_IMAGES: Final = 12
REMOVED_PRODUCTS: Final = 20
FAILURE_GROUPS: Final = 25

PICTURES_S: Final = 20.0
"""seconds for all pictures of the page"""
PICTURES_OF_A_STOPPED_RUN_S: Final = 3.0
"""whoever stops a run waits for its end, and a server that is down is no better now"""
NEIGHBOURS_S: Final = 10.0
"""seconds for all searches; without an index each compares every vector"""

_WHOLE: Final = "images"
"""a stage that is the others together"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One number with its name. `key` picks a colour, `share` of the images is 0 to 100."""

    name: str
    value: str
    help: str = ""
    key: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A product or image with its picture, and its nearest neighbours if it has any."""

    product_id: str
    title: str
    picture: Picture
    link: str | None
    note: str = ""
    neighbours: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One failure in words."""

    product_id: str
    location: str
    link: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """A group of failures in words; `share` of the largest group is 0 to 100."""

    host: str
    code: str
    stage: str
    kind: str
    count: str
    share: float
    next_try: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the template turns into HTML."""

    catalog: str
    model: str
    tone: str
    headline: str
    sentence: str
    when: str
    error: str | None
    law: list[Count]
    changes: list[Count]
    products: list[Count]
    stages: list[Count]
    facts: list[Count]
    chart: Chart | None
    failures: list[Failures]
    failures_left_out: str
    failures_standing: str
    new: list[Card]
    changed: list[Card]
    removed: list[RemovedProduct]
    removed_left_out: str
    pictures: int
    pictures_missing: int
    made: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the database says about the run. `neighbours` are by product id."""

    run: RecordedRun
    new: list[ShownImage]
    neighbours: Mapping[str, list[Hit]]
    changed: list[ShownImage]
    removed: list[RemovedProduct]
    groups: list[FailureGroup]


def gather(url: str, *, summary: RunSummary, timeline: Timeline, settings: RunSettings) -> Page:
    """Read what the run changed, and fetch the pictures of it. Raises StoreError."""
    assert summary.run_id is not None  # noqa: S101 - only a run into a database has a report
    found = _read(url, summary.run_id)
    pictures = _fetch(found, summary, settings)
    now = datetime.now(UTC)
    return Page(
        catalog=found.run.catalog,
        model=found.run.model,
        tone=words.tone(summary),
        headline=words.headline(summary),
        sentence=words.sentence(summary),
        when=words.moment(found.run.started_at),
        error=found.run.error,
        law=_law(summary),
        changes=_changes(summary),
        products=_products(summary),
        stages=_stages(summary),
        facts=_facts(summary, found.run),
        chart=draw(timeline),
        failures=[_failures(group, found.groups[0].failures, now) for group in found.groups[:FAILURE_GROUPS]],
        failures_left_out=_sum(found.groups[FAILURE_GROUPS:]),
        failures_standing=_sum(found.groups),
        new=[_new_card(image, found.neighbours.get(image.product_id, []), pictures) for image in found.new],
        changed=[_card(image, pictures, note=words.moment(image.since, now=now)) for image in found.changed],
        removed=found.removed,
        removed_left_out=_count(summary.products.removed - len(found.removed)),
        pictures=len(pictures),
        pictures_missing=sum(picture.data is None for picture in pictures.values()),
        made=words.moment(now),
    )


def _read(url: str, run_id: int) -> _Found:
    from pipeline.store.changes import (
        find_run,
        list_removed_products,
        sample_changed_images,
        sample_new_products,
    )
    from pipeline.store.failures import FailureFilter, group_failures
    from pipeline.store.migrate import open_current

    with open_current(url) as session:
        connection = session.connection()
        run = find_run(connection, run_id)
        new = sample_new_products(connection, run, limit=NEW_PRODUCTS)
        return _Found(
            run=run,
            new=new,
            neighbours=_find_neighbours(connection, new, run),
            changed=sample_changed_images(connection, run, limit=CHANGED_IMAGES),
            removed=list_removed_products(connection, run, limit=REMOVED_PRODUCTS),
            groups=group_failures(connection, FailureFilter(catalog=run.catalog, model=run.model)),
        )


def _fetch(found: _Found, summary: RunSummary, settings: RunSettings) -> Mapping[str, Picture]:
    hits = [hit.image for hits in found.neighbours.values() for hit in hits]
    was_stopped = summary.stopped_by in {"SIGINT", "SIGTERM", "failure_rate"}
    return fetch_pictures(
        # what is looked at first is fetched first
        [*(image.url for image in (*found.new, *found.changed)), *hits],
        settings,
        within_s=PICTURES_OF_A_STOPPED_RUN_S if was_stopped else PICTURES_S,
    )


def _find_neighbours(connection: Connection, images: list[ShownImage], run: RecordedRun) -> Mapping[str, list[Hit]]:
    """The nearest products of each, by product id; those that the time does not suffice for are left out."""
    from pipeline.store.changes import bounded
    from pipeline.store.search import similar_products

    found: dict[str, list[Hit]] = {}
    deadline = time.monotonic() + NEIGHBOURS_S
    for image in images:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        try:
            with bounded(connection, left_s):
                found[image.product_id] = similar_products(
                    connection, image.product_id, k=NEIGHBOURS, conditions={}, model=run.model
                )
        except (ConfigError, StoreError):  # too slow, or forgotten or retired meanwhile
            continue
    return found


def _law(summary: RunSummary) -> list[Count]:
    """What became of every image of the catalog; the parts add up to the whole."""
    parts = (
        ("unchanged", summary.unchanged, "have the vector they had"),
        ("embedded", summary.embedded, "were encoded"),
        ("reused", summary.reused, "show bytes that had a vector already"),
        ("failed", summary.failed, "have no vector of their newest bytes"),
        ("pending", summary.pending, "were not reached"),
    )
    return [
        Count(name=name, value=f"{count:,}", help=text, key=name, share=100 * count / max(summary.seen, 1))
        for name, count, text in parts
    ]


def _changes(summary: RunSummary) -> list[Count]:
    return [
        Count(name="seen", value=f"{summary.seen:,}", help="are in the catalog"),
        Count(name="checked", value=f"{summary.checked:,}", help="had a vector and were asked for again"),
        Count(name="changed", value=f"{summary.changed:,}", help="showed other bytes than before"),
        Count(name="deferred", value=f"{summary.deferred:,}", help="of those failed, not due for another try"),
        Count(name="removed", value=f"{summary.removed:,}", help="left the search results"),
        Count(name="forgotten", value=f"{summary.forgotten:,}", help="were deleted, their time being over"),
    ]


def _products(summary: RunSummary) -> list[Count]:
    products = summary.products
    return [
        Count(name="new", value=f"{products.new:,}"),
        Count(name="changed", value=f"{products.changed:,}", help="title, price, category or attributes"),
        Count(name="removed", value=f"{products.removed:,}", help="left the search results"),
    ]


def _stages(summary: RunSummary) -> list[Count]:
    """Busy seconds of each stage, the longest first."""
    longest = max((seconds for name, seconds in summary.stage_seconds.items() if name != _WHOLE), default=0.0)
    return [
        Count(name=name, value=words.span(seconds), share=100 * seconds / longest)
        for name, seconds in sorted(summary.stage_seconds.items(), key=lambda item: -item[1])
        if seconds > 0 and name != _WHOLE
    ]


def _facts(summary: RunSummary, run: RecordedRun) -> list[Count]:
    facts = [
        ("run", f"{summary.run_id}"),
        ("model", f"{summary.model}, {summary.dims} dimensions"),
        ("rate", f"{words.number(summary.images_per_s)} images/s" if summary.images_per_s else ""),
        ("limit", summary.limit or ""),
        ("cost", show_cost(summary.cost) if summary.cost is not None else ""),
        ("shard", summary.shard or ""),
        ("device", " ".join(filter(None, (summary.device, summary.precision)))),
        ("batch", f"{summary.batch_size:,} images" if summary.batch_size else ""),
        ("started", words.moment(run.started_at)),
        ("ended", words.moment(run.finished_at)),
        ("machine", run.host),
        ("catvec", __version__),
    ]
    return [Count(name=name, value=value) for name, value in facts if value]


def _count(rest: int) -> str:
    """Empty when there are none, for the page says nothing then."""
    return f"{rest:,}" if rest > 0 else ""


def _sum(groups: list[FailureGroup]) -> str:
    return _count(sum(group.failures for group in groups))


def _failures(group: FailureGroup, most: int, now: datetime) -> Failures:
    return Failures(
        host=group.host or ("rows of the catalog" if group.stage == "catalog" else "files and data URIs"),
        code=group.code,
        stage=group.stage,
        kind=group.kind,
        count=f"{group.failures:,}",
        share=100 * group.failures / most,
        next_try=_next_try(group, now),
        samples=[
            Sample(
                product_id=sample.product_id or "",
                location=words.show_location(sample.url),
                link=words.link_to(sample.url),
                reason=sample.detail,
            )
            for sample in group.samples
        ],
    )


def _next_try(group: FailureGroup, now: datetime) -> str:
    if group.stage == "catalog":
        return "looked at again when the catalog is read again"
    if group.next_try_at is None and group.kind == "permanent":
        return "tried again when its row, URL or file changes, or after catvec retry"
    if group.next_try_at is None or group.next_try_at <= now:
        return "tried again in the next run"
    wait = words.span((group.next_try_at - now).total_seconds())
    return f"tried again in {wait}, from {words.moment(group.next_try_at, now=now)}"


def _card(image: ShownImage, pictures: Mapping[str, Picture], *, note: str) -> Card:
    return Card(
        product_id=image.product_id,
        title=image.title or image.product_id,
        picture=pictures[image.url],
        link=words.link_to(image.url),
        note=note,
    )


def _new_card(image: ShownImage, hits: list[Hit], pictures: Mapping[str, Picture]) -> Card:
    neighbours = tuple(
        Card(
            product_id=hit.product_id,
            title=hit.title or hit.product_id,
            picture=pictures[hit.image],
            link=words.link_to(hit.image),
            note=f"{hit.similarity:.2f}",
        )
        for hit in hits
    )
    return Card(
        product_id=image.product_id,
        title=image.title or image.product_id,
        picture=pictures[image.url],
        link=words.link_to(image.url),
        neighbours=neighbours,
    )
