"""What the page says, and what it never shows."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report import words
from tests.fixtures.summary import run_summary


@pytest.mark.parametrize(
    ("fields", "tone", "text"),
    [
        ({}, "good", "Finished in 4 min 12 s: no image needed a new vector, none failed."),
        (
            {"embedded": 312, "changed": 17, "failed": 3, "removed": 40, "seconds": 9.94},
            "good",
            "Finished in 9.9 s: 312 images got a vector, 17 had changed, 3 failed; 40 left the search results.",
        ),
        ({"changed": 1, "failed": 6}, "fair", "Finished in 4 min 12 s: 1 image had changed, 6 failed."),
        (
            {"finished": False, "stopped_by": "max_runtime", "reused": 1, "pending": 1_200, "seconds": 10_800},
            "fair",
            "Stopped after 3 h, as --max-runtime says: 1 image got a vector, none failed; "
            "1,200 wait for the next run.",
        ),
        (
            {"finished": False, "stopped_by": "failure_rate", "failed": 60, "pending": 40, "seconds": 40},
            "bad",
            "Stopped after 40 s, because too many images failed: no image got a vector, 60 failed; "
            "40 wait for the next run.",
        ),
        (
            {"finished": False, "stopped_by": "SIGTERM", "pending": 100},
            "fair",
            "Terminated after 4 min 12 s: no image got a vector, none failed; 100 wait for the next run.",
        ),
    ],
)
def test_the_sentence_says_how_it_ended_and_what_it_did(fields: dict[str, Any], tone: str, text: str) -> None:
    summary = run_summary(**fields)
    assert words.tone(summary) == tone
    assert f"{words.headline(summary)}: {words.sentence(summary)}" == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min"), (252.3, "4 min 12 s"), (3_600, "1 h"), (11_100, "3 h 5 min"),
        (187_200, "2 d 4 h"),
    ],
)  # fmt: skip
def test_spans_have_two_units_at_most(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("location", "shown", "link"),
    [
        ("https://cdn.example/a/b.jpg", "https://cdn.example/a/b.jpg", "https://cdn.example/a/b.jpg"),
        ("https://cdn.example/a.jpg?token=SECRET#SECRET", "https://cdn.example/a.jpg?…", None),
        ("http://user:SECRET@cdn.example:8080/a.jpg", "http://cdn.example:8080/a.jpg", None),
        ("http://user:SEC/RET@cdn.example/a.jpg", "http://cdn.example/a.jpg", None),
        ("https://cdn.example/img@2x.jpg", "https://cdn.example/img@2x.jpg", "https://cdn.example/img@2x.jpg"),
        ("data:image/png;base64,AAAA", "data:image/png;base64, …", None),
        ("photos/a b.jpg", "photos/a b.jpg", None),
        ("javascript:alert(1)", "javascript:alert(1)", None),
        ("JaVaScRiPt://x.example/%0aalert(1)", "JaVaScRiPt://x.example/\nalert(1)", None),
        ("https://cdn.example/%C3%A4.jpg", "https://cdn.example/ä.jpg", "https://cdn.example/%C3%A4.jpg"),
        ("http://[broken/a.jpg", "http://[broken/a.jpg", None),
        ("http:///a.jpg", "http:///a.jpg", None),
    ],
)
def test_locations_show_no_secret_and_links_lead_to_the_web(location: str, shown: str, link: str | None) -> None:
    assert words.show_location(location) == shown
    assert words.link_to(location) == link


def test_long_locations_keep_both_ends() -> None:
    shown = words.show_location("https://cdn.example/" + "a" * 300 + "/last.jpg")
    assert len(shown) <= words.LONGEST_LOCATION + 1
    assert shown.startswith("https://cdn.example/a")
    assert shown.endswith("a/last.jpg")
