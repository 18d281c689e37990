"""Which products are of a share of the catalog (`pipeline/shard.py`), in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.shard import Shard

# True for every product when there are no shares. `mod`, because % is psycopg's. Four bytes as a bit string are a
# number from 0 to 2³² - 1, whatever the platform.
IS_OURS = """
(%(shares)s::bigint IS NULL
 OR mod(('x' || encode(substr(sha256(convert_to(p.product_id, 'UTF8')), 1, 4), 'hex'))::bit(32)::bigint,
        %(shares)s::bigint) = %(share)s::bigint)
"""
"""a condition on `p.product_id`; with the values of `share_values`"""


def share_values(shard: Shard | None) -> dict[str, object]:
    """What `IS_OURS` compares with."""
    if shard is None:
        return {"shares": None, "share": None}
    return {"shares": shard.count, "share": shard.number - 1}
