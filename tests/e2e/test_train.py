"""catvec train: a folder that catvec run takes, whatever interrupts it, and words for what is wrong."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.engine.stop import Stop
from pipeline.errors import BreakerError, CatalogError, CatvecError, ConfigError, LockedError, ModelError
from pipeline.models.trained import read_trained_products
from pipeline.models.weights import load_model
from pipeline.progress import Progress
from pipeline.settings import FetchSettings
from tests.fixtures.catalogs import photo, write_catalog
from tests.fixtures.colours import train_on, write_tiles
from tests.fixtures.command import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.train.record import Trained
    from tests.fixtures.catalogs import ShopCatalog
    from tests.fixtures.command import Catvec, Starter
    from tests.fixtures.http import ImageServer

SHAPE = (
    *("--image-size", 16, "--patch-size", 8, "--width", 32, "--layers", 1, "--text-width", 32, "--text-layers", 1),
    *("--dims", 16),
)
SMALLEST = (*SHAPE, "--batch-size", 32, "--learning-rate", 0.005, "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def trained(tiles: Path) -> tuple[Path, Trained]:
    """A model that learned the colours, undisturbed."""
    output = tiles.parent / "undisturbed"
    return output, train_on(tiles, output, evaluate_every=10)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder: Path, other: Path) -> None:
    first, second = weights_of(folder), weights_of(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], atol=1e-4, err_msg=name)


def test_a_model_trained_from_scratch_is_run_and_searched(
    tmp_path: Path, tiles: Path, catvec: Catvec, database_url: str
) -> None:
    output = tmp_path / "shop"

    outcome = catvec(
        "train", tiles, "--output", output, *SMALLEST, "--epochs", 60, "--save-precision", "fp16", "--json"
    )
    ran = catvec("run", tiles, "--model", output, "--db", database_url, "--json")
    found = catvec("search", "green tile", "-k", 3, "--db", database_url, "--json")

    assert outcome.code == 0, outcome.err
    assert outcome.json()["metrics"]["text_to_image_recall@1"] == 1.0
    assert ran.json()["embedded"] == 64
    assert [hit["title"] for hit in found.json()["hits"]] == ["green tile"] * 3
    assert not (tmp_path / "shop.training").exists()
    assert {values.dtype.name for values in weights_of(output).values()} == {"float16"}


def test_what_the_environment_says_for_a_run_is_not_meant_for_a_training(
    tmp_path: Path, tiles: Path, catvec: Catvec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"BATCH_SIZE": 4, "DEVICE": "all", "REVISION": "abc", "TRAIN_BATCH_SIZE": 8}.items():
        monkeypatch.setenv(f"CATVEC_{name}", str(value))

    outcome = catvec("train", tiles, "--output", tmp_path / "out", *SHAPE, "--epochs", 1, "--json")

    assert outcome.code == 0, outcome.err
    assert outcome.json()["steps"] == 58 // 8


def test_the_card_says_what_it_learned_from_and_how_to_make_it_again(
    tiles: Path, trained: tuple[Path, Trained]
) -> None:
    output, found = trained

    card = (output / "README.md").read_text(encoding="utf-8")
    curves = read_rows(output / "curves.csv")
    learned = read_trained_products(output)
    products = [row["id"] for row in read_rows(tiles)]

    assert (found.is_new, found.steps, found.data["products learned from"]) == (True, 40, 58)
    assert f"| recall@1 | {found.metrics['recall@1']:.4f} |" in card
    assert "catvec train …" in card
    assert "library_name: transformers" in card.split("---")[1]
    assert "base_model" not in card
    titles = found.data["different titles"]
    assert f"the words of {titles} different titles, written in latin letters, from 58 images." in card
    assert re.search(r"- It sees images of (\d+) × \1 pixels", card)
    assert "## Licence\n\nNone is given" in card
    assert "| --learning-rate | 0.005 |" in card
    assert [int(row["step"]) for row in curves] == list(range(1, 41))
    assert float(curves[-1]["loss"]) < float(curves[0]["loss"]) / 2
    assert [row["step"] for row in curves if row["recall@1"]] == ["10", "20", "30", "40"]
    assert (output / "curves.png").stat().st_size > 10_000
    assert learned is not None
    # those that were kept apart were never learned from
    assert (int(learned.hold(products).sum()), len(products)) == (58, 64)


def test_a_killed_training_goes_on_to_the_same_model(
    tmp_path: Path, tiles: Path, catvec: Catvec, catvec_process: Starter
) -> None:
    options = (*SMALLEST, "--epochs", 90, "--evaluate-every", 10, "--seed", 3)
    output = tmp_path / "killed"
    process = catvec_process("train", tiles, "--output", output, *options)
    wait_until((tmp_path / "killed.training/checkpoints/checkpoint-20/trainer_state.json").is_file, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    spent = json.loads((tmp_path / "killed.training/spent.json").read_text())["seconds"]

    went_on = catvec("train", tiles, "--output", output, *options, "--json")
    undisturbed = catvec("train", tiles, "--output", tmp_path / "whole", *options, "--json")

    assert "going on after step" in went_on.err
    assert went_on.json()["metrics"] == undisturbed.json()["metrics"]
    assert_same_weights(output, tmp_path / "whole")
    assert went_on.json()["seconds"] > spent > 0


def test_a_training_that_is_asked_to_stop_keeps_its_last_step(
    tmp_path: Path, tiles: Path, trained: tuple[Path, Trained]
) -> None:
    output, stop = tmp_path / "stopped", Stop()
    said: list[str] = []

    def stop_at_first_evaluation(text: str) -> None:
        if text.startswith("step 10 "):
            stop.ask("SIGTERM")

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_on(tiles, output, evaluate_every=10, stop=stop, tell=stop_at_first_evaluation)
    stopped = time.monotonic()
    spent = json.loads((tmp_path / "stopped.training/spent.json").read_text())["seconds"]
    went_on = train_on(tiles, output, evaluate_every=10, tell=said.append)
    ended = time.monotonic()

    assert "going on after step 11" in said
    assert went_on.metrics == trained[1].metrics
    assert_same_weights(output, trained[0])
    assert spent == pytest.approx(stopped - began, abs=0.2)
    assert spent < went_on.seconds < spent + ended - stopped
    assert f"In {went_on.seconds:,.0f} s, interrupted commands included" in (output / "README.md").read_text()


def test_a_finished_training_is_not_done_again(tiles: Path, trained: tuple[Path, Trained]) -> None:
    output, found = trained
    before = (output / "model.safetensors").stat().st_mtime_ns

    said: list[str] = []
    again = train_on(tiles, output, evaluate_every=10)
    train_on(tiles, output, evaluate_every=10, license="mit", restart=True, tell=said.append)

    assert said == [
        f"the model in '{output}' is finished and stays: to train anew choose another --output",
        f"the model in '{output}' is finished, and its card was made without --license: nothing was changed. Write "
        f"'license: mit' into the head of {output / 'README.md'}, and what stands under Licence there",
    ]
    assert (again.is_new, again.metrics, again.steps) == (False, found.metrics, 40)
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"undisturbed' was trained with --epochs 40, now it is 41"):
        train_on(tiles, output, evaluate_every=10, epochs=41)


def test_other_settings_do_not_go_on_with_a_training(tmp_path: Path, tiles: Path) -> None:
    output, stop = tmp_path / "begun", Stop()
    stop.ask("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        train_on(tiles, output, stop=stop)

    with pytest.raises(ConfigError, match=r"was begun with --learning-rate 0.005, now it is 0.001") as refused:
        train_on(tiles, output, learning_rate=0.001)
    fewer = write_catalog(tiles.parent / "fewer.csv", read_rows(tiles)[:-1])
    with pytest.raises(ConfigError, match=r"was begun, and the catalog has changed since, or is read otherwise$"):
        train_on(fewer, output)

    assert "--restart forgets it" in str(refused.value.hint)
    assert train_on(tiles, output, learning_rate=0.001, epochs=2, restart=True).steps == 2


def test_a_cure_that_is_suggested_is_taken(tmp_path: Path, tiles: Path, tiny_clip: Path) -> None:
    """A training without a step is replaced by another."""
    rows, output = read_rows(tiles)[:24], tmp_path / "out"
    things = write_catalog(tiles.parent / "things.csv", [row | {"title": "The Thing"} for row in rows])
    named = write_catalog(tiles.parent / "named.csv", rows)
    tuned: dict[str, Any] = {"base": str(tiny_clip), "epochs": 1, "batch_size": 8}

    with pytest.raises(CatalogError, match=r"have the title 'The Thing'.*expected different ones"):
        train_on(things, output)
    with pytest.raises(ConfigError, match=r"^--tune is 'last:9', but a side of the model has 2 layers$"):
        train_on(named, output, tune="last:9", **tuned)
    assert not (tmp_path / "out.training" / "pixels").exists()  # before any image was read
    found = train_on(named, output, tune="last:2", **tuned)

    assert found.data["different titles"] == 8


@pytest.mark.parametrize(
    ("evaluate_every", "message", "kept"),
    [
        (10, "the loss is nan at step 3, where the training stopped", "there is no checkpoint yet; "),
        (1, "vectors are not finite at step 2, where the training stopped", "the checkpoint of step 1 stays in "),
    ],
)
def test_a_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, tiles: Path, evaluate_every: int, message: str, kept: str
) -> None:
    output = tmp_path / "broken"

    with pytest.raises(ModelError) as stopped:
        # the first step of the warm-up changes nothing yet
        train_on(tiles, output, learning_rate=1e30, warmup=0.1, evaluate_every=evaluate_every)

    assert stopped.value.message == message
    assert str(stopped.value.hint).startswith(kept)
    assert str(stopped.value.hint).endswith("begin anew with --restart and a lower --learning-rate than 1e+30")
    assert not output.exists()
    for checkpoint in (tmp_path / "broken.training" / "checkpoints").iterdir():
        assert all(np.isfinite(values).all() for values in weights_of(checkpoint).values())


def test_what_cannot_be_used_is_counted_and_named(tmp_path: Path, tiles: Path) -> None:
    rows = read_rows(tiles)
    rows[3] |= {"title": ""}
    rows[4] |= {"image": "gone.png"}
    rows[5] |= {"image": "../elsewhere.png"}
    rows[6] |= {"image": ""}
    rows[7] |= {"id": ""}
    catalog = write_catalog(tiles.parent / "faulty.csv", rows)
    said: list[str] = []

    found = train_on(catalog, tmp_path / "out", epochs=1, tell=said.append)

    named = read_rows(tmp_path / "out.left_out.csv")
    assert {row["product_id"]: row["code"] for row in named} == {
        "T003": "no_title", "T004": "file_not_found", "T005": "outside_root", "T006": "no_image", "": "missing_id"
    }  # fmt: skip
    assert next(row["detail"] for row in named if not row["product_id"]) == "row 8: column 'id' is empty"
    assert found.data["products without a title"] == 1
    # each once
    assert {what: count for what, count in found.data.items() if "left out" in what or "without images" in what} == {
        "images left out, file_not_found": 1, "catalog rows left out, outside_root": 1,
        "catalog rows left out, no_image": 1, "catalog rows left out, missing_id": 1,
    }  # fmt: skip
    # before the first step
    assert said[0].startswith(
        "left out: 1 file_not_found, 1 no_title, 1 outside_root, 1 no_image, 1 missing_id (T004, T003, T005 …); all"
    )


def test_it_is_refused_to_train_on_the_rest_when_most_images_fail(tmp_path: Path, tiles: Path) -> None:
    rows = read_rows(tiles)
    for row in rows[:50]:
        row["image"] = "gone.png"
    catalog = write_catalog(tiles.parent / "mostly_gone.csv", rows)

    with pytest.raises(BreakerError) as refused:
        train_on(catalog, tmp_path / "out")
    found = train_on(catalog, tmp_path / "out", max_failure_rate=0.79, epochs=1)

    assert refused.value.message == (
        "50 of 64 images cannot be used, more than the 50% of --max-failure-rate: file_not_found 50"
    )
    assert str(refused.value.hint).startswith("--image-root names the folder where their paths start; ")
    assert str(refused.value.hint).endswith("; --max-failure-rate 0.79 trains on the others")
    assert found.data["images left out, file_not_found"] == 50


def test_images_on_both_sides_of_a_column_are_told(tmp_path: Path, tiles: Path) -> None:
    rows = [row | {"part": "train"} for row in read_rows(tiles)]
    rows += [rows[number] | {"id": f"V{number}", "part": "validation"} for number in range(3)]
    said: list[str] = []

    found = train_on(
        write_catalog(tiles.parent / "astride.csv", rows),
        tmp_path / "out",
        epochs=1,
        split_column="part",
        tell=said.append,
    )

    assert (found.data["products that share an image"], found.data["images in both parts"]) == (6, 3)
    assert any(
        line.startswith("3 images stand on both sides of --split-column part and make Recall@K") for line in said
    )


def test_each_image_is_fetched_once_whatever_begins_anew(
    tmp_path: Path, shop_catalog: ShopCatalog, image_server: ImageServer
) -> None:
    catalog, stop = shop_catalog(12), Stop()
    begun: dict[str, Any] = {"fetch": FetchSettings(allow_private_hosts=True), "epochs": 2, "restart": True}
    pixels = tmp_path / "out.training" / "pixels"
    stop.ask("SIGTERM")

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_on(catalog, tmp_path / "out", stop=stop, **begun, validation_share=0.5)
        before = {path.name for path in pixels.iterdir()}
        # another title is no other image
        catalog.write_text(catalog.read_text(encoding="utf-8").replace("thing 7", "thing 77"), encoding="utf-8")
    assert set(image_server.requests.values()) == {1}
    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, tmp_path / "out", stop=stop, **begun, validation_share=0.0)
    after = {path.name for path in pixels.iterdir()}
    found = train_on(catalog, tmp_path / "out", **begun, validation_share=0.0, learning_rate=0.001)

    assert found.data["images learned from"] == 12
    # those of another division took up room for nobody
    assert (len(before), len(after), before & after) == (2, 2, set())


class Interrupting(Progress):
    """Breaks off when so many images were read, as a signal does, and looks what is written down by then."""

    def __init__(self, after: int, pixels: Path) -> None:
        super().__init__()
        self._after = after
        self._pixels = pixels
        self.kept = 0

    def step(self, done: int, total: int, *, unit: str, waits_for: str = "") -> None:
        super().step(done, total, unit=unit, waits_for=waits_for)
        if unit == "images" and done == self._after:
            self.kept = sum(int(np.load(path).sum()) for path in self._pixels.glob("*/read.npy"))
            raise KeyboardInterrupt


def test_images_that_were_read_stay_read_when_reading_is_broken_off(
    tmp_path: Path, shop_catalog: ShopCatalog, image_server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, output, stop = shop_catalog(12), tmp_path / "out", Stop()
    begun: dict[str, Any] = {"fetch": FetchSettings(allow_private_hosts=True), "validation_share": 0.0}
    first = Interrupting(5, tmp_path / "out.training" / "pixels")
    second = Interrupting(4, tmp_path / "out.training" / "pixels")

    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, output, progress=first, **begun)
    asked = image_server.requests.total()
    monkeypatch.setattr("pipeline.train.pixels.KEPT_AFTER_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, output, progress=second, **begun)
    asked_again = image_server.requests.total() - asked
    asked += asked_again
    stop.ask("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, output, stop=stop, **begun)

    # the second wrote down what it had as it went, so that it could have been killed
    assert (first.kept, second.kept) == (0, 5 + 4)
    assert asked_again <= 12 - 5
    assert image_server.requests.total() - asked == 12 - 5 - 4


def test_an_outage_while_images_are_read_is_made_up_for(
    tmp_path: Path, shop_catalog: ShopCatalog, image_server: ImageServer
) -> None:
    catalog, output, stop = shop_catalog(4), tmp_path / "out", Stop()
    image_server.serve("/p/0.jpg", b"", status=404)
    for number in range(1, 4):
        image_server.serve(f"/p/{number}.jpg", b"", status=503)
    begun: dict[str, Any] = {"fetch": FetchSettings(allow_private_hosts=True, retries=0), "validation_share": 0.0}
    with pytest.raises(CatalogError, match=r"^none of 4 images can be used: private_host 4$"):
        train_on(catalog, output, validation_share=0.0)
    with pytest.raises(CatalogError, match=r"^none of 4 images can be used: http_503 3, http_404 1$"):
        train_on(catalog, output, **begun)
    for number in range(4):
        image_server.serve(f"/p/{number}.jpg", photo(number))

    stop.ask("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, output, **begun, stop=stop)
    asked = dict(image_server.requests)
    found = train_on(catalog, output, **begun, restart=True, epochs=2)

    # what is not there for good is asked for again only when all begins anew
    assert asked == {"/p/0.jpg": 1} | {f"/p/{number}.jpg": 2 for number in range(1, 4)}
    assert dict(image_server.requests) == asked | {"/p/0.jpg": 2}
    assert not (tmp_path / "out.left_out.csv").exists()
    assert found.data["images learned from"] == 4


def test_a_training_goes_on_with_the_images_that_it_began_with(
    tmp_path: Path, shop_catalog: ShopCatalog, image_server: ImageServer
) -> None:
    catalog, output, stop = shop_catalog(4), tmp_path / "out", Stop()
    begun: dict[str, Any] = {"fetch": FetchSettings(allow_private_hosts=True, retries=0), "validation_share": 0.0}
    image_server.serve("/p/2.jpg", b"", status=503)
    stop.ask("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        train_on(catalog, output, **begun, stop=stop)
    image_server.serve("/p/2.jpg", photo(2))

    found = train_on(catalog, output, **begun)

    assert (found.data["images learned from"], found.data["images left out, http_503"]) == (3, 1)


def test_titles_that_are_all_the_same_teach_nothing(tmp_path: Path) -> None:
    catalog = write_tiles(tmp_path / "one", products=8)
    catalog.write_text(
        "id,title,image\n" + "".join(f"{number},The Thing,{number}.png\n" for number in range(8)), encoding="utf-8"
    )

    with pytest.raises(CatalogError, match=r"^all \d images have the title 'The Thing', expected different ones$"):
        train_on(catalog, tmp_path / "out")


def test_titles_that_differ_beyond_what_the_model_reads_teach_nothing(
    tmp_path: Path, tiles: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = read_rows(tiles)
    for number, row in enumerate(rows):
        row["title"] = "so very soft " * 40 + (f"{number}" if number else "")
    same = write_catalog(tiles.parent / "long.csv", rows)
    rows[1]["title"] = "soft"
    other = write_catalog(tiles.parent / "longer.csv", rows)
    said: list[str] = []

    with pytest.raises(
        CatalogError,
        match=r"^the titles of all 58 images begin with the same 77 tokens, which are all that the model reads, ",
    ):
        train_on(same, tmp_path / "out")
    train_on(other, tmp_path / "other", epochs=1, tell=said.append)

    assert said[0].endswith(
        "titles are longer than the 77 tokens that the model reads: nothing is learned from the rest"
    )
    assert said[1] == "too few products are kept apart to judge on: there is no Recall@1, and no early end"
    assert capfd.readouterr().err == ""


def test_products_without_titles_teach_nothing(tmp_path: Path) -> None:
    catalog = write_tiles(tmp_path / "none", products=3)
    catalog.write_text("id,image\n1,1.png\n2,2.png\n", encoding="utf-8")

    with pytest.raises(CatalogError, match=r"^there is nothing to learn from: 2 products have images and no title$"):
        train_on(catalog, tmp_path / "out")


def test_images_that_cannot_be_read_teach_nothing(tmp_path: Path) -> None:
    catalog = write_tiles(tmp_path / "gone", products=4)
    for path in catalog.parent.glob("*.png"):
        path.write_bytes(b"nothing")

    with pytest.raises(CatalogError, match=r"^none of 4 images can be used: not_an_image 4$"):
        train_on(catalog, tmp_path / "out", validation_share=0.0)


def test_fewer_products_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    said: list[str] = []
    catalog = write_tiles(tmp_path / "few", products=8)

    found = train_on(catalog, tmp_path / "out", epochs=3, validation_share=0.0, tell=said.append)

    assert (found.steps, found.metrics) == (3, {})
    assert said[:2] == [
        "there are 8 images to learn from, fewer than a batch of 32",
        "too few products are kept apart to judge on: there is no Recall@1, and no early end",
    ]
    assert "Nothing was kept apart to judge it on." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_training_ends_when_it_gets_no_better_also_when_it_is_interrupted(tmp_path: Path, tiles: Path) -> None:
    # what is learned at such a rate changes no rank
    hopeless: dict[str, Any] = {"learning_rate": 1e-9, "epochs": 60, "evaluate_every": 1, "patience": 4}
    stop = Stop()

    def stop_at_third(text: str) -> None:
        if text.startswith("step 3 "):
            stop.ask("SIGTERM")

    undisturbed = train_on(tiles, tmp_path / "out", **hopeless)
    with pytest.raises(KeyboardInterrupt):
        train_on(tiles, tmp_path / "stopped", stop=stop, tell=stop_at_third, **hopeless)
    went_on = train_on(tiles, tmp_path / "stopped", **hopeless)

    assert went_on.steps == undisturbed.steps < 8


@pytest.mark.parametrize("tune", ["all", "last:1", "lora"])
def test_a_model_is_tuned_and_stays_an_ordinary_one(tmp_path: Path, tiny_clip: Path, tune: str) -> None:
    catalog = write_tiles(tmp_path / "tiles", products=24)
    output = tmp_path / "tuned"

    train_on(catalog, output, base=str(tiny_clip), tune=tune, epochs=2, batch_size=8, learning_rate=1e-3)

    before, after = weights_of(tiny_clip), weights_of(output)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert load_model(output).config.model_type == "clip"
    assert ("vision_model.encoder.layers.1.mlp.fc1.weight" in changed) is True
    assert ("vision_model.encoder.layers.0.mlp.fc1.weight" in changed) is (tune != "last:1")
    assert ("text_model.embeddings.token_embedding.weight" in changed) is (tune == "all")
    assert ("vision_model.pre_layrnorm.weight" in changed) is (tune == "all")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (output / name).read_bytes() == (tiny_clip / name).read_bytes()


def test_siglip_is_tuned_with_its_own_loss(tmp_path: Path, tiny_siglip: Path) -> None:
    catalog = write_tiles(tmp_path / "tiles", products=16)

    found = train_on(catalog, tmp_path / "out", base=str(tiny_siglip), epochs=2, batch_size=8)

    assert found.steps == 2 * (found.data["images learned from"] // 8)
    assert load_model(tmp_path / "out").config.model_type == "siglip"


def test_what_the_first_model_learned_from_is_not_forgotten(tmp_path: Path, trained: tuple[Path, Trained]) -> None:
    rows = write_tiles(tmp_path / "more", products=16)
    rows.write_text(rows.read_text(encoding="utf-8").replace("T0", "U0"), encoding="utf-8")

    train_on(rows, tmp_path / "out", base=str(trained[0]), epochs=1, batch_size=8, validation_share=0.0)

    before, after = read_trained_products(trained[0]), read_trained_products(tmp_path / "out")
    assert before is not None
    assert after is not None
    assert len(after.digests) == len(before.digests) + 16


def test_what_the_first_model_learned_from_is_not_judged_on(tmp_path: Path, trained: tuple[Path, Trained]) -> None:
    rows = write_tiles(tmp_path / "more", products=100)
    said: list[str] = []

    # the first 64 are those of the first model, which learned 58; the seed divides them otherwise
    found = train_on(
        rows, tmp_path / "out", base=str(trained[0]), epochs=1, validation_share=0.9, seed=5, tell=said.append
    )

    left_out = found.data["products left out of those kept apart, learned from before"]
    left = found.data["products kept apart"]
    assert left == found.data["images judged on"]
    assert (left + left_out + found.data["products learned from"], left > 20, left_out > 40) == (100, True, True)
    assert (
        f"{trained[0]} has learned {left_out} of the {left + left_out} products that are kept apart: they are left "
        f"out, and it is judged on the other {left}"
    ) in said
    assert "says little" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_judgement_by_what_was_learned_is_told(tmp_path: Path, tiles: Path, trained: tuple[Path, Trained]) -> None:
    said: list[str] = []

    found = train_on(
        tiles, tmp_path / "out", base=str(trained[0]), epochs=1, validation_share=0.5, seed=5, tell=said.append
    )

    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    known, apart = found.data["products judged on that were learned from before"], found.data["products kept apart"]
    warned = [text for text in said if text.startswith(f"{trained[0]} has learned {known} of the {apart} products")]
    assert 20 < known < apart
    assert len(warned) == 1
    assert warned[0].endswith(
        f"and {apart - known} others would be too few to judge on: it is judged on all, and Recall@K says little "
        "about products that it has not seen"
    )
    assert f"had learned {known} of the {apart} products that were kept apart: the numbers say little" in card


def test_a_model_without_a_text_side_is_refused(tmp_path: Path, tiles: Path, tiny_image_only: Path) -> None:
    with pytest.raises(
        ModelError, match=r"tiny-image-only' has no text side, expected one: training compares images"
    ):
        train_on(tiles, tmp_path / "out", base=str(tiny_image_only))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"which holds 'notes.txt', expected a folder that does not exist yet$"):
        train_on(tiles, tmp_path)
    with pytest.raises(ConfigError, match=r"notes.txt', which is a file, expected a folder"):
        train_on(tiles, tmp_path / "notes.txt")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "training.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"training.json' is not what catvec train writes$"):
        train_on(tiles, tmp_path / "odd")


def test_two_trainings_do_not_write_one_folder(tmp_path: Path, tiles: Path) -> None:
    def begin_another(_: str) -> None:
        train_on(tiles, tmp_path / "out")

    with pytest.raises(LockedError, match=r"^another training is at work in '.*out.training'$"):
        train_on(tiles, tmp_path / "out", tell=begin_another)


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(
        CatvecError, match=r"^the training cannot be kept in '.*': (not a directory|Not a directory)$"
    ):
        train_on(tiles, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "vit-b-32", "--size", "tiny"), "--size is for a new model, but --from names one to go on with"),
        (("--tune", "lora"), "--tune is 'lora', but without --from there is no model to keep a part of"),
        (("--tune", "some"), "--tune is 'some', expected all, lora or last:N, such as last:2"),
        (("--size", "huge"), "--size is 'huge', expected tiny, small, base"),
        (
            ("--image-size", 60, "--patch-size", 16),
            "--image-size is 60 and --patch-size 16, expected a multiple of it",
        ),
        (("--width", 100), "--width is 100, expected a multiple of 32"),
        (("--validation-share", 0.95), "--validation-share is 0.95, expected 0 to 0.9"),
        (("--validation-share", "nan"), "--validation-share is nan, expected at least 0"),
        (("--weight-decay", "nan"), "--weight-decay is nan, expected at least 0"),
        (("--weight-decay", "inf"), "--weight-decay is inf, expected a number"),
        (("--learning-rate", 0), "--learning-rate is 0.0, expected more than 0"),
        (("--batch-size", 1), "--batch-size is 1, expected at least 2"),
        (("--device", "cuda:1"), "--device is 'cuda:1', expected auto, cuda, mps or cpu"),
        (
            ("--split-column", "fold"),
            "--split-column is 'fold', which no product has, expected 'train' for some",
        ),
    ],
)
def test_wrong_options_are_told_before_any_work(
    tmp_path: Path, tiles: Path, catvec: Catvec, options: tuple[object, ...], message: str
) -> None:
    outcome = catvec("train", tiles, "--output", tmp_path / "out", *options)

    assert outcome.complaint()[:2] == (2, message)
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_fine_tuned_model_names_its_base() -> None:
    from pipeline.train.card import Reads, count_scripts, write_card
    from pipeline.train.record import Record

    scripts = count_scripts(["Red dress", "платье 38", "rotes Kleid"])
    assert scripts == {"titles with latin letters": 2, "titles with cyrillic letters": 1}
    record = Record(
        steps=1,
        best_step=1,
        seconds=1,
        data={"different titles": 3, "images learned from": 5} | scripts,
        metrics={},
        base="openai/clip-vit-base-patch32",
        command="catvec train …",
        decisive={"--tune": "lora"},
        versions={},
    )
    card = write_card(record, reads=Reads(tokens=77, pixels=None), has_chart=False)
    assert "\nbase_model: openai/clip-vit-base-patch32\n" in card
    assert "written in latin, cyrillic letters, from 5 images, beyond what openai/clip-vit-base-patch32 knew" in card
    assert "Of a text it reads 77 tokens" in card
    assert "pixels" not in card
    assert "None is given" in card
    assert "That of openai/clip-vit-base-patch32, which it was made from, holds as well." in card
    licensed = write_card(replace(record, license="mit"), reads=Reads(tokens=77, pixels=None), has_chart=False)
    assert licensed.startswith("---\nlicense: mit\n")
    assert "## Licence\n\nmit. That of openai" in licensed


def test_the_command_line_of_the_card_holds_no_password() -> None:
    from pipeline.train.card import shown_command

    said = shown_command(["train", "postgresql://shop:secret@db/shop", "--query", "SELECT 1", "--output", "out"])

    assert said == "catvec train 'postgresql://…' --query 'SELECT 1' --output out"


def test_the_record_is_json(trained: tuple[Path, Trained]) -> None:
    record = json.loads((trained[0] / "training.json").read_text(encoding="utf-8"))

    assert record["decisive"]["--epochs"] == 40
    assert record["versions"]["catvec"]
