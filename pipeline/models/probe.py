"""Fitting a head: multinomial logistic regression on a model's vectors, or one hidden layer more.

By L-BFGS on all products at once, as CLIP's authors fit their linear probes (Radford et al. 2021, appendix A.3): so
there is no learning rate to choose. torch's own, because torch is there anyway.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    Layers = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

STEPS = 200
"""of L-BFGS, at most; it ends before when nothing more is gained"""


def fit_layers(
    vectors: NDArray[np.float32],
    truth: NDArray[np.int64],
    *,
    labels: int,
    l2: float,
    hidden: int | None = None,
    seed: int = 0,
) -> Layers:
    """The layers that give the truth int64 [N] for unit vectors float32 [N, D]; see `Head.layers`.

    What is made least is the mean cross-entropy plus l2 / 2 times the squared weights (not the biases), on features
    of mean 0 and deviation 1: vectors of a catalog share most of their direction.
    """
    import torch

    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    features = torch.from_numpy((vectors - mean) / deviation)
    sizes = [vectors.shape[1], *([hidden] if hidden else []), labels]
    parameters = _start(sizes, seed)
    target = torch.from_numpy(truth)

    def loss() -> torch.Tensor:
        penalty = sum((weights.square().sum() for weights, _ in parameters), torch.zeros(()))
        return torch.nn.functional.cross_entropy(_forward(parameters, features), target) + l2 / 2 * penalty

    _minimise(loss, [tensor for pair in parameters for tensor in pair])
    layers = [(weights.detach().numpy(), bias.detach().numpy()) for weights, bias in parameters]
    # the first layer takes the vectors as they are
    weights, bias = layers[0]
    layers[0] = (weights / deviation, bias - weights @ (mean / deviation))
    return tuple((weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in layers)


def _start(sizes: list[int], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for inputs, outputs in pairwise(sizes):
        # He et al. 2015, for ReLU; a single layer has one minimum, wherever it begins
        weights = torch.randn(outputs, inputs, generator=generator) * (2 / inputs) ** 0.5 * (len(sizes) > 2)
        parameters.append((weights.requires_grad_(), torch.zeros(outputs, requires_grad=True)))
    return parameters


def _forward(parameters: list[tuple[torch.Tensor, torch.Tensor]], features: torch.Tensor) -> torch.Tensor:
    import torch

    for weights, bias in parameters[:-1]:
        features = torch.relu(features @ weights.T + bias)
    weights, bias = parameters[-1]
    return features @ weights.T + bias


def _minimise(loss: Callable[[], torch.Tensor], tensors: list[torch.Tensor]) -> None:
    import torch

    optimizer = torch.optim.LBFGS(
        tensors, max_iter=STEPS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
