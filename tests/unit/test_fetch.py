"""Fetching from a real server on loopback, with everything that goes wrong there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import __version__
from pipeline.errors import FetchError
from pipeline.images.fetch import Fetcher
from pipeline.images.politeness import Host
from pipeline.records import Fetched, ImageRef
from pipeline.settings import FetchSettings
from tests.fixtures.http import Answer, ImageServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def settings(**changes: Any) -> FetchSettings:
    return FetchSettings(**{"allow_private_hosts": True, "timeout_s": 5.0, "retries": 0} | changes)


def fetch_all(urls: list[str], *, root: Path | None = None, **changes: Any) -> list[Fetched | FetchError]:
    """Fetch all at once; an error takes the place of the bytes."""

    async def one(fetcher: Fetcher, url: str) -> Fetched | FetchError:
        try:
            found = await fetcher.fetch(ImageRef(image_id=1, product_id="p", url=url))
        except FetchError as error:
            return error
        assert isinstance(found, Fetched)
        return found

    async def main() -> list[Fetched | FetchError]:
        async with Fetcher(settings(**changes), root) as fetcher:
            return await asyncio.gather(*(one(fetcher, url) for url in urls))

    return asyncio.run(main())


def fetch(url: str, **changes: Any) -> Fetched:
    (found,) = fetch_all([url], **changes)
    if isinstance(found, FetchError):
        raise found
    return found


def failure(url: str, **changes: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(url, **changes)
    return caught.value


# --- what goes well -----------------------------------------------------------------------------------------


def test_an_image_comes_with_its_sum_and_the_servers_words(image_server: ImageServer) -> None:
    url = image_server.url("/etag.jpg")
    found = fetch(url)
    content = found.content
    assert found.data == image_server.jpeg
    assert content.image == ImageRef(image_id=1, product_id="p", url=url)
    assert content.sha256 == hashlib.sha256(image_server.jpeg).digest()
    assert (content.size_bytes, content.mime) == (len(image_server.jpeg), "image/jpeg")
    assert (content.etag, content.last_modified) == ('"v1"', "Wed, 21 Oct 2015 07:28:00 GMT")


def test_the_server_learns_who_asks(image_server: ImageServer) -> None:
    fetch(image_server.url("/good.jpg"))
    headers = image_server.log[0].headers
    assert headers["User-Agent"].startswith(f"catvec/{__version__} (+")
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers


def test_a_large_image_is_summed_too(image_server: ImageServer) -> None:
    data = os.urandom(3_000_000)
    assert fetch(image_server.serve("/big", data)).content.sha256 == hashlib.sha256(data).digest()


def test_user_and_password_of_the_url_are_sent(image_server: ImageServer) -> None:
    image_server.serve("/private.jpg", [Answer(status=302, headers={"Location": "/good.jpg"})])
    fetch(image_server.url("/private.jpg").replace("//", "//me:p%40ss@"))
    expected = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert [each.headers.get("Authorization") for each in image_server.log] == [expected, expected]


def test_a_redirect_to_another_host_takes_no_password_along(image_server: ImageServer) -> None:
    with ImageServer() as other:
        image_server.serve("/a", b"", status=302, headers={"Location": other.url("/good.jpg")})
        fetch(image_server.url("/a").replace("//", "//me:secret@"))
        assert "Authorization" not in other.log[0].headers


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a%2Fb.jpg?sig=a%2Fb%2Bc+d", "/a%2Fb.jpg?sig=a%2Fb%2Bc+d"),  # signed: not one byte may change
        ("/a b/ü.jpg?q=é", "/a%20b/%C3%BC.jpg?q=%C3%A9"),
        ("/100%.jpg", "/100%25.jpg"),
    ],
)
def test_encoded_urls_stay_and_others_are_encoded(path: str, asked: str) -> None:
    with listener() as (port, lines):
        failure(f"http://127.0.0.1:{port}{path}")
        assert lines[0] == f"GET {asked} HTTP/1.1"


def test_connections_are_used_again(image_server: ImageServer) -> None:
    async def main() -> None:
        async with Fetcher(settings(), None) as fetcher:
            for _ in range(20):
                await fetcher.fetch(ImageRef(image_id=1, product_id="p", url=image_server.url("/good.jpg")))
            connections.append(len(fetcher._downloader._session.connector._conns))

    connections: list[int] = []
    asyncio.run(main())
    assert connections == [1]


def test_many_small_images_are_quick(image_server: ImageServer) -> None:
    started = time.perf_counter()
    found = fetch_all([image_server.url("/good.jpg")] * 1000, concurrency=64, per_host=64)
    assert all(isinstance(each, Fetched) for each in found)
    # 1,500 to 4,400 a second on two cores that the server shares; one session per image gives under 200
    assert time.perf_counter() - started < 5


# --- limits -------------------------------------------------------------------------------------------------


def test_never_more_requests_at_a_time_than_allowed(image_server: ImageServer) -> None:
    image_server.serve("/slow", [Answer(body=b"x", wait_s=0.02)])
    fetch_all([image_server.url("/slow")] * 30, concurrency=20, per_host=3)
    assert image_server.in_flight_most == 3
    with ImageServer() as other:
        other.serve("/slow", [Answer(body=b"x", wait_s=0.02)])
        fetch_all([other.url("/slow")] * 30, concurrency=4, per_host=9)
        assert other.in_flight_most == 4


def test_waiting_for_a_slot_does_not_count_against_the_deadline(image_server: ImageServer) -> None:
    url = image_server.serve("/slow", [Answer(body=b"x", wait_s=0.2)])
    found = fetch_all([url] * 6, per_host=1, timeout_s=0.6)
    assert all(isinstance(each, Fetched) for each in found)


@pytest.mark.parametrize("path", ["/nasty/endless.jpg", "/nasty/bomb.jpg"])
def test_a_body_over_the_limit_is_cut_off_while_it_comes(image_server: ImageServer, path: str) -> None:
    error = failure(image_server.url(path), max_bytes=500_000)
    assert error.code == "too_large"
    size = int(error.message.split()[3])
    assert 500_000 < size < 5_000_000
    assert error.message == f"the image has {size} bytes or more, expected at most 500000"


def test_an_announced_size_over_the_limit_is_not_even_read(image_server: ImageServer) -> None:
    error = failure(image_server.serve("/big", bytes(2000)), max_bytes=1000)
    assert (error.code, error.is_retryable) == ("too_large", False)
    assert fetch(image_server.url("/big"), max_bytes=2000).content.size_bytes == 2000


def test_a_body_without_any_length_is_read_to_its_end(image_server: ImageServer) -> None:
    image_server.serve_raw("/old.jpg", b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert fetch(image_server.url("/old.jpg")).data == b"abc"
    assert failure(image_server.url("/old.jpg"), max_bytes=2).code == "too_large"


@pytest.mark.parametrize("path", ["/nasty/slow.jpg", "/nasty/hang.jpg", "/nasty/error.jpg"])
@pytest.mark.parametrize("retries", [0, 8])
def test_the_deadline_holds(image_server: ImageServer, path: str, retries: int) -> None:
    started = time.perf_counter()
    error = failure(image_server.url(path), timeout_s=0.9, retries=retries)
    assert time.perf_counter() - started < 1.3
    assert error.is_retryable
    assert error.code == ("http_500" if "error" in path else "timeout")


def test_the_deadline_holds_when_names_are_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    started = time.perf_counter()
    error = failure("http://shop.example/a.jpg", timeout_s=0.3)
    assert (error.code, error.message) == ("timeout", "no complete answer within the deadline of 0.3 s")
    assert time.perf_counter() - started < 1
    answered.set()


def test_a_silent_server_is_asked_again_within_the_deadline(image_server: ImageServer) -> None:
    url = image_server.serve("/a", [Answer(wait_s=30), Answer(body=b"late but there")])
    assert fetch(url, timeout_s=3, retries=2).data == b"late but there"


# --- retries and politeness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_error_is_tried_again(image_server: ImageServer, status: int) -> None:
    url = image_server.serve("/a", [Answer(status=status), Answer(body=b"x")])
    assert fetch(url, retries=1).data == b"x"
    assert image_server.requests["/a"] == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_lasting_error_is_not(image_server: ImageServer, status: int) -> None:
    error = failure(image_server.serve("/a", b"no", status=status), retries=5)
    assert (error.code, error.is_retryable) == (f"http_{status}", False)
    assert image_server.requests["/a"] == 1


def test_errors_say_what_the_server_said(image_server: ImageServer) -> None:
    assert failure(image_server.url("/none")).message == "the server answered 404 (Not Found)"
    error = failure(image_server.url("/nasty/error.jpg"), retries=1)
    assert (error.message, error.is_retryable) == ("the server answered 500 (Internal Server Error)", True)
    assert image_server.requests["/nasty/error.jpg"] == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(image_server: ImageServer, as_date: bool) -> None:
    # a date has whole seconds: 2 s ahead means 1 to 2 s
    value = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    busy = Answer(status=429, headers={"Retry-After": value})
    assert fetch(image_server.serve("/a", [busy, Answer(body=b"x")]), retries=1).data == b"x"
    first, second = image_server.log
    assert second.at_s - first.at_s >= 0.95


def test_a_pause_longer_than_the_deadline_fails_at_once(image_server: ImageServer) -> None:
    url = image_server.serve("/a", b"", status=503, headers={"Retry-After": "86400"})
    started = time.perf_counter()
    errors = fetch_all([url] * 10, retries=3, per_host=2)
    assert time.perf_counter() - started < 0.5
    assert {error.code for error in errors if isinstance(error, FetchError)} == {"http_503"}
    assert errors[-1].message.startswith("the server asked for a pause of 86")
    assert errors[-1].message.endswith("s more, which is over the deadline of 5 s")
    assert image_server.requests["/a"] == 2  # those in flight; nobody asked after that


def test_one_busy_answer_slows_down_the_whole_host_and_no_other(image_server: ImageServer) -> None:
    image_server.serve("/busy", [Answer(status=429, headers={"Retry-After": "1"}), Answer(body=b"x")])
    image_server.serve("/other", [Answer(body=b"x", wait_s=0.05)])
    with ImageServer() as calm:
        urls = [image_server.url("/busy")] + [image_server.url("/other")] * 20 + [calm.url("/good.jpg")] * 20
        found = fetch_all(urls, retries=2, per_host=4)
        assert all(isinstance(each, Fetched) for each in found)
        asked_at = [each.at_s - image_server.log[0].at_s for each in image_server.log]
        # 3 others were in flight with it; after that a second of silence, and at most half as many at a time
        assert len([at for at in asked_at if at < 0.9]) <= 4
        assert all(each.at_s - image_server.log[0].at_s < 0.9 for each in calm.log)


def test_a_host_recovers_slowly() -> None:
    async def main() -> list[int]:
        host = Host(16)
        limits = []
        for _ in range(3):
            host.slow_down(429, asked_at=asyncio.get_running_loop().time(), retry_after_s=0)
            limits.append(host.limit)
        host.slow_down(429, asked_at=0.0, retry_after_s=0)  # was in flight before: no news
        limits.append(host.limit)
        answers = 0
        while host.limit < 16:
            host.speed_up()
            answers += 1
        return [*limits, answers]

    *limits, answers = asyncio.run(main())
    assert limits == [8, 4, 2, 2]
    assert 100 < answers < 160


def test_a_cancelled_waiter_loses_no_slot(image_server: ImageServer) -> None:
    async def main() -> int:
        async with Fetcher(settings(per_host=2, concurrency=2), None) as fetcher:
            image = ImageRef(image_id=1, product_id="p", url=image_server.url("/nasty/hang.jpg"))
            tasks = [asyncio.create_task(fetcher.fetch(image)) for _ in range(10)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            good = ImageRef(image_id=1, product_id="p", url=image_server.url("/good.jpg"))
            found = await asyncio.gather(*(fetcher.fetch(good) for _ in range(10)))
            assert {type(end) for end in ends} == {asyncio.CancelledError}
            assert not fetcher._downloader._hosts  # nothing is kept of hosts at rest
            return len(found)

    assert asyncio.run(main()) == 10


# --- redirects ----------------------------------------------------------------------------------------------


def test_redirects_are_followed_up_to_the_limit(image_server: ImageServer) -> None:
    assert fetch(image_server.url("/nasty/redirect/5")).data == image_server.jpeg
    error = failure(image_server.url("/nasty/redirect/6"))
    assert error.code == "too_many_redirects"
    assert error.message == f"more than 5 redirects, the last to {image_server.url('/good.jpg')}"
    assert failure(image_server.url("/nasty/redirect/1"), max_redirects=0).code == "too_many_redirects"


def test_a_circle_of_redirects_is_seen_at_once(image_server: ImageServer) -> None:
    error = failure(image_server.url("/nasty/loop"), retries=3)
    assert error.code == "too_many_redirects"
    assert error.message == f"the redirects go in a circle, back to {image_server.url('/nasty/loop')}"
    assert image_server.requests["/nasty/loop"] == 1


def test_a_redirect_leads_to_http_or_nowhere(image_server: ImageServer) -> None:
    error = failure(image_server.url("/nasty/to-file"))
    assert (error.code, error.message) == ("bad_redirect", "redirected to file://, expected http or https")
    image_server.serve("/lost", b"", status=302)
    assert failure(image_server.url("/lost")).code == "http_302"


# --- private addresses --------------------------------------------------------------------------------------


def test_private_hosts_are_refused_before_they_are_asked(image_server: ImageServer) -> None:
    port = image_server.port
    hosts = ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]
    errors = fetch_all([f"http://{host}:{port}/good.jpg" for host in hosts], allow_private_hosts=False)
    assert {error.code for error in errors if isinstance(error, FetchError)} == {"private_host"}
    assert errors[0].message == (
        "'127.0.0.1' leads to the private address 127.0.0.1, expected a public one (--allow-private-hosts)"
    )
    assert not image_server.log


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0"])
def test_other_ways_to_write_an_address_are_no_way_in(image_server: ImageServer, host: str) -> None:
    error = failure(f"http://{host}:{image_server.port}/good.jpg", allow_private_hosts=False)
    assert error.code in {"private_host", "bad_url"}
    assert not image_server.log


def test_a_public_name_that_turns_out_private_is_refused(
    image_server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = []

    def look_up(host: str, port: int, **_: object) -> list[Any]:
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    url = f"http://shop.example:{image_server.port}/good.jpg"
    assert failure(url, allow_private_hosts=False).code == "private_host"
    assert not image_server.log
    assert fetch(url).data == image_server.jpeg
    assert lookups == ["shop.example", "shop.example"]


def test_a_proxy_of_the_environment_is_not_asked(image_server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        assert fetch(image_server.url("/good.jpg")).data == image_server.jpeg
        assert not proxy.log


# --- broken answers -----------------------------------------------------------------------------------------


def test_a_page_instead_of_an_image_is_named(image_server: ImageServer) -> None:
    error = failure(image_server.url("/nasty/page.jpg"))
    assert error.code == "not_an_image"
    assert error.message == "the server sent an HTML page instead of an image: 'Shop Please log in'"
    image_server.serve("/mislabelled.jpg", image_server.jpeg, headers={"Content-Type": "text/html"})
    assert fetch(image_server.url("/mislabelled.jpg")).data == image_server.jpeg


def test_an_empty_body_is_named(image_server: ImageServer) -> None:
    error = failure(image_server.url("/nasty/empty.jpg"))
    assert (error.code, error.message) == ("empty", "the image has 0 bytes")


def test_a_body_that_ends_early_is_tried_again(image_server: ImageServer) -> None:
    error = failure(image_server.url("/nasty/cut.jpg"), retries=1)
    assert (error.code, error.is_retryable) == ("truncated_download", True)
    assert error.message == "the connection ended before the whole image was sent"
    assert image_server.requests["/nasty/cut.jpg"] == 2
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert failure(image_server.serve_raw("/chunks.jpg", head + b"5\r\nabcde\r\n")).code == "truncated_download"


def test_what_is_no_http_is_named(image_server: ImageServer) -> None:
    gzip = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nno gzip !"
    assert failure(image_server.serve_raw("/noise.jpg", b"\x00\x01\x02 hello\r\n\r\n")).code == "bad_response"
    assert failure(image_server.serve_raw("/gzip.jpg", gzip)).code == "bad_encoding"
    assert failure(image_server.serve_raw("/nothing.jpg", b"")).code == "connection"


def test_headers_that_no_database_could_store_are_dropped(image_server: ImageServer) -> None:
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nETag: "\xff\xfe"\r\n\r\nx'
    assert fetch(image_server.serve_raw("/a.jpg", head)).content.etag is None


def test_a_host_that_is_not_there_is_named(image_server: ImageServer) -> None:
    error = failure("http://127.0.0.1:1/a.jpg")
    assert (error.code, error.is_retryable) == ("connection", True)
    assert error.message == "no connection to '127.0.0.1': connection refused"
    error = failure(f"https://127.0.0.1:{image_server.port}/a.jpg")
    assert (error.code, error.message) == ("tls", "no encrypted connection to '127.0.0.1'")
    error = failure("http://nowhere.invalid/a.jpg")
    assert error.code == "dns"
    assert error.message.startswith("no address for 'nowhere.invalid': ")


@pytest.mark.parametrize("url", ["http://", "http:///a.jpg", "http://[::1", "http://a:99999/", "https://a b/c"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    assert failure(url).code in {"bad_url", "dns"}


def test_no_secret_of_a_url_is_ever_told(image_server: ImageServer) -> None:
    image_server.serve("/r", b"", status=302, headers={"Location": "/r?token=geheim"})
    bases = [
        "http://me:geheim@127.0.0.1:1/a?sig=geheim",
        "http://me:geheim@[::1/",
        "http://me:geheim@2130706433/?k=geheim",
    ]
    bases += [
        image_server.url(path).replace("//", "//me:geheim@") + "?key=geheim"
        for path in ("/none", "/r", "/nasty/loop")
    ]
    for error in fetch_all(bases, max_redirects=1):
        assert isinstance(error, FetchError)
        assert "geheim" not in f"{error!r} {error} {error.message}", error


@contextmanager
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server that notes the first line of one request as it came."""
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                lines.append(connection.recv(4096).split(b"\r\n")[0].decode())
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], lines
        thread.join(5)
