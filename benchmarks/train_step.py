"""A step of training: torch's fused attention beside the plain one, and a batch at once beside the same in chunks.

python -m benchmarks.train_step [--size tiny] [--device cpu] [--batch-size 128] [--repeats 9] [--results FOLDER]

Forward, backward and optimiser on random pixels and titles that differ, without the making of batches. Contenders
take turns, and the first round is not counted. On a CPU the seconds are those of its cores, which a busy machine
stretches least.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.conditions import RESULTS, spread, write_result
from pipeline.settings import MODEL_SIZES, NewModelSettings
from pipeline.train.objective import Objective
from pipeline.train.start import open_start, write_new_model

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNKS = 4
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
WORDS = ("red", "navy", "green", "striped", "plain", "dotted", "mug", "bag", "dress", "shirt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to compute the same step; `chunk_size` None is all at once."""

    precision: str
    attention: str
    chunk_size: int | None

    @property
    def name(self) -> str:
        way = "at once" if self.chunk_size is None else f"in chunks of {self.chunk_size}"
        return f"{self.precision}, {self.attention}, {way}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step of training.")
    parser.add_argument("--size", choices=MODEL_SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    chunk = arguments.batch_size // CHUNKS
    contenders = [
        Contender(precision=precision, attention=attention, chunk_size=chunk_size)
        for precision in PRECISIONS
        for attention in ("sdpa", "eager")
        for chunk_size in (None, chunk)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_new_model(Path(folder), NewModelSettings(size=arguments.size), titles(arguments.batch_size), seed=0)
        steps = {
            contender.name: make_step(contender, Path(folder), arguments.device, arguments.batch_size)
            for contender in contenders
        }
        clock = time.process_time if arguments.device == "cpu" else time.perf_counter
        seconds = take_turns(steps, arguments.repeats, clock)
    said = {name: spread(values) for name, values in seconds.items()}
    beside = {"size": arguments.size, "device": arguments.device, "batch_size": arguments.batch_size}
    print(write_result("train_step", beside | {"seconds": said}, arguments.results))
    for name, found in said.items():
        print(f"{name}: {found['median']:.3f} s ({found['min']:.3f} to {found['max']:.3f})")


def titles(count: int) -> list[str]:
    """Six words each, no two the same."""
    return [" ".join(WORDS[number // 10**place % 10] for place in range(6)) for number in range(count)]


def make_step(contender: Contender, folder: Path, device: str, batch_size: int) -> Callable[[], None]:
    start = open_start(folder, "new")
    start.model.set_attn_implementation(contender.attention)
    start.model.to(device)
    objective = Objective(start.model, start.preprocess, device=device, chunk_size=contender.chunk_size)
    optimizer = torch.optim.AdamW(start.model.parameters(), lr=1e-4, fused=True)
    edge = start.preprocess.height
    pixels = torch.randint(0, 256, (batch_size, edge, edge, 3), dtype=torch.uint8).to(device)
    texts: dict[str, Any] = start.tokenizer.tokenize(titles(batch_size))
    texts = {name: tensor.to(device) for name, tensor in texts.items()}
    numbers = torch.arange(batch_size, device=device)
    dtype = PRECISIONS[contender.precision]

    def step() -> None:
        with torch.autocast(device, dtype=dtype or torch.float32, enabled=dtype is not None):
            loss = objective(pixels, numbers, **texts)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device

    return step


def take_turns(
    steps: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            began = clock()
            step()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


if __name__ == "__main__":
    main()
