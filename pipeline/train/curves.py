"""How a training went: loss, temperature and Recall@K over its steps, as CSV and as a picture."""

from __future__ import annotations

import csv
import importlib.util
import io
from typing import TYPE_CHECKING, Any, Final

from pipeline.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

COLUMNS: Final = (
    "step", "epoch", "loss", "temperature", "learning_rate", "grad_norm",
    *(f"{way}recall@{k}" for way in ("", "image_to_text_", "text_to_image_") for k in (1, 5, 10)),
)  # fmt: skip


def rows_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """What the trainer noted, one row for each step: losses and evaluations of a step stand together."""
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        named = {name.removeprefix("eval_"): value for name, value in entry.items()}
        if "loss" in named or "recall@1" in named:
            row = rows.setdefault(entry["step"], {})
            row |= {name: named[name] for name in COLUMNS if name in named}
    return [rows[step] for step in sorted(rows)]


def write_curves(rows: Sequence[Mapping[str, float]], folder: Path, title: str) -> None:
    """Write curves.csv, and curves.png where matplotlib is installed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "curves.csv", text.getvalue())
    if importlib.util.find_spec("matplotlib") is not None:
        from pipeline.charts import draw_training

        draw_training(rows, folder / "curves.png", title)
