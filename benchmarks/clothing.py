"""Real photos of clothing, from nothing: train, run, tag and evaluate, one after the other, as a shop would.

    python -m benchmarks.clothing CATALOG.CSV

The catalog has the columns `category`, taken as the title, and `split`. A small model learns from the products of
the split `train`, some of which it keeps apart to choose its best step by; those of the split `validation` are read
only afterwards, and are what is judged. The linear probe learns from the stored vectors of the split `train`, too.
Writes results/clothing.json, the commands with all that they printed to results/clothing.txt, pages and charts to
--pages.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks.command import run_catvec, working_folder
from benchmarks.conditions import RESULTS, write_result
from benchmarks.database import whole_database
from pipeline.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.command import Outcome
    from benchmarks.database import Database

SHAPE = ("--size", "tiny", "--image-size", "96", "--patch-size", "16", "--width", "192", "--fit", "squash")
TRAINING = (
    *("--vocabulary", "600", "--epochs", "60", "--batch-size", "64", "--learning-rate", "0.0005"),
    *("--evaluate-every", "215", "--precision", "bf16", "--seed", "7"),
)
TITLES = ("--title-column", "category", "--image-root", "photos")
NAME = "clothing"
JUDGED = ("--filter", '{"split": "validation"}')

SHARE_RIGHT = """
SELECT count(*) FILTER (WHERE t.label = p.category), count(*)
  FROM catvec.product_tags t
  JOIN catvec.products p ON p.product_id = t.product_id
 WHERE t.attribute = 'category'
   AND p.attrs ->> 'split' = 'validation'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where the commands run; what they printed is kept."""

    folder: Path
    database: Database
    ran: list[Outcome] = field(default_factory=list)

    def run(self, *arguments: str) -> Outcome:
        outcome = run_catvec(*arguments, folder=self.folder, environment=self.database.environment)
        self.ran.append(outcome)
        return outcome

    def read(self, *arguments: str) -> Mapping[str, Any]:
        """The same command once more as JSON, not to be shown."""
        command = (*arguments, "--json")
        return run_catvec(*command, folder=self.folder, environment=self.database.environment).json()

    def right(self) -> dict[str, Any]:
        """How many of the judged products have their category as their tag, as an app would count it."""
        with psycopg.connect(self.database.url) as connection:
            row = connection.execute(SHARE_RIGHT).fetchone()
        if row is None:
            raise SystemExit("the database gave no counts")
        right, asked = row
        low, high = wilson_interval(right, asked)
        return {"right": right, "asked": asked, "share": right / asked, "interval_95": [low, high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pages", type=Path, help="folder for pages, charts and the model; else they are not kept")
    parser.add_argument("--training-note", default="", help="how busy the machine was")
    arguments = parser.parse_args()
    with working_folder(None, tiny=True) as place, whole_database(None) as database:
        stand = Stand(folder=place.folder, database=database)
        labels = prepare(stand.folder, arguments.catalog)
        result = measure(stand, labels) | {"training_note": arguments.training_note}
        if arguments.pages is not None:
            keep(stand.folder, arguments.pages)
    write_result("clothing", result, arguments.results)
    shown = "\n".join(f"$ {one.command}\n{one.err}{one.out}" for one in stand.ran)
    (arguments.results / "clothing.txt").write_text(shown, encoding="utf-8")
    print(json.dumps(result, indent=2))


def prepare(folder: Path, catalog: Path) -> list[str]:
    """Put the photos, both catalogs and the labels into the folder; returns the labels."""
    (folder / "photos").symlink_to(catalog.resolve().parent, target_is_directory=True)
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    write_rows(folder / "learn.csv", (row for row in rows if row["split"] == "train"))
    write_rows(folder / "all.csv", rows)
    labels = sorted({row["category"] for row in rows})
    text = f'category:\n  labels: [{", ".join(labels)}]\n  templates: ["{{}}"]\n  threshold: 0\n'
    (folder / "labels.yaml").write_text(text, encoding="utf-8")
    return labels


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    chosen = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)


def measure(stand: Stand, labels: list[str]) -> dict[str, Any]:
    """Every command in its order, and what they came to."""
    trained = stand.run("train", "learn.csv", *TITLES, *SHAPE, *TRAINING, "--output", NAME)
    stand.run("run", "learn.csv", *TITLES, "--model", NAME)
    # every product gets a label, as by words
    stand.run("train", "--head", "category", "--threshold", "0")
    stand.run("run", "all.csv", *TITLES, "--model", NAME)
    stand.run("tag", "labels.yaml")
    by_words = stand.right()
    evaluate = ("evaluate", "zero-shot", "labels.yaml", *JUDGED)
    shown = ("--report", "zero_shot.html", "--image-root", "photos", "--chart", "confusion.png")
    stand.run(*evaluate, *shown)
    stand.run("evaluate", "retrieval", *JUDGED, "--report", "retrieval.html", "--image-root", "photos")
    zero_shot = stand.read(*evaluate)
    stand.run("tag", "category.safetensors")
    card = json.loads((stand.folder / NAME / "training.json").read_text(encoding="utf-8"))
    return {
        "labels": labels,
        "training": {key: card[key] for key in ("command", "steps", "best_step", "seconds", "data", "metrics")}
        | {"process_seconds": round(trained.seconds, 1)},
        "zero_shot": {key: zero_shot[key] for key in ("top1", "top5", "macro_f1", "largest_class", "confusion")},
        "tags_by_words": by_words,
        "tags_by_linear_probe": stand.right(),
    }


def keep(folder: Path, pages: Path) -> None:
    """Move what the commands wrote beside the database to where it can be looked at."""
    pages.mkdir(parents=True, exist_ok=True)
    for name in ("zero_shot.html", "retrieval.html", "confusion.png", "category.safetensors", NAME):
        (folder / name).replace(pages / name)


if __name__ == "__main__":
    main()
