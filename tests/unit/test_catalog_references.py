"""Image references: how a cell is divided, and what each becomes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.catalog.references import flatten, make_reference
from pipeline.errors import RowError

ROOT = Path("/shop/pictures")
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("cell", "references"),
    [
        ("https://x.y/a.jpg", ["https://x.y/a.jpg"]),
        ("https://x.y/w_1,h_2;q/a|b.jpg"[:21], ["https://x.y/w_1,h_2;q"]),
        ("https://x.y/a.jpg,https://x.y/b.jpg", ["https://x.y/a.jpg", "https://x.y/b.jpg"]),
        ("https://x.y/a.jpg, http://x.y/b.jpg,", ["https://x.y/a.jpg", "http://x.y/b.jpg"]),
        ("https://x.y/a.jpg https://x.y/b.jpg", ["https://x.y/a.jpg", "https://x.y/b.jpg"]),
        ("https://x.y/a.jpg|https://x.y/b.jpg", ["https://x.y/a.jpg", "https://x.y/b.jpg"]),
        ("https://x.y/a;v=1.jpg;//cdn.z/c.jpg", ["https://x.y/a;v=1.jpg", "//cdn.z/c.jpg"]),
        ("https://x.y/my photo.jpg\r\nb.jpg", ["https://x.y/my photo.jpg", "b.jpg"]),
        ("https://x.y/?u=https://z.w/a.jpg", ["https://x.y/?u=https://z.w/a.jpg"]),
        ("a.jpg;b.jpg|c.jpg", ["a.jpg", "b.jpg", "c.jpg"]),
        ("a.jpg, b.PNG,c.webp", ["a.jpg", "b.PNG", "c.webp"]),
        ("blue, small.jpg", ["blue, small.jpg"]),
        (f"{PNG}|{PNG}, https://x.y/z.jpg", [PNG, PNG, "https://x.y/z.jpg"]),
        ("data:image/svg+xml,%3Csvg;a,b", ["data:image/svg+xml,%3Csvg;a,b"]),
        ('["a.jpg", "b,c.jpg", null]', ["a.jpg", "b,c.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ('{"src": "a.jpg", "alt": "a shirt"}', ["a.jpg"]),
        (" | ;; ", []),
        ("", []),
    ],
)
def test_a_cell_is_divided_where_people_divide_it(cell: str, references: list[str]) -> None:
    assert list(flatten(cell, None)) == references


def test_a_given_separator_is_the_only_one_and_spares_data_uris() -> None:
    assert list(flatten("a b.jpg ## c|d.jpg ##", "##")) == ["a b.jpg", "c|d.jpg"]
    assert list(flatten(f"{PNG},a.jpg, b.jpg", ",")) == [PNG, "a.jpg", "b.jpg"]
    assert list(flatten(f"{PNG};a.jpg", ";")) == [PNG, "a.jpg"]


def test_nested_values_of_json_and_parquet_give_their_references() -> None:
    value = ["a.jpg", {"src": "b.jpg"}, {"bytes": b"\xff", "path": "c.jpg"}, None, float("nan"), b"d.jpg"]
    assert list(flatten(value, None)) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert list(flatten(False, None)) == []


@pytest.mark.parametrize(
    "cell",
    ["a" + " " * 100_000 + "b", "https://x/" + ", " * 50_000, ";" * 100_000, "[" * 100_000 + "]", "data:" * 20_000],
)
def test_hostile_cells_are_divided_in_linear_time(cell: str) -> None:
    started = time.perf_counter()
    list(flatten(cell, None))
    assert time.perf_counter() - started < 2  # quadratic time would be minutes


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("HTTPS://Shop.EXAMPLE/Ä b.JPG", "https://shop.example/Ä%20b.JPG"),
        ("//cdn.example/a.jpg", "https://cdn.example/a.jpg"),
        ("http://user:Word@Host/a", "http://user:Word@Host/a"),
        ("http://host:8080/a?b=c", "http://host:8080/a?b=c"),
        ("img\\a.jpg", "img/a.jpg"),
        ("./a//b/../c.jpg", "a/c.jpg"),
        ("/shop/pictures/a.jpg", "a.jpg"),
        ("file:///shop/pictures/%C3%A4%20b.jpg", "ä b.jpg"),
        ("12:30 a.jpg", "12:30 a.jpg"),
        ("DATA:image/png;base64,AA==", "data:image/png;base64,AA=="),
    ],
)
def test_a_reference_gets_its_one_form(written: str, reference: str) -> None:
    assert make_reference(written, ROOT) == reference


@pytest.mark.parametrize(
    ("written", "code", "message"),
    [
        ("ftp://a/b.jpg", "unsupported_url", "scheme 'ftp', expected http, https, data or a path"),
        ("javascript:alert(1)", "unsupported_url", "scheme 'javascript', expected http, https, data or a path"),
        (7, "unsupported_url", "found a value of type int, expected a URL, a path or a data URI"),
        ("http:///a.jpg", "invalid_url", "not a URL that can be fetched: no host"),
        ("https:a.jpg", "invalid_url", "not a URL that can be fetched: no host"),
        ("http://a b/c.jpg", "invalid_url", "not a URL that can be fetched: no host"),
        ("http://a:99999/", "invalid_url", "not a URL that can be fetched: port out of range 0-65535"),
        ("http://[::1/a", "invalid_url", "not a URL that can be fetched: invalid IPv6 URL"),
        ("http://a/\tb", "invalid_url", "not a URL that can be fetched: control character"),
        ("data:image/png;base64", "invalid_url", "data URI without a comma or with blanks inside"),
        ("..", "outside_root", "a path that leaves the image root"),
        ("a/../../b.jpg", "outside_root", "a path that leaves the image root"),
        ("..\\b.jpg", "outside_root", "a path that leaves the image root"),
        ("/etc/passwd", "outside_root", "an absolute path outside the image root"),
        ("C:\\a.jpg", "outside_root", "an absolute path outside the image root"),
        ("file:///shop/pictures/../../etc/passwd", "outside_root", "an absolute path outside the image root"),
        ("file://server/a.jpg", "outside_root", "a file on another machine"),
        ("file:///shop/pictures/%00.jpg", "bad_text", "the reference holds a NUL character or half a surrogate pair"),
        ("\ud800.jpg", "bad_text", "the reference holds a NUL character or half a surrogate pair"),
        (".", "invalid_url", "names the image root itself, not a file in it"),
    ],
)
def test_what_is_no_reference_says_why(written: object, code: str, message: str) -> None:
    with pytest.raises(RowError) as caught:
        make_reference(written, ROOT)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_a_relative_path_needs_a_root() -> None:
    with pytest.raises(RowError) as caught:
        make_reference("a.jpg", None)
    assert caught.value.code == "no_image_root"
    assert "give --image-root" in caught.value.message


def test_an_absolute_path_through_a_linked_root_is_inside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert make_reference(str(tmp_path / "real" / "a.jpg"), tmp_path / "link") == "a.jpg"
