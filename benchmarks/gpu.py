"""What one machine with a GPU does, end to end: four models, two sizes of photos, disk and server, Pillow and nvJPEG.

    benchmarks/gpu.sh CATALOG.CSV [--images 100000] [--models vit-b-32,vit-l-14] [--sizes small,large]

The catalog's photos stand under as many names as are asked for, each with a comment of its own in its bytes, so that
nothing is reused: as they are (`small`), and enlarged to 1500 × 2000 (`large`, a tenth as many). For each model,
`catvec bench` measures every limit alone; then `catvec run --to` takes all of the photos into a bundle, from a folder
and from a server on loopback. Weights are random: speed does not depend on them. Memory of the host and of the device
is that of the run from the folder, at 5 % and at 50 % of its images. Writes results/gpu.json; ends with 1 when what
was asked for is not reached. Also runs without a GPU, to be tried with few images.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.backfill import count_in_bundle, say, stretch_catalog
from benchmarks.catalog import Photo, describe_sizes, write_catalog
from benchmarks.command import run_catvec
from benchmarks.conditions import RESULTS, write_result
from benchmarks.memory import mark_memory
from benchmarks.nginx import free_port
from benchmarks.photo_server import serve
from pipeline.models.untrained import SIZES, write_untrained_model

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = 100_000
LARGE_SHARE = 10
"""one in so many of the images is measured large as well: they take ten times the room"""
LARGE_SIZE = (1500, 2000)
LARGE_PHOTOS = 200
ASKED_S = {"vit-b-32": 25.0, "vit-l-14": 60.0}
"""seconds for 100,000 photos of 400 × 533, into a bundle"""
DECODERS = ("pillow", "nvjpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """Pictures of one size in a folder, and a catalog for each way to them."""

    folder: Path
    pictures: Path
    images: int
    port: int
    sizes: dict[str, object]

    @property
    def catalogs(self) -> dict[str, str]:
        return {"disk": "paths.csv", "server": "catalog.csv"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a machine with a GPU.")
    parser.add_argument("catalog", type=Path, help="a CSV file with paths to photos in its column image")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--models", default=",".join(SIZES), help="which, with commas")
    parser.add_argument("--sizes", default="small,large", help="which, with commas")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    with tempfile.TemporaryDirectory(prefix="catvec-gpu-") as scratch:
        models = {name: write_untrained_model(Path(scratch) / name, name) for name in names}
        found: dict[str, Any] = {}
        for size in arguments.sizes.split(","):
            images = arguments.images if size == "small" else max(1, arguments.images // LARGE_SHARE)
            shop = open_shop(arguments.catalog, Path(scratch) / size, images=images, is_large=size == "large")
            found[size] = {"images": images, "photos": shop.sizes, "models": dict(measure(shop, models))}
            shutil.rmtree(shop.folder)
        result = {"device": describe_device(), "sizes": found}
    result["checks"] = check(found)
    print_result(found)
    for name, is_met in result["checks"].items():
        print({True: "yes", False: "NO ", None: "–  "}[is_met], name)
    print(write_result("gpu", result, arguments.results))
    sys.exit(1 if False in result["checks"].values() else 0)


def open_shop(catalog: Path, folder: Path, *, images: int, is_large: bool) -> Shop:
    pictures, port = folder / "pictures", free_port()
    pictures.mkdir(parents=True)
    photos = write_catalog(catalog, folder / "photos.csv", "http://unused")
    if is_large:
        photos = [enlarge(photo, folder) for photo in photos[:LARGE_PHOTOS]]
    stretch_catalog(photos, pictures, folder, images=images, port=port)
    text = (folder / "catalog.csv").read_text(encoding="utf-8")
    (folder / "paths.csv").write_text(text.replace(f"http://127.0.0.1:{port}/", "pictures/"), encoding="utf-8")
    return Shop(folder=folder, pictures=pictures, images=images, port=port, sizes=describe_sizes(photos))


def enlarge(photo: Photo, folder: Path) -> Photo:
    body = io.BytesIO()
    with Image.open(photo.path) as image:
        image.convert("RGB").resize(LARGE_SIZE, Image.Resampling.BICUBIC).save(body, "JPEG", quality=90)
    path = folder / f"large-{photo.path.name}"
    path.write_bytes(body.getvalue())
    return Photo(product_id=photo.product_id, path=path, url=photo.url)


def measure(shop: Shop, models: dict[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    with serve(shop.pictures, port=shop.port, uvloop=True):
        for name, model in models.items():
            yield name, {"bench": bench(shop, model), "runs": list(run_all(shop, name, model))}


def bench(shop: Shop, model: Path) -> dict[str, Any]:
    """Every limit alone."""
    options = ("--model", str(model), "--allow-private-hosts", "--images", str(min(500, shop.images)), "--json")
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o711)
        environment = {"CATVEC_HOME": f"{home}/catvec"}
        return run_catvec("bench", "paths.csv", *options, folder=shop.folder, environment=environment).json()


def run_all(shop: Shop, name: str, model: Path) -> Iterator[dict[str, Any]]:
    """All images into a bundle, on each way with each decoder that is here."""
    for source, catalog in shop.catalogs.items():
        for decoder in DECODERS if has_nvjpeg() else DECODERS[:1]:
            bundle, marks = shop.folder / "bundle", []
            options = ("--to", "bundle", "--decoder", decoder, "--allow-private-hosts", "--json")
            at = (max(1, shop.images // 20), max(2, shop.images // 2))

            def watch(process: subprocess.Popen[bytes], at: tuple[int, int] = at, bundle: Path = bundle) -> None:
                marks.extend(mark_memory(process, at, lambda: count_in_bundle(bundle)))  # noqa: B023 - called at once

            outcome = run_catvec(
                *("run", catalog, "--model", str(model), *options), folder=shop.folder, environment={}, watch=watch
            )
            summary = outcome.json()
            say(f"{name}, {source}, {decoder}: {outcome.seconds:.1f} s, {summary['images_per_s']:,.0f} images/s")
            shutil.rmtree(bundle)
            yield {
                "source": source,
                "decoder": decoder,
                "seconds": round(outcome.seconds, 2),
                "memory": [{"images": mark.images, "anonymous_mb": mark.anonymous_mb} for mark in marks],
                "summary": summary,
            }


def has_nvjpeg() -> bool:
    import torch

    from pipeline.images.nvjpeg import open_nvjpeg

    return torch.cuda.is_available() and open_nvjpeg("cuda") is not None


def describe_device() -> dict[str, Any]:
    if shutil.which("nvidia-smi") is None:
        return {"gpus": []}
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    return {"gpus": told.stdout.strip().splitlines(), "time": time.strftime("%Y-%m-%d")}


def check(found: dict[str, Any]) -> dict[str, bool | None]:
    """What was asked for; None is what this run cannot show."""
    checks: dict[str, bool | None] = {}
    small = found.get("small", {"images": 0, "models": {}})
    for name, seconds in ASKED_S.items():
        runs = small["models"].get(name, {}).get("runs", [])
        is_whole = small["images"] >= IMAGES and bool(runs)
        best = min((run["seconds"] for run in runs), default=0.0)
        checks[f"{IMAGES:,} photos with {name} in {seconds:g} s"] = best <= seconds if is_whole else None
    for size, of_size in found.items():
        for name, measured in of_size["models"].items():
            done = all(run["summary"]["embedded"] == of_size["images"] for run in measured["runs"])
            checks[f"{name}, {size}: every image is encoded"] = done
    return checks


def print_result(found: dict[str, Any]) -> None:
    print(f"{'size':6} {'model':14} {'source':8} {'decoder':8} {'images/s':>10} {'device busy':>12}")
    for size, of_size in found.items():
        for name, measured in of_size["models"].items():
            for run in measured["runs"]:
                loads = {load["stage"]: load["busy"] for load in run["summary"]["stage_loads"]}
                rate, busy = run["summary"]["images_per_s"], loads.get("encode", 0.0)
                print(f"{size:6} {name:14} {run['source']:8} {run['decoder']:8} {rate:10,.0f} {busy:12.0%}")
            rates = {stage: measured["bench"][stage]["images_per_s"] for stage in ("fetch", "decode", "forward")}
            print(f"{size:6} {name:14} alone: {json.dumps(rates)}")


if __name__ == "__main__":
    main()
