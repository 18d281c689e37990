"""What goes into a model and what comes out, without its weights: an estimate comes before they are downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.folder import read_config
from pipeline.models.preprocess import clip_preprocess, read_preprocess
from pipeline.models.registry import ALIASES, hub_id
from pipeline.models.source import find_model
from pipeline.models.untrained import SIZES

if TYPE_CHECKING:
    from pipeline.records import PreprocessSpec
    from pipeline.settings import ModelSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """How it wants its pixels, and the length of its vectors; None where only the weights tell."""

    preprocess: PreprocessSpec
    dims: int | None


def find_shape(settings: ModelSettings) -> ModelShape:
    """Of the usual models without their files, of others from them. Raises ModelError."""
    repository = hub_id(settings.model)
    for alias, known in ALIASES.items():
        if known == repository:
            size = SIZES[alias]
            return ModelShape(preprocess=clip_preprocess(size.image_size), dims=size.dims)
    folder = find_model(settings).folder
    config = read_config(folder)
    length = config.get("projection_dim")
    return ModelShape(
        preprocess=read_preprocess(folder, model_type=str(config.get("model_type"))),
        dims=length if isinstance(length, int) else None,
    )
