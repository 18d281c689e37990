"""How sure a share is that was counted."""

from __future__ import annotations

import math

Z = 1.959963984540054
"""the quantile of a normal distribution that leaves 2.5 % on each side"""


def wilson_interval(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which is honest at 0 and 1 and for small numbers, too; `of` ≥ 1."""
    share, spread = right / of, Z * Z / of
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)
