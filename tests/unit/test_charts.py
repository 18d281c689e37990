"""Charts draw the words of catalogs and files as they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.charts import draw_confusion, draw_training
from pipeline.errors import CatvecError
from pipeline.evaluate.gallery import Coverage
from pipeline.evaluate.metrics import share
from pipeline.evaluate.zero_shot import ZeroShot, report_classes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def judged(labels: Sequence[str]) -> ZeroShot:
    """One product of each label, right."""
    confusion = np.eye(len(labels), dtype=np.int64)
    return ZeroShot(
        model="one",
        coverage=Coverage(products=2, images=2, trained=None, left_out_trained=0, left_out_unanswered=0),
        attribute="price",
        truth="price",
        top1=share(2, 2),
        top5=None,
        macro_f1=1.0,
        largest_class=0.5,
        classes=tuple(report_classes(labels, confusion)),
        confusion=tuple(map(tuple, confusion.tolist())),
        unknown_values={},
        warnings=(),
    )


def words(chart: Path) -> list[str]:
    """What is drawn: matplotlib writes each text as a comment above its outlines. What is no XML fails."""
    reader = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return [(node.text or "").strip() for node in ElementTree.parse(chart, reader).iter(ElementTree.Comment)]


@pytest.mark.parametrize(
    ("label", "drawn"),
    [
        ("$10 – $20", "$10 – $20"),
        ("under $x_{$", "under $x_{$"),
        ("日本のドレス", "日本のドレス"),
        ("half \ud800, bell \x07", "half \ufffd, bell \ufffd"),
        ("x" * 300, "x" * 47 + "…"),
    ],
)
def test_labels_are_drawn_as_they_stand(label: str, drawn: str, tmp_path: Path) -> None:
    chart = tmp_path / "confusion.svg"

    draw_confusion(judged([label, "dress"]), chart)

    assert words(chart).count(drawn) == 2


def test_the_curves_of_a_folder_named_like_a_formula_are_drawn(tmp_path: Path) -> None:
    chart = tmp_path / "curves.svg"

    draw_training([{"step": 1, "loss": 1.0, "temperature": 0.07}], chart, "Training of shop_$a_{$b")

    assert "Training of shop_$a_{$b" in words(chart)


def test_a_chart_that_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    with pytest.raises(CatvecError, match=r"^the chart '.*confusion\.webm' cannot be drawn: Format 'webm' is not"):
        draw_confusion(judged(["bag", "dress"]), tmp_path / "confusion.webm")
