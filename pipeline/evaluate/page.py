"""The page of `catvec evaluate … --report`: the numbers, and a sample of what was asked and answered in pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from pipeline import __version__
from pipeline.evaluate import ann, compare, retrieval, zero_shot
from pipeline.evaluate.ann import IndexRecall
from pipeline.evaluate.compare import ComparisonJudged
from pipeline.evaluate.examples import show_comparison, show_retrieval, show_zero_shot
from pipeline.evaluate.retrieval import DIRECTIONS, RetrievalJudged
from pipeline.evaluate.tables import say_coverage, show, show_interval
from pipeline.evaluate.zero_shot import ZeroShotJudged
from pipeline.files import write_atomically
from pipeline.intervals import say_percent
from pipeline.report import words
from pipeline.report.data import Card, Count
from pipeline.report.page import render
from pipeline.report.pictures import Picture, fetch_pictures
from pipeline.settings import CatalogSettings, FetchSettings, RunSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.evaluate.examples import Example, Line, Section
    from pipeline.evaluate.gallery import Coverage
    from pipeline.evaluate.metrics import Estimate
    from pipeline.evaluate.tables import Table
    from pipeline.evaluate.zero_shot import ZeroShot

PICTURES_S: Final = 30.0
"""seconds for all pictures of the page"""
MOST_LABELS: Final = 60
"""of a confusion matrix that can be looked at; a larger one stands in --json alone"""

NO_PICTURE: Final = Picture(data=None, code=None)
"""of what is words alone"""


Evaluated: TypeAlias = RetrievalJudged | ZeroShotJudged | ComparisonJudged | IndexRecall


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """How the pictures of the page are had: paths of files start at `image_root`."""

    image_root: Path | None = None
    allow_private_hosts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A share with its interval, in per cent of the bar's length."""

    name: str
    words: str
    interval: str
    value: float
    low: float
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """How many products of a label were given another, or the same; `share` of the row is 0 to 100."""

    label: str
    words: str
    share: float
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A true label, and what its products were given."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What was found, in words and numbers, before its pictures are fetched."""

    command: str
    subject: str
    headline: str
    sentence: str
    warnings: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    tables: Sequence[Table] = ()
    confusion: tuple[Row, ...] = ()
    sections: Sequence[Section] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    """An answer with its picture; or its words alone, and then the card has none."""

    card: Card
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLine:
    """The answers of one model to one question."""

    model: str | None
    rank: str
    is_right: bool
    is_pictured: bool
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownExample:
    """A question: a product with its picture, or words, and then the card has none."""

    card: Card
    is_pictured: bool
    lines: tuple[ShownLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSection:
    """Examples of one kind."""

    title: str
    lead: str
    examples: tuple[ShownExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPage:
    """What the template turns into HTML."""

    sheet: Sheet
    tone: str
    sections: tuple[ShownSection, ...]
    facts: tuple[Count, ...]
    pictures: int
    pictures_missing: int
    made: str


def write_page(
    path: Path,
    judged: Evaluated,
    how: Pictures,
    *,
    seed: int = 0,
) -> str:
    """Show what was measured in a page at `path`, replaced in one step. Takes up to half a minute for pictures.

    Returns what is to be said of pictures that could not be had, if any. Raises CatvecError.
    """
    sheet = _sheet(judged, seed)
    pictures = _fetch(sheet.sections, how)
    page = EvaluationPage(
        sheet=sheet,
        tone="fair" if sheet.warnings else "good",
        sections=tuple(_show_section(section, pictures) for section in sheet.sections),
        facts=tuple(Count(name=name, value=value) for name, value in (*sheet.facts, ("catvec", __version__))),
        pictures=len(pictures),
        pictures_missing=sum(picture.data is None for picture in pictures.values()),
        made=words.moment(datetime.now(UTC)),
    )
    # titles may hold halves of characters
    write_atomically(path, render(page, "evaluation.html.j2").encode("utf-8", "replace"))
    return _say_missing(pictures)


def _say_missing(pictures: Mapping[str, Picture]) -> str:
    codes = Counter(picture.code for picture in pictures.values() if picture.data is None)
    if not codes:
        return ""
    cures = {
        "no_image_root": "; name their folder with --image-root",
        "private_host": "; allow it with --allow-private-hosts",
    }
    code, _ = codes.most_common(1)[0]
    return f"{codes.total():,} of {len(pictures):,} pictures could not be had ({code}){cures.get(code or '', '')}"


def _sheet(judged: Evaluated, seed: int) -> Sheet:
    if isinstance(judged, RetrievalJudged):
        return _retrieval(judged, seed)
    if isinstance(judged, ZeroShotJudged):
        return _zero_shot(judged, seed)
    if isinstance(judged, ComparisonJudged):
        return _comparison(judged, seed)
    return _index(judged)


def _retrieval(judged: RetrievalJudged, seed: int) -> Sheet:
    found = judged.retrieval
    directions = {name: getattr(found, key) for key, name in DIRECTIONS.items()}
    texts, products = (say_percent(direction.measures["recall@1"].value) for direction in directions.values())
    return Sheet(
        command="retrieval",
        subject=found.model,
        headline=f"{texts} of titles find their product at once, {products} of products their title",
        sentence=f"{_capital(say_coverage(found.coverage, 'a title'))}.",
        warnings=found.warnings,
        bars=tuple(
            _bar(f"{measure}, {name}", direction.measures[measure])
            for measure in ("recall@1", "recall@5", "recall@10")
            for name, direction in directions.items()
        ),
        tables=retrieval.tabulate(found),
        sections=show_retrieval(judged, seed=seed),
        facts=_facts(found.coverage),
    )


def _zero_shot(judged: ZeroShotJudged, seed: int) -> Sheet:
    found = judged.zero_shot
    return Sheet(
        command="zero-shot",
        subject=found.model,
        headline=f"{say_percent(found.top1.value)} of products get the right {found.attribute}",
        sentence=f"{_capital(say_coverage(found.coverage, 'a label'))}. Always the most frequent label: "
        f"{say_percent(found.largest_class)}.",
        warnings=found.warnings,
        bars=tuple(_bar(name, measured) for name, measured in zero_shot.name_accuracies(found)),
        tables=zero_shot.tabulate(found),
        confusion=_confusion(found) if len(found.classes) <= MOST_LABELS else (),
        sections=show_zero_shot(judged, seed=seed),
        facts=_facts(found.coverage),
    )


def _comparison(judged: ComparisonJudged, seed: int) -> Sheet:
    found = judged.comparison
    contests = {name: getattr(found, key) for key, name in DIRECTIONS.items()}
    return Sheet(
        command="compare",
        subject=f"{found.first} and {found.second}",
        headline=found.decision,
        sentence=f"{_capital(found.differences)}. {_capital(found.judged)}.",
        warnings=found.warnings,
        bars=tuple(
            _bar(f"recall@1, {name}: {model}", measures["recall@1"])
            for name, contest in contests.items()
            for model, measures in ((found.first, contest.first), (found.second, contest.second))
        ),
        tables=compare.tabulate(found),
        sections=show_comparison(judged, seed=seed),
        facts=_facts(found.coverage),
    )


def _index(found: IndexRecall) -> Sheet:
    return Sheet(
        command="index",
        subject=found.model,
        headline=f"Searches find {say_percent(found.recall.value, 1)} of the truly nearest products",
        sentence=f"{_capital(found.summary)}.",
        warnings=found.warnings,
        bars=(_bar("recall@10", found.recall),),
        tables=ann.tabulate(found),
        facts=(("queries", f"{found.queries:,}"),),
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _bar(name: str, measured: Estimate) -> Bar:
    return Bar(
        name=name,
        words=show(measured.value),
        interval=show_interval(name, measured),
        value=round(100 * measured.value, 2),
        low=round(100 * measured.low, 2),
        width=round(100 * (measured.high - measured.low), 2),
    )


def _confusion(found: ZeroShot) -> tuple[Row, ...]:
    labels = [entry.label for entry in found.classes]
    return tuple(
        Row(
            label=label,
            cells=tuple(
                Cell(
                    label=given,
                    words=f"{products:,}",
                    share=round(100 * products / max(1, sum(row)), 1),
                    is_right=given == label,
                )
                for given, products in zip(labels, row, strict=True)
            ),
        )
        for label, row in zip(labels, found.confusion, strict=True)
    )


def _facts(coverage: Coverage) -> tuple[tuple[str, str], ...]:
    trained = "not stated by the model" if coverage.trained is None else f"{coverage.trained:,} of these products"
    return (
        ("products", f"{coverage.products:,}"),
        ("images", f"{coverage.images:,}"),
        ("trained on", trained),
        ("intervals", "95 %"),
    )


def _fetch(sections: Sequence[Section], how: Pictures) -> Mapping[str, Picture]:
    examples = [example for section in sections for example in section.examples]
    answers = [answer for example in examples for line in example.lines for answer in line.answers]
    # a page that is cut short shows what was asked
    locations = [*(example.url for example in examples), *(answer.url for answer in answers)]
    settings = RunSettings(
        # there is no catalog to read, only the place where its paths start
        catalog=CatalogSettings(uri="-", image_root=how.image_root),
        fetch=FetchSettings(allow_private_hosts=how.allow_private_hosts),
    )
    return fetch_pictures(filter(None, locations), settings, within_s=PICTURES_S)


def _show_section(section: Section, pictures: Mapping[str, Picture]) -> ShownSection:
    examples = tuple(_show_example(example, pictures) for example in section.examples)
    return ShownSection(title=section.title, lead=section.lead, examples=examples)


def _show_example(example: Example, pictures: Mapping[str, Picture]) -> ShownExample:
    return ShownExample(
        card=_card(example.words, example.product_id, example.url, pictures),
        is_pictured=example.url is not None,
        lines=tuple(_show_line(line, pictures) for line in example.lines),
    )


def _show_line(line: Line, pictures: Mapping[str, Picture]) -> ShownLine:
    return ShownLine(
        model=line.model,
        rank="right at once" if line.rank == 1 else f"right on place {line.rank:,}",
        is_right=line.rank == 1,
        is_pictured=any(answer.url is not None for answer in line.answers),
        answers=tuple(
            ShownAnswer(
                card=_card(answer.words, answer.product_id, answer.url, pictures, note=f"{answer.similarity:.2f}"),
                is_right=answer.is_right,
            )
            for answer in line.answers
        ),
    )


def _card(
    title: str, product_id: str | None, url: str | None, pictures: Mapping[str, Picture], *, note: str = ""
) -> Card:
    return Card(
        product_id=product_id or "",
        title=title,
        picture=pictures[url] if url is not None else NO_PICTURE,
        link=words.link_to(url) if url is not None else None,
        note=note,
    )
