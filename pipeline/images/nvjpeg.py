"""JPEG files → pixels on a CUDA device, many at a time: decoded by nvJPEG, turned upright, resized and cropped there.

What nvJPEG is not made for (other formats, CMYK) and what it refuses goes to Pillow, one by one, with Pillow's words
about it. The device computes in 32-bit floats and rounds once, Pillow rounds after each of its two passes, so pixels
differ by 1 here and there. Needs torchvision with CUDA (extra `gpu`).
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.errors import ConfigError
from pipeline.images import sniff
from pipeline.images.decode import ORIENTATION_TAG, attempt, check_size, decode
from pipeline.images.resize import resized_size
from pipeline.records import Decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from pipeline.records import Fetched, PreprocessSpec
    from pipeline.settings import DecodeSettings

logger = logging.getLogger(__name__)

BATCH: Final = 64
"""files handed over at once"""
BATCH_PIXELS: Final = 32_000_000
"""of these, what is decoded in one call: 96 MB on the device for each thread that decodes, however large the photos;
64 of 400×533 are 14 million, ten of 1500×2000 are 30. A larger one is a call of its own"""

_MODES: Final = {2: "bilinear", 3: "bicubic"}
"""Pillow's resampling filters by what torch calls them"""

# by EXIF orientation: quarter turns against the clock, then mirrored left to right
_TURNS: Final = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


class DecodeJpegs(Protocol):
    """Bytes of JPEG files → uint8 [3, H, W] each, on the device. Raises RuntimeError when it refuses one of them."""

    def __call__(self, files: Sequence[bytes]) -> list[torch.Tensor]: ...


def open_nvjpeg(device: str) -> DecodeJpegs | None:
    """nvJPEG on this device; None where there is no CUDA device, or no torchvision with it."""
    import torch

    if not device.startswith("cuda"):
        return None
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError, OSError) as error:  # built for another torch, it fails while it is imported
        logger.debug("no GPU decoding: %s", error)
        return None

    def decode_jpegs(files: Sequence[bytes]) -> list[torch.Tensor]:
        raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        found: list[torch.Tensor] = decode_jpeg(raw, mode=ImageReadMode.RGB, device=device)
        return found

    return decode_jpegs


class NvJpegDecoder:
    """Decodes for one model. Raises ConfigError when the model's preprocessing is none that the device can do."""

    def __init__(self, decode_jpegs: DecodeJpegs, spec: PreprocessSpec, settings: DecodeSettings) -> None:
        if not can_resize(spec):
            raise ConfigError(
                "--decoder is 'nvjpeg', but this model's images are resized in a way that only Pillow does",
                hint="use --decoder auto",
            )
        self._decode_jpegs = decode_jpegs
        self._spec = spec
        self._settings = settings

    def decode_many(self, files: Sequence[Fetched]) -> list[Decoded | Exception]:
        """Decoded files, in their order; what is wrong with a file stands in its place."""
        headers = [_read_header(fetched.data, self._settings) for fetched in files]
        decoded: dict[int, Decoded] = {}
        for group in _groups(headers):
            decoded |= self._decode_group(files, group)
        return [
            decoded.get(place) or attempt(partial(decode, fetched, self._spec, self._settings))
            for place, fetched in enumerate(files)
        ]

    def _decode_group(self, files: Sequence[Fetched], group: Mapping[int, _Header]) -> dict[int, Decoded]:
        """Those that the device could do, by their places in `files`; nothing of them is left on it."""
        tensors = self._decode_each([files[place].data for place in group])
        done = {
            place: self._finish(files[place], header, tensor)
            for (place, header), tensor in zip(group.items(), tensors, strict=True)
            if tensor is not None
        }
        return {place: found for place, found in done.items() if found is not None}

    def _decode_each(self, data: list[bytes]) -> list[torch.Tensor | None]:
        """None for what the device refuses: one of them fails the whole call."""
        if not data:
            return []
        try:
            return list(self._decode_jpegs(data))
        except RuntimeError:
            if len(data) == 1:
                return [None]
        half = len(data) // 2
        return self._decode_each(data[:half]) + self._decode_each(data[half:])

    def _finish(self, fetched: Fetched, header: _Header, tensor: torch.Tensor) -> Decoded | None:
        """None for what is left to Pillow, because the device's memory does not suffice."""
        try:
            upright = _turn(tensor, header.orientation)
            pixels = resize_and_crop_tensor(upright, self._spec)
        except RuntimeError as error:
            logger.debug("not resized on the device: %s", error)
            return None
        height, width = upright.shape[1:]
        return Decoded(content=fetched.content, width=width, height=height, pixels=pixels)


def _turn(image: torch.Tensor, orientation: int) -> torch.Tensor:
    import torch

    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    upright = torch.rot90(image, turns, dims=(1, 2))
    return upright.flip(2) if is_mirrored else upright


def can_resize(spec: PreprocessSpec) -> bool:
    """Whether the device can do what the model's processor does: two filters, and no padding."""
    is_filled = spec.resize == "squash" or spec.resize_size >= max(spec.height, spec.width)
    return spec.resample in _MODES and is_filled


def resize_and_crop_tensor(image: torch.Tensor, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """`resize.resize_and_crop` on the device: uint8 [3, H, W] → uint8 [H, W, 3] in the host's memory."""
    import torch

    width, height = resized_size(image.shape[2], image.shape[1], spec)
    resized = torch.nn.functional.interpolate(
        image[None].float(), size=(height, width), mode=_MODES[spec.resample], antialias=True, align_corners=False
    )
    top, left = (height - spec.height) // 2, (width - spec.width) // 2
    kept = resized[0, :, top : top + spec.height, left : left + spec.width].round().clamp(0, 255)
    return np.ascontiguousarray(kept.to(torch.uint8).permute(1, 2, 0).cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What a JPEG file says of itself; `orientation` is EXIF's, 1 is upright."""

    pixels: int
    orientation: int


def _read_header(data: bytes, settings: DecodeSettings) -> _Header | None:
    """None for what is left to Pillow: no JPEG, CMYK, too large, or broken."""
    if sniff.find_format(data) != sniff.JPEG:
        return None
    try:
        image = JpegImageFile(io.BytesIO(data))
        check_size(*image.size, settings)
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - hostile files make it raise anything; Pillow will say what is wrong
        return None
    if image.mode not in {"L", "RGB"}:
        return None
    return _Header(pixels=image.width * image.height, orientation=orientation if isinstance(orientation, int) else 1)


def _groups(headers: Sequence[_Header | None]) -> Iterator[dict[int, _Header]]:
    """What the device is to decode, by place, in groups of up to BATCH_PIXELS, or of one."""
    group: dict[int, _Header] = {}
    pixels = 0
    for place, header in enumerate(headers):
        if header is None:
            continue
        if group and pixels + header.pixels > BATCH_PIXELS:
            yield group
            group, pixels = {}, 0
        group[place] = header
        pixels += header.pixels
    if group:
        yield group
