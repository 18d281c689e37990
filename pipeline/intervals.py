"""How sure a share is that was counted, and how it is said."""

from __future__ import annotations

import math

FINEST = 6
"""digits behind the point, beyond which a share may be said as none or all after all: floats are not exact"""
Z = 1.959963984540054
"""the quantile of a normal distribution that leaves 2.5 % on each side"""


def wilson_interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which is honest at 0 and 1 and for small numbers, too; `of` ≥ 1."""
    share, spread = right / of, Z * Z / of
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def say_percent(share: float, digits: int = 0) -> str:
    """99.6%, with as many digits more as it takes not to say 0% or 100% of what is neither, and none of what is."""
    if share in (0, 1):
        return f"{share:.0%}"
    texts = [f"{share:.{more}%}" for more in range(digits, FINEST)]
    return next((text for text in texts if float(text[:-1]) not in (0, 100)), texts[0])
