"""A made-up shop: products drawn as vector shapes, written as a catalog with everything a real one has.

Nothing here is downloaded and drawing needs no model; the same arguments give the same bytes. The model in `MODEL`
was trained by `make demo-model` on such drawings, from scratch; its README.md has the numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).parent / "model"
"""an ordinary transformers folder: 64 × 64 pixels, understands kinds, colours and patterns in words"""
