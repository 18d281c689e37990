"""Loading and encoding with small real models: what comes out, what identifies it, and what is refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.random_model import clip_tokenizer, draw_photos
from pipeline.errors import ConfigError, DeviceLostError, ModelError
from pipeline.models.device import Placement, choose_placements, count_beside
from pipeline.models.encoder import Encoder, Normalizer, load_encoder
from pipeline.models.self_test import self_test
from pipeline.models.source import find_model
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable


def load(folder: Path, **settings: Any) -> Encoder:
    return load_encoder(ModelSettings(model=str(folder), device="cpu", **settings))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def copied(tiny_clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "copied"))


def test_images_become_unit_vectors_in_any_batch(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, precision="fp32", batch_size=8)
    pixels = draw_photos(count=8, size=64)
    vectors = encoder.encode_images(pixels)
    assert (vectors.shape, vectors.dtype) == ((8, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    one_by_one = np.concatenate([encoder.encode_images(pixels[row : row + 1]) for row in range(8)])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)
    assert encoder.encode_images(pixels[:0]).shape == (0, 32)
    mirrored = pixels[:, :, ::-1]
    pixels.flags.writeable = False
    np.testing.assert_array_equal(encoder.encode_images(mirrored), encoder.encode_images(mirrored.copy()))


def test_different_images_are_far_apart(tiny_clip: Path) -> None:
    vectors = load(tiny_clip).encode_images(draw_photos(count=24, size=64))
    similarities = (vectors @ vectors.T)[~np.eye(24, dtype=bool)]
    assert similarities.max() < 0.99
    assert similarities.mean() < 0.3


def test_pixels_of_another_shape_are_a_mistake_of_the_caller(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    with pytest.raises(ValueError, match=r"pixels are uint8 \(1, 32, 32, 3\), expected uint8"):
        encoder.encode_images(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="pixels are float32"):
        encoder.encode_images(np.zeros((1, 64, 64, 3), dtype=np.float32))  # type: ignore[arg-type]


def test_a_row_without_a_usable_vector_is_nan_and_the_others_are_not(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, precision="fp32")
    pixels = draw_photos(count=4, size=64)
    good = encoder.encode_images(pixels)

    def spoil(_module: Any, _arguments: Any, features: Any) -> Any:
        features = features.clone()
        features[1], features[2] = float("inf"), 0.0
        return features

    encoder._model.visual_projection.register_forward_hook(spoil)
    vectors = encoder.encode_images(pixels)
    assert np.isnan(vectors[1:3]).all()
    np.testing.assert_array_equal(vectors[[0, 3]], good[[0, 3]])


def test_copying_is_told_apart_from_the_forward_pass(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tiny_clip, precision="fp32")
    normalise = Normalizer.__call__
    monkeypatch.setattr(Normalizer, "__call__", lambda *arguments: time.sleep(0.05) or normalise(*arguments))
    encoder._model.visual_projection.register_forward_pre_hook(lambda *_: time.sleep(0.2))

    for _ in range(2):
        encoder.encode_images(draw_photos(count=2, size=64))

    assert 0.1 <= encoder.take_copy_s() < 0.3
    assert encoder.take_copy_s() == 0


def test_a_batch_that_does_not_fit_into_memory_is_halved(tiny_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    encoder = load(tiny_clip, precision="fp32", batch_size=10)
    pixels = draw_photos(count=10, size=64)
    whole = encoder.encode_images(pixels)
    limit = 3

    def refuse(_module: Any, arguments: Any) -> None:
        if len(arguments[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    encoder._model.vision_model.embeddings.patch_embedding.register_forward_pre_hook(refuse)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(encoder.encode_images(pixels), whole, atol=1e-5)
    assert encoder.batch_size == 3
    assert "out of memory on cpu with 10 images: going on with 5" in caplog.text
    limit = 0
    with pytest.raises(ModelError, match="one image does not fit into the memory of cpu: CUDA out of memory"):
        encoder.encode_images(pixels)


def test_what_half_precision_cannot_hold_is_encoded_in_fp32(narrow: Path, caplog: pytest.LogCaptureFixture) -> None:
    dim = draw_photos(count=3, size=64) // 64 + 115
    pixels = np.concatenate([dim[:2], np.full((1, 64, 64, 3), 255, np.uint8), dim[2:]])
    exact = load(narrow, precision="fp32").encode_images(pixels)
    half = load(narrow, precision="fp16")

    assert np.isnan(half.encode_once(pixels)).all(axis=1).tolist() == [False, False, True, False]
    vectors = half.encode_images(pixels)

    assert (vectors * exact).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(vectors[2], exact[2], atol=1e-5)
    assert "1 images of a batch have no finite vector in fp16 and are encoded in fp32" in caplog.text


def test_a_device_that_fails_is_told_from_a_mistake(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)

    def fail(_module: Any, _arguments: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")

    encoder._model.visual_projection.register_forward_pre_hook(fail)
    with pytest.raises(DeviceLostError, match="device cpu has failed: CUDA error: unspecified launch failure"):
        encoder.encode_images(draw_photos(count=2, size=64))


def test_a_replica_gives_the_same_vectors(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, precision="fp32")
    [placement] = choose_placements(ModelSettings(device="cpu", precision="fp32"))
    pixels = draw_photos(count=3, size=64)

    replica = encoder.replicate(placement)

    np.testing.assert_array_equal(replica.encode_images(pixels), encoder.encode_images(pixels))
    assert replica._model is not encoder._model


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)

    def fail(_module: Any, _arguments: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    encoder._model.visual_projection.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        encoder.encode_images(draw_photos(count=2, size=64))


def test_the_spec_says_what_was_loaded(tiny_clip: Path, tiny_siglip: Path, tiny_image_only: Path) -> None:
    clip, siglip, image_only = (load(folder).spec for folder in (tiny_clip, tiny_siglip, tiny_image_only))
    assert (clip.name, clip.source, clip.dims, clip.has_text) == ("tiny_clip", "folder", 32, True)
    assert clip.revision.startswith("sha256:")
    assert len(clip.revision) == 7 + 64
    assert (clip.preprocess.resize, siglip.preprocess.resize) == ("shortest_edge", "squash")
    assert (siglip.has_text, image_only.has_text) == (True, False)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_self_test_passes_for_sound_models(
    tiny_clip: Path, tiny_siglip: Path, tiny_image_only: Path, precision: str
) -> None:
    for folder in (tiny_clip, tiny_siglip, tiny_image_only):
        self_test(load(folder, precision=precision))


def test_the_self_test_finds_wrong_vectors(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, precision="bf16")
    projection = encoder._model.visual_projection
    hook = projection.register_forward_hook(lambda _module, _arguments, features: features.roll(1, dims=1))
    with pytest.raises(ModelError, match="the self-test failed: encoded alone on cpu in bf16") as caught:
        self_test(encoder)
    assert caught.value.hint == "try --precision fp32"
    hook.remove()
    hook = projection.register_forward_hook(lambda _module, _arguments, features: features.roll(1, dims=0))
    with pytest.raises(ModelError, match="encoded in a batch of 4 on cpu"):
        self_test(encoder)
    hook.remove()
    projection.register_forward_hook(lambda _module, _arguments, features: features * float("nan"))
    with pytest.raises(ModelError, match="the test image is nan similar"):
        self_test(encoder)


def test_texts_become_unit_vectors_in_the_space_of_the_images(tiny_clip: Path, tiny_siglip: Path) -> None:
    for folder in (tiny_clip, tiny_siglip):
        encoder = load(folder, precision="fp32", batch_size=2)
        texts = ["Red MUG", "red mug", "navy dress", "", "word " * 500, "Zürich 漢字 🛍"]
        vectors = encoder.encode_texts(texts)
        assert (vectors.shape, vectors.dtype) == ((6, 32), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
        assert float(vectors[0] @ vectors[2]) < 0.9
        alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
        np.testing.assert_allclose(vectors, alone, atol=1e-5)
        assert encoder.encode_texts([]).shape == (0, 32)


def test_texts_are_encoded_as_by_transformers_own_processor(tiny_clip: Path, tiny_siglip: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["navy striped t-shirt", "mug", "dotted " * 90]
    for folder, padding in ((tiny_clip, True), (tiny_siglip, "max_length")):
        tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=padding, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            features = AutoModel.from_pretrained(folder).eval().get_text_features(**tokens).pooler_output
        wanted = torch.nn.functional.normalize(features, dim=1).numpy()
        np.testing.assert_allclose(load(folder, precision="fp32").encode_texts(texts), wanted, atol=1e-5)


def test_siglip_reads_all_64_tokens_without_a_mask(tiny_siglip: Path, tmp_path: Path) -> None:
    masked = Path(shutil.copytree(tiny_siglip, tmp_path / "masked"))
    names = ["input_ids", "attention_mask"]
    edit(masked / "tokenizer_config.json", lambda config: config.update(model_input_names=names))
    texts = ["Red Mug", "navy dress"]
    wanted = load(tiny_siglip, precision="fp32").encode_texts(texts)
    np.testing.assert_allclose(load(masked, precision="fp32").encode_texts(texts), wanted, atol=1e-6)


def test_an_image_only_model_refuses_text(tiny_image_only: Path, copied: Path) -> None:
    with pytest.raises(ModelError, match="model 'tiny_image_only' has no text side") as caught:
        load(tiny_image_only).encode_texts(["red mug"])
    assert "search by image" in str(caught.value.hint)
    (copied / "tokenizer.json").unlink()
    assert not load(copied).spec.has_text


@pytest.mark.parametrize("end", [2, 7])
def test_an_end_token_that_is_not_the_tokenizers_is_refused(copied: Path, end: int) -> None:
    start, last = (clip_tokenizer().get_vocab()[token] for token in ("<|startoftext|>", "<|endoftext|>"))
    other = {str(start): str(last), str(last): str(start)}
    tokens = (copied / "tokenizer.json").read_text()
    # with 2 in config.json transformers reads at the largest id, and that is no end any more
    (copied / "tokenizer.json").write_text(re.sub(rf"\b({start}|{last})\b", lambda found: other[found[0]], tokens))
    edit(copied / "config.json", lambda config: config["text_config"].update(eos_token_id=end))
    encoder = load(copied)
    with pytest.raises(
        ModelError, match=rf"\(eos_token_id {end} in config.json\), but its tokenizer ends texts with id {start}"
    ):
        encoder.encode_texts(["red mug"])


def test_an_old_config_reads_at_the_largest_token(copied: Path, tiny_clip: Path) -> None:
    edit(copied / "config.json", lambda config: config["text_config"].update(eos_token_id=2))
    texts = ["red mug", "a navy dress"]
    np.testing.assert_array_equal(load(copied).encode_texts(texts), load(tiny_clip).encode_texts(texts))


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    edit(copied / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(extra=10_000))
    edit(copied / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(more=550))
    with pytest.raises(ModelError, match=r"has 552 tokens, the model 550"):
        load(copied).encode_texts(["red mug"])


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"added_tokens": []}', '{"added_tokens": [], "model": {"type": "BPE"}}']
)
def test_a_damaged_tokenizer_is_refused(tiny_siglip: Path, tmp_path: Path, content: str) -> None:
    copied = Path(shutil.copytree(tiny_siglip, tmp_path / "copied"))
    (copied / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"the tokenizer in .*copied cannot be loaded"):
        load(copied).encode_texts(["red mug"])


def test_a_folder_is_identified_by_what_decides_its_vectors(copied: Path, tiny_clip: Path, tmp_path: Path) -> None:
    def revision(folder: Path) -> str:
        return find_model(ModelSettings(model=str(folder))).revision

    original = revision(tiny_clip)
    (copied / "README.md").write_text("# hello")
    (copied / "trainer_state.json").write_text("{}")
    (copied / "config.json").touch()
    assert revision(copied) == original
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in tiny_clip.iterdir():
        (linked / path.name).symlink_to(path)
    assert revision(linked) == original
    seen = {original}
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (copied / name).write_text((copied / name).read_text() + "\n")
        assert revision(copied) not in seen
        seen.add(revision(copied))
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    assert revision(copied) not in seen


def test_sharded_weights_are_loaded_and_must_all_be_there(tiny_clip: Path, copied: Path) -> None:
    from transformers import CLIPModel

    (copied / "model.safetensors").unlink()
    CLIPModel.from_pretrained(tiny_clip).save_pretrained(copied, max_shard_size="300KB")
    pixels = draw_photos(count=2, size=64)
    np.testing.assert_array_equal(load(copied).encode_images(pixels), load(tiny_clip).encode_images(pixels))
    shards = sorted(copied.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(ModelError, match=r"has no weights, expected .* or an index with all its shards"):
        load(copied)


def test_pickled_weights_are_loaded(tiny_clip: Path, copied: Path) -> None:
    import torch
    from transformers import CLIPModel

    (copied / "model.safetensors").unlink()
    state = CLIPModel.from_pretrained(tiny_clip).state_dict()
    # as in the files of 2021
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(state, copied / "pytorch_model.bin")
    pixels = draw_photos(count=2, size=64)
    np.testing.assert_array_equal(load(copied).encode_images(pixels), load(tiny_clip).encode_images(pixels))


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, copied: Path) -> None:
    def refused(folder: Path, message: str, **settings: Any) -> None:
        with pytest.raises((ModelError, ConfigError), match=message):
            load(folder, **settings)

    refused(tmp_path / "nothing", "there is no model folder .*nothing'")
    refused(copied / "model.safetensors", r"model\.safetensors' is a file, expected a model folder")
    refused(copied, "--revision is 'main', but a folder such as", revision="main")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty has no config\.json, expected a model folder as transformers saves it")
    (copied / "preprocessor_config.json").unlink()
    refused(copied, "has no image processor settings, expected preprocessor_config.json")
    (copied / "model.safetensors").unlink()
    refused(copied, r"copied has no weights, expected model\.safetensors or pytorch_model\.bin")
    (copied / "config.json").write_text("[]")
    refused(copied, r"config\.json holds a list, expected a JSON object")
    (copied / "config.json").write_text("{")
    refused(copied, r"config\.json is not readable JSON")


def test_a_model_of_another_kind_is_refused(copied: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**tiny, vocab_size=20)).save_pretrained(copied)
    with pytest.raises(ModelError, match="holds a BertModel, expected a model with image and text features"):
        load(copied)
    edit(copied / "config.json", lambda config: config.update(model_type="blah"))
    with pytest.raises(ModelError, match=r"config\.json describes no known model: .*blah"):
        load(copied)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _rename_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["other.weight"] = weights.pop("visual_projection.weight")
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_overwrite, "the weights in .* cannot be loaded"),
        (_cut, "the weights in .* cannot be loaded"),
        (_rename_a_weight, "the weights in .* lack visual_projection.weight"),
    ],
)
def test_damaged_weights_are_refused(copied: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(copied / "model.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        load(copied)
    assert "copy the model folder again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "lack vision_model.encoder.layers.2"),
        ({"num_hidden_layers": 1}, "have more than config.json describes: vision_model.encoder.layers.1"),
        ({"hidden_size": 32}, "have another shape of vision_model.embeddings.class_embedding and"),
        ({"hidden_size": "wide"}, "describes no known model: .*hidden_size"),
        ({"num_attention_heads": 0}, "describes no known model|cannot be loaded"),
    ],
)
def test_weights_of_another_config_are_refused(copied: Path, change: dict[str, Any], message: str) -> None:
    edit(copied / "config.json", lambda config: config["vision_config"].update(change))
    with pytest.raises(ModelError, match=message):
        load(copied)


def test_weights_that_are_not_finite_are_refused(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    weights["visual_projection.weight"][0] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gives a drawn image a vector that is not finite, or zero"):
        load(copied)


def test_code_in_pickled_weights_is_not_run(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo run'\ntR.")
    with pytest.raises(ModelError, match="they are not plain weights, and code in them is not run"):
        load(copied)
    assert capfd.readouterr() == ("", "")


def test_an_image_size_that_the_model_does_not_take_is_refused(copied: Path) -> None:
    edit(copied / "preprocessor_config.json", lambda config: config.update(size=224, crop_size=224))
    with pytest.raises(ModelError, match="does not take images of 224 × 224 pixels"):
        load(copied)


def test_loading_prints_nothing_and_leaves_transformers_settings_alone(
    tiny_clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    encoder = load(tiny_clip)
    encoder.encode_texts(["long " * 200])
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("devices", "count"),
    [(["cuda:0", "cuda:1"], 2), (["cuda"], 1), (["cpu", "cpu"], 1), (["cuda:0", "cpu", "cuda:2"], 2), (["mps"], 1)],
)
def test_devices_of_a_kind_add_up_but_copies_on_the_cpu_do_not(devices: list[str], count: int) -> None:
    assert count_beside([Placement(device=device, precision="fp32", batch_size=8) for device in devices]) == count
