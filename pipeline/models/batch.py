"""How many images a device takes at once: found by trying, once for a model on a device, and remembered."""

from __future__ import annotations

import json
import logging
import platform
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.errors import CatvecError
from pipeline.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import PreprocessSpec

logger = logging.getLogger(__name__)

SIZES: Final[dict[str, tuple[int, ...]]] = {
    "cpu": (8, 16, 32, 64),
    "cuda": (64, 128, 256, 512, 1024),
    "mps": (16, 32, 64, 128),
}
WORTH: Final = 1.05
"""a larger batch is to be so much faster: it takes more memory, and what is in flight is done twice after a crash"""
LONGEST_BATCH_S: Final = 2.0
"""a device that takes so long for a batch gains nothing from a larger one"""
REPEATS: Final = 2


class BatchSizes:
    """A file of batch sizes; without one, or when it cannot be read or written, nothing is remembered."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def recall(self, encoder: Encoder) -> int | None:
        size = self._read().get(_key(encoder))
        return size if isinstance(size, int) and size > 0 else None

    def remember(self, encoder: Encoder) -> None:
        if self._file is None:
            return
        sizes = self._read() | {_key(encoder): encoder.batch_size}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(sizes, indent=2, sort_keys=True) + "\n")
        except (OSError, CatvecError) as error:
            logger.debug("the batch size is not remembered: %s", error)

    def _read(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text(encoding="utf-8")) if self._file else {}
            if isinstance(found, dict):
                return found
        return {}


def _key(encoder: Encoder) -> str:
    import torch

    if encoder.device.startswith("cuda"):
        device = torch.cuda.get_device_name(encoder.device)
    else:
        device = f"{encoder.device} {platform.machine()} with {torch.get_num_threads()} threads"
    return f"{encoder.spec.revision} on {device} in {encoder.precision}, torch {torch.__version__}"


def find_batch_size(encoder: Encoder) -> int:
    """The smallest of a device's usual batches that no larger one beats by much; the encoder's own limit holds.

    Raises ModelError as encoding does.
    """
    best, best_rate = encoder.batch_size, 0.0
    for size in SIZES[encoder.device.partition(":")[0]]:
        encoder.batch_size = size
        seconds = _measure(encoder, size)
        if encoder.batch_size < size:  # it did not fit, and was halved
            best = min(best, encoder.batch_size)
            break
        if size / seconds > WORTH * best_rate:
            best, best_rate = size, size / seconds
        if seconds > LONGEST_BATCH_S:
            break
    encoder.batch_size = best
    return best


def draw_noise(preprocess: PreprocessSpec, images: int) -> NDArray[np.uint8]:
    """Images to measure with, uint8 [N, H, W, 3]: how long they take does not depend on what they show."""
    shape = (images, preprocess.height, preprocess.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _measure(encoder: Encoder, size: int) -> float:
    """The least seconds for a batch, after one that warms up."""
    pixels = draw_noise(encoder.spec.preprocess, size)
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        encoder.encode_once(pixels)
        seconds.append(time.perf_counter() - started)
        if encoder.batch_size < size or seconds[-1] > LONGEST_BATCH_S:
            break
    return min(seconds[1:] or seconds)
