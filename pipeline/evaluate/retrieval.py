"""What `catvec evaluate retrieval` does: does a title find its product, and a product its title?

Same titles are one text. text → image: each title is asked once, and right is any product that has it. image → text:
each product is asked, and right is its title among all of them. docs/evaluation.md defines the numbers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluate.gallery import cover, encode_texts, leave_out_trained, open_judged
from pipeline.evaluate.metrics import MEASURES, SHARES, estimate
from pipeline.evaluate.ranking import Ranked, rank
from pipeline.evaluate.tables import Table, note_methods, say_coverage, show, show_measure, warn_of_trained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.evaluate.gallery import Coverage, Gallery, Judged, Question
    from pipeline.evaluate.metrics import Estimate
    from pipeline.models.encoder import Encoder
    from pipeline.progress import Progress

MOST_GROUPS: Final = 100
"""values of an attribute that can be told apart on a screen; one with more is rather a number or an id"""
DIRECTIONS: Final = {"text_to_image": "text → image", "image_to_text": "image → text"}
SCORES: Final = (*SHARES, *(f"{key}.{name}" for key in DIRECTIONS for name in SHARES))
"""what --fail-under can ask for; without a direction it is the lesser of both"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """How well queries find what is right among the candidates; `chance` is the recall@1 of a random order."""

    queries: int
    candidates: int
    chance: float
    measures: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The products with one value of an attribute, None without it; they are sought among all products and titles."""

    value: str | None
    products: int
    text_to_image: Direction
    image_to_text: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """What was measured; its fields are the keys of `catvec evaluate retrieval --json`."""

    model: str
    coverage: Coverage
    text_to_image: Direction
    image_to_text: Direction
    by: str | None
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Which products were judged."""
        return f"model {self.model}, {say_coverage(self.coverage, 'a title')}"

    @property
    def scores(self) -> Mapping[str, float]:
        """Those of SCORES, and of each group with its value before it: colour=red:recall@1."""
        named = score({key: getattr(self, key).measures for key in DIRECTIONS})
        for group in self.groups:
            of_group = score({key: getattr(group, key).measures for key in DIRECTIONS})
            named |= {f"{self.by}={group.value}:{name}": value for name, value in of_group.items()}
        return named


def score(directions: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """The values of SCORES."""
    named = {name: min(measures[name].value for measures in directions.values()) for name in SHARES}
    return named | {f"{key}.{name}": measures[name].value for key, measures in directions.items() for name in SHARES}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RetrievalJudged:
    """What was measured, and of what, for those who want to look at it."""

    retrieval: Retrieval
    ranked: Ranked


def evaluate_retrieval(url: str, question: Question, *, by: str | None, progress: Progress) -> RetrievalJudged:
    """Judge a stored model by the titles of its products. Raises CatvecError."""
    from pipeline.store.migrate import open_current

    with open_current(url) as session:
        judged = open_judged(session, question, by, progress)
    judged, trained = leave_out_trained(judged, include=question.include_trained)
    judged, untitled = leave_out_untitled(judged)
    groups = _group(judged.gallery, by) if by is not None else {}
    ranked = rank_titles(judged.gallery, judged.encoder, progress)
    coverage = cover(judged, left_out_trained=trained, left_out_unanswered=untitled)
    progress.begin("resampling")
    retrieval = Retrieval(
        model=judged.model.name,
        coverage=coverage,
        **_directions(ranked, np.ones(len(judged.gallery), dtype=bool), question.seed),
        by=by,
        groups=tuple(
            Group(value=value, products=int(members.sum()), **_directions(ranked, members, question.seed))
            for value, members in groups.items()
        ),
        warnings=warn_of_trained(coverage, judged.model.name),
    )
    return RetrievalJudged(retrieval=retrieval, ranked=ranked)


def leave_out_untitled(judged: Judged) -> tuple[Judged, int]:
    """The products with a title, and how many have none. Raises ConfigError when they cannot be told apart by it."""
    titles = judged.gallery.titles
    titled = np.array([title is not None for title in titles])
    if not titled.any():
        raise ConfigError(
            f"none of the {len(titles):,} products has a title, so there are no words to find them by",
            hint="name the column of the titles with catvec run --title-column, or judge by an attribute: "
            "catvec evaluate zero-shot",
        )
    different = set(titles) - {None}
    if len(different) == 1:
        raise ConfigError(
            f"all {int(titled.sum()):,} products with a title have the same one, {different.pop()!r}, "
            "so there is nothing to tell apart",
            hint="retrieval is judged by products of different titles",
        )
    return judged.keep(titled), int((~titled).sum())


def rank_titles(gallery: Gallery, encoder: Encoder, progress: Progress) -> Ranked:
    """Rank titles and products among each other; every product of the gallery has a title."""
    unique, text_of = np.unique(np.array(gallery.titles, dtype=object), return_inverse=True)
    texts: list[str] = unique.tolist()
    text_vectors = encode_texts(encoder, texts, progress)
    progress.begin("comparing texts with images")
    return Ranked(
        gallery=gallery,
        texts=texts,
        text_vectors=text_vectors,
        text_of=text_of,
        ranks=rank(gallery, text_vectors, text_of, progress),
    )


def _group(gallery: Gallery, by: str) -> Mapping[str | None, NDArray[np.bool_]]:
    """Which products [P] have each value, the largest group first. Raises ConfigError when they are too many."""
    values = np.array(gallery.values, dtype=object)
    counts = Counter(gallery.values)
    if len(counts) > MOST_GROUPS:
        raise ConfigError(
            f"attribute {by!r} has {len(counts):,} values, expected at most {MOST_GROUPS} to report one by one",
            hint="take an attribute that parts the products into few groups",
        )
    names = sorted(counts, key=lambda value: (value is None, -counts[value], value))
    return {name: values == name for name in names}


def _directions(ranked: Ranked, members: NDArray[np.bool_], seed: int) -> dict[str, Direction]:
    """Both directions for the products of `members` [P] and their titles, each by its own kind of query."""
    asked = np.unique(ranked.text_of[members])
    sellers = np.bincount(ranked.text_of)[asked]
    products, texts = len(ranked.gallery), len(ranked.texts)
    return {
        "text_to_image": Direction(
            queries=len(asked),
            candidates=products,
            chance=float(np.mean(sellers / products)),
            measures=estimate(ranked.ranks.texts[asked], seed=seed),
        ),
        "image_to_text": Direction(
            queries=int(members.sum()),
            candidates=texts,
            chance=1 / texts,
            measures=estimate(ranked.ranks.products[members], seed=seed),
        ),
    }


def tabulate(retrieval: Retrieval) -> list[Table]:
    """All numbers, one measure a line; groups in a table of their own."""
    columns = [getattr(retrieval, key) for key in DIRECTIONS]
    rows = [
        (name.replace("_", " "), *(cell for column in columns for cell in show_measure(name, column.measures[name])))
        for name in MEASURES
    ]
    rows.append(("recall@1 by chance", *(cell for column in columns for cell in (show(column.chance), ""))))
    rows.append(("queries", *(cell for column in columns for cell in (f"{column.queries:,}", ""))))
    rows.append(("candidates", *(cell for column in columns for cell in (f"{column.candidates:,}", ""))))
    headers = ("measure", "text → image", "95 %", "image → text", "95 %")
    whole = Table(
        title="All products",
        headers=headers,
        rows=tuple(rows),
        right=(1, 2, 3, 4),
        note=note_methods(found for column in columns for found in column.measures.values()),
    )
    return [whole, *([_tabulate_groups(retrieval)] if retrieval.groups else [])]


def _tabulate_groups(retrieval: Retrieval) -> Table:
    rows = []
    for group in retrieval.groups:
        for key, words in DIRECTIONS.items():
            direction = getattr(group, key)
            rest = (show_measure(name, direction.measures[name])[0] for name in MEASURES[1:])
            first = show_measure("recall@1", direction.measures["recall@1"])
            rows.append((group.value or "–", words, f"{direction.queries:,}", *first, *rest))
    headers = (str(retrieval.by), "direction", "queries", "recall@1", "95 %", *_names(MEASURES[1:]))
    shown = [getattr(group, key).measures["recall@1"] for group in retrieval.groups for key in DIRECTIONS]
    return Table(
        title=f"By {retrieval.by}",
        headers=headers,
        rows=tuple(rows),
        right=tuple(range(2, 9)),
        spare=(6, 5, 8),
        note=note_methods(shown),
    )


def _names(measures: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in measures)
