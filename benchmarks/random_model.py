"""Small and ViT-B/32-sized models with seeded random weights, saved as ordinary transformers folders.

    python -m benchmarks.random_model FOLDER      the ViT-B/32-sized one

For tests and benchmarks, which cannot download weights. A freshly initialised CLIP gives nearly the same
vector for every image (cosine 0.999), which would hide every mistake in pixels; here weights keep the scale of the
signal (pipeline/models/untrained.py), and the output is centred on a few drawn images, so that different images are
as far apart as in a trained model, or further. The vectors mean nothing: near in colour and layout is near, nothing
more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.untrained import scale_weights, seeded

TEXTS = [
    f"{colour} {pattern} {garment}"
    for colour in ("red", "navy", "green", "white")
    for pattern in ("plain", "striped", "dotted")
    for garment in ("t-shirt", "mug", "bag", "dress")
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Save a CLIP of ViT-B/32's size with random weights.")
    parser.add_argument("folder", type=Path)
    print(save_clip_b32(parser.parse_args().folder))


def save_tiny_clip(folder: Path, *, seed: int = 0, dims: int = 32, image_size: int = 64) -> Path:
    """A CLIP of 64 × 64 pixels (shortest edge, then crop) with a byte-pair tokenizer of its own."""
    from transformers import CLIPModel

    config = _clip_config(image_size=image_size, patch_size=16, width=64, layers=2, dims=dims)
    with seeded(seed):
        model = CLIPModel(config).eval()
        scale_weights(model)
        _center_images(model, image_size)
        _center_texts(model, clip_tokenizer())
    model.save_pretrained(folder)
    _clip_processor(image_size).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def save_clip_b32(folder: Path, *, seed: int = 0, dims: int = 512) -> Path:
    """A CLIP of the size of openai/clip-vit-base-patch32 (151 million weights, 605 MB), exactly so with 512 dims."""
    from transformers import CLIPConfig, CLIPModel

    with seeded(seed):
        tokenizer = clip_tokenizer()
        config = CLIPConfig(projection_dim=dims)
        config.text_config.bos_token_id = tokenizer.bos_token_id
        config.text_config.eos_token_id = tokenizer.eos_token_id
        model = CLIPModel(config).eval()
        scale_weights(model)
        _center_images(model, 224)
        _center_texts(model, clip_tokenizer())
    model.save_pretrained(folder)
    _clip_processor(224).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_image_only(folder: Path, *, seed: int = 0, dims: int = 32, image_size: int = 64) -> Path:
    """The image side of a CLIP with its projection and no text side."""
    from transformers import CLIPVisionModelWithProjection

    config = _clip_config(image_size=image_size, patch_size=16, width=64, layers=2, dims=dims).vision_config
    with seeded(seed):
        model = CLIPVisionModelWithProjection(config).eval()
        scale_weights(model)
        _center_images(model, image_size)
    model.save_pretrained(folder)
    _clip_processor(image_size).save_pretrained(folder)
    return folder


def save_tiny_siglip(folder: Path, *, seed: int = 0, dims: int = 32, image_size: int = 64) -> Path:
    """A SigLIP: squashes images to 64 × 64, lower-cases text and pads it to exactly 64 tokens."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = siglip_tokenizer()
    sizes = {"hidden_size": dims, "intermediate_size": 2 * dims, "num_hidden_layers": 2}
    config = SiglipConfig(
        text_config=sizes
        | {"num_attention_heads": 4, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
        | {"projection_size": dims, "pad_token_id": tokenizer.pad_token_id}
        | {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config=sizes | {"num_attention_heads": 4, "image_size": image_size, "patch_size": 16},
    )
    with seeded(seed):
        model = SiglipModel(config).eval()
        scale_weights(model)
        _center_images(model, image_size)
        _center_texts(model, tokenizer)
    model.save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    SiglipImageProcessorPil(size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip_tokenizer() -> Any:
    """CLIP's own kind of tokenizer (byte pairs, lower case), trained on a few product titles; it reads every text."""
    from pipeline.train.tokens import train_tokenizer

    return train_tokenizer(TEXTS, 700)


def siglip_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids"],
    )


def draw_photos(*, count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random scenes of soft gradients, boxes and noise: uint8 [N, H, W, 3]."""
    random = np.random.default_rng(seed)
    photos = np.empty((count, size, size, 3), dtype=np.float64)
    axis = np.linspace(0, 1, size)
    for photo in photos:
        first, second = random.uniform(0, 255, (2, 3))
        tilt = random.uniform(0, 1)
        ramp = tilt * axis[:, None] + (1 - tilt) * axis[None, :]
        photo[...] = first + ramp[..., None] * (second - first)
        for _ in range(random.integers(1, 6)):
            top, left = random.integers(0, size, 2)
            height, width = random.integers(size // 8, size, 2)
            photo[top : top + height, left : left + width] = random.uniform(0, 255, 3)
        photo[...] += random.normal(0, random.uniform(0, 25), photo.shape)
    return photos.clip(0, 255).astype(np.uint8)


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _clip_config(*, image_size: int, patch_size: int, width: int, layers: int, dims: int) -> Any:
    from transformers import CLIPConfig

    tokenizer = clip_tokenizer()
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": 4, "projection_dim": dims}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids |= {"pad_token_id": tokenizer.pad_token_id}
    return CLIPConfig(
        projection_dim=dims,
        text_config=shape | ids | {"vocab_size": len(tokenizer)},
        vision_config=shape | {"image_size": image_size, "patch_size": patch_size},
    )


def _clip_processor(image_size: int) -> Any:
    from transformers import CLIPImageProcessorPil

    crop = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=crop)


def _center_images(model: Any, image_size: int) -> None:
    """Move the last bias of the image side so that drawn images are centred on the origin."""
    import torch

    pixels = torch.from_numpy(draw_photos(count=64, size=image_size)).permute(0, 3, 1, 2).float() / 127.5 - 1
    vision = model.vision_model
    head = getattr(vision, "head", None)
    bias = vision.post_layernorm.bias if head is None else head.mlp.fc2.bias
    bias -= vision(pixel_values=pixels).pooler_output.mean(0)


def _center_texts(model: Any, tokenizer: Any) -> None:
    tokens = tokenizer(TEXTS, padding="max_length", return_tensors="pt")
    text = model.text_model
    head = getattr(text, "head", None)
    bias = text.final_layer_norm.bias if head is None else head.bias
    bias -= text(**tokens).pooler_output.mean(0)


if __name__ == "__main__":
    main()
