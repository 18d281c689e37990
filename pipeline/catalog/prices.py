"""Prices as people write them. What cannot be read without guessing is None, never a wrong number."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

_PRICE = re.compile(
    r"(?:[^\W\d_]{1,3}\.?\s*)?"  # EUR, Rs., zł
    r"(?P<number>[.,]?[0-9]+(?:(?:[.,]|['’\s](?=[0-9]{3}(?![0-9])))[0-9]+)*[.,]?)"
    r"(?:\s*[^\W\d_]{1,3}\.?)?"  # no longer word: "from 12" and "12 each" are no prices
)
_PLAIN_PRICE = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,5})?")
"""what most programs write; read in a fifth of the time that the pattern for people takes"""
_GROUPED_BY = {
    # groups of three, or of two before the last three as in India: 12,34,567
    separator: re.compile(rf"[1-9]\d{{0,2}}(?:{re.escape(separator)}\d{{2,3}})*{re.escape(separator)}\d{{3}}")
    for separator in ",."
}
_MAX_DIGITS = 20
"""a longer number is an id or a bar code in the wrong column"""

_MAX_CHARACTERS = 100
"""of a price with its currency: longer text is a description"""

_CACHED_PRICES = 4096
"""most prices of a shop repeat: reading "12,50 €" anew takes 6 µs, looking it up 0.1"""


def parse_price(value: object) -> Decimal | None:
    """12.50 of "12.50", "12,50", "EUR 12.50", "12.50 €", "$12.50", 12.5 …; None for what is no single price.

    With both signs the last one is the decimal sign: "1.234,56", "1,234.56". A sign that stands there twice
    groups thousands: "1.234.567". A single comma before exactly three digits groups thousands ("1,234" is
    1234), any other comma and every single point is a decimal sign ("1.234" is 1.234: programs write that).
    """
    if isinstance(value, str):
        return _read(value) if len(value) <= _MAX_CHARACTERS else None
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _checked(Decimal(str(value)))
    return None


@lru_cache(maxsize=_CACHED_PRICES)
def _read(value: str) -> Decimal | None:
    if _PLAIN_PRICE.fullmatch(value):
        return Decimal(value)
    found = _PRICE.fullmatch(value) or _PRICE.fullmatch(_simplified(value))
    plain = _plain(re.sub(r"['’\s]", "", found["number"])) if found else None
    return _checked(Decimal(plain)) if plain else None


def _simplified(text: str) -> str:
    """Without currency signs, with every kind of blank as a plain one, and 12,- as 12."""
    kinds = {"Sc": " ", "Zs": " "}
    plain = "".join(kinds.get(unicodedata.category(character), character) for character in text)
    return re.sub(r"[.,][-–—]", "", plain).strip()


def _plain(digits: str) -> str | None:
    """Digits with at most one point: "1.234,56" gives "1234.56"."""
    decimal = max(".,", key=digits.rfind)
    grouping = "," if decimal == "." else "."
    count = digits.count(decimal)
    if count == 0:
        return digits
    if grouping in digits:
        whole, _, fraction = digits.rpartition(decimal)
        is_clean = decimal not in whole and _GROUPED_BY[grouping].fullmatch(whole) and fraction
        return f"{whole.replace(grouping, '')}.{fraction}" if is_clean else None
    if count > 1 or (decimal == "," and _GROUPED_BY[","].fullmatch(digits)):
        return digits.replace(decimal, "") if _GROUPED_BY[decimal].fullmatch(digits) else None
    return digits.replace(",", ".").rstrip(".")


def _checked(price: Decimal) -> Decimal | None:
    if not price.is_finite() or price < 0 or abs(price.adjusted()) > _MAX_DIGITS:
        return None
    return price
