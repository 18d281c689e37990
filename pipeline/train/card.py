"""The README.md of a trained model: what it learned from, how well it does, and how to make it again."""

from __future__ import annotations

import platform
import shlex
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.train.record import Record

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "pillow")


def shown_command(arguments: Sequence[str]) -> str:
    """The command line, without what stands behind the scheme of a URL: it may be a password (law 10)."""
    return shlex.join(["catvec", *map(shown_word, arguments)])


def shown_word(word: str) -> str:
    """A word of the command line without what stands behind the scheme of a URL."""
    return f"{word.partition('://')[0]}://…" if "://" in word else word


def versions() -> dict[str, str]:
    """What was installed when the model was trained."""
    found = {"catvec": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # peft is not there for everyone
            found[name] = metadata.version(name)
    return found


def write_card(record: Record, *, has_chart: bool) -> str:
    """The model card, in Markdown with the metadata that the Hub reads."""
    base = f"from {record.base} ({record.decisive['--tune']})" if record.base else "from scratch"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, catvec]",
        "---",
        "",
        "# A dual encoder of one catalog's images and titles",
        "",
        f"Trained {base} by catvec on the image-title pairs of a product catalog. Use it with "
        "`catvec run CATALOG --model FOLDER`, or as any transformers model.",
        "",
        "## Data",
        "",
        *_table("what", "count", record.data),
        "",
        "Products are divided by a hash of their ids, or by a column of the catalog: all images of one are in one "
        "part. `trained_products.npy` has digests of the products it learned from.",
        "",
        "## Metrics",
        "",
    ]
    lines += _metrics(record)
    lines += ["", *(["![loss, temperature and Recall@K over the steps](curves.png)", ""] if has_chart else [])]
    lines += ["## How it was made", "", f"In {record.seconds:,.0f} s, interrupted commands included:", ""]
    lines += ["```sh", record.command, "```", ""]
    lines += _table("setting", "value", {name: value for name, value in record.decisive.items() if name[0] == "-"})
    return "\n".join([*lines, "", *_table("version of", "was", record.versions), ""])


def _metrics(record: Record) -> list[str]:
    if not record.metrics:
        return ["Nothing was kept apart to judge it on."]
    return [
        f"On {record.data['images judged on']:,} images of products kept apart, at step {record.best_step:,} of "
        f"{record.steps:,}, the best one by Recall@1. An image looks for its title among all different ones, a title "
        "for any image that has it; Recall@K without a direction is the mean of both. Each image counts by itself: "
        "`catvec evaluate retrieval` asks each product once, finds it by the nearest of its images, and looks among "
        "as many products as the database holds, so its numbers are others.",
        "",
        *_table("metric", "value", {name: f"{value:.4f}" for name, value in record.metrics.items()}),
    ]


def _table(name: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    cells = [f"| {key} | {_shown(found)} |" for key, found in rows.items()]
    return [f"| {name} | {value} |", "|---|---|", *cells]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
