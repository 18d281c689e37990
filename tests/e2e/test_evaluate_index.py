"""catvec evaluate index as a user types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fixtures.judged import Judged, documented

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures.command import Catvec


def test_the_index_is_measured_and_held_to_a_limit(catvec: Catvec, judged: Judged, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    outcome = catvec(
        "evaluate", "index", "--db", judged.url, "--fail-under", "recall@10=0.9", "--report", page, "--json"
    )

    found = outcome.json()
    assert outcome.code == 0, outcome.err
    assert set(found) == documented("`evaluate index`")
    assert set(found["latency"]) == {"median_ms", "p95_ms"}
    assert found["recall"]["method"] == "wilson"
    assert (found["model"], found["queries"], found["recall"]["value"]) == ("one", 33, 1.0)
    assert "recall@10" in page.read_text(encoding="utf-8")
