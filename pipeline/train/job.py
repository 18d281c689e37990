"""What the steps of one training share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pipeline.engine.stop import Stop
    from pipeline.models.source import ModelFiles
    from pipeline.progress import Progress
    from pipeline.settings import TrainSettings
    from pipeline.train.pairs import Pair, Pairs
    from pipeline.train.pixels import Pixels
    from pipeline.train.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a training reports to, and how it was called."""

    progress: Progress
    stop: Stop
    tell: Callable[[str], None]
    command: str
    restart: bool = False
    stdin: BinaryIO | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the steps of one training share. `decisive` is what its outcome depends on, by the name of the option."""

    settings: TrainSettings
    around: Surroundings
    work: Work
    pairs: Pairs
    files: ModelFiles | None
    device: str
    precision: str
    rate: float
    decisive: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One part's pairs whose images could be read, with the pixels of all; `counts` is what else the card says."""

    pairs: Sequence[Pair]
    pixels: Pixels
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def titles(self) -> list[str]:
        return [pair.title for pair in self.pairs]

    @property
    def products(self) -> set[str]:
        return {pair.product_id for pair in self.pairs}

    @property
    def urls(self) -> set[str]:
        return {pair.image.url for pair in self.pairs}
