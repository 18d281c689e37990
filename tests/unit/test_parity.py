"""Law 9: our pixels and encoder against transformers' own Pillow processor and fp32 model."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.images.decode import decode
from pipeline.models.encoder import load_encoder
from pipeline.records import Content, Fetched, ImageRef
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def draw_photo(width: int, height: int, seed: int) -> Image.Image:
    """A garment-like thing on a gradient, with an edge, a texture and a little noise."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width] / max(width, height)
    ground = random.uniform(60, 230, 3) + random.uniform(-60, 60, 3) * (down + across)[..., None]
    ground += random.normal(0, 4, ground.shape)
    photo = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(photo)
    corners = [(random.uniform(0, width), random.uniform(0, height)) for _ in range(5)]
    draw.polygon(corners, fill=tuple(int(value) for value in random.integers(0, 255, 3)))
    for stripe in range(int(random.integers(2, 8))):
        top = height * stripe // 8
        draw.rectangle((width // 3, top, 2 * width // 3, top + height // 20), fill=(250, 250, 240))
    draw.ellipse((width // 8, height // 8, width // 3, height // 3), fill=(20, 40, 120))
    return photo


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    """JPEG files, none of them square, from half to forty times the area of the model's input."""
    sizes = [(400, 533), (533, 400), (90, 301), (301, 90), (641, 480), (75, 71), (222, 1000), (385, 512)]
    files = []
    for seed, (width, height) in enumerate(sizes):
        file = io.BytesIO()
        draw_photo(width, height, seed).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def encode_by_transformers(folder: Path, photos: list[bytes]) -> NDArray[np.float32]:
    import torch
    import transformers

    siglip = folder.name.endswith("siglip")
    kind = transformers.SiglipImageProcessorPil if siglip else transformers.CLIPImageProcessorPil
    processor = kind.from_pretrained(folder)
    pictures = [Image.open(io.BytesIO(photo)) for photo in photos]
    image_only = folder.name.endswith("image-only")
    model_class = transformers.CLIPVisionModelWithProjection if image_only else transformers.AutoModel
    model = model_class.from_pretrained(folder).eval()
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        if image_only:
            features = model(pixel_values=pixels).image_embeds
        else:
            features = model.get_image_features(pixel_values=pixels).pooler_output
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(features, dim=1).numpy()
    return vectors


def encode_by_catvec(folder: Path, photos: list[bytes], *, precision: str, reduced: bool) -> NDArray[np.float32]:
    encoder = load_encoder(ModelSettings(model=str(folder), device="cpu", precision=precision))
    settings = DecodeSettings(reduced=reduced)
    pixels = []
    for row, photo in enumerate(photos):
        image = ImageRef(image_id=row, product_id=str(row), url=f"{row}.jpg")
        content = Content(image=image, sha256=hashlib.sha256(photo).digest(), size_bytes=len(photo))
        fetched = Fetched(content=content, data=photo)
        pixels.append(decode(fetched, encoder.spec.preprocess, settings).pixels)
    return encoder.encode_images(np.stack(pixels))


@pytest.mark.parametrize(
    ("precision", "reduced", "least"),
    [("fp32", False, 0.9999), ("fp32", True, 0.999), ("bf16", False, 0.999), ("bf16", True, 0.999)],
)
@pytest.mark.parametrize("model", ["tiny_clip", "tiny_siglip", "tiny_image_only"])
def test_vectors_are_those_of_transformers(
    request: pytest.FixtureRequest, photos: list[bytes], model: str, precision: str, reduced: bool, least: float
) -> None:
    folder: Path = request.getfixturevalue(model)
    ours = encode_by_catvec(folder, photos, precision=precision, reduced=reduced)
    theirs = encode_by_transformers(folder, photos)
    similarities = (ours * theirs).sum(axis=1)
    assert similarities.min() >= least
    # a test of near-equal vectors could not fail: these are far apart
    others = (theirs @ theirs.T)[~np.eye(len(photos), dtype=bool)]
    assert others.max() < 0.99
