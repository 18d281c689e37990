"""A sample of what was asked and what was answered: hits, misses, and where two models disagree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.evaluate.ranking import Ranked, product_similarities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.evaluate.compare import ComparisonJudged
    from pipeline.evaluate.retrieval import RetrievalJudged
    from pipeline.evaluate.zero_shot import ZeroShotJudged

EXAMPLES: Final = 6
"""of each kind: a page of four kinds shows 130 pictures and stays within what goes by mail"""
ANSWERS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What stood in a place: a product with its picture, or words alone."""

    words: str
    similarity: float
    is_right: bool
    product_id: str | None = None
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The first answers of one model, None when there is only one, and on which place the right one stood."""

    model: str | None
    rank: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question: words, or a product with its picture; and what each model answered."""

    words: str
    lines: tuple[Line, ...]
    product_id: str | None = None
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Some examples of one kind, at least one."""

    title: str
    lead: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """What one model ranked, with its name if it must be told apart."""

    model: str | None
    ranked: Ranked


def show_retrieval(judged: RetrievalJudged, *, seed: int) -> list[Section]:
    """Hits and misses in both directions."""
    sides = [_Named(model=None, ranked=judged.ranked)]
    texts, products = judged.ranked.ranks.texts == 1, judged.ranked.ranks.products == 1
    green = "Green is right: any product of that title."
    nearest = "With the nearest titles."
    return [
        *_texts("Texts that found their product at once", green, sides, texts, seed),
        *_texts("Texts that did not", green, sides, ~texts, seed),
        *_products("Products that found their title at once", nearest, sides, products, seed),
        *_products("Products that did not", f"{nearest} Their own is under the picture.", sides, ~products, seed),
    ]


def show_zero_shot(judged: ZeroShotJudged, *, seed: int) -> list[Section]:
    """Products that were given their label, and others."""
    sides = [_Named(model=None, ranked=judged.ranked)]
    is_right = judged.given == judged.ranked.text_of
    nearest = "With the nearest labels."
    return [
        *_products("Right", nearest, sides, is_right, seed),
        *_products("Wrong", f"{nearest} What is true is green.", sides, ~is_right, seed),
    ]


def show_comparison(judged: ComparisonJudged, *, seed: int) -> list[Section]:
    """What one model found at once and the other did not, in both directions."""
    names = judged.comparison.first, judged.comparison.second
    sides = [
        _Named(model=name, ranked=ranked) for name, ranked in zip(names, (judged.first, judged.second), strict=True)
    ]
    texts = [side.ranked.ranks.texts == 1 for side in sides]
    products = [side.ranked.ranks.products == 1 for side in sides]
    lead, both = "Green is right.", ((0, 1), (1, 0))
    sections = []
    for mine, other in both:
        title = f"Texts that only {names[mine]} finds"
        sections += _texts(title, lead, sides, texts[mine] & ~texts[other], seed)
    for mine, other in both:
        title = f"Products whose title only {names[mine]} finds"
        sections += _products(title, lead, sides, products[mine] & ~products[other], seed)
    return sections


def _texts(title: str, lead: str, sides: Sequence[_Named], wanted: NDArray[np.bool_], seed: int) -> list[Section]:
    return _section(title, lead, _ask_texts(sides, _pick(wanted, seed)), of=int(wanted.sum()))


def _products(title: str, lead: str, sides: Sequence[_Named], wanted: NDArray[np.bool_], seed: int) -> list[Section]:
    return _section(title, lead, _ask_products(sides, _pick(wanted, seed)), of=int(wanted.sum()))


def _section(title: str, lead: str, examples: Sequence[Example], *, of: int) -> list[Section]:
    if not examples:
        return []
    if of == 1:
        shown = "The only one"
    elif of == len(examples):
        shown = f"All {of:,}"
    else:
        shown = f"{len(examples)} of {of:,}, chosen at random"
    return [Section(title=title, lead=f"{shown}. {lead}", examples=tuple(examples))]


def _pick(wanted: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Up to EXAMPLES places of what is wanted, in their order."""
    places = np.flatnonzero(wanted)
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(places, min(EXAMPLES, len(places)), replace=False))


def _ask_texts(sides: Sequence[_Named], places: NDArray[np.int64]) -> list[Example]:
    """Each of these texts, with the nearest products under every model."""
    lines = zip(*(_lines_of_texts(side, places) for side in sides), strict=True)
    texts = sides[0].ranked.texts
    return [Example(words=texts[place], lines=of_text) for place, of_text in zip(places, lines, strict=True)]


def _lines_of_texts(side: _Named, places: NDArray[np.int64]) -> list[Line]:
    ranked, gallery = side.ranked, side.ranked.gallery
    similarities = product_similarities(gallery, ranked.text_vectors[places]).T
    return [
        Line(
            model=side.model,
            rank=int(ranked.ranks.texts[place]),
            answers=tuple(
                Answer(
                    words=gallery.titles[product] or gallery.product_ids[product],
                    similarity=float(row[product]),
                    is_right=bool(ranked.text_of[product] == place),
                    product_id=gallery.product_ids[product],
                    url=gallery.urls[gallery.starts[product]],
                )
                for product in _nearest(row)
            ),
        )
        for place, row in zip(places, similarities, strict=True)
    ]


def _ask_products(sides: Sequence[_Named], places: NDArray[np.int64]) -> list[Example]:
    """Each of these products, with the nearest texts under every model."""
    if not len(places):
        return []
    gallery = sides[0].ranked.gallery
    lines = zip(*(_lines_of_products(side, places) for side in sides), strict=True)
    return [
        Example(
            words=sides[0].ranked.texts[sides[0].ranked.text_of[place]],
            lines=of_product,
            product_id=gallery.product_ids[place],
            url=gallery.urls[gallery.starts[place]],
        )
        for place, of_product in zip(places, lines, strict=True)
    ]


def _lines_of_products(side: _Named, places: NDArray[np.int64]) -> list[Line]:
    ranked = side.ranked
    wanted = np.zeros(len(ranked.gallery), dtype=bool)
    wanted[places] = True
    similarities = product_similarities(ranked.gallery.keep(wanted), ranked.text_vectors)
    return [
        Line(
            model=side.model,
            rank=int(ranked.ranks.products[place]),
            answers=tuple(
                Answer(
                    words=ranked.texts[text],
                    similarity=float(row[text]),
                    is_right=bool(ranked.text_of[place] == text),
                )
                for text in _nearest(row)
            ),
        )
        for place, row in zip(places, similarities, strict=True)
    ]


def _nearest(similarities: NDArray[np.float32]) -> NDArray[np.int64]:
    """The places of the ANSWERS largest, the largest first."""
    return np.argsort(-similarities, kind="stable")[:ANSWERS]
