"""The made-up shop: what is drawn, what is written, and the faults it is written with."""

from __future__ import annotations

import csv
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.catalog.open import read_catalog
from pipeline.demo.catalog import BROKEN, SHOWCASE, SHOWCASE_TITLE, Combination, combinations, write_demo_catalog
from pipeline.demo.drawing import COLOURS, draw_product
from pipeline.demo.patterns import PATTERNS
from pipeline.demo.shapes import KINDS, flatten
from pipeline.errors import CatalogError, ConfigError, DecodeError, FetchError
from pipeline.images.decode import decode_pixels
from pipeline.images.local import read_file
from pipeline.records import PreprocessSpec, Product
from pipeline.settings import CatalogSettings, DecodeSettings

if TYPE_CHECKING:
    from pathlib import Path

SPEC = PreprocessSpec(
    resize="shortest_edge",
    resize_size=64,
    height=64,
    width=64,
    resample=3,
    rescale=1 / 255,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of 120 sound products, the broken ones on top."""
    return write_demo_catalog(tmp_path_factory.mktemp("demo"), products=120)


def rows_of(catalog: Path) -> list[dict[str, str]]:
    with catalog.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sound_rows(catalog: Path) -> list[dict[str, str]]:
    return [row for row in rows_of(catalog) if not row["product_id"].startswith("broken-")]


def files_of(row: dict[str, str]) -> list[str]:
    return row["images"].split("|")


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels_of(combination: Combination, *, seed: int = 1, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    drawn = draw_product(combination.kind, combination.colour, combination.pattern, seed=seed, size=size)
    return np.asarray(drawn, dtype=np.int16)


def test_there_are_enough_words_for_a_small_language() -> None:
    assert len(KINDS) >= 20
    assert len(COLOURS) >= 10
    assert len(PATTERNS) >= 5
    assert len(combinations()) == len(KINDS) * len(COLOURS) * len(PATTERNS) >= 400


def test_every_combination_draws_and_no_two_are_alike() -> None:
    drawn = {pixels_of(combination).tobytes() for combination in combinations()}
    assert len(drawn) == len(combinations())


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern != "plain"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_pattern_can_be_seen_on_every_colour(colour: str, pattern: str) -> None:
    """The cloth of a cushion: plain, its luminance hardly varies; printed, it does."""
    inside = (slice(36, 60), slice(36, 60))
    plain = np.asarray(draw_product("cushion", colour, "plain", seed=5, size=(96, 96)).convert("L"))[inside]
    printed = np.asarray(draw_product("cushion", colour, pattern, seed=5, size=(96, 96)).convert("L"))[inside]
    assert plain.std() < 5
    assert printed.std() > 12


@pytest.mark.parametrize("colour", COLOURS)
def test_plain_cloth_has_the_colour_of_its_name(colour: str) -> None:
    """Nearest of all colours' cloths, though shade and light vary."""
    for seed in range(5):
        cushion = np.asarray(draw_product("cushion", colour, "plain", seed=seed, size=(96, 96)))
        seen = np.median(cushion[36:60, 36:60].reshape(-1, 3), axis=0)
        assert min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name][0]).sum()) == colour


def test_the_seed_varies_pose_and_wall_and_repeats_exactly() -> None:
    combination = combinations()[100]
    drawings = [pixels_of(combination, seed=seed, size=(64, 48)) for seed in range(20)]
    assert len({drawing.tobytes() for drawing in drawings}) == 20
    assert len({drawing[0, 0].tobytes() for drawing in drawings}) >= 5
    assert np.array_equal(pixels_of(combination, seed=3, size=(64, 48)), drawings[3])


def test_views_differ_but_show_the_same_print() -> None:
    views = [draw_product("mug", "teal", "dotted", seed=4, size=(96, 96), view=view) for view in range(3)]
    assert len({view.tobytes() for view in views}) == 3
    middles = [np.asarray(view)[30:66, 30:66].reshape(-1, 3).mean(axis=0) for view in views]
    assert max(np.abs(middle - middles[0]).max() for middle in middles) < 30


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (64, 64), (800, 500)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    drawn = draw_product("umbrella", "red", "zigzag", seed=1, size=size)
    assert (drawn.mode, drawn.size) == ("RGB", size)


def test_a_cut_out_is_transparent_around_the_product() -> None:
    drawn = draw_product("boot", "olive", "plain", seed=1, size=(80, 100), is_cut_out=True)
    alpha = np.asarray(drawn.getchannel("A"))
    assert drawn.mode == "RGBA"
    assert [alpha[0, 0], alpha[-1, -1], alpha.max()] == [0, 0, 255]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "sofa"}, "kind is 'sofa', expected one of t-shirt, shirt"),
        ({"colour": "Navy"}, "colour is 'Navy', expected one of black, white"),
        ({"pattern": ""}, "pattern is '', expected one of plain, striped"),
        ({"size": (0, 5)}, "size is (0, 5), expected a width and a height of at least 1 pixel"),
    ],
)
def test_an_unknown_word_is_refused(changed: dict[str, object], message: str) -> None:
    arguments = {"kind": "mug", "colour": "navy", "pattern": "plain", "seed": 1} | changed
    with pytest.raises(ConfigError) as caught:
        draw_product(**arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_path_becomes_the_points_of_its_curves() -> None:
    points = flatten("M0 0 L10 0 Q20 0 20 10")
    assert points[:2] == ((0, 0), (10, 0))
    assert points[-1] == (20, 10)
    assert points[6] == (17.5, 2.5)  # the middle of the curve: ¼ start + ½ control + ¼ end


def test_a_tenth_is_held_out_and_every_pair_of_words_stays_in_training() -> None:
    every = combinations()
    kept = [one for one in every if not one.is_held_out]
    assert 0.08 < 1 - len(kept) / len(every) < 0.12
    for pair in (
        lambda one: (one.kind, one.colour),
        lambda one: (one.kind, one.pattern),
        lambda one: (one.colour, one.pattern),
    ):
        assert {pair(one) for one in kept} == {pair(one) for one in every}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        assert write_demo_catalog(tmp_path / name, products=24, seed=seed) == tmp_path / name / "catalog.csv"
    first, again, other = (bytes_below(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first["images/demo-0001.jpg"] != other["images/demo-0001.jpg"]


def test_titles_say_colour_pattern_and_kind(demo: Path) -> None:
    rows = rows_of(demo)
    assert [row["title"] for row in rows] == [f"{row['colour']} {row['pattern']} {row['kind']}" for row in rows]
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["colour"] for row in rows} == set(COLOURS)
    assert {row["pattern"] for row in rows} == set(PATTERNS)
    assert {row["category"] for row in rows} == {kind.category for kind in KINDS.values()}


def test_ids_are_unique_and_broken_entries_stand_between_the_sound(demo: Path) -> None:
    ids = [row["product_id"] for row in rows_of(demo)]
    assert len(ids) == len(set(ids)) == 120 + len(BROKEN)
    places = [ids.index(f"broken-{fault}") for fault in BROKEN]
    assert places == sorted(places)
    assert places[0] > 10
    assert places[-1] < len(ids) - 10


def test_the_catalog_reads_as_one(demo: Path) -> None:
    """Through the reader that `catvec run` uses: ids, titles, prices and images arrive."""
    records = list(read_catalog(CatalogSettings(uri=str(demo))))
    products = {record.product_id: record for record in records if isinstance(record, Product)}
    sound = sound_rows(demo)
    assert {row["product_id"] for row in sound} < set(products)
    for row in sound:
        product = products[row["product_id"]]
        assert list(product.images) == files_of(row)
        assert (product.title, product.brand, str(product.price)) == (row["title"], row["brand"], row["price"])
        assert product.attrs["colour"] == row["colour"]


def test_every_image_of_a_sound_product_decodes(demo: Path) -> None:
    for row in sound_rows(demo):
        for file in files_of(row):
            data = read_file(file, demo.parent, 1_000_000).data
            assert decode_pixels(data, SPEC, DecodeSettings()).shape == (64, 64, 3)


def test_nothing_is_left_over_and_some_products_have_several_images(demo: Path) -> None:
    rows = sound_rows(demo)
    listed = [file for row in rows for file in files_of(row)]
    broken = {f"images/broken-{fault}.jpg" for fault in ("truncated", "html", "empty")}
    written = {f"images/{path.name}" for path in (demo.parent / "images").iterdir()}
    assert written == set(listed) | broken
    assert len(listed) == len(set(listed))
    views = Counter(len(files_of(row)) for row in rows)
    assert views[1] > views[2] > views[3] > 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [("missing", "file_not_found"), ("outside", "outside_root")],
)
def test_a_broken_reference_cannot_be_fetched(demo: Path, fault: str, code: str) -> None:
    [row] = [row for row in rows_of(demo) if row["product_id"] == f"broken-{fault}"]
    with pytest.raises(FetchError) as caught:
        read_file(row["images"], demo.parent, 1_000_000)
    assert caught.value.code == code


def test_broken_files_fail_each_in_its_own_way(demo: Path) -> None:
    codes = {}
    for fault in ("truncated", "html", "empty"):
        with pytest.raises(DecodeError) as caught:
            decode_pixels((demo.parent / f"images/broken-{fault}.jpg").read_bytes(), SPEC, DecodeSettings())
        codes[fault] = caught.value.code
    assert len(set(codes.values())) == 3
    assert codes["truncated"] == "truncated"
    [row] = [row for row in rows_of(demo) if row["product_id"] == "broken-no-image"]
    assert row["images"] == ""


def test_formats_modes_and_shapes_vary(demo: Path) -> None:
    formats, modes, shapes, turned = Counter[str](), Counter[str](), set(), 0
    for row in sound_rows(demo):
        for file in files_of(row):
            with Image.open(demo.parent / file) as image:
                formats[str(image.format)] += 1
                modes[image.mode] += 1
                turned += image.getexif().get(0x0112, 1) != 1
                shapes.add(np.sign(image.width - image.height))
    assert formats.most_common()[0][0] == "JPEG"
    assert set(formats) == {"JPEG", "PNG", "WEBP"}
    assert (modes["CMYK"], modes["L"], turned) == (1, 1, 1)
    assert modes["RGBA"] == formats["PNG"]
    assert shapes == {-1, 0, 1}


def test_the_turned_and_the_cmyk_image_still_show_their_product(demo: Path) -> None:
    """Upright again they are what is drawn from the same words: nothing is lost but JPEG's rounding."""
    by_id = {row["product_id"]: row for row in sound_rows(demo)}
    for product_id, index in (("demo-0003", 2), ("demo-0004", 3)):
        row = by_id[product_id]
        with Image.open(demo.parent / files_of(row)[0]) as image:
            seen = ImageOps.exif_transpose(image).convert("RGB")
        drawn = draw_product(row["kind"], row["colour"], row["pattern"], seed=7 + index, size=seen.size)
        difference = np.abs(np.asarray(seen, dtype=np.int16) - np.asarray(drawn, dtype=np.int16))
        assert difference.mean() < 4


def test_two_products_share_the_bytes_of_their_images(demo: Path) -> None:
    rows = sound_rows(demo)
    first, last = rows[1], rows[-1]
    assert first["title"] == last["title"]
    assert len(files_of(first)) == 2
    assert [(demo.parent / file).read_bytes() for file in files_of(first)] == [
        (demo.parent / file).read_bytes() for file in files_of(last)
    ]


def test_there_is_a_product_for_examples_to_ask_for(demo: Path) -> None:
    assert [row["title"] for row in sound_rows(demo) if row["product_id"] == SHOWCASE] == [SHOWCASE_TITLE]


@pytest.mark.parametrize("products", [1, 2, 3, 7, 13])
def test_a_small_catalog_is_whole_too(tmp_path: Path, products: int) -> None:
    catalog = write_demo_catalog(tmp_path, products=products)
    assert len(sound_rows(catalog)) == products
    assert len(rows_of(catalog)) == products + len(BROKEN)
    for row in sound_rows(catalog):
        for file in files_of(row):
            assert (tmp_path / file).stat().st_size > 500


def test_no_products_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^products is 0, expected at least 1$"):
        write_demo_catalog(tmp_path, products=0)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CatalogError, match=r"the demo catalog cannot be written to '.*file'") as caught:
        write_demo_catalog(tmp_path / "file", products=1)
    assert caught.value.hint == "choose another folder"


def test_the_whole_demo_is_drawn_quickly(tmp_path: Path) -> None:
    """300 products take 3.5 s of processor time on the machine it was written on; the limit is a busy one."""
    started = time.process_time()
    write_demo_catalog(tmp_path)
    assert time.process_time() - started < 12
