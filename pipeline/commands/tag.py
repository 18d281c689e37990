"""catvec tag."""

from __future__ import annotations

import shlex
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.live import interruptible, progress_shown
from pipeline.commands.options import (
    Database,
    Device,
    Home,
    Json,
    ModelName,
    Precision,
    Weights,
    open_database,
    place_of,
)
from pipeline.commands.terminal import print_json, print_table, say
from pipeline.errors import ConfigError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.calibration import Calibration
    from pipeline.tag import Tagging

Source = Annotated[
    Path | None,
    typer.Argument(metavar="LABELS", help="YAML or JSON file of attributes and labels, or a head from catvec train"),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate",
        metavar="ATTRIBUTE[=NAME]",
        help="fit how far probabilities of this attribute are trusted, on products that have it, or NAME, in the "
        "catalog; may be given several times",
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="ATTRIBUTE", help="forget an attribute and its tags; may be given several times"),
]


def tag(
    source: Source = None,
    calibrate: Calibrate = None,
    drop: Drop = None,
    model: ModelName = None,
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
    db: Database = None,
    home: Home = None,
) -> None:
    """Give products labels (colour, pattern, season …) by their pictures, for the view catvec.product_tags."""
    from pipeline.search import EncoderChoice
    from pipeline.tag import drop as drop_attributes
    from pipeline.tag import read_source, tag_asked

    if (source is None) == (not drop):
        raise ConfigError("give either LABELS or --drop ATTRIBUTE", hint="for example: catvec tag labels.yaml")
    if source is None:
        with open_database(db, home) as url:
            under = drop_attributes(url, drop or [], model)
        say(f"forgotten under model {under}: {', '.join(drop or [])}")
        return
    choice = EncoderChoice(model=model, weights=weights, device=device, precision=precision)
    truths = parse_calibrate(calibrate or [])
    asked = read_source(source, truths)
    progress = Progress(phase="tagging products")
    report = partial(progress.step, unit="products")
    with open_database(db, home) as url, interruptible(progress), progress_shown(progress):
        tagging = tag_asked(url, asked, choice, calibrate=truths, report=report)
    if json:
        print_json(tagging)
    else:
        print_table(("attribute", "label", "products", "share"), _rows(tagging), right=(2, 3))
    # filters go by the tags of the active model, unless they name one
    place = f" --model {shlex.quote(model)}{place_of(db, home)}" if model else place_of(db, home)
    _say(tagging, place)


def parse_calibrate(texts: list[str]) -> dict[str, str]:
    """ATTRIBUTE=NAME, or ATTRIBUTE for ATTRIBUTE=ATTRIBUTE. Raises ConfigError."""
    from pipeline.search import check_words

    found: dict[str, str] = {}
    for text in texts:
        check_words(text, "--calibrate")
        attribute, _, name = text.partition("=")
        if not attribute or ("=" in text and not name):
            raise ConfigError(f"--calibrate is {text!r}, expected ATTRIBUTE or ATTRIBUTE=NAME")
        if attribute in found:
            raise ConfigError(f"--calibrate names {attribute!r} twice", hint="leave one of them out")
        found[attribute] = name or attribute
    return found


def _rows(tagging: Tagging) -> Iterator[tuple[str, str, int, str]]:
    for tagged in tagging.attributes:
        for label, products in tagged.products_by_label.items():
            yield tagged.attribute, label, products, f"{products / max(1, tagging.products):.1%}"


def _say(tagging: Tagging, place: str) -> None:
    from pipeline.names import UNKNOWN

    for calibration in tagging.calibrations:
        say(_calibrated(calibration))
        for warning in calibration.warnings:
            say(f"warning: {warning}", level="warning")
    for warning in tagging.warnings:
        say(f"warning: {warning}", level="warning")
    names = ", ".join(tagged.attribute for tagged in tagging.attributes)
    rate = f" ({tagging.products_per_s:,.0f} products/s without loading)" if tagging.tagged else ""
    say(
        f"{tagging.products:,} products have {names} under model {tagging.model}: {tagging.tagged:,} judged in "
        f"{tagging.seconds:,.1f} s{rate}, {tagging.removed:,} removed"
    )
    given = [(tagged.attribute, label) for tagged in tagging.attributes for label in tagged.products_by_label]
    attribute, label = next((pair for pair in given if pair[1] != UNKNOWN), (None, None))
    if attribute is not None:
        condition = shlex.quote(dumps({f"tag:{attribute}": label}, ensure_ascii=False))
        say(f"next: catvec similar PRODUCT_ID --filter {condition}{place}")
    elif tagging.products:
        say("next: lower the threshold, or word the labels as captions of these pictures would")
    else:
        say("next: catvec run CATALOG, which makes the vectors that tags come from")
    if tagging.behind:
        lacking = ", ".join(f"{name} lacks {products:,}" for name, products in tagging.behind.items())
        say(
            f"behind: {lacking} of {tagging.products:,} products; run catvec tag with their labels files or heads, "
            f"too, or forget one: catvec tag --drop {shlex.quote(next(iter(tagging.behind)))}{place}"
        )


def _calibrated(found: Calibration) -> str:
    trained = f", {found.left_out_trained:,} more were trained on" if found.left_out_trained else ""
    known = (
        f"{found.products:,} products of known {found.truth!r} ({found.left_out:,} have another, or a list{trained})"
    )
    errors = f"{found.ece_before:.3f} " + (
        f"before, {found.ece_after:.3f} after" if found.helps else f"as it is, {found.ece_after:.3f} by the one found"
    )
    return (
        f"{found.attribute}: temperature {found.temperature:.3g}{_kept(found)} by {known}, {found.accuracy:.1%} of "
        f"them right (always the most frequent label: {found.baseline:.1%}); calibration error {errors}"
    )


def _kept(found: Calibration) -> str:
    if found.fitted == found.temperature:
        return ""
    reason = "is close" if found.helps else "does not make the calibration error less"
    return f" (kept: {found.fitted:.3g}, found now, {reason})"
