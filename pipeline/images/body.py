"""What every way of fetching gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import FetchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The bytes behind a location, and what was said about them."""

    data: bytes = field(repr=False)
    mime: str | None
    etag: str | None = None
    last_modified: str | None = None


def too_large(size_bytes: int, max_bytes: int) -> FetchError:
    return FetchError("too_large", f"the image has {size_bytes} bytes or more, expected at most {max_bytes}")
