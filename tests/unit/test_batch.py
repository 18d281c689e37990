"""The batch size of a device: found by trying, remembered, and never above what its memory holds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.random_model import draw_photos
from pipeline.models.batch import SIZES, BatchSizes, find_batch_size
from pipeline.models.encoder import Encoder, load_encoder
from pipeline.on_demand import WORTH_TRYING, ModelOnDemand
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def encoder(tiny_clip: Path) -> Encoder:
    return load_encoder(ModelSettings(model=str(tiny_clip), device="cpu", precision="fp32"))


def before_each_batch(encoder: Encoder, do: Callable[[int], None]) -> None:
    """Call `do` with the number of images of each forward pass."""

    def hook(_module: Any, arguments: Any) -> None:
        do(len(arguments[0]))

    encoder._model.vision_model.embeddings.patch_embedding.register_forward_pre_hook(hook)


def test_what_costs_the_same_for_each_batch_makes_large_ones_worth_it(encoder: Encoder) -> None:
    before_each_batch(encoder, lambda _: time.sleep(0.1))

    assert find_batch_size(encoder) == encoder.batch_size == max(SIZES["cpu"])


def test_what_costs_more_for_each_image_in_a_larger_batch_stays_small(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "cpu", (2, 4))
    before_each_batch(encoder, lambda images: time.sleep(0.1 * images**1.3))

    assert find_batch_size(encoder) == encoder.batch_size == 2


def test_a_slow_device_is_not_tried_for_long(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.batch.LONGEST_BATCH_S", 0.05)
    seen = []
    before_each_batch(encoder, lambda images: (seen.append(images), time.sleep(0.1)))

    assert find_batch_size(encoder) == 8
    assert seen == [8]


def test_what_does_not_fit_is_not_taken(encoder: Encoder) -> None:
    import torch

    def refuse(images: int) -> None:
        time.sleep(0.05)
        if images > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    before_each_batch(encoder, refuse)

    assert find_batch_size(encoder) == encoder.batch_size == 16


def test_a_batch_size_is_remembered_for_the_model_device_and_precision(encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "new" / "batch_sizes.json"
    assert BatchSizes(file).recall(encoder) is None
    encoder.batch_size = 24
    BatchSizes(file).remember(encoder)

    assert BatchSizes(file).recall(encoder) == 24
    encoder.precision = "bf16"
    assert BatchSizes(file).recall(encoder) is None
    encoder.spec = replace(encoder.spec, revision="sha256:other")
    BatchSizes(file).remember(encoder)
    assert file.read_text().count("torch") == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1', "\xff"])
def test_a_damaged_memory_is_no_error(encoder: Encoder, tmp_path: Path, content: str) -> None:
    file = tmp_path / "batch_sizes.json"
    file.write_text(content, encoding="latin-1")

    assert BatchSizes(file).recall(encoder) is None
    BatchSizes(file).remember(encoder)
    assert BatchSizes(file).recall(encoder) == encoder.batch_size


def test_a_place_that_cannot_be_written_is_no_error(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    BatchSizes(tmp_path / "file" / "batch_sizes.json").remember(encoder)
    BatchSizes(None).remember(encoder)
    assert BatchSizes(None).recall(encoder) is None


def run_settings(model: Path, home: Path, **settings: Any) -> RunSettings:
    return RunSettings(
        catalog=CatalogSettings(uri="catalog.csv"),
        model=ModelSettings(model=str(model), device="cpu", precision="fp32", **settings),
        home=home,
    )


def test_only_long_runs_try_and_all_take_what_was_found(tiny_clip: Path, tmp_path: Path) -> None:
    settings, file = run_settings(tiny_clip, tmp_path), tmp_path / "batch_sizes.json"
    ModelOnDemand(settings, None, Progress()).prepare(WORTH_TRYING - 1)
    assert not file.exists()

    long = ModelOnDemand(settings, None, Progress())
    long.prepare(WORTH_TRYING)
    assert BatchSizes(file).recall(long.load()) == long.batch_size()

    fixed = ModelOnDemand(run_settings(tiny_clip, tmp_path, batch_size=3), None, Progress())
    fixed.prepare(WORTH_TRYING)
    fixed.remember()
    assert fixed.batch_size() == 3
    assert ModelOnDemand(settings, None, Progress()).batch_size() == long.batch_size()


def test_a_memory_that_did_not_suffice_is_remembered(tiny_clip: Path, tmp_path: Path) -> None:
    import torch

    settings = run_settings(tiny_clip, tmp_path)
    short = ModelOnDemand(settings, None, Progress())

    def refuse(images: int) -> None:
        if images > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")

    before_each_batch(short.load(), refuse)
    short.load().encode_images(draw_photos(count=10, size=64))
    short.remember()

    assert ModelOnDemand(settings, None, Progress()).batch_size() == 5
