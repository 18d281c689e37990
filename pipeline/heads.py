"""What `catvec train --head` does: a small classifier of one attribute on vectors that are stored already.

Transfer learning on frozen features: the model stays as it is, so this takes a minute where training takes hours, and
the head fits that model alone.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.calibration import fit_temperature, share_of_largest, warn_of_baseline
from pipeline.errors import ConfigError
from pipeline.intervals import wilson_interval
from pipeline.judging import apply_layers, to_probabilities
from pipeline.known import read_known
from pipeline.learned import read_learned, warn_of_learned
from pipeline.names import UNKNOWN, find_fault, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.judging import Layer
    from pipeline.known import Known
    from pipeline.settings import HeadSettings
    from pipeline.store.models import StoredModel

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""of which the one is taken whose likelihood is highest on products not learned from: among two hundred, chance moves
the share that is right by more than a penalty does"""
TEST_SHARE, CHOICE_SHARE = 0.2, 0.2
"""of the products of each label: to judge the head on, and to choose the penalty by"""
FEWEST = 5
"""products of a label, at least: three to learn from, one to choose by, one to judge on"""
FEWEST_FAIR = 40
"""products that the model was not trained on, at least, to choose and to judge by these alone, half and half: of 20
that are all right the 95 % interval begins at 84 %, of 10 at 72 %"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadReport:
    """A head and how good it is; its fields are the keys of `catvec train --head … --json`.

    `accuracy` is on `held_out` products that it has not learned from; `low` and `high` are the bounds of its 95 %
    interval (Wilson's), `baseline` is that of always saying the most frequent label. `trained` of all products were
    learned from by the model below it: none of them is held out, unless too few others are, which `warnings` say.
    `accuracy_by_label` is None for a label without held-out products. `products_by_label` are all products of each
    label, `left_out` those of labels that fewer than 5 products have. Products that show the same images count once.
    """

    path: str
    attribute: str
    model: str
    products: int
    left_out: int
    trained: int
    held_out: int
    accuracy: float
    low: float
    high: float
    baseline: float
    accuracy_by_label: Mapping[str, float | None]
    products_by_label: Mapping[str, int]
    l2: float
    hidden: int | None
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Split:
    """Numbers of products: to learn from, to choose the penalty by, to judge on."""

    learn: NDArray[np.int64]
    choose: NDArray[np.int64]
    judge: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """What was learned from a split, with the penalty that was best."""

    split: _Split
    l2: float
    layers: tuple[Layer, ...]


def train_head(url: str, settings: HeadSettings, *, model: str | None = None) -> HeadReport:
    """Fit a head of an attribute on the vectors of the named model or the active one, and write its file.

    Raises ConfigError when the catalog has too few labelled products, and CatvecError.
    """
    from pipeline.models.head import Head, check_head_path, write_head
    from pipeline.models.trained import digest_products
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model

    began = time.monotonic()
    path = settings.output or Path(f"{settings.attribute}.safetensors")
    check_head_path(path, "--output")
    with open_current(url) as session:
        stored = choose_model(session.connection(), model)
        learned = read_learned(stored)
        known = read_known(session, stored, settings.attribute, learned=learned)
    known, unnamed = _leave_out_unnamed(known, settings.attribute)
    known = _require_enough(known, settings.attribute, stored)
    fit = _fit(known, settings)
    report = _report(known, fit, settings, model=stored.name, path=path, seconds=time.monotonic() - began)
    report = replace(report, warnings=(*report.warnings, *learned.warnings, *unnamed))
    used = known.keep(~np.isin(np.arange(len(known)), fit.split.judge))
    write_head(
        path,
        Head(
            attribute=settings.attribute,
            labels=known.labels,
            threshold=settings.threshold,
            source=stored.source,
            revision=stored.revision,
            fingerprint=stored.fingerprint,
            dims=stored.dims,
            layers=fit.layers,
            learned=digest_products(used.product_ids, chain.from_iterable(used.urls)),
            report=asdict(report),
        ),
    )
    return report


def _leave_out_unnamed(known: Known, attribute: str) -> tuple[Known, tuple[str, ...]]:
    """Without the values that are no name of a label, and what is to be said of them."""
    faults = {label: _fault_of(label) for label in known.labels}
    is_named = np.array([faults[label] is None for label in known.labels], dtype=bool)
    counts = np.bincount(known.truth, minlength=len(known.labels))
    warnings = tuple(
        f"{count:,} products are left out: their {attribute} {shorten(label)} {faults[label]}"
        for label, count in zip(known.labels, counts.tolist(), strict=True)
        if count and faults[label] is not None
    )
    return known.keep(is_named[known.truth]), warnings


def _fault_of(label: str) -> str | None:
    if label.strip().casefold() == UNKNOWN:
        return "is what a product is called that no label fits"
    return find_fault(label)


def _require_enough(known: Known, attribute: str, model: StoredModel) -> Known:
    """Without the labels that too few have. Raises ConfigError when fewer than two are left."""
    kept = known.with_labels_of(FEWEST)
    if len(kept.labels) < 2:
        raise ConfigError(
            f"{len(kept.labels)} values of {attribute!r} in the catalog have {FEWEST} products or more with a vector "
            f"under model {model.name!r}, expected at least 2",
            hint="category, brand, or the name of an attribute with one text or number for each product: "
            "SELECT attrs FROM catvec.products",
        )
    return kept


def _split(known: Known, seed: int) -> _Split:
    """Products of each label, shuffled and cut: at least one to judge on, and one to choose by.

    What the model was trained on is only learned from: the model knows it better than what comes tomorrow.
    """
    generator = np.random.default_rng(seed)
    may_judge = _may_judge(known)
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label in range(len(known.labels)):
        rows = generator.permutation(np.flatnonzero(known.truth == label))
        rows = rows[np.argsort(may_judge[rows], kind="stable")]
        fair = int(may_judge[rows].sum())
        # of what there is of each label, but no more than half of what is fair
        judged, chosen = (min(max(1, round(share * len(rows))), fair // 2) for share in (TEST_SHARE, CHOICE_SHARE))
        for part, some in zip(parts, np.split(rows, [len(rows) - judged - chosen, len(rows) - judged]), strict=True):
            part.append(some)
    learn, choose, judge = (np.concatenate(part) for part in parts)
    return _Split(learn=learn, choose=choose, judge=judge)


def _may_judge(known: Known) -> NDArray[np.bool_]:
    """The products [P] that the model was not trained on, where a label has two of them; all, where these are few."""
    fair: NDArray[np.bool_] = ~known.is_learned
    counts = np.bincount(known.truth[fair], minlength=len(known.labels))
    fair &= counts[known.truth] >= 2
    return fair if fair.sum() >= FEWEST_FAIR else np.ones(len(known), dtype=bool)


def _fit(known: Known, settings: HeadSettings) -> _Fit:
    """The layers that are best, with probabilities that can be trusted."""
    split = _split(known, settings.seed)
    tried = {l2: _fit_on(known, split.learn, settings, l2) for l2 in PENALTIES}
    truth = known.truth[split.choose]
    logits = {l2: apply_layers(layers, known.vectors[split.choose]) for l2, layers in tried.items()}
    best = max(PENALTIES, key=lambda l2: _likelihood(logits[l2], truth))
    temperature = fit_temperature(logits[best].astype(np.float64), truth, is_exclusive=True)
    layers = _fit_on(known, np.concatenate([split.learn, split.choose]), settings, best)
    weights, bias = layers[-1]
    last = (weights / np.float32(temperature), bias / np.float32(temperature))
    return _Fit(split=split, l2=best, layers=(*layers[:-1], last))


def _likelihood(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The mean logarithm of the probability of what is true."""
    probabilities = to_probabilities(logits.astype(np.float64), is_exclusive=True)
    # what is rounded to 0 is as unlikely as can be told
    return float(np.log(np.maximum(probabilities[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean())


def _fit_on(known: Known, rows: NDArray[np.int64], settings: HeadSettings, l2: float) -> tuple[Layer, ...]:
    from pipeline.models.probe import fit_layers

    return fit_layers(
        known.vectors[rows],
        known.truth[rows],
        labels=len(known.labels),
        l2=l2,
        hidden=settings.hidden,
        seed=settings.seed,
    )


def _report(known: Known, fit: _Fit, settings: HeadSettings, *, model: str, path: Path, seconds: float) -> HeadReport:
    judged, truth = known.vectors[fit.split.judge], known.truth[fit.split.judge]
    is_right = apply_layers(fit.layers, judged).argmax(axis=1) == truth
    low, high = wilson_interval(int(is_right.sum()), len(truth))
    accuracy, baseline = float(is_right.mean()), share_of_largest(truth)
    counts = np.bincount(known.truth, minlength=len(known.labels))
    held_out = np.bincount(truth, minlength=len(known.labels))
    return HeadReport(
        path=str(path),
        attribute=settings.attribute,
        model=model,
        products=len(known),
        left_out=known.left_out,
        trained=int(known.is_learned.sum()),
        held_out=len(truth),
        accuracy=round(accuracy, 4),
        low=round(low, 4),
        high=round(high, 4),
        baseline=round(baseline, 4),
        accuracy_by_label={
            label: round(float(is_right[truth == number].mean()), 4) if held_out[number] else None
            for number, label in enumerate(known.labels)
        },
        products_by_label={label: int(counts[number]) for number, label in enumerate(known.labels)},
        l2=fit.l2,
        hidden=settings.hidden,
        seconds=round(seconds, 3),
        warnings=(
            *warn_of_learned(model, learned=int(known.is_learned[fit.split.judge].sum()), products=len(truth)),
            *warn_of_baseline(settings.attribute, accuracy, baseline),
        ),
    )
