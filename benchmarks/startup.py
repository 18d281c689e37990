"""How long one waits for `catvec`: the help, an answer, and a run before its first image.

    python -m benchmarks.startup [--model FOLDER]

Every number is of whole processes, on an embedded server that runs already. The steps of a run are timed inside
one more process (startup_steps.py), which does what `catvec run` does, with a clock around each step. The photos are
drawn, and few: what is measured happens before the first of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.command import CATVEC, Place, run_catvec, run_process, working_folder
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import embedded_server, empty_database
from benchmarks.random_model import draw_photos

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.database import Database
    from pipeline.store.embedded import EmbeddedServer

STEPS_SCRIPT = Path(__file__).with_name("startup_steps.py")
PHOTOS = 8
HELP_REPEATS = 20
HELP_ASKED_S = 0.3


class PhotoServer(ThreadingHTTPServer):
    """Remembers when it was asked for the first photo (`time.perf_counter`)."""

    first_request: float | None = None


class Answer(SimpleHTTPRequestHandler):
    """A file; the time of the first is noted before anything else."""

    server: PhotoServer

    def do_GET(self) -> None:
        if self.server.first_request is None:
            self.server.first_request = time.perf_counter()
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what passes before the first image.")
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of ViT-B/32's size")
    parser.add_argument("--repeats", type=int, default=5, help="of everything but the help")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with working_folder(arguments.model) as place, embedded_server() as server, photo_server(place) as photos:
        write_photos(place, f"http://127.0.0.1:{photos.server_port}")
        result: dict[str, Any] = {"model": place.model, "help_asked_s": HELP_ASKED_S}
        result["commands"] = measure_help(place)
        result["commands"] |= measure_commands(place, server, photos, repeats=arguments.repeats)
        result["steps_of_a_first_run"] = measure_steps(place, server, repeats=arguments.repeats)
    print_result(result)
    print(write_result("startup", result, arguments.results))


@contextmanager
def photo_server(place: Place) -> Iterator[PhotoServer]:
    with PhotoServer(("127.0.0.1", 0), partial(Answer, directory=str(place.folder))) as server:
        threading.Thread(target=server.serve_forever, name="photos", daemon=True).start()
        yield server
        server.shutdown()


def write_photos(place: Place, base_url: str) -> None:
    with (place.folder / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "image"])
        for number, pixels in enumerate(draw_photos(count=PHOTOS, size=400)):
            Image.fromarray(pixels).save(place.folder / f"{number}.jpg", quality=90)
            writer.writerow([f"P{number}", f"{base_url}/{number}.jpg"])


def measure_help(place: Place) -> dict[str, Any]:
    """`catvec --help`, beside a Python that does nothing."""
    found = {}
    for name, command in (
        ("python -c pass", [sys.executable, "-c", "pass"]),
        ("catvec --help", [str(CATVEC), "--help"]),
    ):
        # the first one may read the files from disk, or compile them
        seconds = [run_process(command, folder=place.folder, environment={}).seconds for _ in range(1 + HELP_REPEATS)]
        found[name] = spread(seconds[1:])
    return found


def measure_commands(place: Place, server: EmbeddedServer, photos: PhotoServer, *, repeats: int) -> dict[str, Any]:
    """A first run, the same again with nothing to do, and an answer, in a fresh database each time."""
    seconds: dict[str, list[float]] = {}
    for _ in range(1 + repeats):
        with empty_database(server) as database:
            catvec = partial(run_catvec, folder=place.folder, environment=database.environment)
            run = ("run", "catalog.csv", "--model", place.model, "--allow-private-hosts", "--json")
            photos.first_request, started = None, time.perf_counter()
            first = catvec(*run)
            if photos.first_request is None:
                raise SystemExit("catvec run asked for no photo")
            seconds.setdefault("catvec run, until it asks for the first photo", []).append(
                photos.first_request - started
            )
            seconds.setdefault(f"catvec run, first, {PHOTOS} photos", []).append(first.seconds)
            seconds.setdefault("catvec run, nothing to do", []).append(catvec(*run).seconds)
            seconds.setdefault("catvec similar", []).append(catvec("similar", "P0", "--json").seconds)
    return {name: spread(values[1:]) for name, values in seconds.items()}


def measure_steps(place: Place, server: EmbeddedServer, *, repeats: int) -> dict[str, Any]:
    """Seconds of each step before the first image, in the order in which they begin."""
    steps: dict[str, list[float]] = {}
    for _ in range(1 + repeats):
        with empty_database(server) as database:
            for name, seconds in run_steps(place, database).items():
                steps.setdefault(name, []).append(seconds)
    return {name: spread(values[1:]) for name, values in steps.items()}


def run_steps(place: Place, database: Database) -> dict[str, float]:
    command = [sys.executable, str(STEPS_SCRIPT), "catalog.csv", place.model, str(time.time())]
    outcome = run_process(command, folder=place.folder, environment={"DATABASE_URL": database.url})
    steps: dict[str, float] = json.loads(outcome.out.splitlines()[-1])
    return steps


def print_result(result: dict[str, Any]) -> None:
    for title in ("commands", "steps_of_a_first_run"):
        for name, found in result[title].items():
            print(f"{name:46} {found['median']:7.2f} s   ({found['min']:.2f} to {found['max']:.2f})")
    print(f"asked: catvec --help in {result['help_asked_s']:g} s")


if __name__ == "__main__":
    main()
