"""How large a model's table and index become, by the layout of their pages; tests/store/test_size.py compares."""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES, PAGE_HEADER_BYTES, POINTER_BYTES = 8192, 24, 4
TUPLE_BYTES = 24
"""header of a row, aligned"""
HASH_BYTES, COUNTER_BYTES = 33, 16
"""a SHA-256 with its length; run_id and embedded_at"""
KEY_BYTES = 48
"""an entry of the primary key, the SHA-256 with its header, aligned"""
BTREE_FULL = 0.7
"""keys come in no order, so pages split in the middle and stay about this full"""
TOAST_BYTES, TOAST_CHUNK_BYTES, TOAST_POINTER_BYTES = 2032, 1996, 18
"""longer rows keep the vector in a table of its own, in chunks"""
TOAST_KEY_BYTES = 24
ELEMENT_BYTES, NEIGHBOR_BYTES, NEIGHBOUR_ID_BYTES = 72, 4, 6
"""of pgvector's HNSW: an element without its vector, the list of its neighbours without them, and each of these"""
INDEX_SPECIAL_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSize:
    """Bytes of the vector table with its key, and of the HNSW index."""

    table_bytes: int
    index_bytes: int


def predict_size(rows: int, *, dims: int, storage: str = "halfvec", m: int = 16) -> VectorSize:
    """What so many vectors take, up to about a tenth; in an index of the embeddings themselves, not of their bits."""
    vector = 8 + dims * (2 if storage == "halfvec" else 4)
    row = _aligned(TUPLE_BYTES + HASH_BYTES + 4 + vector + COUNTER_BYTES)
    toasted = 0
    if row > TOAST_BYTES:
        row = _aligned(TUPLE_BYTES + HASH_BYTES + TOAST_POINTER_BYTES + COUNTER_BYTES)
        full, rest = divmod(vector, TOAST_CHUNK_BYTES)
        chunks = [TOAST_CHUNK_BYTES] * full + [rest] * bool(rest)
        # the chunks of a vector come one after the other, and one of the next that does not fit begins a new page
        lengths = sum(_aligned(TUPLE_BYTES + 12 + chunk) + POINTER_BYTES for chunk in chunks)
        toasted = _pages(rows, lengths) + rows * len(chunks) * TOAST_KEY_BYTES
    key = round(rows * (KEY_BYTES + POINTER_BYTES) / BTREE_FULL)
    table = _pages(rows, row + POINTER_BYTES) + toasted + key
    # rows of half precision are indexed as they are, those of single precision as half precision
    element = _aligned(ELEMENT_BYTES + 8 + 2 * dims)
    neighbours = _aligned(NEIGHBOR_BYTES + 2 * m * NEIGHBOUR_ID_BYTES)
    return VectorSize(
        table_bytes=table, index_bytes=_pages(rows, element + neighbours + 2 * POINTER_BYTES, INDEX_SPECIAL_BYTES)
    )


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def _pages(rows: int, row_bytes: int, special_bytes: int = 0) -> int:
    room = PAGE_BYTES - PAGE_HEADER_BYTES - special_bytes
    return -(-rows // (room // row_bytes)) * PAGE_BYTES if row_bytes <= room else rows * row_bytes
