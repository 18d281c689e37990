"""Models with random weights are as large as the real ones, and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModelWithProjection

from pipeline.errors import ConfigError
from pipeline.models import untrained
from pipeline.models.encoder import load_encoder
from pipeline.models.registry import ALIASES
from pipeline.models.self_test import self_test
from pipeline.models.untrained import SIZES, Size, make_config, write_untrained_model
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "millions"),
    # of the image sides, as open_clip lists them
    [("vit-b-32", 87.85), ("vit-b-16", 86.19), ("vit-l-14", 303.97), ("vit-l-14-336", 304.29)],
)
def test_a_size_has_as_many_weights_as_the_real_model(name: str, millions: float) -> None:
    with torch.device("meta"):  # which takes no memory
        model = CLIPVisionModelWithProjection(make_config(SIZES[name]))

    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_every_short_name_has_a_size() -> None:
    assert list(SIZES) == list(ALIASES)


def test_an_untrained_model_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Size(image_size=48, patch_size=16, width=64, layers=2, heads=2, dims=24)
    monkeypatch.setattr(untrained, "SIZES", {**SIZES, "small": small})
    folder = write_untrained_model(tmp_path / "model", "small")

    encoder = load_encoder(ModelSettings(model=str(folder), device="cpu"))
    self_test(encoder)
    drawn = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    vectors = encoder.encode_images(drawn)

    assert vectors.shape == (3, 24)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() > 0.001
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_other_models_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_untrained_model(tmp_path, "vit-h-14")
    assert caught.value.message == (
        "there are no random weights for model 'vit-h-14', expected vit-b-32, vit-b-16, vit-l-14, vit-l-14-336"
    )
