"""What `catvec evaluate compare` does: two models on the same products, query by query.

Both are asked the same questions, so the difference is judged by the pairs: what is hard for one is often hard for
the other, and two intervals that overlap may still hide a sure difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluate.gallery import cover, leave_out_trained, open_judged
from pipeline.evaluate.metrics import MEASURES, estimate, estimate_difference, sign_flip_p
from pipeline.evaluate.retrieval import DIRECTIONS, leave_out_untitled, rank_titles, score
from pipeline.evaluate.tables import Table, note_methods, say_coverage, show_measure, show_p, warn_of_trained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.evaluate.gallery import Coverage, Judged, Question
    from pipeline.evaluate.metrics import Estimate
    from pipeline.evaluate.ranking import Ranked
    from pipeline.progress import Progress

TESTED: Final = ("recall@1", "mrr")
SURE: Final = 0.05
"""p below which a difference is said to be one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """One direction: both models' measures, and `difference`, the second's less the first's.

    `p` is how probable a difference as large is by chance. `only_first` queries are right at once with the first
    model and not with the second.
    """

    queries: int
    candidates: int
    first: Mapping[str, Estimate]
    second: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]
    p: Mapping[str, float]
    only_first: int
    only_second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was measured; its fields are the keys of `catvec evaluate compare --json`.

    `unstated` are the models that do not state what they were trained on.
    """

    first: str
    second: str
    coverage: Coverage
    text_to_image: Contest
    image_to_text: Contest
    unstated: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Which products were judged, and which model is better."""
        return f"{self.judged}\n{self.decision}: {self.differences}"

    @property
    def judged(self) -> str:
        """Which products were judged."""
        return say_coverage(self.coverage, "a title", unstated=self.unstated)

    @property
    def decision(self) -> str:
        """Whether one finds more than the other, and which way, in a sentence for people."""
        better = {words: self._better(getattr(self, key)) for key, words in DIRECTIONS.items()}
        first, second = (
            [words for words, name in better.items() if name == own] for own in (self.first, self.second)
        )
        if first and second:
            return f"{self.first} finds more {first[0]}, {self.second} more {second[0]}"
        if not first and not second:
            return f"{self.first} and {self.second} show no sure difference"
        names = (self.first, self.second) if first else (self.second, self.first)
        ways = first or second
        return f"{names[0]} finds more than {names[1]}" + (f", {ways[0]} only" if len(ways) == 1 else " both ways")

    def _better(self, contest: Contest) -> str | None:
        if contest.p["recall@1"] >= SURE:
            return None
        return self.second if contest.difference["recall@1"].value > 0 else self.first

    @property
    def differences(self) -> str:
        """What the decision rests on: how much more the second finds at once, and how sure that is."""
        contests = {words: getattr(self, key) for key, words in DIRECTIONS.items()}
        said = [
            f"{words} {contest.difference['recall@1'].value:+.3f} (p {show_p(contest.p['recall@1'])})"
            for words, contest in contests.items()
        ]
        return f"recall@1 of {self.second} less that of {self.first} is {', '.join(said)}"

    @property
    def scores(self) -> Mapping[str, float]:
        """What --fail-under can ask for, as MODEL:recall@1, or difference:recall@1 for the second less the first.

        Without a direction it is the lesser of both.
        """
        named: dict[str, float] = {}
        for prefix, field in ((self.first, "first"), (self.second, "second"), ("difference", "difference")):
            scores = score({key: getattr(getattr(self, key), field) for key in DIRECTIONS})
            named |= {f"{prefix}:{name}": value for name, value in scores.items()}
        return named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComparisonJudged:
    """What was measured, and of what: the same products and texts, in the same order."""

    comparison: Comparison
    first: Ranked
    second: Ranked


def evaluate_comparison(url: str, first: Question, second: Question, progress: Progress) -> ComparisonJudged:
    """Judge two stored models by the products that have vectors under both. Raises CatvecError."""
    from pipeline.store.migrate import open_current

    if first.model == second.model:
        raise ConfigError(f"both models are {first.model!r}, expected two to compare", hint="see: catvec models")
    with open_current(url) as session:
        judged = _pair(open_judged(session, first, None, progress), open_judged(session, second, None, progress))
    (one, other), trained = _leave_out_trained(*judged, include=first.include_trained)
    one, untitled = leave_out_untitled(one)
    other, _ = leave_out_untitled(other)
    ranked = rank_titles(one.gallery, one.encoder, progress), rank_titles(other.gallery, other.encoder, progress)
    coverage = cover(
        replace(one, trained=_either_trained(one, other)), left_out_trained=trained, left_out_unanswered=untitled
    )
    progress.begin("resampling")
    comparison = Comparison(
        first=one.model.name,
        second=other.model.name,
        coverage=coverage,
        text_to_image=_contest(ranked[0].ranks.texts, ranked[1].ranks.texts, len(one.gallery), seed=first.seed),
        image_to_text=_contest(
            ranked[0].ranks.products, ranked[1].ranks.products, len(ranked[0].texts), seed=first.seed
        ),
        unstated=tuple(judged.model.name for judged in (one, other) if judged.trained is None),
        warnings=tuple(
            sentence
            for each in (one, other)
            for sentence in warn_of_trained(cover(each, left_out_trained=0, left_out_unanswered=0), each.model.name)
        ),
    )
    return ComparisonJudged(comparison=comparison, first=ranked[0], second=ranked[1])


def _pair(first: Judged, second: Judged) -> tuple[Judged, Judged]:
    """The products that both have, in the same order. Raises ConfigError when there are none."""
    ids = [np.array(judged.gallery.product_ids, dtype=object) for judged in (first, second)]
    wanted = np.isin(ids[0], ids[1]), np.isin(ids[1], ids[0])
    if not wanted[0].any():
        raise ConfigError(
            f"models {first.model.name!r} and {second.model.name!r} have vectors of no product in common",
            hint="run the same catalog with both",
        )
    first, second = first.keep(wanted[0]), second.keep(wanted[1])
    # a run may have changed a title between the two readings
    return first, replace(second, gallery=replace(second.gallery, titles=first.gallery.titles))


def _leave_out_trained(first: Judged, second: Judged, *, include: bool) -> tuple[tuple[Judged, Judged], int]:
    """The products that neither was trained on, and how many one of them was. Raises as `leave_out_trained`."""
    either = _either_trained(first, second)
    if include or either is None:
        return (first, second), 0
    if either.all() and not any(judged.trained is not None and judged.trained.all() for judged in (first, second)):
        raise ConfigError(
            f"each of the {len(either):,} products was learned by model {first.model.name!r} or "
            f"{second.model.name!r}, so none is left to judge both by",
            hint="run both on products that neither has seen; --include-trained measures all the same",
        )
    for judged in (first, second):
        leave_out_trained(judged, include=False)
    return (first.keep(~either), second.keep(~either)), int(either.sum())


def _either_trained(first: Judged, second: Judged) -> NDArray[np.bool_] | None:
    """Which products [P] one of the models at least was trained on; None when neither says."""
    known = [judged.trained for judged in (first, second) if judged.trained is not None]
    either: NDArray[np.bool_] | None = np.logical_or.reduce(known) if known else None
    return either


def _contest(first: NDArray[np.int64], second: NDArray[np.int64], candidates: int, *, seed: int) -> Contest:
    """Ranks [N] of the same queries under both models."""
    hits = first == 1, second == 1
    gained = {"recall@1": hits[1].astype(float) - hits[0], "mrr": 1 / second - 1 / first}
    return Contest(
        queries=len(first),
        candidates=candidates,
        first=estimate(first, seed=seed),
        second=estimate(second, seed=seed),
        difference=estimate_difference(first, second, seed=seed),
        p={name: sign_flip_p(gained[name], seed=seed) for name in TESTED},
        only_first=int((hits[0] & ~hits[1]).sum()),
        only_second=int((hits[1] & ~hits[0]).sum()),
    )


def tabulate(comparison: Comparison) -> list[Table]:
    """A table for each direction, one measure a line."""
    tables = []
    for key, words in DIRECTIONS.items():
        contest: Contest = getattr(comparison, key)
        rows = [
            (
                name.replace("_", " "),
                *(show_measure(name, each[name])[0] for each in (contest.first, contest.second)),
                *show_measure(name, contest.difference[name]),
                show_p(contest.p[name]) if name in contest.p else "",
            )
            for name in MEASURES
        ]
        rows.append(("only this one right", f"{contest.only_first:,}", f"{contest.only_second:,}", "", "", ""))
        rows.append(("queries", f"{contest.queries:,}", f"{contest.queries:,}", "", "", ""))
        headers = (words, comparison.first, comparison.second, "difference", "95 %", "p")
        note = note_methods(contest.difference.values())
        tables.append(Table(title=words, headers=headers, rows=tuple(rows), right=(1, 2, 3, 4, 5), note=note))
    return tables
