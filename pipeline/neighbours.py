"""What `catvec neighbours build` does: keeps the table of precomputed neighbours up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.store.neighbours import Refresh


def refresh_neighbours(url: str, *, model: str | None, k: int | None, report: Callable[[int, int], None]) -> Refresh:
    """Find the neighbours that may have changed, of the named model or the active one. Raises CatvecError."""
    from pipeline.store.migrate import open_current
    from pipeline.store.models import choose_model
    from pipeline.store.neighbours import build_neighbours

    with open_current(url) as session:
        stored = choose_model(session.connection(), model)
    return build_neighbours(url, stored, k=k, report=report)
