"""The parts of a training: its loss against independent references, its tokenizer, its split, its views."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import CatalogError, ConfigError
from pipeline.models.weights import load_model
from pipeline.records import BadRow, Product
from pipeline.settings import CatalogSettings, NewModelSettings, TrainSettings
from pipeline.train.augment import DRAWS, vary
from pipeline.train.curves import rows_of
from pipeline.train.loss import info_nce, sigmoid_loss
from pipeline.train.objective import Objective
from pipeline.train.pairs import collect_pairs
from pipeline.train.recall import Judge
from pipeline.train.start import Start, open_start, write_new_model
from pipeline.train.tokens import Titles, make_tokenizer, tokenize_titles, train_tokenizer
from pipeline.train.trainer import Batches, count_workers
from pipeline.train.tune import prepare, refuse_more_layers

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = TrainSettings(catalog=CatalogSettings(uri="catalog.csv"))
TITLES = ["red striped mug", "navy plain bag", "green dotted dress", "white t-shirt", "a navy mug", "plain white bag"]


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "new"
    new = NewModelSettings(image_size=16, patch_size=8, width=32, layers=2, text_width=32, text_layers=1, dims=16)
    write_new_model(folder, new, TITLES, seed=1)
    return folder


def draw_pixels(start: Start, count: int) -> torch.Tensor:
    edge = start.preprocess.height
    numbers = np.random.default_rng(1).integers(0, 256, (count, edge, edge, 3), dtype=np.uint8)
    return torch.from_numpy(numbers)


def unit_rows(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def cross_entropy_in_float64(logits: np.ndarray) -> float:
    """Written out: the mean of -log of each row's own share."""
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return float(-np.log(np.diag(shares)).mean())


# ---- the loss


def test_the_loss_is_the_one_of_transformers_clip(tiny_clip: Path) -> None:
    start = open_start(tiny_clip, "tiny")
    objective = Objective(start.model, start.preprocess, device="cpu")
    pixels, tokens = draw_pixels(start, 6), start.tokenizer.tokenize(TITLES)

    loss = objective(pixels, torch.arange(6), **tokens)["loss"]
    images = objective._normalizer.scale(pixels.permute(0, 3, 1, 2).float())
    reference = start.model(pixel_values=images, return_loss=True, **tokens).loss

    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)


def test_the_loss_is_the_one_of_transformers_siglip(tiny_siglip: Path) -> None:
    start = open_start(tiny_siglip, "tiny")
    objective = Objective(start.model, start.preprocess, device="cpu")
    pixels, tokens = draw_pixels(start, 6), start.tokenizer.tokenize(TITLES)

    loss = objective(pixels, torch.arange(6), **tokens)["loss"]
    images = objective._normalizer.scale(pixels.permute(0, 3, 1, 2).float())
    reference = start.model(pixel_values=images, return_loss=True, **tokens).loss

    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)


def test_the_loss_is_that_of_its_formula_in_float64() -> None:
    images, texts, scale = unit_rows(7, 1), unit_rows(7, 2), 1 / 0.07
    logits = scale * images.numpy() @ texts.numpy().T
    reference = (cross_entropy_in_float64(logits) + cross_entropy_in_float64(logits.T)) / 2

    loss = info_nce(images.float(), texts.float(), torch.tensor(scale), torch.arange(7))

    assert loss.item() == pytest.approx(reference, abs=1e-5)


def test_pairs_of_one_title_are_not_held_against_each_other() -> None:
    images, titles = unit_rows(4, 1), torch.tensor([0, 1, 0, 2])
    texts = unit_rows(3, 2)[titles]
    scale = torch.tensor(10.0, dtype=torch.float64)
    # by hand: what each image and each text is compared with
    others = {0: [0, 1, 3], 1: [0, 1, 2, 3], 2: [2, 1, 3], 3: [0, 1, 2, 3]}
    logits = (scale * images @ texts.T).numpy()
    both = [
        -np.log(np.exp(table[row, row]) / np.exp(table[row, others[row]]).sum())
        for table in (logits, logits.T)
        for row in range(4)
    ]

    assert info_nce(images, texts, scale, titles).item() == pytest.approx(np.mean(both), abs=1e-12)


def test_pairs_of_one_title_cost_siglip_nothing() -> None:
    images, titles = unit_rows(3, 1), torch.tensor([0, 0, 1])
    texts = unit_rows(2, 2)[titles]
    scale, bias = torch.tensor(10.0), torch.tensor(-5.0)
    logits = 10 * texts.numpy() @ images.numpy().T - 5
    signs = np.array([[1, 0, -1], [0, 1, -1], [-1, -1, 1]])
    terms = np.where(signs == 0, 0, np.log1p(np.exp(-signs * logits)))

    loss = sigmoid_loss(images, texts, scale, bias, titles)

    assert loss.item() == pytest.approx(terms.sum(axis=1).mean(), abs=1e-6)


def test_titles_that_are_all_the_same_have_no_loss() -> None:
    loss = info_nce(unit_rows(3, 1), unit_rows(3, 2), torch.tensor(10.0), torch.zeros(3, dtype=torch.int64))

    assert loss.item() == 0.0


def test_chunks_give_the_gradient_of_the_whole_batch(new_model: Path) -> None:
    gradients = []
    for chunk_size in (None, 2):
        start = open_start(new_model, "new")
        objective = Objective(start.model, start.preprocess, device="cpu", chunk_size=chunk_size)
        draws = torch.rand(6, DRAWS, generator=torch.Generator().manual_seed(0))
        loss = objective(draw_pixels(start, 6), torch.arange(6), draws, **start.tokenizer.tokenize(TITLES))["loss"]
        loss.backward()
        gradients.append({name: weight.grad for name, weight in start.model.named_parameters()})

    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_logits_are_scaled_by_100_at_most(new_model: Path) -> None:
    start = open_start(new_model, "new")
    objective = Objective(start.model, start.preprocess, device="cpu")

    assert objective.temperature == pytest.approx(0.07, abs=1e-4)
    start.model.logit_scale.data.fill_(9.0)
    objective.limit_scale()

    assert start.model.logit_scale.exp().item() == pytest.approx(100, abs=0.01)
    assert objective.temperature == pytest.approx(0.01, abs=1e-5)


# ---- the tokenizer


def test_a_new_model_reads_a_text_at_its_end(new_model: Path) -> None:
    start = open_start(new_model, "new")
    tokens = start.tokenizer.tokenize(["red mug", "navy plain dotted green dress"])
    ends = (tokens["input_ids"] == start.tokenizer.tokenizer.eos_token_id).int().argmax(dim=1)

    found = start.model.text_model(**tokens)

    assert start.model.config.text_config.eos_token_id == len(start.tokenizer.tokenizer) - 1 != 2
    assert ends.tolist() == [3, 6]
    torch.testing.assert_close(found.pooler_output, found.last_hidden_state[torch.arange(2), ends])


def test_no_character_ends_a_text_early() -> None:
    tokenizer = train_tokenizer(TITLES, 1000)

    for text in ("日本 mug", "größe ü", "naïve 🎉 mug", "é"):
        ids = tokenizer(text)["input_ids"]
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1, text
    assert tokenizer.convert_ids_to_tokens(tokenizer("Red STRIPED mug")["input_ids"])[1:-1] == [
        *("red</w>", "striped</w>", "mug</w>")
    ]


def test_tokens_are_numbered_as_openai_numbers_them() -> None:
    tokenizer = make_tokenizer([("t", "h"), ("th", "e</w>")])

    vocabulary = tokenizer.get_vocab()

    assert [vocabulary[word] for word in ("!", "a", "!</w>", "th", "the</w>")] == [0, 64, 256, 512, 513]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (514, 515)
    assert tokenizer("the")["input_ids"] == [514, 513, 515]


def test_titles_are_the_same_when_their_tokens_are(new_model: Path) -> None:
    start = open_start(new_model, "new")

    titles = tokenize_titles(start.tokenizer, ["Red mug", "navy bag", "red  mug", "red mug"])

    assert len(titles) == 2
    assert titles.of_pairs[0] == titles.of_pairs[2] == titles.of_pairs[3] != titles.of_pairs[1]
    assert titles.select(np.array([0]))["input_ids"].shape[1] == 4


# ---- the catalog


def product(number: int, **fields: Any) -> Product:
    stated = {"row": number, "product_id": f"P{number}", "images": (f"{number}.jpg",), "title": f"thing {number}"}
    return Product(**(stated | fields))


def test_products_keep_their_part_whatever_else_the_catalog_holds() -> None:
    rows = [product(number, images=(f"{number}.jpg", f"{number}-back.jpg")) for number in range(400)]

    whole, half = collect_pairs(rows, SETTINGS), collect_pairs(rows[::2], SETTINGS)
    other_seed = collect_pairs(rows, replace(SETTINGS, seed=1))

    apart = {pair.product_id for pair in whole.validation}
    assert 20 <= len(apart) <= 60
    assert not apart & {pair.product_id for pair in whole.train}
    assert {pair.product_id for pair in half.validation} <= apart
    assert {pair.product_id for pair in other_seed.validation} != apart
    assert set(Counter(pair.product_id for pair in whole.validation).values()) == {2}


def test_products_that_share_an_image_fall_into_one_part() -> None:
    sizes = "S", "M", "L"
    rows = [product(n, product_id=f"P{n}-{size}", images=(f"{n}.jpg",)) for n in range(200) for size in sizes]
    # a photo of two of them binds all six
    rows += [product(3, images=("1.jpg", "2.jpg"))]
    alone = [product(number, product_id=f"P{number}-L", images=(f"{number}.jpg",)) for number in range(200)]

    found, of_alone = collect_pairs(rows, SETTINGS), collect_pairs(alone, SETTINGS)

    apart = {pair.product_id for pair in found.validation}
    assert 20 <= len(apart) <= 120
    assert (found.sharing, found.astride) == (601, 0)
    # by the first id of all that hang together, so that nothing moves when the others leave the catalog
    assert {name for name in apart if name.endswith("-L")} - {"P1-L", "P2-L"} == {
        pair.product_id for pair in of_alone.validation
    } - {"P1-L", "P2-L"}
    for names in [{f"P{number}-{size}" for size in sizes} for number in range(200)]:
        assert apart & names in (set(), names)


def test_a_picture_that_most_products_have_is_learned_from() -> None:
    rows = [product(number, images=("missing.jpg",)) for number in range(60)] + [product(n) for n in range(60, 100)]

    for seed in range(30):
        found = collect_pairs(rows, replace(SETTINGS, seed=seed))
        assert not any(pair.image.url == "missing.jpg" for pair in found.validation)


def test_images_on_both_sides_of_a_column_are_counted() -> None:
    rows = [product(n, images=("1.jpg", f"{n}.jpg"), attrs={"fold": part}) for n, part in ((2, "train"), (3, "val"))]

    found = collect_pairs(rows, replace(SETTINGS, split_column="fold"))

    assert (len(found.train), len(found.validation), found.astride) == (2, 2, 1)


def test_a_column_may_say_the_part() -> None:
    said = ["train", "Validation", "test", "train", "val", ""]
    rows = [product(number, attrs={"fold": part}) for number, part in enumerate(said)]

    found = collect_pairs(rows, replace(SETTINGS, split_column="fold"))

    assert [pair.product_id for pair in found.train] == ["P0", "P3"]
    assert [pair.product_id for pair in found.validation] == ["P1", "P4"]
    assert found.other_parts == {"test": 1, "": 1}


def test_a_column_that_says_train_for_none_is_refused() -> None:
    rows = [product(number, attrs={"fold": "test"}) for number in range(3)]

    with pytest.raises(
        ConfigError, match=r"^--split-column is 'fold', which says 'test', expected 'train' for some$"
    ):
        collect_pairs(rows, replace(SETTINGS, split_column="fold"))


def test_rows_of_one_product_share_the_first_title() -> None:
    rows = [
        product(1, title="  red \n mug "),
        product(1, title=None, images=("1-back.jpg", "1.jpg")),
        BadRow(row=3, code="no_id", detail=""),
        product(2, title=None),
        product(1, title=None, images=()),
        BadRow(row=5, code="no_image", detail="", product_id="P1"),
    ]

    found = collect_pairs(rows, replace(SETTINGS, validation_share=0.0))

    assert [(pair.image.url, pair.title) for pair in found.train] == [("1.jpg", "red mug"), ("1-back.jpg", "red mug")]
    assert [pair.image.image_id for pair in found.train] == [0, 1]
    assert (found.untitled, found.bad_codes) == (("P2",), {"no_id": 1})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([product(1, images=()), product(2, images=())], "none of 2 products has an image"),
        (
            [product(1, title=None), product(2, title=None), product(3, images=())],
            "2 products have images and no title",
        ),
        ([product(4), product(5)], "all 2 products with an image and a title are kept apart to be judged on"),
        ([BadRow(row=n, code="no_id", detail="") for n in (1, 2)], "the catalog has no products, 2 rows are no_id"),
        ([], "the catalog has no products"),
    ],
)
def test_it_is_said_why_there_is_nothing_to_learn_from(rows: list[Product | BadRow], reason: str) -> None:
    with pytest.raises(CatalogError) as refused:
        collect_pairs(rows, replace(SETTINGS, validation_share=0.9))

    assert refused.value.message == f"there is nothing to learn from: {reason}"


# ---- batches and views


def test_a_batch_is_the_same_each_time_and_holds_each_title_once() -> None:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 4, 4, 3), dtype=np.uint8)
    tokens = {"input_ids": torch.tensor([[1, 7, 2, 2], [1, 8, 9, 2]]), "attention_mask": torch.ones(2, 4)}
    titles = Titles(tokens=tokens, of_pairs=np.array([0, 1, 0, 0, 1]))
    batches = Batches(images=images, rows=np.array([0, 1, 2, 4, 5]), titles=titles, seed=0, augment=True)

    batch, again, other = batches([3, 0, 2]), batches([3, 0, 2]), batches([0, 3, 2])

    assert batch["pixels"][:, 0, 0, 0].tolist() == [4, 0, 2]
    assert (batch["input_ids"].tolist(), batch["titles"].tolist()) == ([[1, 7, 2, 2]], [0, 0, 0])
    assert torch.equal(batch["draws"], again["draws"])
    assert not torch.equal(batch["draws"], other["draws"])


def test_views_keep_the_colour_and_differ_otherwise() -> None:
    pixels = torch.zeros(64, 20, 20, 3, dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 200, 60, 30
    draws = torch.rand(64, DRAWS, generator=torch.Generator().manual_seed(0))

    views = vary(pixels, draws, 16, 16)

    assert views.shape == (64, 3, 16, 16)
    red, green, blue = views.mean(dim=(2, 3)).unbind(dim=1)
    assert ((red > 160) & (green < 95) & (blue < 70) & (green > blue)).all()
    assert views.std(dim=0).max() > 5


def test_views_are_mirrored_half_of_the_time_and_show_most_of_the_image() -> None:
    pixels = torch.zeros(200, 18, 18, 3, dtype=torch.uint8)
    pixels[:, :, :9] = 255
    draws = torch.rand(200, DRAWS, generator=torch.Generator().manual_seed(0))

    views = vary(pixels, draws, 16, 16)

    is_mirrored = views[:, 0, 8, 0] < views[:, 0, 8, -1]
    assert 70 <= int(is_mirrored.sum()) <= 130
    assert (views[:, 0] > 128).float().mean(dim=(1, 2)).min() > 0.35


def test_middle_draws_show_the_image_as_it_is() -> None:
    pixels = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.full((1, DRAWS), 0.5)
    draws[0, 0] = 1.0  # all of its area

    views = vary(pixels, draws, 8, 8)

    torch.testing.assert_close(views[0], pixels[0].permute(2, 0, 1).float(), atol=1e-3, rtol=0)


# ---- what is judged, and what may change


def test_recall_counts_an_image_that_shares_its_title_and_no_tie(new_model: Path) -> None:
    class Known(Objective):
        """Features that are given: images by their first pixel, texts by their second token."""

        def encode_images(self, pixels: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:
            features = torch.eye(4)
            features[2, 1] = features[3, 0] = 1e-7  # rounding, in favour of the own title
            return features[pixels[:, 0, 0, 0].long()]

        def encode_texts(self, **texts: torch.Tensor) -> torch.Tensor:
            return torch.eye(4)[texts["input_ids"][:, 1]]

    start = open_start(new_model, "new")
    objective = Known(start.model, start.preprocess, device="cpu")
    pixels = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = [0, 1, 2, 3]
    titles = Titles(tokens={"input_ids": torch.tensor([[9, 0], [9, 1]])}, of_pairs=np.array([0, 1, 1, 0]))

    found = Judge(pixels, titles, "cpu").measure(objective)

    # images 2 and 3 are as far from their own title as from the other: ties are wrong
    assert found is not None
    assert (found["image_to_text_recall@1"], found["text_to_image_recall@1"], found["recall@1"]) == (0.5, 1.0, 0.75)
    assert found["image_to_text_recall@5"] == 1.0


def test_recall_is_the_same_in_half_precision(new_model: Path) -> None:
    """Vectors that are nearer to each other than bfloat16 tells apart."""
    chance = torch.Generator().manual_seed(1)
    spread = 0.05 * torch.randn(64, 16, generator=chance)
    titles = torch.nn.functional.normalize(torch.randn(1, 16, generator=chance) + spread, dim=1)
    images = torch.nn.functional.normalize(titles + 0.002 * torch.randn(64, 16, generator=chance), dim=1)

    class Known(Objective):
        def encode_images(self, pixels: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:
            return images[pixels[:, 0, 0, 0].long()]

        def encode_texts(self, **texts: torch.Tensor) -> torch.Tensor:
            return titles[texts["input_ids"][:, 0]]

    start = open_start(new_model, "new")
    objective = Known(start.model, start.preprocess, device="cpu")
    pixels = np.zeros((64, 2, 2, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(64)
    judge = Judge(pixels, Titles(tokens={"input_ids": torch.arange(64)[:, None]}, of_pairs=np.arange(64)), "cpu")

    exact = judge.measure(objective)
    with torch.autocast("cpu", torch.bfloat16):
        in_half = judge.measure(objective)

    assert exact is not None
    assert exact["recall@1"] > 0.8
    assert in_half == exact


def test_more_layers_than_there_are_cannot_be_tuned(tiny_clip: Path) -> None:
    model = load_model(tiny_clip)
    refuse_more_layers(model, "last:2")
    refuse_more_layers(model, "lora")
    with pytest.raises(ConfigError, match=r"^--tune is 'last:3', but a side of the model has 2 layers$") as refused:
        refuse_more_layers(model, "last:3")
    assert refused.value.hint == "--tune last:2 or --tune all"


def test_last_layers_come_with_what_follows_them(tiny_clip: Path) -> None:
    model = load_model(tiny_clip)

    prepare(model, "last:1", device="cpu")

    fixed = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    parts = ("embeddings", "pre_layrnorm", "layers.0")
    assert fixed == {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


def test_adapters_disappear_into_ordinary_weights(tiny_clip: Path) -> None:
    model = load_model(tiny_clip)
    names = set(load_file(tiny_clip / "model.safetensors"))
    finish = prepare(model, "lora", device="cpu")
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.01)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = model.get_image_features(pixel_values=pixels).pooler_output

    merged = finish()

    assert all("lora_" in name or name == "logit_scale" for name in trained)
    assert set(merged.state_dict()) == names
    after = merged.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_new_model_is_the_same_for_the_same_seed(new_model: Path, tmp_path: Path) -> None:
    new = NewModelSettings(image_size=16, patch_size=8, width=32, layers=2, text_width=32, text_layers=1, dims=16)

    write_new_model(tmp_path / "same", new, TITLES, seed=1)
    write_new_model(tmp_path / "other", replace(new, fit="squash"), TITLES, seed=2)

    weights, same = load_file(new_model / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert open_start(tmp_path / "other", "other").preprocess.resize == "squash"
    assert open_start(new_model, "new").preprocess.resize == "shortest_edge"


def test_curves_have_one_row_for_a_step() -> None:
    history = [
        {"step": 1, "loss": 2.0, "temperature": 0.07, "learning_rate": 0.1, "epoch": 0.5},
        {"step": 2, "loss": 1.0, "temperature": 0.06, "epoch": 1.0},
        {"step": 2, "eval_recall@1": 0.5, "epoch": 1.0, "temperature": 0.06},
        {"step": 2, "train_runtime": 3.0, "temperature": 0.06},
    ]

    assert rows_of(history) == [
        {"step": 1, "loss": 2.0, "temperature": 0.07, "learning_rate": 0.1, "epoch": 0.5},
        {"step": 2, "loss": 1.0, "temperature": 0.06, "epoch": 1.0, "recall@1": 0.5},
    ]


def test_batches_are_made_beside_a_gpu_where_shared_memory_holds_them(tmp_path: Path) -> None:
    assert count_workers("cuda", 1_000, tmp_path) == 2
    assert count_workers("cuda", shutil.disk_usage(tmp_path).free // 2, tmp_path) == 0
    assert count_workers("cuda", 1_000, tmp_path / "absent") == 2
    assert count_workers("cpu", 1_000, tmp_path) == 0
