"""What reduced decoding gains on large photos: the same run into a bundle, with and without it, taking turns.

    python -m benchmarks.reduced CATALOG.CSV [--images 1000] [--rounds 5] [--model FOLDER]

The catalog's photos are enlarged to 1500 × 2000 and read from a folder. With a small model decoding limits, as on a
machine with a GPU; with one of ViT-B/32's size on a CPU the forward pass does. Decoding alone is measured beside it,
on one core. Writes results/reduced.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.backfill import say, stretch_catalog
from benchmarks.catalog import Photo, describe_sizes, write_catalog
from benchmarks.command import Place, link_model, run_catvec
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.gpu import enlarge
from benchmarks.random_model import save_tiny_clip
from pipeline.images.decode import decode_pixels
from pipeline.models.preprocess import clip_preprocess
from pipeline.settings import DecodeSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

ASKED = 3.0
PHOTOS = 100
CONTENDERS = {"reduced": "--reduced", "in full": "--no-reduced"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure reduced decoding on large photos.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column image")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a model folder; default: a tiny one with random weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
        place = open_place(Path(folder), arguments.model)
        pictures = place.folder / "pictures"
        pictures.mkdir()
        small = write_catalog(arguments.catalog, Path(scratch) / "small.csv", "http://unused", photos=PHOTOS)
        photos = [enlarge(photo, Path(scratch)) for photo in small]
        stretch_catalog(photos, pictures, place.folder, images=arguments.images, port=0)
        catalog = place.folder / "catalog.csv"
        text = catalog.read_text(encoding="utf-8").replace("http://127.0.0.1:0/", "pictures/")
        catalog.write_text(text, encoding="utf-8")
        result = {"model": place.model, "images": arguments.images, "photos": describe_sizes(photos)}
        result |= measure(place, photos, rounds=arguments.rounds)
    result["asked"] = ASKED
    for name, found in result["ratio"].items():
        print(f"{name:22} {found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f}), asked {ASKED:g}")
    print(write_result("reduced", result, arguments.results))


def open_place(folder: Path, model: Path | None) -> Place:
    """With a small model for photos of 224 × 224, if there is no other."""
    if model is not None:
        return Place(folder=folder, model=link_model(folder, model))
    return Place(folder=folder, model=save_tiny_clip(folder / "clip-small-224", image_size=224).name)


def measure(place: Place, photos: Sequence[Photo], *, rounds: int) -> dict[str, Any]:
    runs: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    alone: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    data = [photo.path.read_bytes() for photo in photos]
    for number in range(rounds):
        for name in CONTENDERS if number % 2 else reversed(CONTENDERS):
            runs[name].append(run(place, CONTENDERS[name]))
            alone[name].append(decode_alone(data, is_reduced=name == "reduced"))
            say(f"{name}: {runs[name][-1]:.1f} images/s, decoding alone {alone[name][-1]:.1f} a core")
    ratios = {"the whole run": ratio(runs), "decoding alone, a core": ratio(alone)}
    return {
        "images_per_s": {name: spread(found) for name, found in runs.items()},
        "decoding_alone_per_core": {name: spread(found) for name, found in alone.items()},
        "ratio": ratios,
    }


def ratio(rates: dict[str, list[float]]) -> dict[str, float]:
    return spread([ours / theirs for ours, theirs in zip(rates["reduced"], rates["in full"], strict=True)])


def run(place: Place, option: str) -> float:
    command = ("run", "catalog.csv", "--model", place.model, "--to", "bundle", option, "--json")
    outcome = run_catvec(*command, folder=place.folder, environment={})
    shutil.rmtree(place.folder / "bundle")
    return float(outcome.json()["images_per_s"])


def decode_alone(data: Sequence[bytes], *, is_reduced: bool) -> float:
    preprocess, settings = clip_preprocess(224), DecodeSettings(reduced=is_reduced)
    started = time.perf_counter()
    for one in data:
        decode_pixels(one, preprocess, settings)
    return len(data) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
