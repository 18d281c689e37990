"""A start-up check that this device gives this model's vectors, before any of them is stored.

Apple GPUs, drivers and half precision have been seen to give finite, unit-length, wrong vectors of CLIP
(pixeltable#1314). One drawn image is encoded alone and inside a batch, and compared with fp32 on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import PreprocessSpec

    Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# cosine with fp32 on the CPU. bf16 was seen at 0.9999 (benchmarks/results/parity.json) and trained models may
# be a little lower; the defects that this looks for give less than 0.9
_LEAST_SIMILARITY = {"fp32": 0.999, "bf16": 0.99, "fp16": 0.99}
# a batch of ViT-B/32 in bf16 takes 25 ms an image on two cores; other devices get a whole batch, which shows
# also whether it fits into their memory
_CPU_ROWS = 4


def self_test(encoder: Encoder) -> None:
    """Encode the test image alone and as the last of a batch, and compare with the reference.

    Raises:
        ModelError: the vectors are not finite, not of unit length, or not those of the model.
    """
    image = draw_test_image(encoder.spec.preprocess)
    rows = min(encoder.batch_size, _CPU_ROWS) if encoder.device == "cpu" else encoder.batch_size
    _check(encoder, encoder.encode_once(image[None])[0], "alone")
    check_batch(encoder, encoder.encode_once, rows)


def check_batch(encoder: Encoder, encode: Encode, rows: int) -> None:
    """Encode the test image as the last of so many in one way of this encoder, and compare with the reference.

    Raises ModelError as `self_test`.
    """
    image = draw_test_image(encoder.spec.preprocess)
    others = [np.roll(image, shift=row + 1, axis=1) for row in range(rows - 1)]
    _check(encoder, encode(np.stack([*others, image]))[-1], f"in a batch of {rows}")


def draw_test_image(preprocess: PreprocessSpec) -> NDArray[np.uint8]:
    """Colour gradients with a light box and stripes, the same every time: uint8 [H, W, 3]."""
    height, width = preprocess.height, preprocess.width
    down, across = np.mgrid[0:height, 0:width] / max(height, width)
    image = np.stack([255 * across, 255 * down, 255 * (1 - across) * down], axis=-1)
    image[height // 4 : height // 2, width // 3 : width // 2] = (240, 230, 90)
    image[:, :: max(1, width // 8)] *= 0.3
    return image.astype(np.uint8)


def _check(encoder: Encoder, vector: NDArray[np.float32], how: str) -> None:
    precision = encoder.precision
    similarity = float(vector @ encoder.reference)
    # written so that NaN fails
    if not similarity >= _LEAST_SIMILARITY[precision]:
        raise ModelError(
            f"the self-test failed: encoded {how} on {encoder.device} in {precision}, the test image is "
            f"{similarity:.4f} similar to itself in fp32 on the CPU, expected {_LEAST_SIMILARITY[precision]}",
            hint="try --precision fp32" if precision != "fp32" else "try --device cpu",
        )
