"""catvec against the plain script (plain_script.py): from URLs to vectors in Postgres, and the limits beside it.

    python -m benchmarks.end_to_end CATALOG.CSV [--photos 512] [--rounds 5] [--model FOLDER]

The contenders are processes of their own. They take turns, and who begins changes with every round; each round has
the same photos from the same HTTP server, an empty database for each of them, and a measurement of the limits:
forward pass, decoding and fetching alone. The catalog is a CSV with paths to photos in its column `image`.

images/s leaves out what is spent before the first image (imports, loading the model). The whole processes are
compared too; there catvec also makes its tables, checks the model and builds an HNSW index, which the script lacks.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from benchmarks.catalog import Photo, describe_sizes, write_catalog
from benchmarks.command import Place, run_catvec, run_process, working_folder
from benchmarks.conditions import RESULTS, spread, usable_cores, write_result
from benchmarks.database import describe_server, embedded_server, empty_database
from benchmarks.photo_server import serve
from pipeline.images.decode import decode_pixels
from pipeline.images.fetch import Fetcher
from pipeline.models.encoder import Encoder, load_encoder
from pipeline.records import Fetched, ImageRef
from pipeline.settings import DecodeSettings, FetchSettings, ModelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.database import Database
    from pipeline.store.embedded import EmbeddedServer

PLAIN_SCRIPT = Path(__file__).with_name("plain_script.py")
PLAIN_BATCH = 32
FORWARD_BATCHES = 3
FORWARD_S = 1.0
"""a GPU does three batches in milliseconds, and a CPU one of them in two seconds"""
ASKED_RATIO = 3.0

Rates = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """What every round has in common. `encoders` are fp32 and what catvec chooses here, with their batch sizes."""

    place: Place
    server: EmbeddedServer
    photos: list[Photo]
    encoders: list[tuple[Encoder, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure catvec against a plain script.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column `image`")
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a CLIP of 512 dimensions; default: random ViT-B/32")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    with (
        working_folder(arguments.model) as place,
        embedded_server() as server,
        serve(arguments.catalog.parent) as base_url,
    ):
        catalog = place.folder / "catalog.csv"
        photos = write_catalog(arguments.catalog, catalog, base_url, photos=arguments.photos)
        stand = Stand(place=place, server=server, photos=photos, encoders=load_encoders(place))
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(run_round(stand, plain_first=number % 2 == 0))
            say_round(number + 1, rounds[-1])
        result = {"model": place.model, "photos": describe_sizes(photos), "server": describe_server(server.url())}
    result |= summarize(rounds)
    print_table(result)
    print(write_result("end_to_end", result, arguments.results))


def load_encoders(place: Place) -> list[tuple[Encoder, int]]:
    folder = str(place.folder / place.model)
    plain = load_encoder(ModelSettings(model=folder, precision="fp32"))
    chosen = load_encoder(ModelSettings(model=folder))
    encoders = [(plain, PLAIN_BATCH)]
    if (chosen.precision, chosen.batch_size) != (plain.precision, PLAIN_BATCH):
        encoders.append((chosen, chosen.batch_size))
    for encoder, batch in encoders:
        shape = encoder.spec.preprocess
        encoder.encode_images(np.zeros((batch, shape.height, shape.width, 3), dtype=np.uint8))  # warm-up
    return encoders


def run_round(stand: Stand, *, plain_first: bool) -> dict[str, Any]:
    contenders = [("plain", run_plain), ("catvec", run_contender)]
    results: dict[str, Any] = {"limits": measure_limits(stand)}
    for name, run in contenders if plain_first else reversed(contenders):
        with empty_database(stand.server) as database:
            results[name] = run(stand, database)
    return results


# ---- the contenders


def run_plain(stand: Stand, database: Database) -> dict[str, Any]:
    command = [sys.executable, str(PLAIN_SCRIPT), "catalog.csv", stand.place.model]
    environment = {"DATABASE_URL": database.url}
    outcome = run_process(command, folder=stand.place.folder, environment=environment)
    told = outcome.json()
    check_vectors(database.url, "items", len(stand.photos))
    return {
        "images_per_s": told["images"] / told["work_seconds"],
        "whole_seconds": outcome.seconds,
        "start_seconds": outcome.seconds - told["work_seconds"],
    }


def run_contender(stand: Stand, database: Database) -> dict[str, Any]:
    arguments = ("run", "catalog.csv", "--model", stand.place.model, "--allow-private-hosts", "--json")
    outcome = run_catvec(*arguments, folder=stand.place.folder, environment=database.environment)
    summary = outcome.json()
    check_vectors(database.url, "catvec.image_embeddings", len(stand.photos))
    stages = summary["stage_seconds"]
    return {
        "images_per_s": summary["images_per_s"],
        "whole_seconds": outcome.seconds,
        "start_seconds": outcome.seconds - sum(stages.get(name, 0.0) for name in ("sync", "images", "index")),
        "stage_seconds": stages,
        "how": {key: summary[key] for key in ("device", "precision", "batch_size", "embedded", "reused", "failed")},
    }


def check_vectors(url: str, table: str, expected: int) -> None:
    with psycopg.connect(url) as connection:
        [count] = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
    if count != expected:
        raise SystemExit(f"{table} has {count} vectors, expected {expected}")


# ---- the limits


def measure_limits(stand: Stand) -> Rates:
    """images/s of each stage alone, with all cores to itself where it can use them."""
    photos, spec = stand.photos, stand.encoders[0][0].spec
    started = time.perf_counter()
    bodies = asyncio.run(fetch_all(photos))
    rates = {"fetch": len(photos) / (time.perf_counter() - started)}

    def decode(body: bytes) -> NDArray[np.uint8]:
        return decode_pixels(body, spec.preprocess, DecodeSettings())

    cores = usable_cores()
    for threads in sorted({1, cores}):
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            pixels = list(pool.map(decode, bodies))
            rates[f"decode, {threads} core{'s' * (threads > 1)}"] = len(bodies) / (time.perf_counter() - started)
    for encoder, batch in stand.encoders:
        rates[forward_name(encoder.precision, batch)] = measure_forward(encoder, batch, pixels)
    return rates


async def fetch_all(photos: list[Photo]) -> list[bytes]:
    images = [
        ImageRef(image_id=number, product_id=photo.product_id, url=photo.url) for number, photo in enumerate(photos)
    ]
    async with Fetcher(FetchSettings(allow_private_hosts=True), None) as fetcher:
        answers = await asyncio.gather(*(fetcher.fetch(image) for image in images))
        return [answer.data for answer in answers if isinstance(answer, Fetched)]


def measure_forward(encoder: Encoder, batch: int, pixels: list[NDArray[np.uint8]]) -> float:
    batches = [
        np.stack([pixels[(start + row) % len(pixels)] for row in range(batch)])
        for start in range(0, FORWARD_BATCHES * batch, batch)
    ]
    encoded, started = 0, time.perf_counter()
    while True:
        for rows in batches:
            encoder.encode_images(rows)  # returns when the device is done
            encoded += batch
        seconds = time.perf_counter() - started
        if seconds >= FORWARD_S:
            return encoded / seconds


def forward_name(precision: str, batch: int) -> str:
    return f"forward {precision}, batch {batch}"


# ---- the result


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def over_rounds(contender: str, key: str) -> dict[str, float]:
        return spread([entry[contender][key] for entry in rounds])

    keys = ("images_per_s", "whole_seconds", "start_seconds")
    plain = {key: over_rounds("plain", key) for key in keys}
    catvec = {key: over_rounds("catvec", key) for key in keys}
    how = rounds[-1]["catvec"]["how"]
    limits = {name: over_rounds("limits", name) for name in rounds[0]["limits"]}
    plain_forward = limits[forward_name("fp32", PLAIN_BATCH)]["median"]
    forward = limits[forward_name(how["precision"], how["batch_size"])]["median"]
    stages = rounds[-1]["catvec"]["stage_seconds"]
    return {
        "rounds": len(rounds),
        "plain": {"precision": "fp32", "batch_size": PLAIN_BATCH} | plain,
        "catvec": how | catvec | {"stage_seconds": median_stages(rounds, stages)},
        "limits": limits,
        "limit_of_all_stages_sharing_the_cores": share_cores(how["device"], forward, limits),
        "ratio": {
            "images_per_s": spread([of(entry, "catvec") / of(entry, "plain") for entry in rounds]),
            "whole_process": spread(
                [entry["plain"]["whole_seconds"] / entry["catvec"]["whole_seconds"] for entry in rounds]
            ),
            "asked": ASKED_RATIO,
            "forward_alone": round(forward / plain_forward, 2),
        },
        "share_of_forward_limit": {
            "plain": round(plain["images_per_s"]["median"] / plain_forward, 3),
            "catvec": round(catvec["images_per_s"]["median"] / forward, 3),
        },
    }


def of(entry: dict[str, Any], contender: str) -> float:
    return float(entry[contender]["images_per_s"])


def median_stages(rounds: list[dict[str, Any]], stages: dict[str, float]) -> dict[str, float]:
    """Busy seconds of each stage, summed over its threads."""
    return {
        name: round(statistics.median(entry["catvec"]["stage_seconds"].get(name, 0.0) for entry in rounds), 2)
        for name in stages
    }


def share_cores(device: str, forward: float, limits: dict[str, dict[str, float]]) -> float | None:
    """images/s if every stage kept all cores busy and nothing else ran: on a CPU they take turns.

    None on another device, where the slowest stage alone decides.
    """
    if device != "cpu":
        return None
    decode = max(rate["median"] for name, rate in limits.items() if name.startswith("decode"))
    return round(1 / (1 / forward + 1 / decode + 1 / limits["fetch"]["median"]), 1)


def say_round(number: int, entry: dict[str, Any]) -> None:
    told = {name: f"{of(entry, name):.1f} images/s" for name in ("plain", "catvec")}
    print(f"round {number}: plain {told['plain']}, catvec {told['catvec']}", file=sys.stderr, flush=True)


def print_table(result: dict[str, Any]) -> None:
    def line(name: str, found: dict[str, float], unit: str) -> None:
        print(f"{name:36} {found['median']:9.1f} {unit}   ({found['min']:.1f} to {found['max']:.1f})")

    for contender in ("plain", "catvec"):
        told = result[contender]
        name = f"{contender}, {told['precision']}, batch {told['batch_size']}"
        line(name, told["images_per_s"], "images/s")
        line("  whole process", told["whole_seconds"], "s       ")
        line("  of it before and after the images", told["start_seconds"], "s       ")
    for name, found in result["limits"].items():
        line(f"limit: {name}", found, "images/s")
    shared = result["limit_of_all_stages_sharing_the_cores"]
    if shared is not None:
        print(f"{'limit: these stages on shared cores':36} {shared:9.1f} images/s")
    ratio, share = result["ratio"], result["share_of_forward_limit"]
    for name, key in (("ratio of images/s", "images_per_s"), ("ratio of whole processes", "whole_process")):
        line(name, ratio[key], "        ")
    print(f"asked: {ratio['asked']:g}; the forward passes alone are {ratio['forward_alone']:g} apart")
    print(f"share of the forward limit: plain {share['plain']:.0%}, catvec {share['catvec']:.0%}")


if __name__ == "__main__":
    main()
