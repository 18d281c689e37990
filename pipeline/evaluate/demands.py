"""What --fail-under asks for: names of measures and the least that is good enough."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Scored(Protocol):
    """What was measured, in words and numbers: a sentence, what must be known beside it, and scores by name."""

    @property
    def summary(self) -> str: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def scores(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A measure, and the least that it may be."""

    name: str
    least: float


def parse_demands(texts: Sequence[str], known: Sequence[str]) -> list[Demand]:
    """NAME=NUMBER each; the name may have a group or a model before it, with a colon. Raises ConfigError."""
    return [_parse(text, known) for text in texts]


def _parse(text: str, known: Sequence[str]) -> Demand:
    name, separator, number = text.rpartition("=")
    try:
        least = float(number)
    except ValueError:
        least = math.nan
    if not separator or not -1 <= least <= 1:
        raise ConfigError(
            f"--fail-under is {text!r}, expected a name and a number up to 1", hint=f"such as {known[0]}=0.8"
        )
    if name.rpartition(":")[2] not in known:
        raise ConfigError(f"--fail-under {name!r} is not measured, there are: {', '.join(known)}")
    return Demand(name=name, least=least)


def refuse_other_groups(demands: Sequence[Demand], by: str | None) -> None:
    """Raises ConfigError for a demand of a group, ATTRIBUTE=VALUE and a colon, that is not reported apart."""
    for demand in demands:
        group, _, _ = demand.name.rpartition(":")
        if group and (by is None or not group.startswith(f"{by}=")):
            now = "no --by is given" if by is None else f"--by is {by!r}"
            raise ConfigError(
                f"--fail-under {demand.name!r} names a group, and {now}",
                hint=f"report that attribute's groups: --by {shlex.quote(group.partition('=')[0])}",
            )


def find_unmet(demands: Sequence[Demand], scores: Mapping[str, float]) -> list[str]:
    """A sentence for each demand that is not met. Raises ConfigError for what was not measured."""
    unmet = []
    for demand in demands:
        if demand.name not in scores:
            raise ConfigError(
                f"--fail-under {demand.name!r} is not measured, there are: {', '.join(_few(scores, demand.name))}"
            )
        if scores[demand.name] < demand.least:
            unmet.append(f"{demand.name} is {_show(scores[demand.name], demand.least)}, expected {demand.least:g}")
    return unmet


def _show(score: float, least: float) -> str:
    """With as many digits as tell the two apart: 0.7996 is not 0.8."""
    digits = next((digits for digits in range(3, 12) if round(score, digits) < least), 12)
    return f"{score:.{digits}f}"


def _few(scores: Mapping[str, float], name: str) -> list[str]:
    """The names that end like this one: other groups or models, of the same measure."""
    measure = name.rpartition(":")[2]
    return [known for known in scores if known.rpartition(":")[2] == measure]
