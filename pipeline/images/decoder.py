"""Which decoder a run has: Pillow on the cores, or nvJPEG on the device beside it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.images.decode import attempt, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.images.nvjpeg import NvJpegDecoder
    from pipeline.records import Decoded, Fetched, PreprocessSpec
    from pipeline.settings import DecodeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Decodes up to `at_once` files in one call, from any thread; what is wrong with one stands in its place."""

    name: str
    at_once: int
    decode_many: Callable[[Sequence[Fetched]], list[Decoded | Exception]]


class LateDecoder:
    """A decoder that is chosen when there is something to decode: on which device that is encoded only torch can say,
    which most nights do not need. Any thread may call its methods."""

    def __init__(self, choose: Callable[[], Decoder]) -> None:
        self._choose = choose
        self._lock = threading.Lock()
        self._chosen: Decoder | None = None

    def choose(self) -> Decoder:
        """Raises what the choice raises: ConfigError, ModelError."""
        with self._lock:
            self._chosen = self._chosen or self._choose()
            return self._chosen

    def at_once(self) -> int:
        """How many files `decode_many` takes now: one, until it is chosen."""
        return self._chosen.at_once if self._chosen else 1

    def decode_many(self, files: Sequence[Fetched]) -> list[Decoded | Exception]:
        return self.choose().decode_many(files)


def choose_decoder(settings: DecodeSettings, spec: PreprocessSpec, devices: Sequence[str]) -> Decoder:
    """What the settings ask for; `auto` is nvJPEG where it is, on the `devices` that encode.

    Raises ConfigError: nvJPEG is asked for and cannot be had.
    """
    found = [] if settings.decoder == "pillow" else _open_nvjpeg(settings, spec, devices)
    if found:
        from pipeline.images.nvjpeg import BATCH

        in_turn = cycle(found)
        return Decoder(name="nvjpeg", at_once=BATCH, decode_many=lambda files: next(in_turn).decode_many(files))
    if settings.decoder == "nvjpeg":
        raise refuse_nvjpeg()
    return Decoder(name="pillow", at_once=1, decode_many=partial(_decode_each, spec, settings))


def refuse_nvjpeg() -> ConfigError:
    return ConfigError(
        "--decoder is 'nvjpeg', but there is no CUDA device, or no torchvision that decodes on it",
        hint="install torchvision of the same release and CUDA as torch, or use --decoder auto",
    )


def _open_nvjpeg(settings: DecodeSettings, spec: PreprocessSpec, devices: Sequence[str]) -> list[NvJpegDecoder]:
    on_cuda = [device for device in devices if device.startswith("cuda")]
    if not on_cuda:
        return []
    from pipeline.images.nvjpeg import NvJpegDecoder, can_resize, open_nvjpeg

    if settings.decoder == "auto" and not can_resize(spec):
        return []
    opened = [open_nvjpeg(device) for device in on_cuda]
    return [NvJpegDecoder(decode_jpegs, spec, settings) for decode_jpegs in opened if decode_jpegs is not None]


def _decode_each(
    spec: PreprocessSpec, settings: DecodeSettings, files: Sequence[Fetched]
) -> list[Decoded | Exception]:
    return [attempt(partial(decode, fetched, spec, settings)) for fetched in files]
