"""Pictures of measurements; the only place that knows matplotlib, which is in the extra `charts`."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import CatvecError, ConfigError
from pipeline.intervals import say_percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.bench.measurement import Bench
    from pipeline.evaluate.zero_shot import ZeroShot
    from pipeline.store.candidates import Candidate
    from pipeline.tuning import Tuning

FORMATS = (".png", ".svg")
BLUE, ORANGE, TEAL, GREY, INK = "#2f6db5", "#d1661f", "#4aa3a8", "#8a8f98", "#24292f"
SERIES = ("#2f6db5", "#d1661f", "#3a9a5b", "#8a5fb0", "#b8892b", "#c2477f", "#4aa3a8", "#6b7280", "#a0522d")
FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "IPAGothic", "Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "Noto Sans", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Thai",
    "Noto Sans Devanagari", "Arial Unicode MS",
)  # fmt: skip
"""what machines have for letters that matplotlib's own font lacks, asked in this order"""
LONGEST = 48
"""letters of a name: one that is longer than the panel leaves no room for it"""


def require_charts(path: Path) -> None:
    """Raise ConfigError unless a chart can be written there; to be asked before anything is measured."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--chart is {str(path)!r}, expected a name that ends in {' or '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--chart is {str(path)!r}, but there is no folder {str(path.absolute().parent)!r}")
    _require_writable(path)
    try:
        import matplotlib  # noqa: F401 - only asked for
    except ImportError as error:
        raise ConfigError(
            "charts need the package matplotlib, which is not installed", hint="pip install 'catvec[charts]'"
        ) from error


def _require_writable(path: Path) -> None:
    try:
        if path.is_dir():
            raise ConfigError(f"--chart is {str(path)!r}, which is a folder, expected a file to write")
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"--chart is {str(path)!r}, which cannot be written: {error.strerror}") from error


@contextmanager
def _plain_words() -> Iterator[None]:
    """While it draws, a $ is a price and begins no formula, and letters may come from any font of FONTS."""
    from matplotlib import font_manager, rc_context

    # a family that is not there would be logged for each word
    there = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in FONTS if name in there)]
    with rc_context({"text.parse_math": False, "font.family": families}):
        yield


def _word(text: str) -> str:
    """A name as it can be drawn: on one line, not too long, and without what no drawing can hold."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


@_plain_words()
def draw_tuning(tuning: Tuning, path: Path) -> None:
    """Recall and latency over ef_search, and other indexes beside them if some were tried. Raises ConfigError."""
    from matplotlib.figure import Figure

    columns = 3 if tuning.candidates else 2
    figure = Figure(figsize=(5.2 * columns, 4.6), layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, columns))
    figure.suptitle(
        f"Index of model {tuning.model} ({tuning.kind}): {tuning.rows:,} vectors, {tuning.queries:,} queries",
        fontsize=13,
        color=INK,
    )
    _draw_recall(panels[0], tuning)
    _draw_latency(panels[1], tuning)
    if tuning.candidates:
        _draw_candidates(panels[2], tuning.candidates)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            # a letter that no font has is a box, a crowded panel is crowded: whoever looks at it sees that
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"the chart cannot be written to {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        raise CatvecError(f"the chart {str(path)!r} cannot be drawn: {error}") from error


def _draw_recall(axes: Axes, tuning: Tuning) -> None:
    chosen = tuning.chosen
    missed = "" if tuning.reaches_target else ", below the target"
    said = f"ringed: ef_search {chosen.ef_search}, recall {chosen.recall:.4f}{missed}"
    _prepare(axes, "Share of the 10 truly nearest products found", "recall@10", said)
    efs = [measured.ef_search for measured in tuning.curve]
    recalls = [measured.recall for measured in tuning.curve]
    axes.plot(efs, recalls, color=BLUE, marker="o", markersize=4, linewidth=1.8)
    axes.axhline(tuning.target_recall, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        f"target\n{tuning.target_recall:g}",
        (1, tuning.target_recall),  # beside the panel, where no curve comes
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        color=GREY,
        fontsize=9,
    )
    lowest = min(*recalls, tuning.target_recall)
    room = max(0.01, 0.3 * (1 - lowest))
    axes.set_ylim(max(0.0, lowest - room), 1 + 0.2 * room)
    _ring(axes, chosen.ef_search, chosen.recall)


def _draw_latency(axes: Axes, tuning: Tuning) -> None:
    chosen = tuning.chosen.latency
    said = f"ringed: median {chosen.median_ms:.2g} ms, 95 % in {chosen.p95_ms:.2g} ms"
    _prepare(axes, "Time of a search, as this client sees it", "milliseconds", said)
    efs = [measured.ef_search for measured in tuning.curve]
    medians = [measured.latency.median_ms for measured in tuning.curve]
    tails = [measured.latency.p95_ms for measured in tuning.curve]
    axes.fill_between(efs, medians, tails, color=ORANGE, alpha=0.15, linewidth=0, label="up to the 95th percentile")
    axes.plot(efs, medians, color=ORANGE, marker="o", markersize=4, linewidth=1.8, label="median")
    exact = tuning.exact.median_ms
    axes.axhline(exact, color=GREY, linestyle="--", linewidth=1, label=f"exact search, median {exact:.3g} ms")
    if exact > 3 * max(medians):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_ylim(min(medians) / 2, 6 * max(exact, *tails))
    else:
        axes.set_ylim(0, 1.5 * max(exact, *tails))
    axes.legend(framealpha=1, edgecolor="white", fontsize=9, labelcolor=INK, loc="upper left")
    _ring(axes, tuning.chosen.ef_search, chosen.median_ms)


def _draw_candidates(axes: Axes, candidates: Sequence[Candidate]) -> None:
    rows = candidates[0].rows
    _prepare(
        axes, f"Other indexes, by themselves, on {rows:,} of the vectors", "recall@10", "of images, not products"
    )
    for number, candidate in enumerate(candidates):
        axes.plot(
            [measured.ef_search for measured in candidate.curve],
            [measured.recall for measured in candidate.curve],
            color=SERIES[number % len(SERIES)],
            marker="o",
            markersize=3,
            linewidth=1.4,
            linestyle="-" if number < len(SERIES) else "--",
            label=f"m {candidate.m}, ef_construction {candidate.ef_construction}: built in {candidate.build_s:.1f} s",
        )
    axes.legend(frameon=False, fontsize=8, loc="lower right", labelcolor=INK)


def _prepare(axes: Axes, title: str, unit: str, said: str) -> None:
    axes.set_title(f"{title}\n{said}", fontsize=10, color=INK, loc="left")
    axes.set_ylabel(unit, color=INK)
    axes.set_xlabel("ef_search", color=INK)
    axes.set_xscale("log")
    axes.set_xticks([20, 50, 100, 200, 500, 1000])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(visible=True, which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def _ring(axes: Axes, at: float, value: float) -> None:
    """Show the chosen point; what it gives stands above the panel, where it covers nothing."""
    axes.plot([at], [value], marker="o", markersize=12, markerfacecolor="none", markeredgecolor=INK, linewidth=0)


FARTHEST = 3.0
"""times the lowest limit, where bars are cut off: the database's would make the others too short to compare"""


@_plain_words()
def draw_bench(measured: Bench, path: Path) -> None:
    """What each stage reaches alone, what shared cores allow, and what a run reached. Raises ConfigError."""
    from matplotlib.figure import Figure

    where, pictures = measured.conditions, measured.pictures
    figure = Figure(figsize=(9.6, 4.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    weights = " with random weights" if where.weights == "random" else ""
    device = where.device if where.devices == 1 else f"{where.devices} devices like {where.device}"
    figure.suptitle(
        f"What limits model {_word(where.model)}{weights} here", fontsize=13, color=INK, x=0.02, ha="left"
    )
    axes.set_title(
        f"{device} in {where.precision}, batches of {where.batch_size}; {where.cores} cores; "
        f"{pictures.images:,} pictures of {pictures.width} × {pictures.height} and "
        f"{pictures.size_bytes / 1000:,.0f} kB (medians)",
        fontsize=9.5,
        color=GREY,
        loc="left",
    )
    whole = measured.whole.images_per_s
    bars = [
        ("fetch only", measured.fetch.images_per_s, BLUE),
        ("decode only", measured.decode.images_per_s, BLUE),
        ("forward only", measured.forward.images_per_s, BLUE),
        ("write only", measured.write.images_per_s, BLUE),
        ("cores, shared by all", measured.shared_cores, TEAL),
        (f"everything at once:\n{measured.share_of_bound:.0%} of the lowest limit", whole, ORANGE),
    ]
    _draw_bars(axes, bars, farthest=max(FARTHEST * measured.bound, whole))
    axes.axvline(whole, color=ORANGE, linestyle="--", linewidth=1, zorder=0.5)
    _save(figure, path)


def _draw_bars(axes: Axes, bars: Sequence[tuple[str, float, str]], *, farthest: float) -> None:
    """Horizontal bars, the first above; a number at the end of each, also of those that go on beyond the panel."""
    end = min(farthest, max(value for _, value, _ in bars))
    for place, (_, value, colour) in enumerate(bars):
        goes_on = value > end
        axes.barh(place, 1.2 * end if goes_on else value, color=colour, height=0.62)
        axes.annotate(
            f"{value:,.{0 if value >= 100 else 1}f}" + (" ▸" if goes_on else ""),
            (1.12 * end if goes_on else value, place),
            xytext=(-6 if goes_on else 5, 0),
            textcoords="offset points",
            ha="right" if goes_on else "left",
            va="center",
            color="white" if goes_on else INK,
            fontsize=10,
        )
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * end)
    axes.set_xlabel("images per second", color=INK)
    axes.grid(visible=True, axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, length=0)


@_plain_words()
def draw_training(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Loss, temperature and Recall@K over the steps of a training. Raises ConfigError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained", facecolor="white")
    figure.suptitle(_word(title), fontsize=13, color=INK)
    loss, temperature, recall = figure.subplots(1, 3)
    _draw_series(loss, rows, ["loss"], "Loss")
    _draw_series(temperature, rows, ["temperature"], "Temperature")
    if any("recall@1" in row for row in rows):
        ways = ["recall@1", "image_to_text_recall@1", "text_to_image_recall@1", "recall@5", "recall@10"]
        _draw_series(recall, rows, ways, "Recall@K on products kept apart")
        recall.set_ylim(0, 1.02)
        recall.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), labelcolor=INK)
    else:
        recall.set_axis_off()
    _save(figure, path)


def _draw_series(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel("step", color=INK)
    for name, colour in zip(names, SERIES, strict=False):
        known = [(row["step"], row[name]) for row in rows if name in row]
        label = name.replace("_", " ").replace("recall", "Recall").replace("image to text", "image → text")
        label = label.replace("text to image", "text → image")
        axes.plot(*zip(*known, strict=True), color=colour, linewidth=1.6, label=label)
    axes.grid(visible=True, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


MOST_NUMBERS = 40
"""labels up to which each cell of a confusion matrix can hold its number"""


@_plain_words()
def draw_confusion(found: ZeroShot, path: Path) -> None:
    """What each label was taken for: a row for each true label, coloured by its shares. Raises ConfigError."""
    import numpy as np
    from matplotlib.figure import Figure

    labels = [_word(entry.label) for entry in found.classes]
    counts = np.array(found.confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    edge = min(24.0, 2.8 + 0.42 * len(labels))
    figure = Figure(figsize=(edge + 1.6, edge), layout="constrained", facecolor="white")
    axes = figure.subplots()
    figure.suptitle(f"Model {found.model}: {_word(found.attribute)} without training", fontsize=13, color=INK)
    axes.set_title(
        f"{found.coverage.products:,} products, {say_percent(found.top1.value, 1)} right "
        f"(95 % {say_percent(found.top1.low, 1)} to {say_percent(found.top1.high, 1)})",
        fontsize=10,
        color=GREY,
    )
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True) if len(labels) <= MOST_NUMBERS else ():
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("given", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="share of the true label")
    _save(figure, path)
