"""catvec keeps the CLIP vectors of a product catalog in the shop's own Postgres.

The folders read as the way of one image: catalog -> images (fetch, decode) -> models (encode) -> store.
`engine` moves the images through those stages, the use cases (`ingest`, `search`, `demo`, `doctor`) compose
the rooms, and `commands` is the terminal in front of them. Imports point downward only; docs/architecture.md
has the map, tests/unit/test_layers.py holds it.
"""

from __future__ import annotations

__version__ = "0.1.0"
