"""docs/catalogs.md says what the code does: names, codes, endings."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.catalog.columns import USUAL_NAMES
from pipeline.catalog.open import KINDS, _kind_by_ending
from pipeline.catalog.references import IMAGE_ENDINGS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "catalogs.md").read_text()
CODE = "".join(path.read_text() for path in (ROOT / "pipeline" / "catalog").glob("*.py"))
STORE = "".join(path.read_text() for path in (ROOT / "pipeline" / "store").glob("*.py"))


def test_every_usual_name_is_in_the_table_in_order() -> None:
    for names in USUAL_NAMES.values():
        assert f"| {', '.join(names)} |" in PAGE


def test_every_code_is_explained() -> None:
    raised = set(re.findall(r'(?:RowError\(|bad_row\(row(?:\.row)?, |code=)\s*"([a-z_]+)"', CODE))
    raised |= set(re.findall(r"SET code = '([a-z_]+)'", STORE))
    explained = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE))
    assert raised == explained
    assert len(raised) == 15  # the pattern finds them all


def test_every_ending_named_is_known() -> None:
    paragraph = PAGE[PAGE.index("The ending says") : PAGE.index("`--format`\nsays")]
    endings = re.findall(r"`(\.\w+)`", paragraph)
    assert {_kind_by_ending(Path(f"catalog{ending}")) for ending in endings} == set(KINDS) - {"folder", "sql"}
    assert all(f"`{ending}`" in PAGE for ending in IMAGE_ENDINGS)
