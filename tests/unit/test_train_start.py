"""A new model, before it has learned anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.settings import NewModelSettings
from pipeline.train.start import open_start, write_new_model

if TYPE_CHECKING:
    from pathlib import Path

TITLES = ("navy striped t-shirt", "red plain mug")


def test_patches_know_their_place_from_the_start(tmp_path: Path) -> None:
    """The nearer two patches are, the more alike their positions are."""
    write_new_model(tmp_path, NewModelSettings(size="tiny"), TITLES, seed=1)
    start = open_start(tmp_path, "new")
    positions = start.model.vision_model.embeddings.position_embedding.weight.detach().numpy()
    patches = positions[1:].reshape(8, 8, -1)
    likeness = np.einsum("hwd,d->hw", patches, patches[3, 4])
    assert likeness.argmax() == 3 * 8 + 4
    assert (np.diff(likeness[3, 4:]) < 0).all()
    assert (np.diff(likeness[3:, 4]) < 0).all()
    assert np.abs(positions[0]).max() < 0.1  # the class token's is as transformers has it
