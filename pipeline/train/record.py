"""What is known of a finished training: training.json beside the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RECORD = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came out; its fields are the keys of `catvec train --json`.

    `metrics` are those of the best step on products kept apart, empty when there are none; `is_new` says that it was
    not there before. `seconds` are those of all commands, when some of them were interrupted.
    """

    folder: str
    is_new: bool
    steps: int
    best_step: int
    seconds: float
    data: Mapping[str, int]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The same as the model's folder says it, with what it was made by: `decisive` is what the outcome depends on."""

    steps: int
    best_step: int
    seconds: float
    data: Mapping[str, int]
    metrics: Mapping[str, float]
    base: str | None
    command: str
    decisive: Mapping[str, Any]
    versions: Mapping[str, str]
    license: str | None = None

    def trained(self, folder: str, *, is_new: bool) -> Trained:
        return Trained(
            folder=folder,
            is_new=is_new,
            steps=self.steps,
            best_step=self.best_step,
            seconds=self.seconds,
            data=self.data,
            metrics=self.metrics,
        )


def read_record(path: Path) -> Record:
    """Raises ConfigError when it is damaged."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is not what catvec train writes", hint="nothing is overwritten: choose another --output"
        ) from error
