"""`catvec run --json` keeps to docs/run-summary.schema.json, which says all that the record says."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest
from jsonschema import Draft202012Validator, ValidationError

from pipeline.records import ProductChanges, RunSummary, StageLoad
from tests.fixtures.summary import SCHEMA, validate

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Outcome


def names(record: type) -> list[str]:
    return [entry.name for entry in fields(record)]


def test_the_schema_names_what_the_record_has() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    products = SCHEMA["properties"]["products"]
    assert list(SCHEMA["properties"]) == SCHEMA["required"] == names(RunSummary)
    assert list(products["properties"]) == products["required"] == names(ProductChanges)
    loads = SCHEMA["properties"]["stage_loads"]["items"]
    assert list(loads["properties"]) == loads["required"] == names(StageLoad)
    described = [*SCHEMA["properties"].values(), *products["properties"].values(), *loads["properties"].values()]
    assert all(entry["description"] for entry in described)


def test_runs_keep_to_the_schema(
    catvec: Catvec, shop_catalog: ShopCatalog, tiny_clip: Path, database_url: str
) -> None:
    catalog = shop_catalog(8)
    with catalog.open("a", encoding="utf-8") as file:
        file.write(",no id,odd,x.jpg,1,red\n")

    def run() -> Outcome:
        options = ("--db", database_url, "--model", tiny_clip, "--allow-private-hosts", "--tolerate-failures", 1)
        return catvec("run", catalog, *options, "--json")

    for outcome in (run(), run()):
        summary = outcome.json()
        validate(summary)
        assert outcome.code == 0
        assert len(outcome.out.splitlines()) == 1
        parts = ("unchanged", "reused", "embedded", "failed", "pending")
        assert summary["seen"] == sum(summary[part] for part in parts) == 9
    assert (summary["unchanged"], summary["failures_by_code"]) == (8, {"missing_id": 1})
    # nothing was encoded, so no model was loaded
    assert (summary["device"], summary["precision"], summary["batch_size"]) == (None, None, None)

    for wrong in ({**summary, "more": 1}, {**summary, "seen": -1}, {**summary, "stopped_by": "boredom"}):
        with pytest.raises(ValidationError):
            validate(wrong)
