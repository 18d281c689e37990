"""What may be the name of an attribute or of a label: it is stored, indexed, and typed in filters."""

from __future__ import annotations

import unicodedata

UNKNOWN = "unknown"
"""the label of a product for which none is probable enough"""
LONGEST_NAME = 200
"""characters of up to 4 bytes; attribute and label share an index entry, which holds 2,704 bytes"""


def find_fault(name: str) -> str | None:
    """Why this is no name, and what was expected; None for a good one."""
    if not name.strip():
        return "is empty, expected words"
    if not is_storable(name):
        return "holds a character that Postgres cannot store"
    if len(name) > LONGEST_NAME:
        return f"has {len(name):,} characters, expected at most {LONGEST_NAME}"
    if name != name.strip():
        return "begins or ends with a space, expected none"
    return None


def is_storable(text: str) -> bool:
    """Whether Postgres takes it: neither NUL nor half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def plain(text: str) -> str:
    """What a label and a value of the catalog must have in common to be the same: not upper and lower case, white
    space, or the Unicode form of their letters.
    """
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def shorten(name: str) -> str:
    """For messages."""
    return f"{name[:20]!r}…" if len(name) > LONGEST_NAME else repr(name)
