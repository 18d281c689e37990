"""A bundle on disk: parts that are whole or not there, damage that is found and named, rows put together."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra: pip install 'catvec[parquet]'")
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import parts as bundle_parts
from pipeline.bundle.catalog import image_key, read_images, read_rows, write_catalog
from pipeline.bundle.folder import Bundle, claimed, find_manifest, open_bundle, write_manifest
from pipeline.bundle.format import BundleModel, Manifest, digest_of, file_name
from pipeline.bundle.merge import contains
from pipeline.bundle.parts import PartWriter, read_contents, read_part
from pipeline.errors import BundleError, CatalogError, CatvecError, ConfigError, LockedError, ModelError
from pipeline.records import BadRow, Content, Deletion, Embedding, Failure, ImageRef, Outcomes
from tests.fixtures.store import PREPROCESS, product, unit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def manifest(*, catalog: str = "default", **model: Any) -> Manifest:
    known = {"name": "tiny", "source": "folder", "revision": "sha256:1", "fingerprint": "print", "dims": 4}
    known |= {"has_text": True, "location": "/models/tiny", "preprocess": PREPROCESS}
    return Manifest(
        catalog=catalog,
        model=BundleModel(**{**known, **model}),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with claimed(tmp_path / "bundle") as folder:
        yield write_manifest(folder, manifest())


def image(number: int) -> ImageRef:
    return ImageRef(image_id=number, product_id=f"P{number}", url=f"https://shop.example/{number}.jpg")


def embedding(number: int, *, data: bytes | None = None, vector: Any = None) -> Embedding:
    sha256 = hashlib.sha256(data if data is not None else b"%d" % number).digest()
    found = Content(image=image(number), sha256=sha256, size_bytes=7, mime="image/jpeg", etag='"e"')
    vector = unit(number + 1, 1, 2, 3) if vector is None else vector
    return Embedding(content=found, width=40, height=30, vector=vector)


def failure(number: int, code: str = "http_404") -> Failure:
    return Failure(image=image(number), stage="fetch", code=code, detail="gone\0", is_retryable=False)


def write(bundle: Bundle, *items: Embedding | Content | Failure) -> None:
    writer = PartWriter(bundle, read_contents(bundle))
    for item in items:
        writer.add(item, AT)
    writer.close()


# ---- parts


def test_a_part_gives_back_what_was_written(bundle: Bundle) -> None:
    first, second = embedding(1), embedding(2)
    same = Content(image=image(3), sha256=first.content.sha256, size_bytes=7)
    write(bundle, first, failure(4), same, second)

    [path] = bundle.parts()
    part = read_part(bundle, path)

    assert part.hashes == (first.content.sha256, second.content.sha256)
    assert part.vectors.dtype == np.float32
    assert np.array_equal(part.vectors, np.stack([first.vector, second.vector]))
    nothing = (None,) * 5
    assert part.images == (
        ("P1", image(1).url, AT, first.content.sha256, 40, 30, 7, "image/jpeg", '"e"', None, *nothing),
        ("P4", image(4).url, AT, *(None,) * 7, "fetch", "http_404", "gone\ufffd", False, "permanent"),
        ("P3", image(3).url, AT, first.content.sha256, None, None, 7, None, None, None, *nothing),
        ("P2", image(2).url, AT, second.content.sha256, 40, 30, 7, "image/jpeg", '"e"', None, *nothing),
    )


def test_contents_know_what_is_done_and_what_failed(bundle: Bundle) -> None:
    write(bundle, failure(1), failure(2))
    write(bundle, embedding(1), failure(2), failure(3))

    contents = read_contents(bundle)

    assert set(contents.shown) == {image_key("P1", image(1).url)}
    assert set(contents.failed.values()) == {"http_404"}
    assert len(contents.failed) == 2
    # the second failure of P2 says nothing new
    assert len(read_part(bundle, bundle.parts()[1]).images) == 2


def test_a_vector_whose_part_is_gone_is_known_no_longer(bundle: Bundle) -> None:
    write(bundle, embedding(1))
    write(bundle, embedding(2, data=b"1"))  # the bytes of 1: reused
    bundle.parts()[0].unlink()

    contents = read_contents(bundle)

    assert (contents.known, contents.shown) == (set(), {})


def test_a_part_is_finished_when_it_is_full(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_parts, "PART_ROWS", 3)
    writer = PartWriter(bundle, read_contents(bundle))

    written = writer.write(Outcomes(embedded=tuple(embedding(number) for number in range(7))))

    assert len(written.embedded) == 7
    assert len(bundle.parts()) == 2
    writer.close()
    assert [path.name[:11] for path in bundle.parts()] == ["part-000001", "part-000002", "part-000003"]
    assert writer.find_known([embedding(0).content.sha256, b"x" * 32]) == {embedding(0).content.sha256}


def test_a_part_is_finished_when_its_urls_are_long(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_parts, "PART_CHARACTERS", 3 * len(image(1).url))

    write(bundle, *(embedding(number) for number in range(7)))

    assert [len(read_part(bundle, path).images) for path in bundle.parts()] == [3, 3, 1]


def test_a_picture_stays_when_its_image_fails_later_and_both_are_said(bundle: Bundle) -> None:
    both = embedding(1), AT, failure(1), AT + timedelta(days=1)
    write(bundle, embedding(1))
    for _ in range(2):
        writer = PartWriter(bundle, read_contents(bundle))
        writer.add_failing(*both)
        writer.close()

    contents = read_contents(bundle)

    parts = [read_part(bundle, path) for path in bundle.parts()]
    assert [[row[0] for row in contents.latest(part.images)] for part in parts] == [["P1"], ["P1"]]
    assert (len(contents.shown), list(contents.failed.values()), contents.failed_bare()) == (1, ["http_404"], 0)
    write(bundle, embedding(1))  # it is back: that is a row, without its vector
    assert read_contents(bundle).failed == {}
    assert read_part(bundle, bundle.parts()[-1]).hashes == ()


# ---- damage


def test_every_way_to_damage_a_part_is_found(bundle: Bundle) -> None:
    write(bundle, *(embedding(number) for number in range(20)))
    [path] = bundle.parts()
    whole = path.read_bytes()
    damages = [whole[:end] for end in (0, 1, 100, len(whole) // 2, len(whole) - 1)] + [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), len(whole) // 40)
    ]
    for data in damages:
        path.write_bytes(data)
        for read in (read_contents, lambda bundle: read_part(bundle, path)):
            with pytest.raises(BundleError) as caught:
                read(bundle)
            assert caught.value.message == (
                f"part {str(path)!r} is cut off or was edited: its bytes are not those that its name stands for"
            )
            assert "remove it and run the same catvec run … --to again" in str(caught.value.hint)


def test_a_part_under_another_name_is_none(bundle: Bundle) -> None:
    write(bundle, embedding(1))
    [path] = bundle.parts()
    path.rename(path.with_name("vectors.parquet"))

    with pytest.raises(BundleError, match=r"vectors\.parquet' is no file of a bundle"):
        read_contents(bundle)


@pytest.mark.parametrize(
    ("other", "kind", "message"),
    [
        (manifest(revision="sha256:2"), ModelError, "weights sha256:1 instead of sha256:2"),
        (manifest(catalog="b"), BundleError, "is of catalog 'b', expected 'default'"),
    ],
)
def test_a_part_of_another_bundle_is_refused(
    bundle: Bundle, tmp_path: Path, other: Manifest, kind: type[Exception], message: str
) -> None:
    with claimed(tmp_path / "other") as folder:
        strange = write_manifest(folder, other)
        write(strange, embedding(1))
    [path] = strange.parts()
    path.rename(bundle.folder / "parts" / path.name)

    with pytest.raises(kind, match=message):
        read_contents(bundle)


@pytest.mark.parametrize("vector", [[2, 0, 0, 0], [np.nan, 0, 0, 1], [1, 0, 0]])
def test_a_vector_that_is_none_is_refused(bundle: Bundle, vector: list[float]) -> None:
    write(bundle, embedding(1), embedding(2, vector=np.array(vector, dtype=np.float32)))

    with pytest.raises(
        BundleError, match=r"holds a vector that (is not finite and of unit length|has not 4 numbers)"
    ):
        read_part(bundle, bundle.parts()[0])


def rewritten(bundle: Bundle, **values: Any) -> Path:
    """The bundle's only part with these values in its first row; its name fits its bytes."""
    [path] = bundle.parts()
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= values
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), data)
    path.unlink()
    path = path.with_name(file_name("part", 1, digest_of(data.getvalue())))
    path.write_bytes(data.getvalue())
    return path


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": "a\0b"}, "a NUL character in url"),
        ({"mime": "image/\0"}, "a NUL character in mime"),
        ({"content_sha256": b"short"}, "a content_sha256 that has not 32 bytes"),
        (
            {"outcome": "reused", "embedding": None, "content_sha256": b"short"},
            "a content_sha256 that has not 32 bytes",
        ),
        ({"outcome": "reused", "embedding": None, "content_sha256": None}, "a content_sha256 that has not 32 bytes"),
        ({"outcome": "failed", "embedding": None}, "a content_sha256 that has not 32 bytes"),
    ],
)
def test_what_no_database_takes_is_named_with_its_part(bundle: Bundle, values: Any, problem: str) -> None:
    write(bundle, embedding(1), embedding(2))
    path = rewritten(bundle, **values)

    with pytest.raises(BundleError) as caught:
        read_part(bundle, path)

    assert caught.value.message == f"part {str(path)!r} holds {problem}"
    assert "remove the part" in str(caught.value.hint)


def test_a_part_without_a_column_is_named(bundle: Bundle) -> None:
    write(bundle, embedding(1))
    [path] = bundle.parts()
    data = io.BytesIO()
    pq.write_table(pq.read_table(path).drop_columns(["mime"]), data)
    path.unlink()
    path = path.with_name(file_name("part", 1, digest_of(data.getvalue())))
    path.write_bytes(data.getvalue())

    with pytest.raises(BundleError, match="has column 'mime' of type none, expected string"):
        read_part(bundle, path)


@pytest.mark.parametrize("change", [{"dims": 33}, {"name": "other"}, {"has_text": False}, {"preprocess": None}])
def test_an_edited_manifest_is_found_by_any_file_and_the_hint_says_so(bundle: Bundle, change: dict[str, Any]) -> None:
    write_catalog(bundle, [product("P1", "a.jpg")], max_remove_rate=0.1)
    write(bundle, embedding(1))
    if "preprocess" in change:
        change = {"preprocess": replace(PREPROCESS, mean=(0.0, 0.0, 0.0))}
    edited = write_manifest(bundle.folder, manifest(**change))

    with pytest.raises(CatvecError) as caught:
        edited.check()

    assert isinstance(caught.value, ModelError | BundleError)
    assert str(caught.value.hint).startswith("bundle.json was edited, or comes from another bundle: put the one back")


def test_a_file_of_another_bundle_is_to_be_moved_out(bundle: Bundle, tmp_path: Path) -> None:
    write_catalog(bundle, [product("P1", "a.jpg")], max_remove_rate=0.1)
    with claimed(tmp_path / "other") as folder:
        strange = write_manifest(folder, manifest(revision="sha256:2"))
        write(strange, embedding(1))
    [path] = strange.parts()
    path.rename(bundle.folder / "parts" / path.name)

    with pytest.raises(ModelError) as caught:
        bundle.check()

    assert str(caught.value.hint).startswith("move it out of the bundle")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "catalog": "a", "model": {}}'])
def test_a_damaged_manifest_is_named_with_its_cure(bundle: Bundle, text: str) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(text)

    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.folder)

    assert caught.value.message == f"{str(path)!r} says nothing of a bundle: it is cut off or was edited"
    assert "remove it" in str(caught.value.hint)


def test_a_newer_format_is_told(bundle: Bundle) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))

    with pytest.raises(BundleError, match="has format 2, this catvec knows 1"):
        open_bundle(bundle.folder)


# ---- the folder


def test_the_manifest_comes_back_as_it_was(bundle: Bundle) -> None:
    assert find_manifest(bundle.folder) == manifest()


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")

    with pytest.raises(ConfigError) as caught, claimed(tmp_path):
        pass

    assert caught.value.message == (
        f"folder {str(tmp_path)!r} holds 'photo.jpg' and no bundle, expected a bundle or an empty folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_a_killed_process_left_is_cleared_away(bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "parts").mkdir(parents=True)
    for place in (other, other / "parts"):
        (place / ".catvec-0123.new").write_bytes(b"half")

    with claimed(other):
        assert sorted(path.name for path in other.rglob("*")) == [".lock", "parts"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_bundle_that_does_not_come_to_be_leaves_nothing(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "bundle"
    if is_there:
        folder.mkdir()

    with pytest.raises(ModelError), claimed(folder):
        raise ModelError("no such model")

    assert folder.exists() == is_there
    assert not is_there or not list(folder.iterdir())


def _claim(folder: Path, answer: Any) -> None:
    try:
        with claimed(folder):
            answer.put("claimed")
    except LockedError as error:
        answer.put(error.message)


def test_one_process_at_a_time_writes_to_a_bundle(bundle: Bundle) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_claim, args=(bundle.folder, answer))
    process.start()
    found = answer.get(timeout=30)
    process.join()

    assert found.startswith(f"another run writes to bundle {str(bundle.folder)!r}: process ")


# ---- the catalog


def test_the_catalog_gives_back_what_was_written(bundle: Bundle) -> None:
    rows = [
        product("P1", "a.jpg", "b.jpg", title="Ä", category="c", brand="d", price=Decimal("1.50"), attrs={"x": [1]}),
        BadRow(row=2, code="missing_id", detail="column 'id' is empty", url="u"),
        product("P3", row=3),
    ]

    counts = write_catalog(bundle, rows, max_remove_rate=0.1)

    assert list(read_rows(bundle)) == rows
    assert (counts.products, counts.images, counts.bad_rows, counts.new, counts.gone) == (
        2, 2, {"missing_id": 1}, 2, 0,
    )  # fmt: skip
    assert [(image.image_id, image.product_id, image.url) for image in read_images(bundle)] == [
        (1, "P1", "a.jpg"),
        (2, "P1", "b.jpg"),
    ]


def test_a_catalog_of_data_uris_is_never_in_memory_as_a_whole(bundle: Bundle) -> None:
    """16 MB at once in Python's hands, and the image that goes beyond it; the catalog has 128 MB."""
    megabytes = 8
    uris = (f"data:image/png;base64,{number:02}" + "A" * (megabytes << 20) for number in range(16))
    rows = (product(f"P{number}", uri, row=number) for number, uri in enumerate(uris, start=1))

    tracemalloc.start()
    try:
        counts = write_catalog(bundle, rows, max_remove_rate=0.1)
        lengths = {len(image.url) for image in read_images(bundle)}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (counts.images, lengths) == (16, {24 + (megabytes << 20)})
    assert peak < 64 << 20
    [path] = bundle.catalogs()
    assert pq.ParquetFile(path).metadata.num_row_groups >= 8


def test_the_same_catalog_again_changes_no_file(bundle: Bundle) -> None:
    rows = [product("P1", "a.jpg")]
    write_catalog(bundle, rows, max_remove_rate=0.1)
    before = bundle.catalogs()
    write_catalog(bundle, rows, max_remove_rate=0.1)

    assert bundle.catalogs() == before
    write_catalog(bundle, [product("P1", "b.jpg")], max_remove_rate=0.1)
    [after] = bundle.catalogs()
    assert (before[0].name[:14], after.name[:14]) == ("catalog-000001", "catalog-000002")


def test_rows_of_one_product_are_put_together(bundle: Bundle) -> None:
    rows = [
        product("P1", "a.jpg", title="one", attrs={"size": [1, 2]}),
        BadRow(row=2, code="no_image", detail="no image", product_id="P2"),
        product("P2", row=2),
        product("P1", "b.jpg", "a.jpg", row=3, attrs={"size": [2]}),
        product("P2", "c.jpg", row=4),
        product("P1", "d.jpg", row=5, title="another"),
        product("P3", "e.jpg", row=6),
        Deletion(row=7, product_id="P3"),
    ]

    counts = write_catalog(bundle, rows, max_remove_rate=0.1)

    assert counts.bad_rows == {"duplicate_id": 1}
    assert list(read_rows(bundle)) == [
        BadRow(
            row=5,
            code="duplicate_id",
            detail="product P1 stands in row 1 already, with other values",
            product_id="P1",
        ),
        product("P1", "a.jpg", "b.jpg", title="one", attrs={"size": [1, 2]}),
        product("P2", "c.jpg", row=2),
    ]


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [{"c": 2}]}}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": None}, {"a": None}, True),
        ({}, {"a": None}, False),
    ],
)
def test_attributes_are_contained_as_in_postgres(whole: Any, part: Any, expected: bool) -> None:
    assert contains(whole, part) is expected


def test_a_catalog_that_lost_too_much_changes_nothing(bundle: Bundle) -> None:
    write_catalog(bundle, [product(f"P{number}", "a.jpg") for number in range(10)], max_remove_rate=0.1)
    before = list(read_rows(bundle))

    with pytest.raises(CatalogError, match=r"9 of the 10 products in bundle .* are missing in this catalog"):
        write_catalog(bundle, [product("P1", "a.jpg")], max_remove_rate=0.1)

    assert list(read_rows(bundle)) == before
    assert write_catalog(bundle, [product("P1", "a.jpg")], max_remove_rate=0.9).gone == 9


def test_an_edited_catalog_is_found(bundle: Bundle) -> None:
    write_catalog(bundle, [product("P1", "a.jpg")], max_remove_rate=0.1)
    [path] = bundle.catalogs()
    path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(BundleError, match="is cut off or was edited"):
        list(read_rows(bundle))
