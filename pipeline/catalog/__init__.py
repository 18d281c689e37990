"""uri → Product records, streaming. One module per kind of catalog.

`open` decides which kind a catalog is and is the door: `read_catalog` and `image_root`. The kinds (`csv`,
`json`, `parquet`, `sql`) give rows; `columns` says which column is what, `rows` makes products of rows with
`values`, `prices` and `references`. A `folder` has no columns and makes its products itself. `source` turns
files and standard input into text, a piece at a time. `deleted` knows how catalogs say that a product is gone, and
reads lists of such ids.
"""

from __future__ import annotations

from pipeline.catalog.deleted import read_deleted_ids
from pipeline.catalog.open import image_root, read_catalog

__all__ = ["image_root", "read_catalog", "read_deleted_ids"]
