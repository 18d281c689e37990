"""What a check gives, and how one is run so that it never raises."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.errors import CatvecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

State = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at and what was found; `cure` is what to do about it."""

    name: str
    state: State
    detail: str
    cure: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding that has no name yet."""

    state: State
    detail: str
    cure: str | None = None


def ok(detail: str, cure: str | None = None) -> Verdict:
    """All is well; a cure is only advice here."""
    return Verdict("ok", detail, cure)


def warning(detail: str, cure: str) -> Verdict:
    """It works, but not as well or as safely as it could."""
    return Verdict("warning", detail, cure)


def problem(detail: str, cure: str) -> Verdict:
    """Something does not work."""
    return Verdict("problem", detail, cure)


def skipped(detail: str, cure: str | None = None) -> Verdict:
    """Nothing was looked at."""
    return Verdict("skipped", detail, cure)


def run_check(name: str, check: Callable[[], Verdict]) -> Finding:
    """The check's verdict under its name; an error of catvec's is a verdict too."""
    try:
        verdict = check()
    except CatvecError as error:
        verdict = Verdict("problem", error.message, error.hint)
    except Exception as error:
        # a doctor looks at broken things, and must come to the other ones
        logger.debug("check %s", name, exc_info=error)
        # not its text, which may hold anything, passwords included
        verdict = Verdict("problem", f"the check itself broke: {type(error).__name__}", "see: catvec -v doctor")
    # in one line, as the errors of libraries are not
    return Finding(name=name, state=verdict.state, detail=" ".join(verdict.detail.split()), cure=verdict.cure)


def skip_all(names: Iterable[str], reason: str) -> list[Finding]:
    return [Finding(name=name, state="skipped", detail=reason) for name in names]
