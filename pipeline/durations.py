"""Spans of time as people write them: 90s, 30m, 3h, 7d; always and never where an age is meant."""

from __future__ import annotations

import re
from datetime import timedelta

from pipeline.errors import ConfigError

ALWAYS = timedelta(0)
NEVER = timedelta.max

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_BARE = re.compile(r"\d+(\.\d+)?")
_SIZES = ((86_400, "d"), (3_600, "h"), (60, "m"))
_LONGEST = timedelta(days=36_500)


def parse_duration(text: str) -> timedelta:
    """90 (seconds), 90s, 30m, 3h, 7d, 2w, or several as in 1h30m. Raises ConfigError."""
    compact = text.strip().lower()
    if _BARE.fullmatch(compact):
        compact += "s"
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise ConfigError(f"{text!r} is no duration, expected for example 90s, 30m, 3h, 7d or 1h30m")
    try:
        total = sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        total = timedelta.max
    if total > _LONGEST:
        raise ConfigError(f"{text!r} is longer than 100 years, expected for example 90s, 30m, 3h or 7d")
    return total


def parse_age(text: str) -> timedelta:
    """A duration with its unit, `always` (0) or `never` (timedelta.max). Raises ConfigError.

    A bare number is refused: whoever writes 30 for an age means days, and not that what left last night is deleted.
    """
    named = {"always": ALWAYS, "never": NEVER}.get(text.strip().lower())
    if named is not None:
        return named
    try:
        if _BARE.fullmatch(text.strip()):
            raise ConfigError(f"{text!r} has no unit, expected for example {text.strip()}d")
        return parse_duration(text)
    except ConfigError as error:
        raise ConfigError(f"{error.message}, or always or never") from error


def show_duration(duration: timedelta) -> str:
    """As `parse_age` reads it, in the largest unit of which it is a whole number."""
    if duration in (ALWAYS, NEVER):
        return "never" if duration else "always"
    seconds = duration.total_seconds()
    size, unit = next((pair for pair in _SIZES if seconds % pair[0] == 0), (1, "s"))
    return f"{seconds / size:g}{unit}"
