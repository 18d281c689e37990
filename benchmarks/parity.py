"""Law 9 on real photos: cosine of our vectors with those of transformers' Pillow processor and fp32 model.

    python -m benchmarks.parity CATALOG_OR_FOLDER [--model FOLDER] [--photos 200]

The photos are JPEG files below the folder, or below that of the catalog, drawn with a seed. Photos of shop size
are often too small to be decoded reduced, so a quarter of them is measured again, enlarged to 1200 pixels.
Without `--model` a ViT-B/32 with random weights is made in a temporary folder (605 MB).
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.conditions import write_result
from benchmarks.random_model import save_clip_b32
from pipeline.images.decode import decode
from pipeline.models.encoder import load_encoder
from pipeline.records import Content, Fetched, ImageRef
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder
    from pipeline.records import PreprocessSpec

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare catvec's vectors with transformers'.")
    parser.add_argument("photos_in", type=Path, help="a folder of JPEG files, or a catalog file beside them")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of ViT-B/32's size")
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    photos = choose_photos(arguments.photos_in, arguments.photos)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or save_clip_b32(Path(scratch) / "clip-b32-random")
        large = [enlarge(photo, Path(scratch)) for photo in photos[: max(1, len(photos) // 4)]]
        sets = {"as they are": compare(folder, photos), "enlarged": compare(folder, large)}
    for name, result in sets.items():
        print(f"{result['photos']} photos {name}, at most {result['most_similar_photos']:.4f} similar to another:")
        for line in result["comparisons"]:
            print("  {precision} reduced={reduced!s:5} min {min:.6f} mean {mean:.6f}".format(**line))
    print(write_result("parity", {"sets": sets}))


def enlarge(photo: Path, folder: Path) -> Path:
    """The photo with a short edge of 1200 pixels, as a JPEG of usual quality."""
    with Image.open(photo) as image:
        scale = 1200 / min(image.size)
        large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    large.save(folder / photo.name, quality=90)
    return folder / photo.name


def choose_photos(where: Path, count: int) -> list[Path]:
    root = where if where.is_dir() else where.parent
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    if len(found) < count:
        raise SystemExit(f"{root} has {len(found)} JPEG files, expected at least {count}")
    return random.Random(0).sample(found, count)


def compare(folder: Path, photos: list[Path]) -> dict[str, Any]:
    reference = encode_by_transformers(folder, photos)
    similar = (reference @ reference.T)[~np.eye(len(photos), dtype=bool)]
    comparisons = []
    for precision in ("fp32", "bf16"):
        encoder = load_encoder(ModelSettings(model=str(folder), precision=precision))
        for reduced in (False, True):
            cosines = (encode_by_catvec(encoder, photos, reduced=reduced) * reference).sum(axis=1)
            least, mean = float(cosines.min()), float(cosines.mean())
            comparisons.append({"precision": precision, "reduced": reduced, "min": least, "mean": mean})
    sizes = np.array([Image.open(photo).size for photo in photos])
    return {
        "model": encoder.spec.revision if encoder.spec.source == "folder" else encoder.spec.source,
        "dims": encoder.spec.dims,
        "device": encoder.device,
        "batch_size": BATCH,
        "photos": len(photos),
        "photo_sizes": {"median": np.median(sizes, axis=0).tolist(), "max": sizes.max(axis=0).tolist()},
        "non_square_photos": int((sizes[:, 0] != sizes[:, 1]).sum()),
        "most_similar_photos": float(similar.max()),
        "comparisons": comparisons,
    }


def encode_by_transformers(folder: Path, photos: list[Path]) -> NDArray[np.float32]:
    """What the model's authors would do: their processor on Pillow, their model in fp32."""
    import torch
    from transformers import AutoModel, CLIPImageProcessorPil, SiglipImageProcessorPil

    model = AutoModel.from_pretrained(folder).eval()
    kind = SiglipImageProcessorPil if model.config.model_type == "siglip" else CLIPImageProcessorPil
    processor = kind.from_pretrained(folder)
    vectors = []
    for chunk in chunks(photos):
        pixels = processor([ImageOps.exif_transpose(Image.open(photo)) for photo in chunk], return_tensors="pt")[
            "pixel_values"
        ]
        with torch.inference_mode():
            features = model.get_image_features(pixel_values=pixels).pooler_output
        vectors.append(torch.nn.functional.normalize(features, dim=1).numpy())
    return np.concatenate(vectors)


def encode_by_catvec(encoder: Encoder, photos: list[Path], *, reduced: bool) -> NDArray[np.float32]:
    settings = DecodeSettings(reduced=reduced)
    return np.concatenate(
        [
            encoder.encode_images(np.stack([pixels(photo, encoder.spec.preprocess, settings) for photo in chunk]))
            for chunk in chunks(photos)
        ]
    )


def pixels(photo: Path, spec: PreprocessSpec, settings: DecodeSettings) -> NDArray[np.uint8]:
    data = photo.read_bytes()
    image = ImageRef(image_id=1, product_id=photo.stem, url=photo.name)
    content = Content(image=image, sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    return decode(Fetched(content=content, data=data), spec, settings).pixels


def chunks(photos: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(photos), BATCH):
        yield photos[start : start + BATCH]


if __name__ == "__main__":
    main()
