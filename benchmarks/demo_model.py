"""How well the demo's own model understands its drawn catalog: products it never saw, and combinations it never saw.

    python -m benchmarks.demo_model

One demo catalog is drawn with every combination twice, by seeds that no training used. Each combination's title is
searched for among all products, as `catvec search` does it: a product is as near as its nearest image, and a hit
shows the asked kind, colour and pattern. Zero-shot gives each product the nearest of the words themselves: to the
mean of its images, as `catvec tag` and `catvec evaluate zero-shot` do it, and to its first image alone. Intervals are
Wilson's, of 95 %.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conditions import write_result
from pipeline.demo import MODEL
from pipeline.demo.catalog import combinations, write_demo_catalog
from pipeline.images.decode import decode_pixels
from pipeline.intervals import wilson_interval
from pipeline.means import unit_means
from pipeline.models.encoder import load_encoder
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.demo.catalog import Combination
    from pipeline.models.encoder import Encoder

SEED = 90_000_000
"""of the catalog; those that the model learned from were drawn by seeds below"""
EACH = 2
"""products of each combination: 3,168, of which 2,850 are of combinations that it learned"""
AT_ONCE = 128
ATTRIBUTES = ("kind", "colour", "pattern")
WORDINGS = ("{colour} {pattern} {kind}", "{kind} {colour} {pattern}", "a photo of a {colour} {pattern} {kind}")
"""the first is the catalog's title; the recall of the others says how much the order of words matters"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--name", default="demo_model", help="of the result file")
    parser.add_argument("--training-note", default="", help="how busy the machine was while the model was trained")
    arguments = parser.parse_args()
    encoder = load_encoder(ModelSettings(model=str(arguments.model), device="cpu", precision="fp32"))
    with tempfile.TemporaryDirectory() as folder:
        path = write_demo_catalog(Path(folder), products=EACH * len(combinations()), seed=SEED)
        rows = [row for row in csv.DictReader(path.open(encoding="utf-8")) if row["product_id"].startswith("demo-")]
        vectors, owners = encode_products(encoder, path.parent, rows)
    result = measure(encoder, rows, vectors, owners, combinations()) | {
        "model": describe(arguments.model) | {"training_note": arguments.training_note}
    }
    write_result(arguments.name, result)
    print(json.dumps(result, indent=2))


def encode_products(
    encoder: Encoder, folder: Path, rows: Sequence[dict[str, str]]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors of all images, and the place in `rows` of the product that shows each."""
    files = [(row, name) for row, one in enumerate(rows) for name in one["images"].split("|")]
    vectors = []
    for start in range(0, len(files), AT_ONCE):
        images = [(folder / name).read_bytes() for _, name in files[start : start + AT_ONCE]]
        decoded = [decode_pixels(image, encoder.spec.preprocess, DecodeSettings()) for image in images]
        vectors.append(encoder.encode_images(np.stack(decoded)))
    return np.concatenate(vectors), np.array([row for row, _ in files])


def measure(
    encoder: Encoder,
    rows: Sequence[dict[str, str]],
    vectors: NDArray[np.float32],
    owners: NDArray[np.int64],
    every: Sequence[Combination],
) -> dict[str, Any]:
    """What the result file says, of a search for each of these combinations and of all products."""
    titles = np.array([row["title"] for row in rows])
    is_held_out = np.array([combination.is_held_out for combination in every])
    found = {}
    for wording in WORDINGS:
        asked = [wording.format(kind=one.kind, colour=one.colour, pattern=one.pattern) for one in every]
        hits = search(encoder.encode_texts(asked), vectors, owners, len(rows))
        is_right = titles[hits] == np.array([one.title for one in every])[:, None]
        found[wording] = {
            "seen_combinations": recalls(is_right[~is_held_out]),
            "held_out_combinations": recalls(is_right[is_held_out]),
        }
    first = np.unique(owners, return_index=True)[1]
    unseen = {one.title for one in combinations() if one.is_held_out}
    return {
        "products": {"all": len(rows), "of_seen_combinations": int(sum(title not in unseen for title in titles))},
        "images": len(vectors),
        "text_to_image": found,
        "zero_shot": {name: zero_shot(encoder, rows, unit_means(vectors, first), name) for name in ATTRIBUTES},
        "zero_shot_of_first_images": {name: zero_shot(encoder, rows, vectors[first], name) for name in ATTRIBUTES},
    }


def search(
    texts: NDArray[np.float32], vectors: NDArray[np.float32], owners: NDArray[np.int64], products: int
) -> NDArray[np.int64]:
    """The 5 nearest products of each text [N, 5], nearest first."""
    similarity = np.full((len(texts), products), -2, dtype=np.float32)
    for image, owner in enumerate(owners):
        np.maximum(similarity[:, owner], texts @ vectors[image], out=similarity[:, owner])
    return np.argsort(-similarity, axis=1)[:, :5]


def recalls(is_right: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "recall@1": share(int(is_right[:, 0].sum()), len(is_right)),
        "recall@5": share(int(is_right.any(axis=1).sum()), len(is_right)),
    }


def zero_shot(
    encoder: Encoder, rows: Sequence[dict[str, str]], vectors: NDArray[np.float32], name: str
) -> dict[str, Any]:
    """How often a product's vector is nearest to the right one of all kinds, colours or patterns."""
    words = sorted({row[name] for row in rows})
    said = np.array(words)[(vectors @ encoder.encode_texts(words).T).argmax(axis=1)]
    return share(int((said == np.array([row[name] for row in rows])).sum()), len(rows))


def share(right: int, asked: int) -> dict[str, Any]:
    """With Wilson's interval."""
    return {
        "share": round(right / asked, 4),
        "interval_95": [round(bound, 4) for bound in wilson_interval(right, asked)],
        "right": right,
        "asked": asked,
    }


def describe(folder: Path) -> dict[str, Any]:
    """Its size, and what its training wrote down."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {"weights_bytes": (folder / "model.safetensors").stat().st_size, "training": record}


if __name__ == "__main__":
    main()
