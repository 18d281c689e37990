"""Which images a run looks at: those without a vector, those not looked at for long, those whose failure is due."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.durations import ALWAYS, NEVER
from pipeline.records import Failure, ImageRef, NotModified, Outcomes
from pipeline.store.vectors import write_outcomes
from tests.fixtures.store import model_spec, product

if TYPE_CHECKING:
    from pipeline.store.models import StoredModel
    from pipeline.store.work import Scope
    from tests.fixtures.store import Shop

IMAGES = 210
DAY = timedelta(days=1)
WEEK = timedelta(days=7)


@pytest.fixture
def stocked(shop: Shop) -> StoredModel:
    """Images at URLs, each with a vector, all loaded in one night."""
    shop.sync(*(product(f"P{number}", f"https://shop.example/{number}.jpg", row=number) for number in range(IMAGES)))
    model = shop.register()
    angles = np.linspace(0, 1, IMAGES)
    shop.embed(model, [np.array([np.cos(a), np.sin(a), 0, 0], dtype=np.float32) for a in angles])
    return model


def check(shop: Shop, model: StoredModel, images: list[ImageRef], scope: Scope) -> None:
    """The servers said that nothing changed, at the time of the scope."""
    write_outcomes(
        shop.session,
        model,
        shop.begin(model),
        Outcomes(not_modified=tuple(NotModified(image=image) for image in images)),
    )
    shop.session.connection().execute(
        "UPDATE catvec_store.images SET checked_at = %s WHERE image_id = ANY (%s)",
        (scope.as_of, [image.image_id for image in images]),
    )


def test_each_image_is_due_once_a_week_and_a_share_of_them_each_night(shop: Shop, stocked: StoredModel) -> None:
    first = shop.scope(recheck=WEEK)
    assert shop.work(stocked, first) == []
    shares, seen = [], []
    for night in range(1, 15):
        scope = replace(first, as_of=first.as_of + night * DAY)
        due = shop.work(stocked, scope)
        assert shop.count(stocked, scope).due == len(due)
        check(shop, stocked, due, scope)
        shares.append(len(due))
        seen += [image.image_id for image in due]

    assert sorted(seen[: sum(shares[:7])]) == sorted(set(seen))
    assert [sum(shares[:7]), sum(shares[7:])] == [IMAGES, IMAGES]
    assert max(shares) < 2 * IMAGES / 7


def test_always_never_and_a_clock_that_went_back(shop: Shop, stocked: StoredModel) -> None:
    assert len(shop.work(stocked, shop.scope(recheck=ALWAYS))) == IMAGES
    assert shop.work(stocked, shop.scope(recheck=NEVER)) == []
    shop.session.connection().execute("UPDATE catvec_store.images SET checked_at = now() + interval '1 year'")
    assert len(shop.work(stocked, shop.scope(recheck=WEEK))) == IMAGES


def test_validators_are_sent_along_until_a_full_check_is_due(shop: Shop, stocked: StoredModel) -> None:
    shop.session.connection().execute("UPDATE catvec_store.images SET etag = '\"1\"', last_modified = 'yesterday'")

    def sent(full_check: timedelta) -> set[tuple[str | None, str | None]]:
        scope = shop.scope(recheck=ALWAYS, full_check=full_check)
        return {(image.etag, image.last_modified) for image in shop.work(stocked, scope)}

    assert sent(NEVER) == {('"1"', "yesterday")}
    assert sent(ALWAYS) == {(None, None)}
    assert sent(90 * DAY) == {('"1"', "yesterday")}
    shop.session.connection().execute("UPDATE catvec_store.images SET fetched_at = now() - interval '91 days'")
    assert sent(90 * DAY) == {(None, None)}


@pytest.mark.parametrize(("url", "looks"), [("a.jpg", True), ("data:image/png;base64,AAAA", False)])
def test_files_are_looked_at_in_every_run_and_data_uris_never(shop: Shop, url: str, looks: bool) -> None:
    shop.sync(product("A", url))
    model = shop.register()
    shop.embed(model, [np.array([1, 0, 0, 0], dtype=np.float32)])

    assert bool(shop.work(model, shop.scope(recheck=WEEK))) is looks
    assert shop.work(model, shop.scope(recheck=NEVER)) == []


def test_another_models_failures_and_vectors_are_its_own(shop: Shop, stocked: StoredModel) -> None:
    [first, *_] = shop.work(stocked, shop.scope(recheck=ALWAYS))
    failure = Failure(image=first, stage="fetch", code="http_404", detail="gone", is_retryable=False)
    write_outcomes(shop.session, stocked, shop.begin(stocked), Outcomes(failed=(failure,)))
    other = shop.register(model_spec("other", revision="sha256:2"))

    count = shop.count(other)
    assert (count.missing, count.due, count.retries, dict(count.deferred)) == (IMAGES, 0, 0, {})
    assert shop.count(stocked).deferred == {"http_404": 1}
