"""Images/s of the encoder alone, by precision and batch size, on this machine.

    python -m benchmarks.encode [--model FOLDER]

Pixels are ready in memory. The contenders take turns, six times; the first time is not counted. Without
`--model` a ViT-B/32 with random weights is made in a temporary folder (605 MB): the speed is that of the real
one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.conditions import write_result
from benchmarks.random_model import draw_photos, save_clip_b32
from pipeline.models.encoder import Encoder, load_encoder
from pipeline.settings import ModelSettings

REPEATS = 5
CONTENDERS = [("fp32", 32), ("bf16", 1), ("bf16", 8), ("bf16", 16), ("bf16", 32), ("bf16", 64)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the encoder alone.")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of ViT-B/32's size")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or save_clip_b32(Path(scratch) / "clip-b32-random")
        encoders = {
            precision: load_encoder(ModelSettings(model=str(folder), precision=precision))
            for precision in ("fp32", "bf16")
        }
    rates: dict[tuple[str, int], list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(1 + REPEATS):
        for precision, batch in CONTENDERS:
            rates[precision, batch].append(measure(encoders[precision], batch))
    lines = [summarize(precision, batch, rates[precision, batch][1:]) for precision, batch in CONTENDERS]
    for line in lines:
        print(
            "{precision} batch {batch_size:3}: {images_per_s:6.1f} images/s ({min:.1f} to {max:.1f})".format(**line)
        )
    device = encoders["bf16"].device
    print(write_result("encode", {"device": device, "repeats": REPEATS, "image_size": 224, "rates": lines}))


def measure(encoder: Encoder, batch: int) -> float:
    preprocess = encoder.spec.preprocess
    pixels = draw_photos(count=batch, size=preprocess.height)
    started = time.perf_counter()
    encoder.encode_images(pixels)  # returns when the device is done
    return batch / (time.perf_counter() - started)


def summarize(precision: str, batch: int, rates: list[float]) -> dict[str, Any]:
    median = round(statistics.median(rates), 1)
    spread = {"min": round(min(rates), 1), "max": round(max(rates), 1)}
    return {"precision": precision, "batch_size": batch, "images_per_s": median} | spread


if __name__ == "__main__":
    main()
