"""What an estimate makes of what it measured: means with their ranges, and which stage makes the time."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.commands.estimate import _limit, size
from pipeline.errors import ConfigError
from pipeline.estimate import Range, StageEstimate, _slowest, mean_range, seconds_an_image
from pipeline.models.preprocess import clip_preprocess
from pipeline.models.shape import find_shape
from pipeline.settings import EstimateSettings, ModelSettings
from pipeline.stated import StatedRate, check_dims, find_stated


def test_the_range_holds_the_true_mean_in_nine_of_ten_samples() -> None:
    numbers = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        found = mean_range(list(numbers.lognormal(0, 1, 200)))
        assert found.low < found.expected < found.high
        hits += found.low <= np.exp(0.5) <= found.high

    assert 0.8 < hits / 200 < 0.97


def test_the_same_sample_gives_the_same_range() -> None:
    assert mean_range([1, 2, 3, 4]) == mean_range([1, 2, 3, 4])
    assert mean_range([0.25]) == Range(low=0.25, expected=0.25, high=0.25)
    assert mean_range([]) == Range(low=0, expected=0, high=0)


def test_the_rate_of_fetching_is_that_of_the_middle() -> None:
    """Two seconds until the first answer, 100 images a second, a straggler at the end."""
    ended = [2 + number / 100 for number in range(199)] + [60.0]

    pieces = seconds_an_image(ended)

    assert len(pieces) >= 20
    assert np.mean(pieces) == pytest.approx(0.01)


@pytest.mark.parametrize(("images", "seconds"), [(1, 3.0), (2, 1.5), (9, 1 / 3)])
def test_of_a_few_images_all_of_the_time_counts(images: int, seconds: float) -> None:
    ended = [3 * (number + 1) / images for number in range(images)]

    assert np.mean(seconds_an_image(ended)) == pytest.approx(seconds)


def stage(low: float, expected: float, high: float) -> StageEstimate:
    return StageEstimate(images_per_s=1, seconds=Range(low=low, expected=expected, high=high), source="")


def test_stages_overlap_so_the_slowest_makes_the_time() -> None:
    fetch, decode, encode = stage(1, 5, 30), stage(9, 10, 11), stage(8, 8, 8)

    assert _slowest(fetch, decode, encode, shares_cores=False) == ("decode", Range(low=9, expected=10, high=30))
    assert _slowest(fetch, decode, encode, shares_cores=True) == (
        "decode and encode",
        Range(low=17, expected=18, high=30),
    )


def test_the_usual_models_need_no_files() -> None:
    found = find_shape(ModelSettings(model="openai/clip-vit-large-patch14-336"))

    assert (found.preprocess, found.dims) == (clip_preprocess(336), 768)
    assert (found.preprocess.resize, found.preprocess.resize_size, found.preprocess.width) == (
        "shortest_edge",
        336,
        336,
    )
    with pytest.raises(ConfigError, match="unknown model 'vit-b-23'"):
        find_shape(ModelSettings(model="vit-b-23"))


def test_other_models_are_read_from_their_files(tiny_clip: Path) -> None:
    found = find_shape(ModelSettings(model=str(tiny_clip)))

    assert (found.preprocess, found.dims) == (clip_preprocess(64), 32)


def bench_file(tmp_path: Path, *, images_per_s: Any = 812.5, **conditions: Any) -> Path:
    known = {"model": "vit_l_14", "dims": 768, "device": "cuda:0", "precision": "bf16", "batch_size": 256}
    path = tmp_path / "bench.json"
    found = {"conditions": known | conditions, "forward": {"images_per_s": images_per_s}}
    path.write_text(f"measuring …\n{json.dumps(found)}\n")
    return path


def stated(path: Path, **model: Any) -> StatedRate | None:
    return find_stated(EstimateSettings(bench=path), ModelSettings(**{"model": "vit-l-14", **model}))


def test_a_bench_says_what_its_device_encodes(tmp_path: Path) -> None:
    found = stated(bench_file(tmp_path), model_name="mine", precision="bf16")

    assert found == StatedRate(images_per_s=812.5, source="from bench.json: cuda:0, bf16", device="cuda:0", dims=768)
    check_dims(found, 768)
    check_dims(found, None)
    with pytest.raises(ConfigError, match="--bench is of a model of 768 dimensions, the plan's has 512"):
        check_dims(found, 512)
    assert stated(bench_file(tmp_path, model="mine"), model_name="mine") == found


def test_a_bench_of_another_model_is_refused(tmp_path: Path) -> None:
    path = bench_file(tmp_path)
    with pytest.raises(ConfigError) as caught:
        stated(path, model="vit-b-32")
    assert caught.value.message == f"--bench {str(path)!r} was measured with model vit_l_14, expected vit_b_32"
    assert caught.value.hint == (
        "measure with the same --model and --precision there; or, if it is as fast, state it: --images-per-s 812.5"
    )
    with pytest.raises(ConfigError, match="was measured in bf16, --precision is 'fp32'"):
        stated(path, precision="fp32")


@pytest.mark.parametrize("rate", [None, 0, -1, "fast"])
def test_a_bench_without_a_rate_is_named(tmp_path: Path, rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"has no forward\.images_per_s and conditions, which"):
        stated(bench_file(tmp_path, images_per_s=rate))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"forward": {"images_per_s": 5}}', '{"forward": 5, "conditions": 5}']
)
def test_what_is_no_bench_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        stated(path)

    assert caught.value.message == (
        f"--bench {str(path)!r} has no forward.images_per_s and conditions, which catvec bench --json prints"
    )


def test_a_bench_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--bench '.*' cannot be read: No such file or directory"):
        stated(tmp_path / "none.json")


def test_of_stages_that_share_the_cores_the_larger_one_is_named() -> None:
    def words(decode_s: float, encode_s: float, limited_by: str = "decode and encode") -> str:
        decode, encode = (stage(seconds, seconds, seconds) for seconds in (decode_s, encode_s))
        return _limit(SimpleNamespace(limited_by=limited_by, decode=decode, encode=encode))  # type: ignore[arg-type]

    assert words(0.3, 25) == "encode limits, with decode on the same cores"
    assert words(25, 0.3) == "decode limits, with encode on the same cores"
    assert words(10, 25) == "decode and encode limit, on the same cores"
    assert words(0.3, 25, "fetch") == "fetch limits"


def test_contradictions_are_refused() -> None:
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"--images-per-s is {rate}, expected more than 0"):
            EstimateSettings(images_per_s=rate)
    with pytest.raises(ConfigError, match="--bench and --images-per-s both say what the device encodes"):
        EstimateSettings(images_per_s=1, bench=Path("x"))
    with pytest.raises(ConfigError, match="--sample is 0, expected at least 1"):
        EstimateSettings(sample=0)


def test_sizes_have_two_digits_that_say_something() -> None:
    shown = [size(value) for value in (0, 230, 999.6, 4_242_744, 94e6, 1.53e9, 2e15)]

    assert shown == ["0 B", "230 B", "1.0 kB", "4.2 MB", "94 MB", "1.5 GB", "2.0 PB"]
