"""The README.md of a trained model: what it learned from, how well it does, and how to make it again."""

from __future__ import annotations

import platform
import re
import shlex
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.models.registry import hub_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.train.record import Record

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "pillow")
SCRIPT = re.compile(r"titles with (.+) letters")
"""the names of counts of titles"""
LEARNED_BEFORE = "products judged on that were learned from before"
"""the name of the count that makes all numbers too kind"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """How many tokens of a text the model reads, and of how many pixels an edge is; None where it does not say."""

    tokens: int | None
    pixels: int | None


def reads_of(config: Any) -> Reads:
    """By a transformers config of both sides."""
    return Reads(
        tokens=getattr(getattr(config, "text_config", None), "max_position_embeddings", None),
        pixels=getattr(getattr(config, "vision_config", None), "image_size", None),
    )


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


def write_card(record: Record, *, reads: Reads, has_chart: bool) -> str:
    """The model card, in Markdown with the metadata that the Hub reads."""
    base = f"from {record.base} ({record.decisive['--tune']})" if record.base else "from scratch"
    hub_base = hub_id(record.base) if record.base else None
    lines = [
        "---",
        *([f"license: {record.license}"] if record.license else []),
        "library_name: transformers",
        "pipeline_tag: zero-shot-image-classification",
        *([f"base_model: {hub_base}"] if hub_base else []),
        "tags: [clip, image-text-retrieval, product-search, catvec]",
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
        "part. `trained_products.npy` has digests of the products it learned from, and of their images' URLs.",
        "",
        "## Metrics",
        "",
    ]
    lines += _metrics(record)
    lines += ["", *(["![loss, temperature and Recall@K over the steps](curves.png)", ""] if has_chart else [])]
    lines += ["## Limits", "", *_limits(record, reads), "", "## Licence", "", _licence(record), ""]
    lines += ["## How it was made", "", f"In {record.seconds:,.0f} s, interrupted commands included:", ""]
    lines += ["```sh", record.command, "```", ""]
    lines += _table("setting", "value", {name: value for name, value in record.decisive.items() if name[0] == "-"})
    return "\n".join([*lines, "", *_table("version of", "was", record.versions), ""])


def count_scripts(titles: Iterable[str]) -> dict[str, int]:
    """How many titles have letters of each script, by Unicode's first word for them: latin, cyrillic, cjk …"""
    found = Counter(
        script
        for title in titles
        for script in {unicodedata.name(letter, "?").split()[0].lower() for letter in title if letter.isalpha()}
    )
    return {f"titles with {script} letters": count for script, count in found.most_common()}


def _limits(record: Record, reads: Reads) -> list[str]:
    """What the data and the architecture say that it cannot know."""
    data = record.data
    beyond = f", beyond what {record.base} knew before" if record.base else ""
    scripts = [found[1] for name in data if (found := SCRIPT.fullmatch(name))]
    written = f", written in {', '.join(scripts)} letters" if scripts else ""
    limits = [
        f"It has learned the words of {data['different titles']:,} different titles{written}, from "
        f"{data['images learned from']:,} images{beyond}. Words and languages that no title has mean nothing to it, "
        "nor does what pictures show and titles do not say.",
        "It was made to find products of the catalog that it learned from. "
        "How well it does on pictures of other shops, other kinds of products or later seasons is not known: "
        "`catvec evaluate` tells.",
        "Its similarities rank the products of one catalog; they are no probabilities, and what was trained on is "
        "known better than what comes tomorrow.",
    ]
    if reads.tokens is not None:
        limits.append(f"Of a text it reads {reads.tokens:,} tokens, and nothing behind them.")
    if reads.pixels is not None:
        limits.append(f"It sees images of {reads.pixels:,} × {reads.pixels:,} pixels: no detail that is lost there.")
    return [f"- {limit}" for limit in limits]


def _licence(record: Record) -> str:
    unnamed = (
        "None is given: who may use these weights is for those to say who hold the rights to the images and titles. "
        "Name it here, and as `license:` at the top, before you pass the model on (or train with `--license`)."
    )
    own = f"{record.license}." if record.license else unnamed
    return own if record.base is None else f"{own} That of {record.base}, which it was made from, holds as well."


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
        *_warnings(record),
        *_table("metric", "value", {name: f"{value:.4f}" for name, value in record.metrics.items()}),
    ]


def _warnings(record: Record) -> list[str]:
    learned = record.data.get(LEARNED_BEFORE)
    if not learned:
        return []
    return [
        f"{record.base} had learned {learned:,} of the {record.data['products kept apart']:,} products that were "
        "kept apart: the numbers say little about products that it has not seen.",
        "",
    ]


def _table(name: str, value: str, rows: Mapping[str, Any]) -> list[str]:
    cells = [f"| {key} | {_shown(found)} |" for key, found in rows.items()]
    return [f"| {name} | {value} |", "|---|---|", *cells]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
