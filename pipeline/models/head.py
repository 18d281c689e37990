"""A trained head's file: a few matrices on top of a model's vectors, and which model that is (law 6).

One safetensors file, so that it is whole or not there; what it means stands in its metadata as JSON. Reading it
needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.files import write_atomically
from pipeline.models.trained import TrainedProducts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = 1
"""rises when a reader of the old one would misread the new"""
METADATA = "catvec_head"
LEARNED = "learned"
"""the tensor of digests of the products that it was fitted on"""
SUFFIX = ".safetensors"
FIELDS = ("attribute", "labels", "threshold", "source", "revision", "fingerprint", "dims")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A classifier of one attribute on the unit vectors of one model.

    `layers` are weights [out, in] and biases [out], with a ReLU between two of them and a softmax at the end; the
    last has one row for each label. `source`, `revision`, `fingerprint` and `dims` are the model's. `learned` are the
    products that it was fitted on; `report` says how it was trained and how good it was.
    """

    attribute: str
    labels: tuple[str, ...]
    threshold: float
    source: str
    revision: str
    fingerprint: str
    dims: int
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    learned: TrainedProducts
    report: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of all that decides which labels it gives, but for the threshold."""
        total = hashlib.sha256(json.dumps(self.labels).encode())
        for weights, bias in self.layers:
            total.update(f"{weights.shape}".encode() + weights.tobytes() + bias.tobytes())
        return total.hexdigest()


def write_head(path: Path, head: Head) -> None:
    """Put the head where `path` is, in one step. Raises CatvecError."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {LEARNED: head.learned.digests}
    for place, (weights, bias) in enumerate(head.layers):
        tensors[f"layers.{place}.weight"] = np.ascontiguousarray(weights)
        tensors[f"layers.{place}.bias"] = np.ascontiguousarray(bias)
    about = {"format": FORMAT, **{name: getattr(head, name) for name in FIELDS}, "report": head.report}
    write_atomically(path, save(tensors, metadata={METADATA: json.dumps(about)}))


def read_head(path: Path) -> Head:
    """Raises ModelError for what is no head, or a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the head {str(path)!r}: {error}", hint="train it again") from error
    if METADATA not in metadata:
        raise ModelError(
            f"{str(path)!r} holds no head of catvec's, expected one that catvec train --head has written",
            hint="labels in words stand in a YAML or JSON file",
        )
    try:
        about = json.loads(metadata[METADATA])
        if about["format"] != FORMAT:
            raise ModelError(
                f"the head {str(path)!r} has format {about['format']!r}, expected {FORMAT}",
                hint="read it with the release of catvec that wrote it, or train it again",
            )
        return _parse(about, tensors)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"the head {str(path)!r} is damaged: {error}", hint="train it again") from error


def _parse(about: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Head:
    learned = TrainedProducts(digests=tensors.pop(LEARNED))
    count = len(tensors) // 2
    layers = tuple((tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"]) for place in range(count))
    sizes = [about["dims"], *(len(bias) for _, bias in layers)]
    shapes = [weights.shape for weights, _ in layers]
    expected = list(zip(sizes[1:], sizes, strict=False))
    if not layers or shapes != expected or sizes[-1] != len(about["labels"]):
        raise ValueError(f"its matrices are {shapes}, expected {expected} for {len(about['labels'])} labels")
    if not all(np.isfinite(weights).all() and np.isfinite(bias).all() for weights, bias in layers):
        raise ValueError("its matrices hold numbers that are not finite")
    fields = {name: about[name] for name in FIELDS} | {"labels": tuple(about["labels"])}
    return Head(**fields, layers=layers, learned=learned, report=about["report"])
