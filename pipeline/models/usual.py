"""What is known of the usual models without their files: what an estimate needs before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.models.preprocess import clip_preprocess
from pipeline.models.registry import ALIASES, hub_id

if TYPE_CHECKING:
    from pipeline.records import PreprocessSpec
    from pipeline.settings import ModelSettings

# input edge in pixels and dimensions, from each one's config.json
_SHAPES = {"vit-b-32": (224, 512), "vit-b-16": (224, 512), "vit-l-14": (224, 768), "vit-l-14-336": (336, 768)}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualModel:
    """How it wants its pixels, and the length of its vectors."""

    preprocess: PreprocessSpec
    dims: int


def find_usual(settings: ModelSettings) -> UsualModel | None:
    """The usual model of this alias or Hub id. Raises ModelError for what is no model's name."""
    repository = hub_id(settings.model)
    for alias, known in ALIASES.items():
        if known == repository:
            edge, dims = _SHAPES[alias]
            return UsualModel(preprocess=clip_preprocess(edge), dims=dims)
    return None
