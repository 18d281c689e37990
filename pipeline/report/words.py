"""How the page says things: spans of time, counts, locations without secrets, and the sentence at its top."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.records import RunSummary

LONGEST_LOCATION: Final = 110
MANY_FAILURES: Final = 0.05
"""share of failed images from which on the page says so in another colour; as --tolerate-failures' default"""

_STOPS: Final = {
    "max_runtime": "Stopped after {time}, as --max-runtime says",
    "failure_rate": "Stopped after {time}, because too many images failed",
    "SIGINT": "Interrupted after {time}",
    "SIGTERM": "Terminated after {time}",
}
_WEB: Final = re.compile(r"https?://", re.IGNORECASE)


def span(seconds: float) -> str:
    """0.4 s, 12 s, 4 min 12 s, 3 h 5 min, 2 d 4 h: two units at most."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, part_size, part_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            part = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {part} {part_unit}" if part else "")
    raise AssertionError(whole)


def number(value: float) -> str:
    """1,234 · 56.7 · 0: thousands apart, a decimal where it says something."""
    return f"{value:,.1f}" if value != int(value) and value < 100 else f"{value:,.0f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def moment(when: datetime | None, *, now: datetime | None = None) -> str:
    """2025-07-03 04:10 UTC, in the time of this machine; only the time of day on the day of `now`."""
    if when is None:
        return ""
    local = when.astimezone()
    is_today = now is not None and local.date() == now.astimezone().date()
    return f"{local:%H:%M %Z}" if is_today else f"{local:%Y-%m-%d %H:%M %Z}"


def show_location(location: str) -> str:
    """An image's location without what may be secret in it: user, password, query and fragment; not too long."""
    location = location.strip()
    if location[:5].lower() == "data:":
        return location.partition(",")[0][:40] + ", …"
    if "://" not in location:
        return _shortened(location)
    head, _, rest = location.partition("://")
    bare = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = bare.partition("/")
    if re.search(r":(?!\d*$)[^@]*$", authority):
        # no port: a password that has a slash in it
        place = path.rpartition("@")[2]
    else:
        place = authority.rpartition("@")[2] + slash + path
    return _shortened(f"{head}://{place}" + ("?…" if bare != rest else ""))


def link_to(location: str) -> str | None:
    """What an `<a href>` may lead to: http and https only, and only when nothing secret can be in it."""
    if len(location) > 2_000 or not _WEB.match(location) or re.search(r"[?#\\]|[^\x21-\x7e]", location):
        return None
    try:
        parts = urlsplit(location)
        is_plain = parts.hostname and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:  # no port, or no address
        return None
    return location if is_plain else None


def _shortened(text: str) -> str:
    readable = unquote(text, errors="replace")
    if len(readable) <= LONGEST_LOCATION:
        return readable
    return readable[: LONGEST_LOCATION // 3] + "…" + readable[-LONGEST_LOCATION * 2 // 3 :]


def tone(summary: RunSummary) -> str:
    """good, fair or bad: the colour of the page's first word."""
    if summary.stopped_by == "failure_rate":
        return "bad"
    if not summary.finished or summary.failed > MANY_FAILURES * summary.seen:
        return "fair"
    return "good"


def headline(summary: RunSummary) -> str:
    """How the run ended, and how long it took."""
    time = span(summary.seconds)
    if summary.finished:
        return f"Finished in {time}"
    return _STOPS.get(summary.stopped_by or "", "Stopped after {time}").format(time=time)


def sentence(summary: RunSummary) -> str:
    """What it did, in one sentence that says no more than the counters know."""
    found = summary.embedded + summary.reused
    parts = [f"{plural(found, 'image')} got a vector"] if found else []
    if summary.changed:
        parts.append(
            f"{summary.changed:,} had changed" if parts else f"{plural(summary.changed, 'image')} had changed"
        )
    if not parts:
        parts.append("no image needed a new vector" if summary.finished else "no image got a vector")
    parts.append(f"{summary.failed:,} failed" if summary.failed else "none failed")
    ends = [", ".join(parts)]
    if summary.removed:
        ends.append(f"{summary.removed:,} left the search results")
    if summary.pending:
        ends.append(f"{summary.pending:,} wait for the next run")
    return "; ".join(ends) + "."
