"""Fetching what was fetched before: a server or a file that says "as it was" is believed, anything else is read."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import FetchError
from pipeline.images.fetch import Fetcher
from pipeline.records import Fetched, ImageRef, NotModified
from tests.fixtures.http import Answer, ImageServer
from tests.unit.test_fetch import settings

if TYPE_CHECKING:
    from pathlib import Path

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
HOUR_NS = 3_600_000_000_000


def ask(url: str, *, etag: str | None = None, last_modified: str | None = None) -> ImageRef:
    return ImageRef(image_id=1, product_id="p", url=url, etag=etag, last_modified=last_modified)


def again(found: Fetched) -> ImageRef:
    """The next request for the same image."""
    content = found.content
    return ask(content.image.url, etag=content.etag, last_modified=content.last_modified)


def fetch(image: ImageRef, *, root: Path | None = None, **changes: Any) -> Fetched | NotModified:
    (found,) = fetch_in_turn([image], root=root, **changes)
    return found


def fetch_in_turn(images: list[ImageRef], *, root: Path | None = None, **changes: Any) -> list[Fetched | NotModified]:
    """One after the other, so that a connection is used again."""

    async def main() -> list[Fetched | NotModified]:
        async with Fetcher(settings(**changes), root) as fetcher:
            return [await fetcher.fetch(image) for image in images]

    return asyncio.run(main())


def read(image: ImageRef, *, root: Path | None = None, **changes: Any) -> Fetched:
    found = fetch(image, root=root, **changes)
    assert isinstance(found, Fetched)
    return found


def failure(image: ImageRef, *, root: Path | None = None, **changes: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(image, root=root, **changes)
    return caught.value


def conditions(server: ImageServer) -> list[tuple[str | None, str | None]]:
    """What each request named: an ETag, a date."""
    headers = [request.headers for request in server.log]
    return [(each.get("If-None-Match"), each.get("If-Modified-Since")) for each in headers]


# --- servers ------------------------------------------------------------------------------------------------


def test_what_the_server_said_is_said_back_and_spares_the_bytes(image_server: ImageServer) -> None:
    first = read(ask(image_server.url("/etag.jpg")))
    image = again(first)
    assert fetch(image) == NotModified(image=image)
    assert conditions(image_server) == [(None, None), ('"v1"', DATE)]
    assert image_server.log[1].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', "unquoted", '"with, comma"', '"ü日"'])
def test_an_etag_is_echoed_letter_by_letter(image_server: ImageServer, etag: str) -> None:
    url = image_server.serve("/a.jpg", [Answer(body=b"x", headers={"ETag": etag}, revalidates=True)])
    image = again(read(ask(url)))
    assert (image.etag, image.last_modified) == (etag, None)
    assert fetch(image) == NotModified(image=image)
    assert conditions(image_server) == [(None, None), (etag, None)]


def test_a_date_alone_will_do(image_server: ImageServer) -> None:
    url = image_server.serve("/a.jpg", [Answer(body=b"x", headers={"Last-Modified": DATE}, revalidates=True)])
    image = again(read(ask(url)))
    assert fetch(image) == NotModified(image=image)
    assert conditions(image_server) == [(None, None), (None, DATE)]


def test_other_bytes_behind_the_url_come_with_their_own_validators(image_server: ImageServer) -> None:
    later = "Thu, 22 Oct 2015 07:28:00 GMT"
    old = Answer(body=b"old", headers={"ETag": '"1"', "Last-Modified": DATE}, revalidates=True)
    new = Answer(body=b"new", headers={"ETag": '"2"', "Last-Modified": later}, revalidates=True)
    url = image_server.serve("/a.jpg", [old, new])
    found = read(again(read(ask(url))))
    assert (found.data, found.content.sha256) == (b"new", hashlib.sha256(b"new").digest())
    assert (found.content.etag, found.content.last_modified) == ('"2"', later)
    assert isinstance(fetch(again(found)), NotModified)


def test_a_server_without_validators_sends_the_bytes_each_time(image_server: ImageServer) -> None:
    found = read(again(read(ask(image_server.url("/good.jpg")))))
    assert found.data == image_server.jpeg
    assert conditions(image_server) == [(None, None)] * 2


def test_a_server_that_keeps_the_etag_of_other_bytes_is_believed_until_asked_without(
    image_server: ImageServer,
) -> None:
    lies = [Answer(body=body, headers={"ETag": '"1"'}, revalidates=True) for body in (b"old", b"new")]
    url = image_server.serve("/a.jpg", lies)
    assert isinstance(fetch(again(read(ask(url)))), NotModified)
    assert read(ask(url)).data == b"new"


def test_a_304_that_nobody_asked_for_is_an_error(image_server: ImageServer) -> None:
    url = image_server.serve("/a.jpg", b"", status=304)
    error = failure(ask(url))
    assert (error.code, error.is_retryable) == ("http_304", True)
    assert error.message == (
        "the server answered 304 (Not Modified) to a request without conditions, expected the image"
    )
    mended = image_server.serve("/b.jpg", [Answer(status=304), Answer(body=b"x")])
    assert read(ask(mended), retries=1).data == b"x"


@pytest.mark.parametrize("first", [503, 500, 429])
def test_a_second_try_asks_the_same(image_server: ImageServer, first: int) -> None:
    known = Answer(body=b"x", headers={"ETag": '"1"'}, revalidates=True)
    url = image_server.serve("/a.jpg", [Answer(status=first), known])
    assert isinstance(fetch(ask(url, etag='"1"'), retries=1), NotModified)
    assert conditions(image_server) == [('"1"', None)] * 2


def test_a_pause_that_the_server_asks_for_is_kept_before_a_304(image_server: ImageServer) -> None:
    known = Answer(body=b"x", headers={"ETag": '"1"'}, revalidates=True)
    url = image_server.serve("/a.jpg", [Answer(status=429, headers={"Retry-After": "1"}), known])
    assert isinstance(fetch(ask(url, etag='"1"'), retries=1), NotModified)
    first, second = image_server.log
    assert second.at_s - first.at_s >= 0.95


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_redirect_takes_the_conditions_along(image_server: ImageServer, is_elsewhere: bool) -> None:
    with ImageServer() as other:
        server = other if is_elsewhere else image_server
        image_server.serve("/a", b"", status=302, headers={"Location": server.url("/etag.jpg")})
        image = again(read(ask(image_server.url("/a"))))
        assert fetch(image) == NotModified(image=image)
        assert server.log[-1].path == "/etag.jpg"
        assert conditions(server)[-1] == ('"v1"', DATE)


@pytest.mark.parametrize(
    "etag",
    [
        "",
        '"a"\r\nX-Evil: 1',
        '"a"\nX-Evil: 1',
        '"a"\rX-Evil: 1',
        '"\0"',
        '"\x7f\x85"',
        '"\ud800"',
        '"\u2028"',
        '"' + "a" * 5000 + '"',
    ],
)
def test_a_validator_that_no_header_can_hold_is_left_out(image_server: ImageServer, etag: str) -> None:
    url = image_server.url("/etag.jpg")
    assert read(ask(url, etag=etag, last_modified=etag)).data == image_server.jpeg
    assert conditions(image_server) == [(None, None)]
    assert "X-Evil" not in image_server.log[0].headers
    assert isinstance(fetch(ask(url, etag='"v1"', last_modified=etag)), NotModified)
    assert failure(ask(image_server.serve("/b", b"", status=304), etag=etag)).code == "http_304"


def test_a_validator_too_long_to_be_sent_back_is_not_kept(image_server: ImageServer) -> None:
    url = image_server.serve("/a.jpg", b"x", headers={"ETag": '"' + "a" * 5000 + '"', "Last-Modified": DATE})
    content = read(ask(url)).content
    assert (content.etag, content.last_modified) == (None, DATE)


@pytest.mark.parametrize("length", [b"", b"Content-Length: 999999999\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_304_has_no_body_whatever_it_says(length: bytes) -> None:
    """And the connection serves the next request."""
    answers = [b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n' + length + b"\r\n"] * 3
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer_in_turn, args=(listener, answers), daemon=True).start()
        image = ask(f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg", etag='"1"')
        assert fetch_in_turn([image] * 3, timeout_s=2.0) == [NotModified(image=image)] * 3


def test_a_304_followed_by_bytes_harms_no_other_image(image_server: ImageServer) -> None:
    noisy = image_server.serve_raw("/noisy.jpg", b"HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\n\r\nnot yours")
    found = fetch_in_turn([ask(noisy, etag='"1"'), ask(image_server.url("/good.jpg"))], retries=1)
    assert isinstance(found[0], NotModified)
    assert isinstance(found[1], Fetched)
    assert found[1].data == image_server.jpeg


def answer_in_turn(listener: socket.socket, answers: list[bytes]) -> None:
    """Give one answer to each request, all on the first connection."""
    connection, _ = listener.accept()
    with connection:
        for answer in answers:
            connection.recv(4096)
            connection.sendall(answer)
        connection.recv(4096)


# --- files --------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes, *, age_ns: int = HOUR_NS) -> Path:
    """A file that was written some time ago."""
    path.write_bytes(data)
    then = time.time_ns() - age_ns
    os.utime(path, ns=(then, then))
    return path


def test_a_file_that_was_not_touched_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", b"bytes")
    image = again(read(ask("a.jpg"), root=tmp_path))
    assert image.etag == f'"5-{path.stat().st_mtime_ns}"'
    assert image.last_modified is None
    path.chmod(0)  # the state of a file can be read where its bytes cannot
    assert fetch(image, root=tmp_path) == NotModified(image=image)


def test_a_file_of_another_size_or_time_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", b"bytes")
    first = read(ask("a.jpg"), root=tmp_path)
    write(path, b"other", age_ns=HOUR_NS - 1_000_000)
    second = read(again(first), root=tmp_path)
    assert second.data == b"other"
    modified_ns = path.stat().st_mtime_ns
    path.write_bytes(b"others")
    os.utime(path, ns=(modified_ns, modified_ns))
    third = read(again(second), root=tmp_path)
    assert (third.data, third.content.etag) == (b"others", f'"6-{modified_ns}"')


def test_a_file_that_was_only_touched_has_the_same_sum(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", b"bytes")
    first = read(ask("a.jpg"), root=tmp_path)
    write(path, b"bytes", age_ns=2 * HOUR_NS)  # older counts as well: a restored backup
    second = read(again(first), root=tmp_path)
    assert second.content.sha256 == first.content.sha256
    assert second.content.etag != first.content.etag
    assert isinstance(fetch(again(second), root=tmp_path), NotModified)


@pytest.mark.parametrize("age_ns", [0, 1_000_000_000, -HOUR_NS])
def test_a_file_written_just_now_is_read_again_next_time(tmp_path: Path, age_ns: int) -> None:
    path = write(tmp_path / "a.jpg", b"bytes", age_ns=age_ns)
    first = read(ask("a.jpg"), root=tmp_path)
    assert first.content.etag is None
    modified_ns = path.stat().st_mtime_ns
    path.write_bytes(b"other")
    os.utime(path, ns=(modified_ns, modified_ns))  # the clock has not ticked in between
    assert read(again(first), root=tmp_path).data == b"other"


def test_a_file_that_went_away_is_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", b"bytes")
    image = again(read(ask("a.jpg"), root=tmp_path))
    path.unlink()
    error = failure(image, root=tmp_path)
    assert (error.code, error.message) == ("file_not_found", "there is no file 'a.jpg' in the image root")
    path.mkdir()
    assert failure(image, root=tmp_path).code == "not_a_file"


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    write(root / "a.jpg", b"a")
    write(root / "b.jpg", b"b", age_ns=2 * HOUR_NS)
    outside = write(tmp_path / "outside.jpg", b"a")
    os.utime(outside, ns=((root / "a.jpg").stat().st_mtime_ns,) * 2)
    link = root / "link.jpg"
    link.symlink_to("a.jpg")
    image = again(read(ask("link.jpg"), root=root))
    assert isinstance(fetch(image, root=root), NotModified)
    swap(link, "b.jpg")
    assert read(image, root=root).data == b"b"
    swap(link, "../outside.jpg")  # of the same size and time
    assert failure(image, root=root).code == "outside_root"


def swap(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def test_a_file_replaced_while_it_is_read_gets_the_validator_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jpg", b"old")
    old_ns = path.stat().st_mtime_ns
    newer = write(tmp_path / "newer.jpg", b"new", age_ns=HOUR_NS // 2)
    look = os.fstat

    def look_and_be_overtaken(file: int) -> os.stat_result:
        state = look(file)
        if newer.exists():
            newer.replace(path)
        return state

    monkeypatch.setattr(os, "fstat", look_and_be_overtaken)
    found = read(ask("a.jpg"), root=tmp_path)
    assert (found.data, found.content.etag) == (b"old", f'"3-{old_ns}"')
    assert read(again(found), root=tmp_path).data == b"new"


def test_what_a_server_said_is_nothing_to_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", b"bytes")
    assert read(ask("a.jpg", etag='"v1"', last_modified=DATE), root=tmp_path).data == b"bytes"


def test_a_data_uri_is_read_each_time() -> None:
    found = read(ask("data:image/png;base64,aGVsbG8=", etag='"1"', last_modified=DATE))
    assert (found.data, found.content.etag, found.content.last_modified) == (b"hello", None, None)
