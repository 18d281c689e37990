"""What `catvec tag` does: judges every product by its stored vectors, and writes the labels into the database.

Only what is new is judged: products whose images changed, and attributes that are asked for in other words. What the
tables hold says what is left to do, so whatever breaks off goes on with the same command.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, ModelError
from pipeline.judging import Judge, choose_labels, head_judge, zero_shot_judge
from pipeline.known import read_known
from pipeline.labels import Attribute, read_labels
from pipeline.learned import Learned, read_learned
from pipeline.models.head import SUFFIX, Head, read_head
from pipeline.search import load_stored_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.calibration import Calibration
    from pipeline.search import EncoderChoice
    from pipeline.store.connect import Connection, Session
    from pipeline.store.models import StoredModel
    from pipeline.store.tags import ProductVectors, Question, Work

PAGE = 2_000
"""products judged and written in one transaction: 4 MB of 512 numbers each, and a second of work that a kill costs"""
MOST = 0.5
"""of all labels of an attribute, that products have on average; exclusive ones of two labels have this at most"""
DIGEST_OF = "catvec labels 2"
"""changes when the same words would give other vectors"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedAttribute:
    """How many products have each label now, most frequent first; `is_anew` when all of them were judged again."""

    attribute: str
    is_anew: bool
    products_by_label: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagging:
    """What a tagging came to; its fields are the keys of `catvec tag --json`.

    `products` have vectors, `tagged` of them were judged, and `removed` have lost their tags with their vectors.
    `seconds` are of everything, `products_per_s` is the rate once the judges were loaded, 0 when none was needed.
    `behind` are attributes of the model that were not asked for and lack current answers for so many products.
    """

    model: str
    products: int
    tagged: int
    removed: int
    seconds: float
    products_per_s: float
    attributes: tuple[TaggedAttribute, ...]
    behind: Mapping[str, int]
    warnings: tuple[str, ...]
    calibrations: tuple[Calibration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Who judges: the questions, at the judges' own temperature, and the judges, for which a model may be loaded.

    `find_learned` says which products they have learned from.
    """

    questions: tuple[Question, ...]
    seat: Callable[[], Sequence[Judge]]
    find_learned: Callable[[], Learned] = Learned


def tag(
    url: str,
    source: Path,
    choice: EncoderChoice,
    *,
    calibrate: Mapping[str, str],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tagging:
    """Bring the tags of a labels file, or of a trained head, up to date under a stored model.

    `calibrate` and `report` as in `read_source` and `tag_asked`. Raises CatvecError.
    """
    return tag_asked(url, read_source(source, calibrate), choice, calibrate=calibrate, report=report)


def tag_asked(
    url: str,
    asked: Head | Sequence[Attribute],
    choice: EncoderChoice,
    *,
    calibrate: Mapping[str, str],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tagging:
    """The same with what `read_source` has read, with this `calibrate`.

    `report` is told how many products of how many are done. Raises CatvecError.
    """
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model

    with open_current(url) as session:
        stored = choose_model(session.connection(), choice.model)
    panel = _head_panel(asked, stored) if isinstance(asked, Head) else _labels_panel(asked, stored, choice)
    return tag_by(url, stored, panel, calibrate=calibrate, report=report)


def tag_by(
    url: str,
    stored: StoredModel,
    panel: Panel,
    *,
    calibrate: Mapping[str, str],
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tagging:
    """The same with judges that are at hand. Raises LockedError while others tag under this model, CatvecError."""
    from threadpoolctl import threadpool_limits

    from pipeline.store.connect import Session
    from pipeline.store.pooler import holding
    from pipeline.store.tags import count_tags, refresh_statistics, take_lock

    began = time.monotonic()
    with Session(url, on_connect=holding(url, partial(take_lock, model=stored))) as session:
        calibrations = _calibrate(session, stored, panel, calibrate)
        questions, calibrations = _set_temperatures(session, stored, panel, calibrations)
        editions, work = _begin(session, stored, questions)
        judges = _set_judges(panel, questions, editions) if work.pieces else {}
        loaded = time.monotonic()
        # a page is multiplied in no time; threads of BLAS would then spin, on the core that the database needs
        with threadpool_limits(limits=1, user_api="blas"):
            for done in range(0, len(work.pieces), PAGE):
                report(done, len(work.pieces))
                page = work.pieces[done : done + PAGE]
                session.run(partial(_tag_page, model=stored, page=page, judges=judges))
        rate = len(work.pieces) / (time.monotonic() - loaded)
        report(len(work.pieces), len(work.pieces))
        anew = session.run(partial(_finish, model=stored, editions=editions))
        if work.pieces:
            session.run(refresh_statistics)
        counts = session.run(partial(count_tags, editions=list(editions.values())))
    return Tagging(
        model=stored.name,
        products=work.products,
        tagged=len(work.pieces),
        removed=work.removed,
        seconds=round(time.monotonic() - began, 3),
        products_per_s=round(rate, 1),
        attributes=tuple(
            TaggedAttribute(attribute=name, is_anew=name in anew, products_by_label=counts.get(name, {}))
            for name in editions
        ),
        behind=work.behind,
        warnings=tuple(warn for asked in questions for warn in _warn_of_all(asked, counts, work.products)),
        calibrations=calibrations,
    )


def _warn_of_all(asked: Question, counts: Mapping[str, Mapping[str, int]], products: int) -> Iterator[str]:
    """What most products get most of says nothing about any of them."""
    found = counts.get(asked.attribute, {})
    given = sum(found.get(label, 0) for label in asked.labels)
    if products and len(asked.labels) > 1 and given > MOST * products * len(asked.labels):
        yield (
            f"products have {given / products:.1f} of {len(asked.labels)} labels of {asked.attribute} on average, "
            "so the labels say little: raise the threshold, name with against what every picture shows, or let one "
            "label fit (exclusive: true)"
        )


def read_source(path: Path, calibrate: Mapping[str, str]) -> Head | tuple[Attribute, ...]:
    """A head when it is named so, else a labels file.

    `calibrate` names attributes of the file, and the attribute of the catalog that holds the truth for each. Raises
    ModelError, or ConfigError, also when one of them is not in the file.
    """
    asked = read_head(path) if path.suffix == SUFFIX else read_labels(path)
    names = [asked.attribute] if isinstance(asked, Head) else [one.name for one in asked]
    _check_calibrated(names, calibrate, path)
    return asked


def drop(url: str, attributes: Sequence[str], model: str | None) -> str:
    """Forget attributes and their tags; returns the name of the model.

    Raises ConfigError when one of them is not there, and then forgets none; StoreError.
    """
    from pipeline.store.connect import Session
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.pooler import holding
    from pipeline.store.tags import drop_attribute, list_editions, take_lock

    with open_current(url) as session:
        stored = choose_model(session.connection(), model)

    def forget(connection: Connection) -> None:
        known = {edition.attribute for edition in list_editions(connection, stored)}
        for name in attributes:
            if name not in known:
                there = ", ".join(map(repr, sorted(known))) or "none"
                raise ConfigError(f"no attribute {name!r} is tagged under model {stored.name!r}, there are: {there}")
            drop_attribute(connection, stored, name)

    with Session(url, on_connect=holding(url, partial(take_lock, model=stored))) as session:
        session.run(forget)
    return stored.name


def _check_calibrated(attributes: Sequence[str], calibrate: Mapping[str, str], source: Path) -> None:
    for name in calibrate:
        if name not in attributes:
            raise ConfigError(
                f"--calibrate names the attribute {name!r}, which {str(source)!r} does not have, expected "
                f"{', '.join(attributes)}",
                hint="write --calibrate ATTRIBUTE=NAME when the catalog calls it by another name",
            )


def _labels_panel(attributes: Sequence[Attribute], stored: StoredModel, choice: EncoderChoice) -> Panel:
    if not stored.has_text:
        raise ModelError(
            f"model {stored.name!r} has no text side, so it cannot judge by words",
            hint="run the catalog through a model of images and text, or tag with a head: catvec train --head",
        )

    def seat() -> Sequence[Judge]:
        encoder = load_stored_encoder(stored, choice)
        return [zero_shot_judge(encoder, attribute) for attribute in attributes]

    return Panel(
        questions=tuple(map(_question_of, attributes)),
        seat=cache(seat),
        find_learned=partial(read_learned, stored, choice.weights),
    )


def _head_panel(head: Head, stored: StoredModel) -> Panel:
    """Raises ModelError unless the head was trained on vectors of this very model (law 6)."""
    from pipeline.store.tags import Question

    trained_on = (head.source, head.revision, head.fingerprint, head.dims)
    if trained_on != (stored.source, stored.revision, stored.fingerprint, stored.dims):
        raise ModelError(
            f"the head of {head.attribute!r} was trained on another model ({head.source}, {head.revision[:19]}, "
            f"{head.dims} dimensions) than {stored.name!r} ({stored.source}, {stored.revision[:19]}, {stored.dims})",
            hint=f"name its model with --model, or train a head on this one: catvec train --head {head.attribute}",
        )
    judge = head_judge(head)
    question = Question(
        attribute=head.attribute,
        labels=head.labels,
        question=head.digest,
        threshold=head.threshold,
        temperature=None,
    )

    def find_learned() -> Learned:
        learned = read_learned(stored)
        return replace(learned, trained=(*learned.trained, head.learned))

    return Panel(questions=(question,), seat=lambda: [judge], find_learned=find_learned)


def _question_of(attribute: Attribute) -> Question:
    from pipeline.store.tags import Question

    compared = None if attribute.is_exclusive else attribute.against
    asked = [DIGEST_OF, [label.words for label in attribute.labels], attribute.templates, compared]
    return Question(
        attribute=attribute.name,
        labels=tuple(attribute.label_names),
        question=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        threshold=attribute.threshold,
        temperature=None,
    )


def _calibrate(
    session: Session, model: StoredModel, panel: Panel, wanted: Mapping[str, str]
) -> tuple[Calibration, ...]:
    if not wanted:
        return ()
    judges = {judge.attribute: judge for judge in panel.seat()}
    learned = panel.find_learned()
    return tuple(_calibrate_one(session, model, judges[name], truth, learned) for name, truth in wanted.items())


def _calibrate_one(session: Session, model: StoredModel, judge: Judge, name: str, learned: Learned) -> Calibration:
    """Fit a temperature on the products whose value in the catalog is one of the labels."""
    from pipeline.calibration import FEWEST_KNOWN, calibrate

    known = read_known(session, model, name, judge.labels, learned=learned)
    if len(known) < FEWEST_KNOWN:
        raise ConfigError(
            f"{len(known):,} products have one of the labels of {judge.attribute!r} as their {name!r} in the "
            f"catalog, expected at least {FEWEST_KNOWN}; {known.left_out:,} have another value, or a list",
            hint="labels and values are compared but for upper and lower case and white space",
        )
    found = calibrate(judge, known, name=name, model=model.name)
    return replace(found, warnings=(*found.warnings, *learned.warnings))


def _set_temperatures(
    session: Session, model: StoredModel, panel: Panel, calibrations: Sequence[Calibration]
) -> tuple[list[Question], tuple[Calibration, ...]]:
    """The questions with the temperatures just found, or found before for the same question while that is close."""
    from pipeline.calibration import keep_close
    from pipeline.store.tags import list_editions

    editions = session.run(partial(list_editions, model=model))
    found = {
        (edition.attribute, tuple(edition.labels), edition.question): edition.temperature
        for edition in sorted(editions, key=lambda edition: edition.is_current)
    }
    before = {
        asked.attribute: found.get((asked.attribute, asked.labels, asked.question)) for asked in panel.questions
    }
    used = tuple(keep_close(one, before[one.attribute]) for one in calibrations)
    now = before | {one.attribute: one.temperature for one in used}
    return [replace(asked, temperature=now[asked.attribute]) for asked in panel.questions], used


def _begin(session: Session, model: StoredModel, questions: Sequence[Question]) -> tuple[dict[str, int], Work]:
    """The editions to fill, by attribute, and what they lack."""
    from pipeline.store.tags import find_work, open_edition

    def begin(connection: Connection) -> tuple[dict[str, int], Work]:
        editions = {asked.attribute: open_edition(connection, model, asked) for asked in questions}
        return editions, find_work(connection, model, list(editions.values()))

    return session.run(begin)


def _set_judges(panel: Panel, questions: Sequence[Question], editions: Mapping[str, int]) -> dict[int, Judge]:
    """The judges by edition, at the questions' temperatures and thresholds."""
    judges = {judge.attribute: judge for judge in panel.seat()}
    return {
        editions[asked.attribute]: replace(judges[asked.attribute], temperature=asked.temperature or 1.0)
        for asked in questions
    }


def _tag_page(
    connection: Connection, *, model: StoredModel, page: Sequence[tuple[str, list[int]]], judges: Mapping[int, Judge]
) -> None:
    """Judge these products and write their labels, in the caller's transaction."""
    from pipeline.store.tags import keep_products, read_vectors, write_tags

    products = read_vectors(connection, model, keep_products(connection, [product_id for product_id, _ in page]))
    lacking = {product_id: tuple(editions) for product_id, editions in page}
    rows_by_editions: dict[tuple[int, ...], list[int]] = {}
    for row, product_id in enumerate(products.product_ids):
        rows_by_editions.setdefault(lacking[product_id], []).append(row)
    judged = {editions: [products.product_ids[row] for row in rows] for editions, rows in rows_by_editions.items()}
    # all in one statement: while other programs want the cores, each answer is waited for
    tags = (
        tag
        for editions, rows in rows_by_editions.items()
        for edition in editions
        for tag in _judge(judges[edition], edition, products, rows)
    )
    write_tags(connection, judged, tags)


def _judge(
    judge: Judge, edition: int, products: ProductVectors, rows: list[int]
) -> Iterator[tuple[str, int, str, float, bytes]]:
    """The labels of these products, as `write_tags` takes them."""
    given = choose_labels(judge, products.vectors[rows])
    for row, label, probability in zip(given.rows.tolist(), given.labels, given.probabilities.tolist(), strict=True):
        yield products.product_ids[rows[row]], edition, label, probability, products.contents[rows[row]]


def _finish(connection: Connection, *, model: StoredModel, editions: Mapping[str, int]) -> set[str]:
    """Let apps read what was filled; returns the attributes that are new to them."""
    from pipeline.store.tags import list_editions, make_current

    filled = {edition.attribute_id for edition in list_editions(connection, model) if not edition.is_current}
    anew = {name: attribute_id for name, attribute_id in editions.items() if attribute_id in filled}
    make_current(connection, model, anew)
    return set(anew)
