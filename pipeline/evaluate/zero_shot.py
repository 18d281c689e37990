"""What `catvec evaluate zero-shot` does: are products given the label that they truly have, without training?

They are judged as `catvec tag` judges them, by the mean of their images, but that every product gets a label.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import ConfigError
from pipeline.evaluate.gallery import cover, leave_out_trained, open_judged
from pipeline.evaluate.metrics import share
from pipeline.evaluate.ranking import Ranked, rank
from pipeline.evaluate.tables import Table, say_coverage, show, show_interval, warn_of_trained
from pipeline.names import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.evaluate.gallery import Coverage, Judged, Question
    from pipeline.evaluate.metrics import Estimate
    from pipeline.labels import Attribute
    from pipeline.progress import Progress

SCORES: Final = ("top1", "top5", "macro_f1", "precision", "recall", "f1")
"""the last three for one label each, as in dress:recall"""
FIVE: Final = 5
SHOWN_VALUES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """One label: `products` truly have it, `given` were given it. What is divided by none of them is None."""

    label: str
    products: int
    given: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None
    most_confused_with: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShot:
    """What was measured; its fields are the keys of `catvec evaluate zero-shot --json`.

    `top5` is None with 5 labels or fewer, of which five are always right. `largest_class` is the share that always
    giving the most frequent label would reach. `confusion[i][j]` products of `classes[i]` were given the label of
    `classes[j]`. `unknown_values` are values that are no label, and their products.
    """

    model: str
    coverage: Coverage
    attribute: str
    truth: str
    top1: Estimate
    top5: Estimate | None
    macro_f1: float
    largest_class: float
    classes: tuple[Class, ...]
    confusion: tuple[tuple[int, ...], ...]
    unknown_values: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Which products were judged."""
        return f"model {self.model}, {say_coverage(self.coverage, 'a label')}"

    @property
    def scores(self) -> Mapping[str, float]:
        """What --fail-under can ask for; a label of no product, or given to none, has no score to fall short of."""
        named = {"top1": self.top1.value, "macro_f1": self.macro_f1}
        if self.top5 is not None:
            named["top5"] = self.top5.value
        for entry in self.classes:
            values = {"precision": entry.precision, "recall": entry.recall, "f1": entry.f1}
            named |= {f"{entry.label}:{name}": value for name, value in values.items() if value is not None}
        return named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ZeroShotJudged:
    """What was measured, and of what; `given` [P] is the place of each product's most similar label."""

    zero_shot: ZeroShot
    ranked: Ranked
    given: NDArray[np.int64]


def choose_attribute(path: Path, name: str | None) -> Attribute:
    """The attribute of a labels file that is judged. Raises ConfigError."""
    from pipeline.labels import read_labels

    attributes = read_labels(path)
    found = [attribute for attribute in attributes if name is None or attribute.name == name]
    if len(found) != 1:
        known = ", ".join(attribute.name for attribute in attributes)
        asked = "there is no --attribute" if name is None else f"--attribute is {name!r}"
        raise ConfigError(f"{asked}, expected one of those in {str(path)!r}: {known}")
    return found[0]


def known_scores(attribute: Attribute) -> tuple[str, ...]:
    """Those of SCORES that can fall short: the right one of 5 labels or fewer is always among the first five."""
    return tuple(name for name in SCORES if name != "top5" or len(attribute.labels) > FIVE)


def evaluate_zero_shot(
    url: str, attribute: Attribute, question: Question, *, truth: str | None, progress: Progress
) -> ZeroShotJudged:
    """Judge a stored model by what its products truly are, as `truth` says, else the attribute of the same name.

    Raises CatvecError.
    """
    from pipeline.store.migrate import open_current

    truth = truth or attribute.name
    with open_current(url) as session:
        judged = open_judged(session, question, truth, progress)
    judged, trained = leave_out_trained(judged, include=question.include_trained)
    values = judged.gallery.values
    places = _places(values, attribute)
    unknown = Counter(value for value, place in zip(values, places, strict=True) if place < 0 and value is not None)
    if (places < 0).all():
        raise _no_label(attribute, truth, unknown)
    judged = judged.keep(places >= 0)
    coverage = cover(judged, left_out_trained=trained, left_out_unanswered=int((places < 0).sum()))
    ranked = _rank(judged, attribute, places[places >= 0], progress)
    given = np.where(ranked.ranks.products == 1, ranked.text_of, ranked.ranks.next_texts)
    confusion = confuse(ranked.text_of, given, len(attribute.labels))
    zero_shot = ZeroShot(
        model=judged.model.name,
        coverage=coverage,
        attribute=attribute.name,
        truth=truth,
        **_summarise(confusion, ranked.ranks.products),
        classes=tuple(report_classes(attribute.label_names, confusion)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        unknown_values=dict(unknown.most_common()),
        warnings=(*warn_of_trained(coverage, judged.model.name), *_warn_of_unknown(unknown, truth)),
    )
    return ZeroShotJudged(zero_shot=zero_shot, ranked=ranked, given=given)


def _places(values: Sequence[str | None], attribute: Attribute) -> NDArray[np.int64]:
    """The label that each value names, by its place; -1 for none."""
    labels = {plain(name): place for place, name in enumerate(attribute.label_names)}
    return np.array([-1 if value is None else labels.get(plain(value), -1) for value in values])


def _no_label(attribute: Attribute, truth: str, unknown: Counter[str]) -> ConfigError:
    found = ", ".join(repr(value) for value, _ in unknown.most_common(SHOWN_VALUES)) or "none"
    expected = ", ".join(repr(name) for name in attribute.label_names[:SHOWN_VALUES])
    return ConfigError(
        f"no product has a label of {attribute.name!r} as its {truth}: found {found}, expected such as {expected}",
        hint="name the column or attribute that says what products truly are with --truth",
    )


def _warn_of_unknown(unknown: Counter[str], truth: str) -> tuple[str, ...]:
    if not unknown:
        return ()
    shown = ", ".join(f"{value!r} ({products:,})" for value, products in unknown.most_common(SHOWN_VALUES))
    more = ", …" if len(unknown) > SHOWN_VALUES else ""
    return (f"{unknown.total():,} products are left out, because their {truth} is no label: {shown}{more}",)


def _rank(judged: Judged, attribute: Attribute, places: NDArray[np.int64], progress: Progress) -> Ranked:
    from pipeline.labels import label_vectors

    progress.begin("comparing labels with images")
    vectors, gallery = label_vectors(judged.encoder, attribute), judged.gallery.average()
    return Ranked(
        gallery=gallery,
        texts=attribute.label_names,
        text_vectors=vectors,
        text_of=places,
        ranks=rank(gallery, vectors, places, progress),
    )


def confuse(truth: NDArray[np.int64], given: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """How many products of each label (rows) were given each label (columns), int64 [labels, labels]."""
    return np.bincount(truth * labels + given, minlength=labels * labels).reshape(labels, labels)


def _summarise(confusion: NDArray[np.int64], ranks: NDArray[np.int64]) -> dict[str, Any]:
    products = len(ranks)
    sought = confusion.sum(axis=1)
    f1 = 2 * confusion.diagonal() / np.maximum(1, sought + confusion.sum(axis=0))
    return {
        "top1": share(int((ranks <= 1).sum()), products),
        "top5": share(int((ranks <= FIVE).sum()), products) if len(confusion) > FIVE else None,
        # labels that no product has say nothing of the model but by what they took from others
        "macro_f1": float(f1[sought > 0].mean()),
        "largest_class": float(sought.max() / products),
    }


def report_classes(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[Class]:
    """Precision, recall and F1 of every label, in their order."""
    classes = []
    for place, label in enumerate(labels):
        right = int(confusion[place, place])
        products, given = int(confusion[place].sum()), int(confusion[:, place].sum())
        wrong = np.where(np.arange(len(labels)) == place, 0, confusion[place])
        classes.append(
            Class(
                label=label,
                products=products,
                given=given,
                right=right,
                precision=_divide(right, given),
                recall=_divide(right, products),
                f1=_divide(2 * right, products + given),
                most_confused_with=labels[int(wrong.argmax())] if wrong.any() else None,
            )
        )
    return classes


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def name_accuracies(zero_shot: ZeroShot) -> list[tuple[str, Estimate]]:
    """The shares that are right at once, and among the first five where that says something, in words."""
    named = (("top-1 accuracy", zero_shot.top1), ("top-5 accuracy", zero_shot.top5))
    return [(name, measured) for name, measured in named if measured is not None]


def tabulate(zero_shot: ZeroShot) -> list[Table]:
    """The shares that are right, and a line for each label."""
    rows = (
        *(
            (name, show(measured.value), show_interval(name, measured))
            for name, measured in name_accuracies(zero_shot)
        ),
        ("macro F1", show(zero_shot.macro_f1), ""),
        ("always the largest class", show(zero_shot.largest_class), ""),
        ("products", f"{zero_shot.coverage.products:,}", ""),
    )
    whole = Table(title="All products", headers=("measure", zero_shot.attribute, "95 %"), rows=rows, right=(1, 2))
    classes = tuple(
        (
            *(entry.label, f"{entry.products:,}", show(entry.precision), show(entry.recall), show(entry.f1)),
            entry.most_confused_with or "–",
        )
        for entry in zero_shot.classes
    )
    headers = ("label", "products", "precision", "recall", "F1", "most often taken for")
    return [whole, Table(title="By label", headers=headers, rows=classes, right=(1, 2, 3, 4))]
