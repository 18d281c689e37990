"""Fetching what needs no network: files below the image root, and data URIs."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import FetchError
from tests.unit.test_fetch import failure, fetch, fetch_all

if TYPE_CHECKING:
    from pathlib import Path


def test_files_below_the_root_are_read(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "ü.jpg").write_bytes(b"bytes")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a b" / "ü.jpg")
    content = fetch("a b/ü.jpg", root=tmp_path).content
    assert (content.size_bytes, content.mime, content.etag) == (5, "image/jpeg", None)
    assert content.sha256 == hashlib.sha256(b"bytes").digest()
    assert fetch("link.jpg", root=tmp_path).data == b"bytes"
    assert fetch(str(tmp_path / "link.jpg"), root=tmp_path).data == b"bytes"


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "root-secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "root-secret")
    (root / "up").symlink_to(tmp_path)
    for name in ("../root-secret", "link", "up/root-secret", str(tmp_path / "root-secret"), "/etc/passwd"):
        error = failure(name, root=root)
        assert error.code == "outside_root"
        assert error.message == f"{name!r} leads outside the image root"


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "big.jpg").write_bytes(bytes(2000))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    names = ["nope.jpg", "big.jpg/x", "x" * 300, "circle", "a\0b", "folder", "pipe", "empty.jpg", "big.jpg"]
    codes = [error.code for error in fetch_all(names, root=tmp_path, max_bytes=1000) if isinstance(error, FetchError)]
    assert codes == ["file_not_found"] * 5 + ["not_a_file"] * 2 + ["empty", "too_large"]
    assert failure("nope.jpg", root=tmp_path).message == "there is no file 'nope.jpg' in the image root"
    assert failure("folder", root=tmp_path).message == "'folder' is no regular file"


def test_a_path_needs_a_root_and_a_scheme_must_be_http() -> None:
    error = failure("a.jpg")
    assert (error.code, error.message) == ("no_image_root", "'a.jpg' is a path, but there is no image root")
    error = failure("s3://bucket/a.jpg")
    assert error.code == "bad_url"
    assert error.message == "the image location begins with s3://, expected http or https"


@pytest.mark.parametrize(
    ("uri", "data", "mime"),
    [
        ("data:image/png;base64,aGVsbG8=", b"hello", "image/png"),
        ("data:image/png;base64,aGVsbG8", b"hello", "image/png"),
        ("data:image/png;base64,aGVs%0AbG8%3D", b"hello", "image/png"),
        ("DATA:image/gif;charset=x;BASE64,_-8=", b"\xff\xef", "image/gif"),
        ("data:,a%20b%00", b"a b\0", None),
    ],
)
def test_data_uris_are_decoded(uri: str, data: bytes, mime: str | None) -> None:
    found = fetch(uri)
    assert (found.data, found.content.mime) == (data, mime)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("data:image/png;base64", "bad_data_uri"),
        ("data:image/png;base64,@@@@", "bad_data_uri"),
        ("data:image/png;base64,abcde", "bad_data_uri"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64," + "A" * 4000, "too_large"),
        ("data:," + "%41" * 1001, "too_large"),
    ],
)
def test_bad_data_uris_are_named(uri: str, code: str) -> None:
    assert failure(uri, max_bytes=1000).code == code
