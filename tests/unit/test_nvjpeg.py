"""Decoding for a CUDA device: the same pixels as Pillow's, whatever the file. nvJPEG itself is tried where it is.

Elsewhere Pillow reads the whole picture in its place; what is done with the pixels then is torch's either way.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pipeline.bundling import describe
from pipeline.encoding import Destination, make_stages
from pipeline.errors import ConfigError, DecodeError
from pipeline.images.decode import ORIENTATION_TAG, decode_pixels
from pipeline.images.decoder import choose_decoder
from pipeline.images.nvjpeg import DecodeJpegs, NvJpegDecoder, can_resize, open_nvjpeg
from pipeline.on_demand import ModelOnDemand
from pipeline.progress import Progress
from pipeline.records import Content, Decoded, Fetched, ImageRef
from pipeline.settings import CatalogSettings, DecodeSettings, ModelSettings, RunSettings
from tests.unit.test_decode import FULL, drawing, encoded, photo, spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from pipeline.records import PreprocessSpec


def decode_by_pillow(files: Sequence[bytes]) -> list[torch.Tensor]:
    """In the whole and as it is stored; like nvJPEG, one broken file fails them all."""
    import torch

    found = []
    for data in files:
        image = Image.open(io.BytesIO(data))
        try:
            image.load()
        except OSError as error:
            raise RuntimeError(f"nvjpeg: {error}") from error
        found.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    return found


@pytest.fixture(params=["pillow", "nvjpeg"])
def decode_jpegs(request: pytest.FixtureRequest) -> DecodeJpegs:
    if request.param == "pillow":
        return decode_by_pillow
    import torch

    found = open_nvjpeg("cuda") if torch.cuda.is_available() else None
    if found is None:
        pytest.skip("there is no CUDA device with torchvision here")
    return found


def fetched(data: bytes) -> Fetched:
    image = ImageRef(image_id=1, product_id="P", url="a.jpg")
    return Fetched(
        content=Content(image=image, sha256=hashlib.sha256(data).digest(), size_bytes=len(data)), data=data
    )


def decode_all(
    decode_jpegs: DecodeJpegs, files: Sequence[bytes], wanted: PreprocessSpec, settings: DecodeSettings = FULL
) -> list[Decoded | Exception]:
    return NvJpegDecoder(decode_jpegs, wanted, settings).decode_many([fetched(data) for data in files])


def cosine(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    x, y = a.astype(float).ravel() - 128, b.astype(float).ravel() - 128
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def kinds() -> dict[str, bytes]:
    """JPEG files as shops have them; what nvJPEG does not do is among them."""
    sizes = [(400, 533), (533, 400), (1200, 90), (90, 1200), (33, 47), (32, 32), (20, 500), (641, 480)]
    files = {f"{width} × {height}": encoded(photo(width, height), "JPEG", quality=90) for width, height in sizes}
    files["progressive"] = encoded(photo(300, 200), "JPEG", quality=90, progressive=True)
    files["4:4:4"] = encoded(photo(300, 200), "JPEG", quality=90, subsampling=0)
    files["grey"] = encoded(photo(300, 200).convert("L"), "JPEG", quality=90)
    files["CMYK"] = encoded(photo(300, 200).convert("CMYK"), "JPEG", quality=90)
    files["PNG"] = encoded(photo(300, 200), "PNG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        files[f"turned {orientation}"] = encoded(photo(400, 300), "JPEG", quality=90, exif=exif)
    return files


@pytest.mark.parametrize("resize", ["shortest_edge", "squash"])
def test_every_kind_of_file_has_pillows_pixels(decode_jpegs: DecodeJpegs, resize: str) -> None:
    files, wanted = kinds(), spec(resize, edge=64, height=64, width=64)

    found = decode_all(decode_jpegs, list(files.values()), wanted)

    for (name, data), decoded in zip(files.items(), found, strict=True):
        expected = decode_pixels(data, wanted, FULL)
        assert isinstance(decoded, Decoded), (name, decoded)
        assert decoded.pixels.shape == expected.shape, name
        assert cosine(decoded.pixels, expected) > 0.9998, name


@pytest.mark.parametrize("orientation", range(9))
def test_images_are_turned_upright(decode_jpegs: DecodeJpegs, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    data = encoded(drawing(120, 80), "JPEG", quality=95, exif=exif)
    [found] = decode_all(decode_jpegs, [data], spec())

    assert isinstance(found, Decoded)
    assert np.abs(found.pixels.astype(int) - decode_pixels(data, spec(), FULL)).max() <= 4
    assert (found.width, found.height) == ((80, 120) if orientation >= 5 else (120, 80))


def test_a_bad_file_takes_nothing_from_the_others(decode_jpegs: DecodeJpegs) -> None:
    good = [encoded(photo(200 + number, 150), "JPEG") for number in range(9)]
    bad = [good[0][: len(good[0]) // 2], b"\xff\xd8\xff no picture", b"<html>gone</html>", b""]
    files = [*good[:4], *bad, *good[4:]]

    found = decode_all(decode_jpegs, files, spec())

    assert [type(one).__name__ for one in found] == ["Decoded"] * 4 + ["DecodeError"] * 4 + ["Decoded"] * 5
    for data, error in zip(bad, found[4:8], strict=True):
        with pytest.raises(DecodeError) as pillows:
            decode_pixels(data, spec(), FULL)
        assert isinstance(error, DecodeError)
        assert (error.code, error.message) == (pillows.value.code, pillows.value.message)


def test_a_call_decodes_so_many_pixels_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.images.nvjpeg.BATCH_PIXELS", 10_000)
    sizes = [(60, 50), (60, 50), (100, 50), (60, 50), (200, 100), (10, 10), (60, 50)]
    files = [encoded(photo(width, height), "JPEG") for width, height in sizes]
    calls: list[int] = []

    def decode_counting(some: Sequence[bytes]) -> list[torch.Tensor]:
        calls.append(len(some))
        return decode_by_pillow(some)

    found = decode_all(decode_counting, [*files[:3], b"<html>", *files[3:]], spec())

    assert calls == [2, 2, 1, 2]  # 6,000 pixels; 8,000; one of 20,000; 3,100
    assert [type(one).__name__ for one in found] == ["Decoded"] * 3 + ["DecodeError"] + ["Decoded"] * 4
    assert [(one.width, one.height) for one in found if isinstance(one, Decoded)] == sizes


def test_too_many_pixels_are_refused_before_they_are_decoded(decode_jpegs: DecodeJpegs) -> None:
    data = encoded(photo(300, 200), "JPEG")
    [found] = decode_all(decode_jpegs, [data], spec(), DecodeSettings(max_pixels=59_999))
    assert isinstance(found, DecodeError)
    assert found.code == "too_many_pixels"


def test_what_only_pillow_resizes_is_left_to_it() -> None:
    padded = spec(edge=32, height=48, width=48)
    assert can_resize(spec())
    assert can_resize(spec("squash", height=64, width=24))
    assert not can_resize(padded)
    with pytest.raises(ConfigError, match="--decoder is 'nvjpeg', but this model's images are resized in a way"):
        NvJpegDecoder(decode_by_pillow, padded, FULL)


def test_there_is_no_nvjpeg_without_cuda() -> None:
    assert open_nvjpeg("cpu") is None


def test_without_cuda_pillow_decodes_and_nvjpeg_is_refused() -> None:
    good, bad = fetched(encoded(photo(60, 50), "JPEG")), fetched(b"<html>")
    decoder = choose_decoder(DecodeSettings(), spec(), ["cpu"])

    assert (decoder.name, decoder.at_once) == ("pillow", 1)
    found = decoder.decode_many([good, bad])
    assert [type(one).__name__ for one in found] == ["Decoded", "DecodeError"]
    with pytest.raises(ConfigError, match="--decoder is 'nvjpeg', but there is no CUDA device, or no torchvision"):
        choose_decoder(DecodeSettings(decoder="nvjpeg"), spec(), ["cpu"])
    with pytest.raises(ConfigError, match="--decoder is 'gpu', expected auto, pillow, nvjpeg"):
        DecodeSettings(decoder="gpu")


def test_with_cuda_nvjpeg_decodes() -> None:
    import torch

    if not torch.cuda.is_available() or open_nvjpeg("cuda") is None:
        pytest.skip("there is no CUDA device with torchvision here")
    assert choose_decoder(DecodeSettings(), spec(), ["cuda"]).name == "nvjpeg"
    assert choose_decoder(DecodeSettings(decoder="pillow"), spec(), ["cuda"]).name == "pillow"
    assert choose_decoder(DecodeSettings(), spec(edge=32, height=48, width=48), ["cuda"]).name == "pillow"


def test_a_model_that_is_loaded_late_has_the_decoder_of_its_device(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no CUDA device here, so it is said that there is one, and Pillow decodes in the place of nvJPEG."""
    settings = RunSettings(
        catalog=CatalogSettings(uri="-"), model=ModelSettings(model=str(tiny_clip), model_name="tiny"), home=tmp_path
    )
    first = ModelOnDemand(settings, None, Progress())
    model = describe(first.spec, str(tiny_clip))
    late = ModelOnDemand(settings, model, Progress())
    asked: list[str] = []

    def find(device: str) -> DecodeJpegs:
        asked.append(device)
        return decode_by_pillow

    monkeypatch.setattr("pipeline.images.nvjpeg.open_nvjpeg", find)
    monkeypatch.setattr("pipeline.models.device.choose_device", lambda _: "cuda")
    monkeypatch.setattr("pipeline.models.device.choose_precision", lambda *_: "bf16")
    stages = make_stages(settings, late, Destination(find_known=set, write=lambda outcomes: outcomes))
    assert (stages.decode_at_once(), asked) == (1, [])  # torch is not asked before there is a file

    [found] = stages.decode([fetched(encoded(photo(60, 50), "JPEG"))])

    assert isinstance(found, Decoded)
    assert (asked, late.loaded, stages.decode_at_once() > 1) == (["cuda"], [], True)


def test_what_the_device_has_no_memory_for_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("pipeline.images.nvjpeg.resize_and_crop_tensor", refuse)
    data = encoded(photo(60, 50), "JPEG")
    [found] = decode_all(decode_by_pillow, [data], spec())
    assert isinstance(found, Decoded)
    np.testing.assert_array_equal(found.pixels, decode_pixels(data, spec(), FULL))
