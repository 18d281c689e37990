"""Labels judged one by one (`exclusive: false`) by the demo's own model: what they are best compared with.

    python -m benchmarks.independent

Products of a demo catalog that no training saw, and their kind, colour and pattern: all labels, or four of them, so
that most products have none. Precision is of the labels given, recall of those to be found, both means over the
questions.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conditions import write_result
from benchmarks.demo_model import SEED, encode_products
from pipeline.demo import MODEL
from pipeline.demo.catalog import write_demo_catalog
from pipeline.demo.tour import LABELS
from pipeline.judging import zero_shot_judge
from pipeline.labels import AGAINST, TEMPLATES, Attribute, Label
from pipeline.means import unit_means
from pipeline.models.encoder import load_encoder
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.models.encoder import Encoder

PRODUCTS = 600
COMPARED = {
    "product alone": ("product",),
    "without photo": ("product", "object", "thing"),
    "by default": AGAINST,
    "ten words": (*AGAINST, "item", "something", "picture", "article", "nothing", "anything"),
}
THRESHOLDS = (0.5, 0.6, 0.9)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    encoder = load_encoder(ModelSettings(model=str(MODEL), device="cpu", precision="fp32"))
    with tempfile.TemporaryDirectory() as folder:
        path = write_demo_catalog(Path(folder), products=PRODUCTS, seed=SEED)
        rows = [row for row in csv.DictReader(path.open(encoding="utf-8")) if row["product_id"].startswith("demo-")]
        vectors, owners = encode_products(encoder, path.parent, rows)
    products = unit_means(vectors, np.searchsorted(owners, np.arange(len(rows))))
    print(write_result("independent", measure(encoder, rows, products)))


def measure(encoder: Encoder, rows: list[dict[str, str]], products: NDArray[np.float32]) -> dict[str, Any]:
    """Precision and recall by what labels are compared with, and threshold."""
    found: dict[str, Any] = {"products": len(rows)}
    for name, against in COMPARED.items():
        shares: dict[float, list[tuple[float, float]]] = {threshold: [] for threshold in THRESHOLDS}
        for attribute in questions():
            judge = zero_shot_judge(encoder, replace(attribute, against=against))
            probabilities = judge.probabilities(products)
            truth = np.array([[row[attribute.name] == label for label in judge.labels] for row in rows])
            for threshold in THRESHOLDS:
                given = probabilities >= threshold
                right = (given & truth).sum()
                shares[threshold].append((right / max(1, given.sum()), right / truth.sum()))
        means = {threshold: np.mean(pairs, axis=0).round(3).tolist() for threshold, pairs in shares.items()}
        found[name] = {
            "against": list(against),
            "by_threshold": {
                str(threshold): {"precision": precision, "recall": recall}
                for threshold, (precision, recall) in means.items()
            },
        }
    return found


def questions() -> Iterator[Attribute]:
    for name, labels in LABELS.items():
        for templates in (("{}", "a photo of a {}"), TEMPLATES):
            for some in (list(labels), list(labels)[:4]):
                yield Attribute(
                    name=name,
                    labels=tuple(Label(name=label, words=(label,)) for label in some),
                    templates=templates,
                    is_exclusive=False,
                )


if __name__ == "__main__":
    main()
