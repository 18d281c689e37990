"""What torch.compile and channels-last weights make of the forward pass, and from how many images it pays.

    python -m benchmarks.compiled [--models vit-b-32,vit-l-14] [--device auto] [--batch-size N]

Random weights of the real sizes, pixels ready in memory, the best precision of the device. For each model four
contenders take turns: eager or compiled, weights in torch's usual layout or channels last. Compiled code is made
without what earlier runs left in torch's caches, and its vectors are compared with the eager ones. `pays from` is how
many images win back the seconds of compiling, where the slowest compiled repeat beats the quickest eager one. Writes
results/compiled.json. On two quiet cores three minutes for vit-b-32, half an hour for all four.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.conditions import RESULTS, spread, write_result
from pipeline.models.batch import draw_noise, find_batch_size
from pipeline.models.compilation import EXPECTED_GAIN, EXPECTED_S, Trial, try_compiled
from pipeline.models.encoder import Encoder, load_encoder
from pipeline.models.untrained import SIZES, write_untrained_model
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.models.encoder import Features

REPEATS = 5
LEAST_S = 0.5
"""a repeat encodes batches for so long, and one at least"""
LAYOUTS = ("usual", "channels last")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure torch.compile and channels-last weights.")
    parser.add_argument("--models", default=",".join(SIZES), help="which, with commas")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="else found by trying on CUDA, and 32 on a CPU")
    parser.add_argument("--name", default="compiled", help="name of the result file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="catvec-compiled-") as scratch:
        models = {name: write_untrained_model(Path(scratch) / name, name) for name in arguments.models.split(",")}
        found = measure_models(models, device=arguments.device, batch_size=arguments.batch_size)
    print_models(found)
    trusted = {"gain": EXPECTED_GAIN, "seconds": EXPECTED_S}  # what `--compile auto` goes by
    result = {"repeats": REPEATS, "expected_by_auto": trusted, "models": found}
    print(write_result(arguments.name, result, arguments.results))


def measure_models(
    models: Mapping[str, Path], *, device: str = "auto", batch_size: int | None = None
) -> dict[str, dict[str, Any]]:
    return {
        name: measure(ModelSettings(model=str(model), device=device, batch_size=batch_size))
        for name, model in models.items()
    }


def measure(settings: ModelSettings) -> dict[str, Any]:
    import torch

    usual = load_encoder(settings)
    if settings.batch_size is None and usual.device.startswith("cuda"):
        find_batch_size(usual)
    last = load_encoder(settings)
    last._model.to(memory_format=torch.channels_last)
    last.batch_size = usual.batch_size
    encoders = dict(zip(LAYOUTS, (usual, last), strict=True))
    trials = {layout: compile_anew(encoder) for layout, encoder in encoders.items()}
    pixels = draw_noise(usual.spec.preprocess, usual.batch_size)
    ways: dict[str, tuple[Encoder, Features]] = {}
    for layout, encoder in encoders.items():
        ways[f"eager, {layout}"] = (encoder, encoder.eager)
        if isinstance(trial := trials[layout], Trial):
            ways[f"compiled, {layout}"] = (encoder, trial.compiled.features)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + REPEATS):
        for name, (encoder, features) in ways.items():
            rates[name].append(rate(encoder, features, pixels))
    reference = usual.forward(usual.eager, pixels)
    found = {
        name: {"images_per_s": spread(rates[name][1:])}
        | {"least_cosine": least_cosine(ways[name], pixels, reference)}
        for name in ways
    }
    return {
        "device": usual.device,
        "precision": usual.precision,
        "batch_size": usual.batch_size,
        "ways": found,
        "compile_s": {layout: describe(trial) for layout, trial in trials.items()},
        "pays_from_images": {layout: pays_from(found, layout, trials[layout]) for layout in LAYOUTS},
    }


def compile_anew(encoder: Encoder) -> Trial | str:
    """Compile with empty caches; what it said when it cannot be done."""
    import torch

    torch.compiler.reset()
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="catvec-inductor-", ignore_cleanup_errors=True) as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            return try_compiled(encoder)
        except Exception as error:  # noqa: BLE001 - part of the result
            return " ".join(str(error).split())[:300]
        finally:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
            if before is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def rate(encoder: Encoder, features: Features, pixels: NDArray[np.uint8]) -> float:
    batches, began = 0, time.perf_counter()
    while batches == 0 or time.perf_counter() - began < LEAST_S:
        encoder.forward(features, pixels)  # returns when the device is done
        batches += 1
    return batches * len(pixels) / (time.perf_counter() - began)


def least_cosine(way: tuple[Encoder, Features], pixels: NDArray[np.uint8], reference: NDArray[np.float32]) -> float:
    encoder, features = way
    return round(float((encoder.forward(features, pixels) * reference).sum(axis=1).min()), 6)


def describe(trial: Trial | str) -> float | str:
    return trial if isinstance(trial, str) else round(trial.compile_s, 1)


def pays_from(found: Mapping[str, Any], layout: str, trial: Trial | str) -> int | None:
    """Images that win back the seconds of compiling; None when it wins nothing beyond the spread."""
    if isinstance(trial, str):
        return None
    eager, compiled = (found[f"{how}, {layout}"]["images_per_s"] for how in ("eager", "compiled"))
    if compiled["min"] <= eager["max"]:
        return None
    images: float = trial.compile_s / (1 / eager["median"] - 1 / compiled["median"])
    return round(images)


def print_models(found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, measured in found.items():
        print(f"{name} on {measured['device']} in {measured['precision']}, batches of {measured['batch_size']}")
        for way, of_way in measured["ways"].items():
            told = of_way["images_per_s"]
            print(
                f"  {way:24} {told['median']:10,.1f} images/s ({told['min']:,.1f} to {told['max']:,.1f}), "
                f"cosine with eager at least {of_way['least_cosine']:.6f}"
            )
        for layout, pays in measured["pays_from_images"].items():
            told = measured["compile_s"][layout]
            took = told if isinstance(told, str) else f"{told:,.1f} s"
            print(f"  compiling, {layout}: {took}; pays from {f'{pays:,} images' if pays else 'no number of images'}")


if __name__ == "__main__":
    main()
