"""A trained head's file: a few matrices on top of a model's vectors, and which model that is (law 6).

One safetensors file, so that it is whole or not there; what it means stands in its metadata as JSON. Reading it
needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError, ModelError
from pipeline.files import check_writable, write_atomically
from pipeline.models.trained import TrainedProducts
from pipeline.names import UNKNOWN, find_fault, shorten

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMAT = 1
"""rises when a reader of the old one would misread the new"""
METADATA = "catvec_head"
LEARNED = "learned"
"""the tensor of digests of the products that it was fitted on"""
SUFFIX = ".safetensors"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "attribute": str,
    "labels": list,
    "threshold": (int, float),
    "source": str,
    "revision": str,
    "fingerprint": str,
    "dims": int,
    "report": dict,
}
EXPECTED = {str: "a text", list: "a list", int: "a whole number", dict: "an object"}


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


def check_head_path(path: Path, option: str) -> None:
    """Raise ConfigError unless a head can stand at `path`, the value of `option`; to be asked before any work.

    catvec tag knows a head by its name, and what is no head is not replaced by one.
    """
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"{option} is {str(path)!r}, expected a name that ends in {SUFFIX}",
            hint=f"name it for example {path.stem}{SUFFIX}",
        )
    check_writable(path, option)
    if path.exists() and not _is_head(path):
        raise ConfigError(
            f"{option} is {str(path)!r}, which is no head of catvec's and would be replaced by one",
            hint="name another file, or remove that one",
        )


def _is_head(path: Path) -> bool:
    """Also one of another release, or with damaged matrices."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return METADATA in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def write_head(path: Path, head: Head) -> None:
    """Put the head where `path` is, in one step. Raises CatvecError."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {LEARNED: head.learned.digests}
    for place, (weights, bias) in enumerate(head.layers):
        tensors[f"layers.{place}.weight"] = np.ascontiguousarray(weights)
        tensors[f"layers.{place}.bias"] = np.ascontiguousarray(bias)
    about = {"format": FORMAT, **{name: getattr(head, name) for name in FIELDS}}
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
        return _parse(json.loads(metadata[METADATA]), tensors)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the head {str(path)!r} is damaged: {error}", hint="train it again") from error
    except ModelError as error:
        raise ModelError(f"the head {str(path)!r} {error.message}", hint=error.hint) from error


def _parse(about: Any, tensors: dict[str, NDArray[Any]]) -> Head:
    """Raises ValueError, and ModelError for another format."""
    _require(about, dict, "its metadata")
    if about.get("format") != FORMAT:
        raise ModelError(
            f"has format {about.get('format')!r}, expected {FORMAT}",
            hint="read it with the release of catvec that wrote it, or train it again",
        )
    for name, kind in FIELDS.items():
        _require(about.get(name), kind, name)
    _check_name(about["attribute"], "attribute")
    labels = _parse_labels(about["labels"])
    if not 0 <= about["threshold"] <= 1:  # nor NaN
        raise ValueError(f"threshold is {about['threshold']!r}, expected 0 to 1")
    learned = tensors.pop(LEARNED, np.empty(0))
    if learned.dtype != np.uint64 or learned.ndim != 1:
        raise ValueError(f"{LEARNED} holds {learned.dtype} of {learned.ndim} dimensions, expected uint64 of 1")
    return Head(
        **{name: about[name] for name in FIELDS} | {"labels": labels},
        layers=_parse_layers(tensors, about["dims"], len(labels)),
        learned=TrainedProducts(digests=learned),
    )


def _require(value: object, kind: type | tuple[type, ...], name: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "a number" if isinstance(kind, tuple) else EXPECTED[kind]
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def _check_name(value: object, what: str) -> None:
    _require(value, str, what)
    fault = find_fault(str(value))
    if fault is not None:
        raise ValueError(f"{what} {shorten(str(value))} {fault}")


def _parse_labels(values: list[Any]) -> tuple[str, ...]:
    for value in values:
        _check_name(value, "label")
        if value == UNKNOWN:
            raise ValueError(
                f"one of its labels is {UNKNOWN!r}, which is what a product is called that no label fits"
            )
    if len(values) < 2 or len(set(values)) < len(values):
        raise ValueError(f"labels is {values!r}, expected at least 2 different ones")
    return tuple(values)


def _parse_layers(
    tensors: dict[str, NDArray[Any]], dims: int, labels: int
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    places = range(len(tensors) // 2)
    expected = sorted(f"layers.{place}.{name}" for place in places for name in ("weight", "bias"))
    if sorted(tensors) != expected or not tensors:
        raise ValueError(f"its matrices are {sorted(tensors)}, expected {expected or ['layers.0.bias', '…']}")
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise ValueError("its matrices are not all float32")
    layers = tuple((tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"]) for place in places)
    sizes = [dims, *(bias.size for _, bias in layers)]
    found = [(weights.shape, bias.shape) for weights, bias in layers]
    fitting = [((outputs, inputs), (outputs,)) for inputs, outputs in pairwise(sizes)]
    if found != fitting or sizes[-1] != labels:
        raise ValueError(f"its matrices are {found}, expected {fitting} for {labels} labels")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("its matrices hold numbers that are not finite")
    return layers
