"""Names of models, settings of image processors, devices: everything that needs no model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.random_model import draw_photos
from pipeline.errors import ConfigError, ModelError
from pipeline.images.decode import decode_pixels
from pipeline.models import device, registry
from pipeline.models.preprocess import fingerprint, read_preprocess
from pipeline.models.source import find_model
from pipeline.settings import DecodeSettings, ModelSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("vit-b-32", "vit_b_32"),
        ("openai/clip-vit-large-patch14-336", "vit_l_14_336"),
        ("google/siglip-base-patch16-224", "siglip_base_patch16_224"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "clip_vit_b_32_laion2b_s34b_b79k"),
        ("acme/2024.model", "m_2024_model"),
        ("acme/" + "long-" * 20, "long_long_long_long_long_long_long_long"),
        ("./models/Unsere Möbel!", "unsere_m_bel"),
        ("/srv/models/shoes/", "shoes"),
    ],
)
def test_a_name_for_the_database_is_made_from_the_model(model: str, name: str) -> None:
    assert registry.model_name(ModelSettings(model=model)) == name


@pytest.mark.parametrize("name", ["Shoes", "1st", "a-b", "", "x" * 41, "shoes;drop", "schön"])
def test_a_name_given_for_the_database_is_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--model-name is {name!r}, expected a lower-case letter"):
        registry.model_name(ModelSettings(model_name=name))


def test_a_given_name_is_kept() -> None:
    assert registry.model_name(ModelSettings(model_name="a_" + "9" * 38)) == "a_" + "9" * 38


def test_an_unknown_model_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="unknown model 'vit-b32', expected vit-b-32, vit-b-16") as caught:
        registry.model_name(ModelSettings(model="vit-b32"))
    assert caught.value.hint == "did you mean vit-b-32?"


def test_a_misspelled_folder_names_its_nearest_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fashion", "fashions"):
        (tmp_path / name).mkdir()
    (tmp_path / "fashion" / "config.json").write_text("{}")  # the other one is no model
    monkeypatch.chdir(tmp_path)
    for model, hint in (("fashon", "did you mean fashion?"), ("./fashon", "did you mean the folder 'fashion'?")):
        with pytest.raises(ConfigError) as caught:
            find_model(ModelSettings(model=model))
        assert caught.value.hint == hint
    with pytest.raises(ConfigError, match="there is no model folder '/nowhere/model'") as caught:
        find_model(ModelSettings(model="/nowhere/model"))
    assert caught.value.hint == "a Hub id has the form owner/name, for example openai/clip-vit-base-patch32"


def test_a_folder_that_exists_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.hub_id("acme/shoes") == "acme/shoes"
    (tmp_path / "acme" / "shoes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert registry.hub_id("acme/shoes") is None


def test_names_and_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.models.registry, pipeline.models.source, pipeline.models.device;"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


CLIP = {"image_processor_type": "CLIPImageProcessor"}
SIGLIP = {"image_processor_type": "SiglipImageProcessor"}
OPENAI_2021 = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def _write(folder: Path, config: Any, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        CLIP,
        CLIP | {"size": 40, "crop_size": 32, "resample": 2},
        CLIP | {"size": {"shortest_edge": 40, "longest_edge": None}, "crop_size": {"height": 30, "width": 36}},
        CLIP | {"size": {"shortest_edge": 30}, "crop_size": 33},
        CLIP | {"size": {"height": 32, "width": 48}, "do_center_crop": False},
        CLIP | {"size": [32, 48], "do_center_crop": False},
        CLIP | {"size": 32, "crop_size": 32, "do_rescale": False, "do_normalize": False},
        CLIP | {"size": 32, "crop_size": 32, "image_mean": 0.5, "image_std": 0.25, "rescale_factor": 0.01},
        OPENAI_2021,
        SIGLIP,
        SIGLIP | {"size": {"height": 48, "width": 32}, "resample": 0, "do_convert_rgb": None},
        {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": 56, "width": 56}, "crop_size": 56},
        {"image_processor_type": "BlipImageProcessor", "size": 48},
        {"image_processor_type": "ViTImageProcessorFast", "size": 32},
    ],
)
def test_pixels_are_those_of_transformers_own_processor(tmp_path: Path, config: dict[str, Any]) -> None:
    import transformers

    family = str(config.get("image_processor_type", "CLIPImageProcessor")).removesuffix("Fast")
    processor = getattr(transformers, f"{family}Pil")(
        **{key: value for key, value in config.items() if not key.endswith("_type")}
    )
    spec = read_preprocess(_write(tmp_path, config), model_type="clip")
    photo = draw_photos(count=1, size=96)[0]
    for image in (photo[:60], photo[:, :41]):
        picture = Image.fromarray(image)
        wanted = processor(picture, return_tensors="np")["pixel_values"][0]
        file = io.BytesIO()
        picture.save(file, "PNG")
        pixels = decode_pixels(file.getvalue(), spec, DecodeSettings())
        ours = (pixels.astype(np.float32) * spec.rescale - spec.mean) / spec.std
        np.testing.assert_allclose(ours.transpose(2, 0, 1), wanted, atol=1e-5)


def test_settings_inside_a_processor_config_come_first(tmp_path: Path) -> None:
    _write(tmp_path, CLIP | {"size": 99})
    _write(tmp_path, {"processor_class": "CLIPProcessor"}, "processor_config.json")
    assert read_preprocess(tmp_path, model_type="clip").resize_size == 99
    _write(tmp_path, {"image_processor": CLIP | {"size": 77}}, "processor_config.json")
    assert read_preprocess(tmp_path, model_type="clip").resize_size == 77


def test_a_file_without_a_type_takes_the_models(tmp_path: Path) -> None:
    _write(tmp_path, {"do_resize": True})
    assert read_preprocess(tmp_path, model_type="clip").resize == "shortest_edge"
    assert read_preprocess(tmp_path, model_type="siglip").resize == "squash"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_processor_type": "Siglip2ImageProcessor"},
            "image processor 'Siglip2ImageProcessor' is not supported",
        ),
        ({}, "image processor none for a model of type 'x_clip' is not supported"),
        (CLIP | {"do_pad": True}, "sets do_pad = True, which is not supported"),
        (CLIP | {"do_resize": False}, "sets do_resize = False, expected images of one size"),
        (CLIP | {"do_center_crop": False}, "shortest edge to 224 without a crop_size"),
        (CLIP | {"size": {"longest_edge": 224}}, "sets size = {'longest_edge': 224}, expected shortest_edge or"),
        (SIGLIP | {"do_center_crop": True, "crop_size": 200}, "squashes to .* and crops to"),
        (CLIP | {"size": 0}, "sets size = 0, expected pixels from 1 to 4096"),
        (CLIP | {"size": "224"}, "sets size = '224', expected pixels"),
        (CLIP | {"resample": "bicubic"}, "sets resample = 'bicubic', expected one of Pillow's filters"),
        (CLIP | {"image_mean": [0.5, 0.5]}, "sets image_mean = .*, expected three numbers"),
        (CLIP | {"image_std": [0.5, 0.5, 0]}, "sets image_std = .*, expected three positive numbers"),
        (CLIP | {"rescale_factor": "x"}, "sets rescale_factor = 'x', expected a number"),
        (["x"], "has no image processor settings, expected preprocessor_config.json"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_preprocess(_write(tmp_path, config), model_type="x_clip")


def test_a_folder_without_processor_settings_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no image processor settings, expected preprocessor_config"):
        read_preprocess(tmp_path, model_type="clip")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json is not readable JSON"):
        read_preprocess(tmp_path, model_type="clip")


def test_the_fingerprint_follows_every_setting(tmp_path: Path) -> None:
    spec = read_preprocess(_write(tmp_path, CLIP), model_type="clip")
    changes: list[dict[str, Any]] = [{"resize": "squash"}, {"resize_size": 225}, {"height": 223}, {"resample": 2}]
    changes += [{"width": 223}, {"rescale": 1.0}, {"mean": (0.0, 0.0, 0.0)}, {"std": (1.0, 1.0, 1.0)}]
    prints = {fingerprint(spec), *(fingerprint(replace(spec, **change)) for change in changes)}
    assert len(prints) == 1 + len(changes)
    # stored in databases: must never change for the same settings
    assert fingerprint(spec) == "f204f202422212eb"


def test_words_that_are_no_device_or_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match="--device is 'gpu', expected auto, all, cuda, cuda:N, mps or cpu"):
        ModelSettings(device="gpu")
    with pytest.raises(ConfigError, match="--precision is 'half', expected auto, fp32, bf16, fp16"):
        ModelSettings(precision="half")


def test_a_device_that_is_not_here_names_the_cure() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match="--device is 'cuda:1', but torch finds no CUDA device") as caught:
        device.choose_device("cuda:1")
    assert "--device auto" in str(caught.value.hint) or "nvidia-smi" in str(caught.value.hint)
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="--device is 'mps', but torch finds no Apple GPU"):
            device.choose_device("mps")


def test_a_placement_takes_what_is_asked_for() -> None:
    [placement] = device.choose_placements(ModelSettings(device="cpu", precision="fp32"))
    assert (placement.device, placement.precision, placement.batch_size) == ("cpu", "fp32", 32)
    placements = device.choose_placements(ModelSettings(device="cpu,cpu", batch_size=7))
    assert [(placement.device, placement.batch_size) for placement in placements] == [("cpu", 7), ("cpu", 7)]
    assert len(device.choose_placements(ModelSettings(device="all"))) >= 1
