"""Compiled models give the vectors of eager ones, and whatever goes wrong with compiling stops nothing.

One test has code generated for real (inductor, a C++ compiler); the others put something in the place of that last
step, while torch.compile itself is at work in all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.random_model import draw_photos
from pipeline.errors import DeviceLostError, ModelError
from pipeline.models import compilation
from pipeline.models.compilation import EXPECTED_GAIN, EXPECTED_S, compile_images, pays_back
from pipeline.models.device import Placement
from pipeline.models.encoder import Encoder, load_encoder
from pipeline.on_demand import WORTH_TRYING, ModelOnDemand
from pipeline.progress import Progress
from pipeline.settings import CatalogSettings, ModelSettings, RunSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH = 4
PIXELS = draw_photos(count=10, size=64)


class Backend:
    """What torch.compile hands its graph to, in place of inductor: runs it as it is, after `do`.

    `compilations` counts the graphs, `batches` the images of each call.
    """

    def __init__(self) -> None:
        self.compilations = 0
        self.batches: list[int] = []
        self.do: Callable[[int], object] = lambda _: None

    def __call__(self, graph: Any, _examples: Any) -> Callable[..., Any]:
        self.compilations += 1

        def run(*arguments: Any) -> Any:
            [features] = outputs = graph(*arguments)
            self.batches.append(len(features))
            self.do(len(features))
            return outputs

        return run


@pytest.fixture(autouse=True)
def forgets() -> Iterator[None]:
    """torch keeps what it compiled for a piece of code, up to a limit, until it is told not to."""
    import torch

    yield
    torch.compiler.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    made = Backend()
    monkeypatch.setattr(compilation, "BACKEND", made)
    return made


def load(folder: Path, *, precision: str = "fp32") -> Encoder:
    return load_encoder(ModelSettings(model=str(folder), device="cpu", precision=precision, batch_size=BATCH))


def on_demand(folder: Path, **settings: Any) -> ModelOnDemand:
    model = ModelSettings(model=str(folder), device="cpu", precision="fp32", batch_size=BATCH, **settings)
    return ModelOnDemand(RunSettings(catalog=CatalogSettings(uri="c.csv"), model=model), None, Progress())


def told_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says, without what torch notes for itself."""
    return [record.getMessage() for record in caplog.records if record.name == "pipeline.models.compilation"]


@pytest.fixture
def compiled(tiny_clip: Path, backend: Backend) -> Encoder:
    encoder = load(tiny_clip)
    compile_images([encoder], is_optional=False)
    backend.batches.clear()
    return encoder


@pytest.mark.slow
def test_generated_code_gives_the_vectors_of_the_eager_model(
    tiny_clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    model = on_demand(tiny_clip, compile="on")
    with caplog.at_level(logging.INFO, logger="pipeline.models.compilation"):
        [encoder] = model.encoders()
    found: list[Any] = []

    def encode() -> None:
        with torch.compiler.set_stance("fail_on_recompile"):
            found.append(encoder.encode_images(PIXELS[:BATCH]))

    thread = threading.Thread(target=encode)  # as the engine does
    thread.start()
    thread.join()

    assert encoder.compiled is not None
    assert (found[0] * load(tiny_clip).encode_images(PIXELS[:BATCH])).sum(axis=1).min() > 0.9999
    assert "cpu: a batch of 4 takes " in caplog.text
    assert caplog.text.rstrip().endswith("eagerly: keeping it")


@pytest.mark.parametrize(
    ("model", "precision"), [("tiny_clip", "fp32"), ("tiny_siglip", "bf16"), ("tiny_image_only", "fp32")]
)
def test_the_whole_image_side_is_compiled_for_full_batches_alone(
    request: pytest.FixtureRequest, backend: Backend, model: str, precision: str
) -> None:
    encoder = load(request.getfixturevalue(model), precision=precision)
    pixels = draw_photos(count=10, size=encoder.spec.preprocess.height)
    eager = [encoder.encode_images(pixels[:images]) for images in (4, 3, 1)]

    compile_images([encoder], is_optional=False)
    backend.batches.clear()

    for images, vectors in zip((4, 3, 1), eager, strict=True):
        np.testing.assert_array_equal(encoder.encode_images(pixels[:images]), vectors)
    assert (backend.compilations, backend.batches) == (1, [4])


def test_threads_share_what_was_compiled(compiled: Encoder, backend: Backend) -> None:
    threads = [threading.Thread(target=compiled.encode_images, args=(PIXELS[:BATCH],)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (backend.compilations, backend.batches) == (1, [4, 4, 4])


def test_every_replica_is_compiled(tiny_clip: Path, backend: Backend) -> None:
    first = load(tiny_clip)
    other = first.replicate(Placement(device="cpu", precision="fp32", batch_size=3))

    compile_images([first, other], is_optional=False)
    backend.batches.clear()
    vectors = first.encode_images(PIXELS[:4])

    np.testing.assert_allclose(other.encode_images(PIXELS[:3]), vectors[:3], atol=1e-5)
    assert backend.batches == [4, 3]


def test_a_compiled_batch_that_does_not_fit_into_memory_is_halved(compiled: Encoder, backend: Backend) -> None:
    import torch

    whole = compiled.encode_images(PIXELS[:BATCH])

    def refuse(_images: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    backend.do = refuse
    np.testing.assert_allclose(compiled.encode_images(PIXELS[:BATCH]), whole, atol=1e-5)
    assert (compiled.batch_size, compiled.was_halved) == (2, True)
    np.testing.assert_allclose(compiled.encode_images(PIXELS[:2]), whole[:2], atol=1e-5)


def test_what_compiled_half_precision_cannot_hold_is_encoded_in_fp32(
    narrow: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the image of the self-test is one of those that this model cannot hold, and it would not be used at all
    monkeypatch.setattr(compilation, "check_batch", lambda _, encode, rows: encode(PIXELS[:rows]))
    dim = draw_photos(count=3, size=64) // 64 + 115
    pixels = np.concatenate([dim[:2], np.full((1, 64, 64, 3), 255, np.uint8), dim[2:]])
    exact = load(narrow).encode_images(pixels)
    half = load(narrow, precision="fp16")

    compile_images([half], is_optional=False)
    backend.batches.clear()
    vectors = half.encode_images(pixels)

    assert (vectors * exact).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(vectors[2], exact[2], atol=1e-5)
    assert backend.batches == [4]


def test_a_device_that_fails_in_compiled_code_is_lost(compiled: Encoder, backend: Backend) -> None:
    def fail(_images: int) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    backend.do = fail
    with pytest.raises(DeviceLostError, match="device cpu has failed: CUDA error: unspecified launch failure"):
        compiled.encode_images(PIXELS[:BATCH])


def break_compiler(_graph: Any, _examples: Any) -> Any:
    raise FileNotFoundError("no g++ here")


def test_a_compiler_that_fails_is_told_once_and_changes_nothing(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(tiny_clip)
    both = [first, first.replicate(Placement(device="cpu", precision="fp32", batch_size=BATCH))]
    eager = first.encode_images(PIXELS)
    monkeypatch.setattr(compilation, "BACKEND", break_compiler)

    compile_images(both, is_optional=True)

    [told] = told_by(caplog)
    assert told.startswith("going on without compiling, which failed for cpu: ")
    assert "no g++ here" in told
    assert [encoder.compiled for encoder in both] == [None, None]
    np.testing.assert_array_equal(first.encode_images(PIXELS), eager)


def test_a_compiler_that_fails_is_an_error_when_it_is_asked_for(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", break_compiler)
    with pytest.raises(ModelError, match=r"the model cannot be compiled for cpu: .*no g\+\+ here") as caught:
        on_demand(tiny_clip, compile="on").encoders()
    assert caught.value.hint == (
        "torch.compile needs a C++ compiler, and triton on CUDA; --compile auto goes on without what fails"
    )


def test_compiled_code_that_gives_other_vectors_is_not_used(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(graph: Any, _examples: Any) -> Any:
        return lambda *arguments: [-features for features in graph(*arguments)]

    monkeypatch.setattr(compilation, "BACKEND", wrong)
    encoder = load(tiny_clip)
    compile_images([encoder], is_optional=True)

    assert encoder.compiled is None
    assert "encoded in a batch of 4 on cpu in fp32, the test image is -1.0000 similar to itself" in caplog.text


@pytest.mark.parametrize(("slow", "kept"), [("eager", True), ("compiled", False)])
def test_what_is_optional_is_kept_where_it_is_quicker(
    tiny_clip: Path, backend: Backend, caplog: pytest.LogCaptureFixture, slow: str, kept: bool
) -> None:
    import torch

    encoder, eager = load(tiny_clip), load(tiny_clip).eager

    def slow_down(pixel_values: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            time.sleep(0.05)
        return eager(pixel_values)

    if slow == "eager":
        encoder.eager = slow_down
    else:
        backend.do = lambda _: time.sleep(0.05)
    with caplog.at_level(logging.INFO, logger="pipeline.models.compilation"):
        compile_images([encoder], is_optional=True)

    assert (encoder.compiled is not None) is kept
    [told] = told_by(caplog)
    assert told.endswith("keeping it" if kept else "dropping it")


def test_compiling_has_to_pay_back_within_the_run(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tiny_clip)
    assert not pays_back([encoder], 10**9)  # on a CPU never

    monkeypatch.setattr(compilation, "_least_seconds", lambda *_: [0.1])  # no CUDA device has to be here
    encoder.device = "cuda"
    enough = round(EXPECTED_S / EXPECTED_GAIN / 0.1 * BATCH)
    assert [pays_back([encoder], images) for images in (enough - BATCH, enough + BATCH)] == [False, True]
    # two devices do half of it each, and are compiled one after the other
    assert [pays_back([encoder] * 2, images) for images in (3 * enough, 5 * enough)] == [False, True]


@pytest.mark.parametrize("wanted", ["on", "auto", "off"])
def test_a_run_compiles_as_it_is_told(tiny_clip: Path, backend: Backend, wanted: str) -> None:
    for images in (WORTH_TRYING - 1, WORTH_TRYING):
        backend.batches.clear()
        model = on_demand(tiny_clip, compile=wanted)

        model.prepare(images)
        [encoder] = model.encoders()

        assert (encoder.compiled is not None, bool(backend.batches)) == (wanted == "on", wanted == "on")
        counters = model._progress.snapshot()
        assert ("compile" in counters.stage_seconds, counters.phase) == (wanted == "on", "starting")


def test_the_batch_size_is_found_before_compiling_for_it(
    tiny_clip: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.models.batch.SIZES", {"cpu": (6,)})
    model = ModelSettings(model=str(tiny_clip), device="cpu", precision="fp32", compile="on")
    made = ModelOnDemand(RunSettings(catalog=CatalogSettings(uri="c.csv"), model=model), None, Progress())

    made.prepare(WORTH_TRYING)

    assert made.batch_size() == 6
    assert set(backend.batches) == {6}
