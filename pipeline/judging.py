"""From vectors to probabilities of labels: what `tag` writes, whatever the labels come from.

A judge is a few matrices and how their numbers are read. Those of labels in words and those of heads, which
`pipeline/heads.py` trains, are made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pipeline.labels import against_vectors, label_vectors
from pipeline.names import UNKNOWN

Float = TypeVar("Float", np.float32, np.float64)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.labels import Attribute
    from pipeline.models.encoder import Encoder
    from pipeline.models.head import Head

    Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """How one attribute is judged.

    `layers` are weights [out, in] and biases [out], with a ReLU between two of them; the last has one row for each
    label. Its logits, divided by `temperature`, go through a softmax with `is_exclusive`, else through a sigmoid. The
    last layer may have more rows: then the odds of a label are those of a softmax of the label and these.
    """

    attribute: str
    labels: tuple[str, ...]
    layers: tuple[Layer, ...]
    is_exclusive: bool
    threshold: float
    temperature: float = 1.0

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, L] for unit vectors [N, D], before the temperature."""
        scores = apply_layers(self.layers, vectors)
        logits, others = scores[:, : len(self.labels)], scores[:, len(self.labels) :]
        if not others.shape[1]:
            return logits
        # the logarithm of the sum of exponentials; the largest is taken out against overflow
        highest = others.max(axis=1, keepdims=True)
        compared: NDArray[np.float32] = highest + np.log(np.exp(others - highest).sum(axis=1, keepdims=True))
        return logits - compared

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """[N, L] for unit vectors [N, D]; rows add up to 1 with `is_exclusive`."""
        return to_probabilities(self.logits(vectors) / self.temperature, is_exclusive=self.is_exclusive)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tags:
    """The labels that fit: row by row the number of the vector, the label, and its probability float32 [T].

    Every vector has at least one. UNKNOWN stands there with the probability of the label that was the most probable.
    """

    rows: NDArray[np.int64]
    labels: list[str]
    probabilities: NDArray[np.float32]


def apply_layers(layers: Sequence[Layer], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last layer's numbers [N, out] for vectors [N, D]; see `Judge.layers`."""
    for weights, bias in layers[:-1]:
        vectors = np.maximum(vectors @ weights.T + bias, 0)
    weights, bias = layers[-1]
    scores: NDArray[np.float32] = vectors @ weights.T + bias
    return scores


def to_probabilities(logits: NDArray[Float], *, is_exclusive: bool) -> NDArray[Float]:
    """Softmax over the labels of each row, or a sigmoid for each."""
    if is_exclusive:
        # the largest becomes 0: no overflow
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: NDArray[Float] = powers / powers.sum(axis=1, keepdims=True)
        return shares
    # by tanh, which does not overflow
    halves: NDArray[Float] = 0.5 * (1 + np.tanh(0.5 * logits))
    return halves


def zero_shot_judge(encoder: Encoder, attribute: Attribute) -> Judge:
    """The judge of an attribute in words, by the model's own scale.

    A label on its own is judged by the model's sigmoid where it has one; else against words that say nothing, as by
    a softmax of the label and all of them (Tiu et al. 2022, "Expert-level detection of pathologies … via
    self-supervised learning", compares "pneumonia" with "no pneumonia" so).

    Raises ModelError when the model has no text side or gives no usable vector, ConfigError when two labels are
    the same to it.
    """
    scoring = encoder.scoring
    vectors = label_vectors(encoder, attribute)
    bias = 0.0
    if not attribute.is_exclusive and scoring.bias is None:
        vectors = np.concatenate([vectors, against_vectors(encoder, attribute)])
    elif not attribute.is_exclusive:
        bias = scoring.bias or 0.0
    weights = (scoring.scale * vectors).astype(np.float32)
    return Judge(
        attribute=attribute.name,
        labels=tuple(attribute.label_names),
        layers=((weights, np.full(len(weights), bias, dtype=np.float32)),),
        is_exclusive=attribute.is_exclusive,
        threshold=attribute.threshold,
    )


def head_judge(head: Head) -> Judge:
    """The judge that a trained head is."""
    return Judge(
        attribute=head.attribute,
        labels=head.labels,
        layers=head.layers,
        is_exclusive=True,
        threshold=head.threshold,
    )


def choose_labels(judge: Judge, vectors: NDArray[np.float32]) -> Tags:
    """The labels of unit vectors [N, D]: the most probable one, or each that reaches the threshold, or UNKNOWN."""
    probabilities = judge.probabilities(vectors)
    best = probabilities.argmax(axis=1)
    highest = probabilities[np.arange(len(vectors)), best]
    is_given = probabilities >= judge.threshold
    if judge.is_exclusive:
        is_given &= np.arange(len(judge.labels)) == best[:, None]
    rows, columns = np.nonzero(is_given)
    without = np.flatnonzero(~is_given.any(axis=1))
    return Tags(
        rows=np.concatenate([rows, without]),
        labels=[judge.labels[column] for column in columns] + [UNKNOWN] * len(without),
        probabilities=np.concatenate([probabilities[rows, columns], highest[without]]),
    )
