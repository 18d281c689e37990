"""A backfill that is killed again and again, into Postgres, and into a bundle that is then loaded: both are equal.

    python -m benchmarks.backfill CATALOG.CSV [--images 100000] [--model FOLDER]

The catalog's photos stand under as many URLs as are asked for, each with a comment of its own in its bytes, so that
nothing is reused; nginx on loopback sends them. The model is small, so that the machine's cores do the other work.
SIGKILL comes at five shares of the way, and the same command goes on. How much of the work is done twice is counted
from the server's log. The last process of each way does half of the images: its memory is compared at 5,000 and
at 50,000 of them. Writes results/backfill.json; ends with 1 when anything is not as it should be. Linux only.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import nginx
from benchmarks.catalog import Photo, describe_sizes, write_catalog
from benchmarks.command import Place, run_catvec, working_folder
from benchmarks.conditions import RESULTS, write_result
from benchmarks.database import Database, describe_server, embedded_server, empty_database
from benchmarks.drawn_catalog import picture_path, product_row, write_rows
from benchmarks.memory import Mark, mark_memory

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

IMAGES = 100_000
KILLED = -9
KILLS = (0.03, 0.10, 0.20, 0.35, 0.45)
"""shares of the images at which a process is killed; the last one does the rest"""
MARKS = (5_000, 50_000)
"""images of the last process between which its memory may grow by `MOST_GROWTH_MB`"""
MOST_GROWTH_MB = 50.0
GLANCE_S = 0.05

# the window of downloads, the decoded ones that wait, the batch that is encoded, and what one transaction or part
# holds at most: what a kill can cost
IN_FLIGHT = (64 + 2 * 32) + 2 * 32 + 32 + 2 * 512

DIFFERENCES = """
SELECT count(*)
  FROM here h
  FULL JOIN there t USING (product_id, url)
 WHERE h.sha256 IS DISTINCT FROM t.sha256
    OR h.embedding IS NULL
    OR t.embedding IS NULL
    OR h.embedding::halfvec <=> t.embedding::halfvec > 0.0001
"""

ROWS = """
SELECT i.product_id, i.url, i.content_sha256, e.embedding::text
  FROM catvec_store.images i
  JOIN catvec.image_embeddings e USING (image_id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One process; `images` were in the database or bundle when it ended, `killed` says that it was."""

    killed: bool
    images: int
    seconds: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A command that goes on where it was killed; `count` says how many images are safe."""

    name: str
    place: Place
    options: tuple[str, ...]
    environment: dict[str, str]
    count: Callable[[], int]

    def go(self, images: int) -> tuple[list[Stretch], dict[str, Any]]:
        """Every process of the way, and the last one's summary."""
        stretches = [self._stretch(kill_at=round(share * images))[0] for share in KILLS]
        last, summary = self._stretch()
        say(f"{self.name}: {sum(stretch.seconds for stretch in [*stretches, last]):,.0f} s in all")
        return [*stretches, last], summary

    def _stretch(self, kill_at: int | None = None) -> tuple[Stretch, dict[str, Any]]:
        before, marks = self.count(), []

        def watch(process: subprocess.Popen[bytes]) -> None:
            if kill_at is None:
                marks.extend(mark_memory(process, MARKS, lambda: self.count() - before))
                return
            while process.poll() is None and self.count() < kill_at:
                time.sleep(GLANCE_S)
            process.kill()

        command = ("run", "catalog.csv", "--model", self.place.model, "--allow-private-hosts", "--json")
        outcome = run_catvec(
            *command,
            *self.options,
            folder=self.place.folder,
            environment=self.environment,
            watch=watch,
            code=0 if kill_at is None else KILLED,
        )
        stretch = Stretch(
            killed=kill_at is not None, images=self.count(), seconds=round(outcome.seconds, 1), marks=tuple(marks)
        )
        say(f"{self.name}: {stretch.images:,} images after {stretch.seconds:,.0f} s")
        return stretch, outcome.json() if kill_at is None else {}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a backfill five times, and compare what it came to.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column image")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--model", type=Path, help="a model folder; default: a tiny one with random weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    program = nginx.find_nginx()
    if program is None:
        parser.error("nginx is needed (Debian: nginx-light)")
    with (
        working_folder(arguments.model, tiny=True) as place,
        tempfile.TemporaryDirectory(prefix="catvec-bench-pictures-") as pictures,
        embedded_server() as server,
        empty_database(server) as direct,
        empty_database(server) as loaded,
    ):
        photos = read_photos(arguments.catalog, place.folder)
        result = {"photos": describe_sizes(photos), "model": place.model, "images": arguments.images}
        port, log = nginx.free_port(), place.folder / "status.log"
        stretch_catalog(photos, Path(pictures), place.folder, images=arguments.images, port=port)
        with nginx.serve(program, Path(pictures), port=port, log=log):
            result |= measure(place, direct, loaded, images=arguments.images, log=log)
        result["server"] = describe_server(direct.url)
    result["checks"] = check(result)
    for name, is_met in result["checks"].items():
        print("yes" if is_met else "NO ", name)
    print(write_result("backfill", result, arguments.results))
    sys.exit(0 if all(result["checks"].values()) else 1)


def read_photos(catalog: Path, folder: Path) -> list[Photo]:
    return write_catalog(catalog, folder / "photos.csv", "http://unused")


def stretch_catalog(photos: list[Photo], served: Path, folder: Path, *, images: int, port: int) -> None:
    """Write the pictures with a comment each, and a catalog that names them."""
    say(f"writing {images:,} pictures")
    data = [photo.path.read_bytes() for photo in photos]
    for number in range(images):
        path = served / picture_path(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(with_comment(data[number % len(data)], f"{number}".encode()))
    rows = (product_row(number, f"http://127.0.0.1:{port}/{picture_path(number)}") for number in range(images))
    write_rows(folder / "catalog.csv", rows)


def with_comment(jpeg: bytes, comment: bytes) -> bytes:
    """The same picture in other bytes: a comment behind the two bytes that every JPEG file begins with."""
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def measure(place: Place, direct: Database, loaded: Database, *, images: int, log: Path) -> dict[str, Any]:
    bundle = place.folder / "bundle"
    ways = [
        Way(
            name="postgres",
            place=place,
            options=(),
            environment=dict(direct.environment),
            count=lambda: count_in_database(direct.url),
        ),
        Way(
            name="bundle",
            place=place,
            options=("--to", bundle.name),
            environment={},
            count=lambda: count_in_bundle(bundle),
        ),
    ]
    found: dict[str, Any] = {}
    for way in ways:
        log.write_text("", encoding="utf-8")
        stretches, summary = way.go(images)
        answers = sum(1 for _ in log.open(encoding="utf-8"))
        found[way.name] = {
            "stretches": [asdict(stretch) for stretch in stretches],
            "summary": summary,
            "requests": answers,
        }
    found["bundle"]["megabytes"] = round(sum(path.stat().st_size for path in bundle.rglob("*.parquet")) / 1e6, 1)
    found["bundle"]["parts"] = len(list(bundle.glob("parts/*.parquet")))
    say("loading the bundle")
    seconds = []
    for _ in range(2):
        outcome = run_catvec("load", bundle.name, "--json", folder=place.folder, environment=dict(loaded.environment))
        seconds.append(round(outcome.seconds, 1))
    found["load"] = {"seconds": seconds[0], "again_seconds": seconds[1], "summary": outcome.json()}
    found["differences"] = count_differences(direct.url, loaded.url)
    shutil.rmtree(bundle)
    return found


def count_in_database(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        [(table,)] = connection.execute("SELECT to_regclass('catvec_store.emb_clip_tiny_random')").fetchall()
        if table is None:
            return 0
        [(count,)] = connection.execute("SELECT coalesce(sum(embedded), 0) FROM catvec.run_status").fetchall()
        return int(count)


def count_in_bundle(bundle: Path) -> int:
    return sum(count_rows(path) for path in bundle.glob("parts/part-*.parquet"))


@cache
def count_rows(part: Path) -> int:
    """Once is enough: a part never changes."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(part).num_rows)


def count_differences(one: str, other: str) -> dict[str, int]:
    """Images whose bytes or vectors are not the same in both databases, and how many there are."""
    with psycopg.connect(one, autocommit=True) as here, psycopg.connect(other, autocommit=True) as there:
        columns = "(product_id text, url text, sha256 bytea, embedding text)"
        for name in ("here", "there"):
            here.execute(f"CREATE TEMPORARY TABLE {name} {columns}")
        for name, source in (("here", here), ("there", there)):
            rows = source.execute(ROWS).fetchall()
            with here.cursor().copy(f"COPY {name} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        [(differing,)] = here.execute(DIFFERENCES).fetchall()
        [(images,)] = here.execute("SELECT count(*) FROM here").fetchall()
    return {"images": images, "differing": differing}


def check(result: dict[str, Any]) -> dict[str, bool]:
    images, checks = result["images"], {}
    for name in ("postgres", "bundle"):
        found = result[name]
        stretches, summary = found["stretches"], found["summary"]
        checks[f"{name}: every image is encoded"] = (
            summary["finished"] and stretches[-1]["images"] == images and summary["failed"] == 0
        )
        checks[f"{name}: a kill costs at most what is in flight"] = (
            found["requests"] <= images + len(KILLS) * IN_FLIGHT
        )
        marks = stretches[-1]["marks"]
        checks[f"{name}: memory is flat"] = (
            len(marks) == len(MARKS) and marks[1]["anonymous_mb"] - marks[0]["anonymous_mb"] <= MOST_GROWTH_MB
        )
    differences = result["differences"]
    checks["both databases are equal"] = differences == {"images": images, "differing": 0}
    checks["loading again embeds nothing"] = result["load"]["summary"]["embedded"] == 0
    return checks


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
