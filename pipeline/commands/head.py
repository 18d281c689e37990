"""catvec train --head: what the command prints; `train` itself hooks it up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.options import open_database, place_of
from pipeline.commands.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.settings import HeadSettings


def train_head_command(
    settings: HeadSettings, *, model: str | None, json: bool, db: str | None, home: Path | None
) -> None:
    """Fit a head on stored vectors, and say how good it is."""
    from pipeline.heads import train_head

    with open_database(db, home) as url:
        report = train_head(url, settings, model=model)
    if json:
        print_json(report)
    else:
        rows = [
            (label, products, "–" if (share := report.accuracy_by_label[label]) is None else f"{share:.1%}")
            for label, products in report.products_by_label.items()
        ]
        print_table((report.attribute, "products", "accuracy"), rows, right=(1, 2))
    trained = f"; the model was trained on {report.trained:,} of all" if report.trained else ""
    say(
        f"{report.accuracy:.1%} of {report.held_out:,} held-out products are right (95 % interval {report.low:.1%} "
        f"to {report.high:.1%}; always the most frequent label: {report.baseline:.1%}); learned from "
        f"{report.products - report.held_out:,} in {report.seconds:,.1f} s, {report.left_out:,} left out as rare or "
        f"lists{trained}"
    )
    for warning in report.warnings:
        say(f"warning: {warning}", level="warning")
    say(f"next: catvec tag {report.path} --model {report.model}{place_of(db, home)}")
