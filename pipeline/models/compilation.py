"""The image side of a model through torch.compile, where that pays back within the run: measured, not believed.

Code is made for one shape, a full batch. Any other number of images (the last batch, the halves of one that did not
fit, an image that is done again in fp32) and texts go the eager way.

No CUDA graphs (`mode="reduce-overhead"`): they belong to one thread, and a device has two that feed it.
"""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from pipeline.errors import CatvecError, ModelError
from pipeline.models.batch import draw_noise
from pipeline.models.self_test import check_batch
from pipeline.models.weights import brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.models.encoder import Encoder, Features

logger = logging.getLogger(__name__)

BACKEND: Final = "inductor"
EXPECTED_GAIN: Final = 0.2
"""share of the time of a forward pass that compiled code is thought to save on CUDA: taken on trust until a GPU has
measured it (benchmarks/gpu.sh, results/gpu_compiled.json); where it saves less, the time of compiling is lost"""
EXPECTED_S: Final = 60.0
"""seconds that compiling is thought to take for one device, the caches of torch being empty; taken on trust, too"""
REPEATS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What takes the place of a model's eager features when there are exactly `batch_size` images."""

    batch_size: int
    features: Features


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What compiling came to: how long it took, and the least seconds of a full batch both ways."""

    compiled: Compiled
    compile_s: float
    eager_batch_s: float
    compiled_batch_s: float


def compile_images(encoders: Sequence[Encoder], *, is_optional: bool) -> None:
    """Compile one model on its devices for their batch sizes; to be called before other threads encode.

    What is optional is kept only where it is quicker, and left out with a warning when it cannot be done. Else it is
    kept in any case, and ModelError is raised when it cannot be done.
    """
    for encoder in encoders:
        try:
            trial = try_compiled(encoder)
        except Exception as error:
            reason = error.message if isinstance(error, CatvecError) else brief(error)
            if not is_optional:
                raise _refuse(encoder, reason) from error
            logger.warning("going on without compiling, which failed for %s: %s", encoder.device, reason)
            return  # it would on the other devices, too
        is_kept = not is_optional or trial.compiled_batch_s < trial.eager_batch_s
        encoder.compiled = trial.compiled if is_kept else None
        logger.info(
            "%s: a batch of %d takes %.4f s compiled, after %.0f s of compiling, and %.4f s eagerly: %s it",
            encoder.device,
            trial.compiled.batch_size,
            trial.compiled_batch_s,
            trial.compile_s,
            trial.eager_batch_s,
            "keeping" if is_kept else "dropping",
        )


def pays_back(encoders: Sequence[Encoder], images: int) -> bool:
    """Whether compiling for these devices should save more than it takes, when they share so many images.

    On CUDA a few batches are encoded to see.
    """
    first, devices = encoders[0], len(encoders)
    if not first.device.startswith("cuda"):
        return False  # on two CPU cores it took half a minute and saved nothing: the time goes into matrix products
    batches = images / devices / first.batch_size
    saved_s = EXPECTED_GAIN * batches * _least_seconds(first, first.eager)[0]
    return saved_s > EXPECTED_S * devices  # they are compiled one after the other


def try_compiled(encoder: Encoder) -> Trial:
    """Compile for full batches, test what they give, and compare. Raises whatever compiling does, and ModelError."""
    import torch

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about its own parts
        features = torch.compile(encoder.eager, backend=BACKEND, fullgraph=True, dynamic=False)
        check_batch(encoder, partial(encoder.forward, features), encoder.batch_size)
    compile_s = time.perf_counter() - began
    eager_s, compiled_s = _least_seconds(encoder, encoder.eager, features)
    return Trial(
        compiled=Compiled(batch_size=encoder.batch_size, features=features),
        compile_s=compile_s,
        eager_batch_s=eager_s,
        compiled_batch_s=compiled_s,
    )


def _least_seconds(encoder: Encoder, *ways: Features) -> list[float]:
    """Of a full batch in each of these ways, which take turns; the first turn warms up."""
    pixels = draw_noise(encoder.spec.preprocess, encoder.batch_size)
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + REPEATS):
        for features, taken in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            encoder.forward(features, pixels)  # returns when the device is done
            taken.append(time.perf_counter() - began)
    return [min(taken[1:]) for taken in seconds]


def _refuse(encoder: Encoder, reason: str) -> ModelError:
    return ModelError(
        f"the model cannot be compiled for {encoder.device}: {reason}",
        hint="torch.compile needs a C++ compiler, and triton on CUDA; --compile auto goes on without what fails",
    )
