"""Nights on a large catalog: nothing changed, 1 % changed, the same bytes under five URLs; and what they cost.

    python -m benchmarks.nightly [--products 100000] [--rounds 5] [--model FOLDER]

Products are synthetic, with a small drawn JPEG each, from nginx on loopback (or, where nginx is not installed, from
photo_server.py). Every night is `catvec run` as a process of its own on a PostgreSQL that runs already; kinds of
nights take turns, the first round is not counted. The model is tiny, so that 100,000 pictures can be loaded first:
what nights do to a large catalog does not depend on it. What does, comparing the identity of a model of ViT-B/32's
size (605 MB are hashed), is measured beside it. Writes results/nightly.json; ends with 1 when anything is not as it
was asked for. Linux only, for the memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from benchmarks import nginx, photo_server
from benchmarks.command import Place, link_model, run_catvec, working_folder
from benchmarks.conditions import RESULTS, spread, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.drawn_catalog import SIZE, draw_pictures, picture_path, product_row, write_rows
from benchmarks.memory import sample_memory
from benchmarks.random_model import save_clip_b32
from benchmarks.revalidation import compare_loops
from benchmarks.row_changes import Changes, count_changes
from pipeline.store.connect import Session
from pipeline.store.models import choose_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.command import Outcome
    from benchmarks.database import Database
    from benchmarks.memory import Sample
    from pipeline.store.embedded import EmbeddedServer

ASKED_PRODUCTS = 100_000
ALL_ASKED_S, NONE_ASKED_S = 25.0, 4.0
MOST_MEMORY_MB = 600
CHANGED_RATIO = 1.3
TWINS = 5
"""URLs with the same bytes"""
READ_IN_FULL = 0.001
"""share that --full-check may read in full that night: each image has its moment in 90 days"""
LOOP_REQUESTS = 20_000
CHECK_PRODUCTS = 8

ALL, NONE, CHANGED, COPIES = "every image asked again", "no image asked", "1 % changed", "the same bytes at 5 URLs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Serves a folder on one port: `program` is nginx, or None where there is none."""

    folder: Path
    program: str | None
    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self, log: Path | None = None) -> Iterator[None]:
        if self.program is None:
            with photo_server.serve(self.folder, port=self.port, log=log, uvloop=True):
                yield
        else:
            with nginx.serve(self.program, self.folder, port=self.port, log=log):
                yield

    def statuses(self, log: Path) -> dict[int, int]:
        """How often each was answered."""
        if self.program is None:
            return dict(Counter(answer.status for answer in photo_server.read_log(log)))
        return dict(Counter(int(line) for line in log.read_text(encoding="utf-8").split()))

    def describe(self) -> str:
        if self.program is None:
            return "benchmarks/photo_server.py (aiohttp on uvloop)"
        return f"{nginx.nginx_version(self.program)}, one worker, no access log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One run: its process, and what it wrote to the vector table."""

    outcome: Outcome
    peak_mb: float
    vector_rows: Changes

    @property
    def summary(self) -> dict[str, Any]:
        return self.outcome.json()

    @property
    def encoding_s(self) -> float:
        """Loading the model and its forward passes, as the run counts them."""
        model, encode = (float(self.summary["stage_seconds"].get(name, 0.0)) for name in ("model", "encode"))
        # a model that is loaded when the first batch comes is loaded within the stage encode; rather too little
        return encode if encode >= model else model + encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """What all nights have in common; `products` have the numbers from 0 on."""

    place: Place
    database: Database
    host: Host
    products: int

    @property
    def share(self) -> int:
        """One per cent of the products."""
        return self.products // 100

    def write_catalog(self, more: Iterable[tuple[object, ...]] = ()) -> None:
        rows = (product_row(number, self.url(picture_path(number))) for number in range(self.products))
        write_rows(self.place.folder / "catalog.csv", (*rows, *more))

    def run(self, *options: str) -> Night:
        command = ("run", "catalog.csv", "--model", self.place.model, "--allow-private-hosts", "--json", *options)
        samples: list[Sample] = []
        before = self._vector_rows()
        outcome = run_catvec(
            *command,
            folder=self.place.folder,
            environment=self.database.environment,
            watch=lambda process: samples.extend(sample_memory(process, self.database.url)),
        )
        peak_mb = max(sample.peak_mb for sample in samples)
        return Night(outcome=outcome, peak_mb=peak_mb, vector_rows=self._vector_rows() - before)

    def change(self, *, version: int) -> None:
        """Other bytes behind 1 % of the URLs, not the same ones every time."""
        first = (version * self.share) % self.products
        draw_pictures(
            self.host.folder, ((first + step) % self.products for step in range(self.share)), version=version
        )

    def add_copies(self, *, version: int) -> None:
        """New products, five with the same bytes each; those of the time before leave."""
        contents = [(version * ASKED_PRODUCTS) + 10 * ASKED_PRODUCTS + step for step in range(self.share)]
        draw_pictures(self.host.folder, contents)
        rows = []
        for number in contents:
            for copy in range(TWINS):
                path = f"copies/{number}-{copy}.jpg"
                (self.host.folder / "copies").mkdir(exist_ok=True)
                (self.host.folder / path).hardlink_to(self.host.folder / picture_path(number))
                rows.append(product_row(number * TWINS + copy, self.url(path)))
        self.write_catalog(rows)

    def url(self, path: str) -> str:
        return f"{self.host.base_url}/{path}"

    def _vector_rows(self) -> Changes:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            found = connection.execute("SELECT to_regclass('catvec.models')").fetchone()
        if found == (None,):
            return Changes(inserted=0, updated=0, deleted=0)
        with Session(self.database.url) as session:
            connection = session.connection()
            return count_changes(connection, f"catvec_store.{choose_model(connection, None).table}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a night costs on a large catalog.")
    parser.add_argument("--products", type=int, default=ASKED_PRODUCTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--model", type=Path, help="a model folder for all nights; default: a tiny one, random weights"
    )
    parser.add_argument(
        "--large-model", type=Path, help="the model whose identity is checked; default: random ViT-B/32"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    if arguments.products < 1_000:
        parser.error("--products is to be at least 1000")
    with (
        working_folder(arguments.model, tiny=True) as place,
        tempfile.TemporaryDirectory(prefix="catvec-bench-pictures-") as pictures,
        embedded_server() as server,
    ):
        host = Host(folder=Path(pictures), program=nginx.find_nginx(), port=nginx.free_port())
        with empty_database(server) as database:
            stand = Stand(place=place, database=database, host=host, products=arguments.products)
            result = measure(stand, rounds=arguments.rounds)
        result["identity_check"] = measure_check(stand, server, arguments.large_model, rounds=arguments.rounds)
        result["server"] = describe_server(server.url())
    result["checks"] = check(result)
    print_result(result)
    print(write_result("nightly", result, arguments.results))
    sys.exit(1 if False in result["checks"].values() else 0)


def measure(stand: Stand, *, rounds: int) -> dict[str, Any]:
    say(f"drawing {stand.products:,} pictures")
    draw_pictures(stand.host.folder, range(stand.products))
    sizes = [(stand.host.folder / picture_path(number)).stat().st_size for number in range(stand.share)]
    stand.write_catalog()
    with stand.host.running():
        first = stand.run()
        say(f"loaded in {first.outcome.seconds:.1f} s")
        nights = repeat(stand, rounds)
        loops = compare_loops(
            [stand.url(picture_path(number)) for number in range(min(LOOP_REQUESTS, stand.products))], rounds=rounds
        )
    return {
        "model": stand.place.model,
        "products": stand.products,
        "pictures": {"pixels": [SIZE, SIZE], "median_bytes": statistics.median(sizes)},
        "http_server": stand.host.describe(),
        "rounds": rounds,
        "first_load": describe([first]),
        "nights": {name: describe(found) for name, found in nights.items()},
        "ratio_of_changed": describe_ratio(nights),
        "answers": count_answers(stand),
        "loops": loops,
    }


def repeat(stand: Stand, rounds: int) -> dict[str, list[Night]]:
    """Every kind of night in turn; the first time is not counted."""
    nights: dict[str, list[Night]] = {ALL: [], NONE: [], CHANGED: [], COPIES: []}
    for number in range(rounds + 1):
        stand.change(version=number + 1)
        order = [(ALL, "always"), (NONE, "never")]
        for name, recheck in ((CHANGED, "always"), *(order if number % 2 else reversed(order))):
            nights[name].append(stand.run("--recheck", recheck))
            say_night(number, name, nights[name][-1])
    for number in range(rounds + 1):
        stand.add_copies(version=number)
        nights[COPIES].append(stand.run("--recheck", "never"))
        say_night(number, COPIES, nights[COPIES][-1])
    return {name: found[1:] for name, found in nights.items()}


def count_answers(stand: Stand) -> dict[str, int]:
    """What the server answered in a night that is in no time, because an access log costs some."""
    stand.write_catalog()
    with tempfile.TemporaryDirectory(prefix="catvec-bench-log-") as scratch:
        log = Path(scratch) / "access.log"
        with stand.host.running(log):
            stand.run("--recheck", "always")
        return {str(status): count for status, count in sorted(stand.host.statuses(log).items())}


def measure_check(stand: Stand, server: EmbeddedServer, large: Path | None, *, rounds: int) -> dict[str, Any]:
    """A night with nothing to do on a few products, under the model of the nights and under a large one."""
    folder = stand.place.folder
    name = link_model(folder, large) if large else save_clip_b32(folder / "clip-b32-random").name
    size_mb = sum(file.stat().st_size for file in (folder / name).glob("*.safetensors")) / 1e6
    seconds: dict[str, list[float]] = {stand.place.model: [], name: []}
    with empty_database(server) as small_database, empty_database(server) as large_database, stand.host.running():
        stands = [
            Stand(
                place=Place(folder=folder, model=model), database=database, host=stand.host, products=CHECK_PRODUCTS
            )
            for model, database in ((stand.place.model, small_database), (name, large_database))
        ]
        stands[0].write_catalog()
        for one in stands:
            one.run()
        for number in range(rounds + 1):
            for one in stands if number % 2 else reversed(stands):
                night = one.run("--recheck", "never")
                if number:
                    seconds[one.place.model].append(night.outcome.seconds)
    of_small, of_large = seconds.values()
    return {
        "products": CHECK_PRODUCTS,
        "weights_mb": round(size_mb, 1),
        "wall_seconds": {model: spread(found) for model, found in seconds.items()},
        "difference_s": spread([ours - theirs for ours, theirs in zip(of_large, of_small, strict=True)]),
    }


# ---- the result


def describe(nights: list[Night]) -> dict[str, Any]:
    """Spreads of what is measured; counts of every night, which are to be the same."""
    keys = ("seen", "unchanged", "reused", "embedded", "failed", "checked", "changed", "removed", "forgotten")
    stages = nights[-1].summary["stage_seconds"]
    return {
        "wall_seconds": spread([night.outcome.seconds for night in nights]),
        "peak_mb": spread([night.peak_mb for night in nights]),
        "vector_rows": [asdict(night.vector_rows) for night in nights],
        "counts": [{key: night.summary[key] for key in keys} for night in nights],
        "stage_seconds": {
            name: round(statistics.median(night.summary["stage_seconds"].get(name, 0.0) for night in nights), 2)
            for name in stages
        },
    }


def describe_ratio(nights: dict[str, list[Night]]) -> dict[str, Any]:
    """A night with 1 % changed, without what encoding took, to the one of the same round with nothing changed."""
    pairs = list(zip(nights[CHANGED], nights[ALL], strict=True))
    return {
        "asked": CHANGED_RATIO,
        "encoding_is": "busy seconds of the stages model (importing torch, loading, testing) and encode",
        "encoding_seconds": spread([changed.encoding_s for changed, _ in pairs]),
        "without_encoding": spread(
            [(changed.outcome.seconds - changed.encoding_s) / same.outcome.seconds for changed, same in pairs]
        ),
        "whole": spread([changed.outcome.seconds / same.outcome.seconds for changed, same in pairs]),
    }


def check(result: dict[str, Any]) -> dict[str, bool | None]:
    """What was asked for; None is what fewer products cannot show."""
    nights, products = result["nights"], result["products"]
    share, answers = products // 100, result["answers"]
    at_full_size = products >= ASKED_PRODUCTS

    def all_have(name: str, **counts: int) -> bool:
        return all(found[key] == count for found in nights[name]["counts"] for key, count in counts.items())

    def wrote(name: str, inserted: int) -> bool:
        rows = {"inserted": inserted, "updated": 0, "deleted": 0}
        return all(found == rows for found in nights[name]["vector_rows"])

    def within(name: str, key: str, most: float) -> bool | None:
        return bool(nights[name][key]["median"] <= most) if at_full_size else None

    return {
        "every image is asked for again": all_have(ALL, checked=products, unchanged=products, changed=0),
        "and answered with 304": answers.get("304", 0) >= (1 - READ_IN_FULL) * products
        and sum(answers.values()) == products,
        f"which takes at most {ALL_ASKED_S:g} s": within(ALL, "wall_seconds", ALL_ASKED_S),
        f"and at most {MOST_MEMORY_MB} MB": within(ALL, "peak_mb", MOST_MEMORY_MB),
        "and writes no vector row": wrote(ALL, 0),
        "with --recheck never no image is asked for": all_have(NONE, checked=0, unchanged=products),
        f"which takes at most {NONE_ASKED_S:g} s": within(NONE, "wall_seconds", NONE_ASKED_S),
        "and writes no vector row either": wrote(NONE, 0),
        "of 1 % changed exactly those are encoded": all_have(CHANGED, checked=products, changed=share, embedded=share)
        and wrote(CHANGED, share),
        f"in at most {CHANGED_RATIO:g} times the time of nothing changed, and the encoding": (
            result["ratio_of_changed"]["without_encoding"]["median"] <= CHANGED_RATIO if at_full_size else None
        ),
        f"the same bytes at {TWINS} URLs are encoded once": all_have(
            COPIES, embedded=share, reused=(TWINS - 1) * share
        )
        and wrote(COPIES, share),
    }


def say_night(number: int, name: str, night: Night) -> None:
    say(f"round {number}: {name}: {night.outcome.seconds:.1f} s, peak {night.peak_mb:,.0f} MB")


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def print_result(result: dict[str, Any]) -> None:
    def line(name: str, found: dict[str, float], unit: str) -> None:
        print(f"{name:44} {found['median']:10,.2f} {unit}   ({found['min']:,.2f} to {found['max']:,.2f})")

    print(f"{result['products']:,} products, {result['http_server']}")
    for name, night in ({"first load": result["first_load"]} | result["nights"]).items():
        line(name, night["wall_seconds"], "s ")
        line("  memory", night["peak_mb"], "MB")
    ratio = result["ratio_of_changed"]
    line("1 % changed : nothing changed, no encoding", ratio["without_encoding"], "  ")
    line("  with encoding", ratio["whole"], "  ")
    line(f"checking {result['identity_check']['weights_mb']:,.0f} MB", result["identity_check"]["difference_s"], "s ")
    for name, found in result["loops"]["requests_per_s"].items():
        line(f"304s: {name}", found, "/s")
    for name, met in result["checks"].items():
        print({True: "yes", False: "NO ", None: "–  "}[met], name)


if __name__ == "__main__":
    main()
