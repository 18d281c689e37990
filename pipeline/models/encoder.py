"""Pixels and text → unit vectors, on one device in one precision.

Several threads may encode images on one device: on CUDA each has a stream of its own, so that the copies of one
batch go on beside the forward pass of another.

The forward pass is transformers' own with its scaled-dot-product attention; its rates are in
benchmarks/results/encode.json. Eager attention, channels-last weights and flushed denormals were tried on a CPU and
left out: it spends its time in matrix products. What torch.compile makes of it is in `compilation`.
"""

from __future__ import annotations

import logging
import threading
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DeviceLostError, ModelError
from pipeline.models.copying import CopyClock
from pipeline.models.device import choose_placements
from pipeline.models.folder import has_tokenizer
from pipeline.models.preprocess import read_preprocess
from pipeline.models.registry import model_name
from pipeline.models.scoring import read_scoring
from pipeline.models.self_test import draw_test_image
from pipeline.models.source import find_model
from pipeline.models.text import Tokenizer, load_tokenizer
from pipeline.models.weights import brief, has_text, load_model
from pipeline.records import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from pipeline.models.compilation import Compiled
    from pipeline.models.device import Placement
    from pipeline.records import PreprocessSpec
    from pipeline.settings import ModelSettings

    Features = Callable[[torch.Tensor], torch.Tensor]
    """pixel values [N, 3, H, W] → features [N, D], before they are brought to length 1"""

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Encoder:
    """A model ready to encode.

    `reference` is the unit vector float32 [D] of the self-test's image, from this model in fp32 on the CPU.
    `batch_size` is how many images to hand over at once: it shrinks when the device's memory does not suffice.
    `was_halved` says so. `threads` is how many of the caller's threads keep the device busy. `eager` are the model's
    own features, and `compiled` may stand for them in full batches. `scoring` is how the model turns similarities
    into probabilities. `folder` holds its files.
    """

    def __init__(
        self, model: Any, *, spec: ModelSpec, folder: Path, placement: Placement, reference: NDArray[np.float32]
    ) -> None:
        import torch

        self.spec = spec
        self.device = placement.device
        self.precision = placement.precision
        self.batch_size = placement.batch_size
        self.was_halved = False
        self.threads = 2 if placement.device.startswith("cuda") else 1
        self.reference = reference
        self.scoring = read_scoring(model)
        self.folder = folder
        self._dtype: torch.dtype = getattr(torch, _DTYPES[placement.precision])
        self._model = _move(model, placement.device, self._dtype)
        self.eager: Features = partial(image_features, self._model)
        self.compiled: Compiled | None = None
        self._normalizer = Normalizer(spec.preprocess, device=placement.device)
        self._copies = CopyClock(placement.device)
        self._tokenizer: Tokenizer | None = None
        self._exact: Any = None
        self._lock = threading.Lock()
        self._streams = threading.local()

    def replicate(self, placement: Placement) -> Encoder:
        """The same model once more, for another device. Raises ModelError."""
        return Encoder(
            load_model(self.folder),
            spec=self.spec,
            folder=self.folder,
            placement=placement,
            reference=self.reference,
        )

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Unit vectors float32 [N, D] of uint8 pixels [N, H, W, 3], as `images/` makes them; waits for the device.

        What half precision gives no usable vector for is encoded again in fp32. A row for which the model gives
        none at all (not finite, or zero) is NaN throughout, so that the caller can fail this image alone.

        Raises:
            DeviceLostError: the device has failed, and will again.
            ModelError: not even one image fits into the device's memory.
        """
        vectors = self.encode_once(pixels)
        if self.precision != "fp32" and (is_bad := np.isnan(vectors).all(axis=1)).any():
            vectors[is_bad] = self._encode_in_fp32(pixels[is_bad])
        return vectors

    def encode_once(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same in the precision of this encoder and no other."""
        if len(pixels) == 0:
            return np.empty((0, self.spec.dims), dtype=np.float32)
        try:
            return self.forward(self._features_for(len(pixels)), pixels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                self._raise_if_lost(error)
                raise
            if len(pixels) <= 1:
                raise ModelError(
                    f"one image does not fit into the memory of {self.device}: {brief(error)}",
                    hint="free its memory, take a smaller model, or use --device cpu",
                ) from error
        # outside the handler, which keeps the failed batch's tensors alive
        return self._encode_halves(pixels)

    def _features_for(self, images: int) -> Features:
        compiled = self.compiled
        return compiled.features if compiled and compiled.batch_size == images else self.eager

    def forward(
        self, features: Features, pixels: NDArray[np.uint8], dtype: torch.dtype | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors float32 [N, D] by these features, of pixel values in this encoder's dtype if in no other.

        Raises RuntimeError as torch does.
        """
        import torch

        with torch.inference_mode(), self._stream():
            began = self._copies.mark()
            pixel_values = self._normalizer(pixels).to(dtype or self._dtype)
            copied = self._copies.mark()
            vectors = unit_rows(features(pixel_values))  # on the host: the device is done
            self._copies.add(began, copied)
            return vectors

    def take_copy_s(self) -> float:
        """Seconds that pixels took to the device and through normalisation since this was last asked, of all threads.

        They are part of what encoding took.
        """
        return self._copies.take()

    def _stream(self) -> AbstractContextManager[Any]:
        """On CUDA, a stream of the calling thread."""
        import torch

        if not self.device.startswith("cuda"):
            return nullcontext()
        if not hasattr(self._streams, "own"):
            new_stream: Any = torch.cuda.Stream  # untyped in some releases of torch
            self._streams.own = new_stream(self.device)
        return torch.cuda.stream(self._streams.own)

    def _encode_in_fp32(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Image by image, for they are few; NaN when the device has no memory for the model in fp32 beside it."""
        import torch

        try:
            with self._lock:
                exact: Features = partial(image_features, self._load_exact(len(pixels)))
                return np.concatenate([self.forward(exact, row[None], torch.float32) for row in pixels])
        except (RuntimeError, ModelError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                self._raise_if_lost(error)
                raise
            logger.warning("they are not encoded in fp32, for which %s has no memory left: %s", self.device, error)
            return np.full((len(pixels), self.spec.dims), np.nan, dtype=np.float32)

    def _load_exact(self, images: int) -> Any:
        import torch

        if self._exact is None:
            logger.warning(
                "%d images of a batch have no finite vector in %s and are encoded in fp32, as others will be; if "
                "they are many, --precision bf16 or fp32 is faster",
                images,
                self.precision,
            )
            self._exact = _move(load_model(self.folder), self.device, torch.float32)
        return self._exact

    def _raise_if_lost(self, error: RuntimeError) -> None:
        if "CUDA error" in str(error):
            raise DeviceLostError(
                f"device {self.device} has failed: {brief(error)}",
                hint="look at nvidia-smi and dmesg; the same command goes on where this one ended, on another device "
                "with --device",
            ) from error

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors float32 [N, D] of texts, in the space of the images; a text too long is cut.

        Raises:
            ModelError: the model has no text side, or its tokenizer does not work.
        """
        import torch

        tokenizer = self._load_tokenizer()
        vectors = [np.empty((0, self.spec.dims), dtype=np.float32)]
        for start in range(0, len(texts), self.batch_size):
            tokens = tokenizer.tokenize(texts[start : start + self.batch_size])
            with torch.inference_mode():
                on_device = {name: tensor.to(self.device) for name, tensor in tokens.items()}
                vectors.append(unit_rows(text_features(self._model, on_device)))
            if vectors[-1].shape[1] != self.spec.dims:
                raise ModelError(
                    f"model {self.spec.name!r} gives texts {vectors[-1].shape[1]} dimensions "
                    f"and images {self.spec.dims}, expected one space for both"
                )
        return np.concatenate(vectors)

    def tokens_kept(self, text: str) -> int | None:
        """How many tokens of a text too long are read; None when it is read whole.

        Raises:
            ModelError: as in `encode_texts`.
        """
        tokenizer = self._load_tokenizer()
        return None if tokenizer.fits(text) else tokenizer.max_length

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """The ids of the tokens that are read of a text: texts that share them are one to the model.

        Raises:
            ModelError: as in `encode_texts`.
        """
        return tuple(self._load_tokenizer().tokenize([text])["input_ids"][0].tolist())

    def _load_tokenizer(self) -> Tokenizer:
        if not self.spec.has_text:
            raise ModelError(
                f"model {self.spec.name!r} has no text side",
                hint="search by image, or use a model with image and text features and its tokenizer files",
            )
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder, self._model)
        return self._tokenizer

    def _encode_halves(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        half = (len(pixels) + 1) // 2
        if half < self.batch_size:
            logger.warning("out of memory on %s with %d images: going on with %d", self.device, len(pixels), half)
            self.batch_size, self.was_halved = half, True
        return np.concatenate([self.encode_once(pixels[:half]), self.encode_once(pixels[half:])])


class Normalizer:
    """uint8 pixels [N, H, W, 3] → fp32 [N, 3, H, W] on the device, where it is computed."""

    def __init__(self, preprocess: PreprocessSpec, *, device: str) -> None:
        import torch

        self._shape = (preprocess.height, preprocess.width, 3)
        self._device = device
        # (pixels · rescale - mean) / std as one multiplication and one addition
        std = torch.tensor(preprocess.std).view(1, 3, 1, 1)
        self._scale = (preprocess.rescale / std).to(device)
        self._shift = (-torch.tensor(preprocess.mean).view(1, 3, 1, 1) / std).to(device)

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        import torch

        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._shape:
            raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 [N, *{self._shape}]")
        # bytes move to the device, a quarter of what fp32 takes; torch warns of arrays it may not write
        raw = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if self._device.startswith("cuda"):
            raw = raw.pin_memory()  # only from there a copy goes on beside the forward pass
        return self.scale(raw.to(self._device, non_blocking=True).permute(0, 3, 1, 2))

    def scale(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, H, W] of 0 to 255 on the device → fp32 as the model takes them."""
        return pixels * self._scale + self._shift


def load_encoder(settings: ModelSettings, *, registered_revision: str | None = None) -> Encoder:
    """Find, load and place a model, on the first of several devices.

    `registered_revision` is the revision that the database has for it (see `find_model`).

    Raises:
        ConfigError: a setting is not one of those that exist.
        ModelError: the model cannot be had, or cannot be used here.
    """
    name = model_name(settings)
    placement = choose_placements(settings)[0]
    files = find_model(settings, registered_revision=registered_revision)
    model = load_model(files.folder)
    preprocess = read_preprocess(files.folder, model_type=model.config.model_type)
    reference = _encode_reference(files.folder, model, preprocess)
    spec = ModelSpec(
        name=name,
        source=files.source,
        revision=files.revision,
        dims=len(reference),
        preprocess=preprocess,
        has_text=has_text(model) and has_tokenizer(files.folder),
    )
    return Encoder(model, spec=spec, folder=files.folder, placement=placement, reference=reference)


def _encode_reference(folder: Path, model: Any, preprocess: PreprocessSpec) -> NDArray[np.float32]:
    """The self-test's image in fp32 on the CPU, before anything is converted or moved."""
    import torch

    pixels = draw_test_image(preprocess)[None]
    try:
        with torch.inference_mode():
            vectors = unit_rows(image_features(model, Normalizer(preprocess, device="cpu")(pixels)))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"the model in {folder} does not take images of {preprocess.height} × {preprocess.width} pixels, "
            f"as its image processor makes them: {brief(error)}",
            hint="copy preprocessor_config.json and config.json of the same model",
        ) from error
    vector: NDArray[np.float32] = vectors[0]
    if not np.isfinite(vector).all():
        raise ModelError(
            f"the model in {folder} gives a drawn image a vector that is not finite, or zero",
            hint="its weights are damaged: copy the model folder again",
        )
    return vector


def _move(model: Any, device: str, dtype: torch.dtype) -> Any:
    try:
        return model.to(device=device, dtype=dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"the model does not fit into the memory of {device}: {brief(error)}",
            hint="free its memory, take a smaller model, or use --device cpu",
        ) from error


def image_features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The image features [N, D] before normalisation, of either kind of model."""
    if hasattr(model, "get_image_features"):
        return _features(model.get_image_features(pixel_values=pixel_values))
    return _features(model(pixel_values=pixel_values))


def text_features(model: Any, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The text features [N, D] before normalisation, of what the model's tokenizer gave."""
    return _features(model.get_text_features(**tokens))


def unit_rows(features: torch.Tensor) -> NDArray[np.float32]:
    """Rows of length 1, normalised in fp32; NaN where a row is zero or not finite."""
    import torch

    rows = features.float()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    is_usable = torch.isfinite(lengths) & (lengths > 0)
    array: NDArray[np.float32] = torch.where(is_usable, rows / lengths, torch.nan).cpu().numpy()
    return array


def _features(output: Any) -> torch.Tensor:
    """transformers 4 and early 5 gave the features themselves; now they give an object with them."""
    import torch

    if not isinstance(output, torch.Tensor):
        embeds = getattr(output, "image_embeds", None)
        output = getattr(output, "pooler_output", None) if embeds is None else embeds
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        raise ModelError("the model gives no features of shape [N, D], one row for each image or text")
    return output


def is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    # MPS and the CPU's allocator raise a bare RuntimeError
    return (
        isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)
    )
