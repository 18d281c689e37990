"""Bytes from http(s) servers. aiohttp lives here, in `addresses` and in `faults`.

One deadline per image covers all its tries, redirects and pauses, but not the time in the queue for a free slot:
that says something of the settings, nothing of the image. Redirects are followed by hand, so that every hop
passes the same checks and queues. Proxy variables of the environment are ignored on purpose: behind a proxy
nobody could check which address is asked.

What a server said of an image last time (its ETag, its Last-Modified) is sent along, and a 304 then stands for the
bytes. It is believed: a server that keeps the ETag of other bytes, or that knows only dates and shows an older
picture again, is caught by asking without. Redirects to other hosts take it along, too: the last of them gave it
out, and to any other it means nothing.
"""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import hdrs
from yarl import URL

from pipeline import __version__
from pipeline.errors import FetchError
from pipeline.images import faults, sniff
from pipeline.images.addresses import DaemonResolver, open_public_socket
from pipeline.images.body import Body, too_large
from pipeline.images.politeness import Host

if TYPE_CHECKING:
    from pipeline.settings import FetchSettings

_HEADERS: Final = {
    "User-Agent": f"catvec/{__version__} (+catalog image indexing)",
    # the file itself: no variant that a CDN makes for browsers, no compression of what is compressed already
    "Accept": "image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5",
    "Accept-Encoding": "identity",
}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 503})

_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 8.0
# a try ends when the server is silent for this part of the deadline, so that two more fit in
_SILENCE_SHARE: Final = 3

# nginx refuses requests with a header over 8 KB: a server's own long validator would turn into a lasting 400
_LONGEST_VALIDATOR: Final = 1000

_ENCODED = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]++|%[0-9A-Fa-f]{2})*+")


@dataclass(slots=True)
class _Errand:
    """What is the same for all requests for one image: the conditions they are sent with, the deadline, and until
    when the host asks for a pause; both in loop time.
    """

    conditions: dict[str, str]
    deadline: float
    resume_at: float = 0.0


class Downloader:
    """Downloads for a Fetcher, which lends its `slots`. To be made and used in one event loop."""

    def __init__(self, settings: FetchSettings, slots: asyncio.Semaphore) -> None:
        self._settings = settings
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._hosts: dict[str, Host] = {}
        self._silence_s = settings.timeout_s / min(settings.retries + 1, _SILENCE_SHARE)
        connector = aiohttp.TCPConnector(
            limit=0,  # waiting for aiohttp's own limits would count against the deadline
            resolver=DaemonResolver(),
            ttl_dns_cache=60,
            socket_factory=None if settings.allow_private_hosts else open_public_socket,
        )
        silence = aiohttp.ClientTimeout(total=None, sock_connect=self._silence_s, sock_read=self._silence_s)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=silence,
        )

    async def close(self) -> None:
        await self._session.close()

    async def download(
        self, location: str, *, etag: str | None = None, last_modified: str | None = None
    ) -> Body | None:
        """Get what is behind an http(s) URL, trying again where that may help; None if it is still what `etag` or
        `last_modified` stood for.

        Raises:
            FetchError: whatever goes wrong.
        """
        url = _parse(location)
        errand = _Errand(_conditions(etag, last_modified), self._loop.time() + self._settings.timeout_s)
        for tries_left in range(self._settings.retries, -1, -1):
            try:
                return await self._follow(url, errand)
            except FetchError as error:
                # full jitter, so that images that failed together do not come back together
                longest_s = _FIRST_BACKOFF_S * 2 ** (self._settings.retries - tries_left)
                pause_s = random.uniform(0, min(_LONGEST_BACKOFF_S, longest_s))  # noqa: S311 - no secret
                is_in_time = max(self._loop.time() + pause_s, errand.resume_at) < errand.deadline
                if not (error.is_retryable and tries_left and is_in_time):
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    async def _follow(self, url: URL, errand: _Errand) -> Body | None:
        found = await self._queue(url, errand)
        seen = [url]
        while isinstance(found, str):
            url = _redirected(url, found)
            if url in seen:
                raise FetchError("too_many_redirects", f"the redirects go in a circle, back to {faults.show(url)}")
            if len(seen) > self._settings.max_redirects:
                raise FetchError(
                    "too_many_redirects",
                    f"more than {self._settings.max_redirects} redirects, the last to {faults.show(url)}",
                )
            seen.append(url)
            found = await self._queue(url, errand)
        return found

    async def _queue(self, url: URL, errand: _Errand) -> Body | str | None:
        """Wait until the host and the global limit have a slot, then ask; gives a body, a redirect's target, or None
        for a 304.
        """
        name = f"{url.raw_host}:{url.port}"
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host(self._settings.per_host)
        queued_at = self._loop.time()
        await host.enter()
        try:
            errand.deadline += self._loop.time() - queued_at
            # before the global slot: a pause of one host must not hold up the others
            await self._pause(host, errand)
            queued_at = self._loop.time()
            async with self._slots:
                errand.deadline += self._loop.time() - queued_at
                return await self._ask_in_time(url, host, errand)
        finally:
            errand.resume_at = host.resume_at
            host.leave()
            if host.is_idle:
                self._hosts.pop(name, None)

    async def _pause(self, host: Host, errand: _Errand) -> None:
        while (wait_s := host.resume_at - self._loop.time()) > 0:
            if host.resume_at >= errand.deadline:
                raise FetchError(
                    f"http_{host.busy_status}",
                    f"the server asked for a pause of {wait_s:.0f} s more, which is over the deadline of "
                    f"{self._settings.timeout_s:g} s",
                    is_retryable=True,
                )
            await asyncio.sleep(wait_s)

    async def _ask_in_time(self, url: URL, host: Host, errand: _Errand) -> Body | str | None:
        scope = asyncio.timeout_at(errand.deadline)
        try:
            async with scope:
                return await self._ask(url, host, errand.conditions)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if scope.expired():
                message = f"no complete answer within the deadline of {self._settings.timeout_s:g} s"
                raise FetchError("timeout", message, is_retryable=True) from error
            raise faults.of(error, url, silence_s=self._silence_s) from error

    async def _ask(self, url: URL, host: Host, conditions: dict[str, str]) -> Body | str | None:
        asked_at = self._loop.time()
        async with self._session.get(url, allow_redirects=False, headers=conditions) as response:
            status = response.status
            if status >= 400:
                _note_trouble(response, host, asked_at=asked_at)
                raise faults.of_status(status)
            host.speed_up()
            if status == 304 and conditions:
                return None
            if status in _REDIRECTS and (target := response.headers.get("Location")):
                return target
            if not 200 <= status < 300:
                raise faults.of_status(status)
            return await self._receive(response)

    async def _receive(self, response: aiohttp.ClientResponse) -> Body:
        most = self._settings.max_bytes
        if (response.content_length or 0) > most:
            raise too_large(response.content_length or 0, most)
        data = await response.content.readany()
        if not response.content.at_eof():
            data = await _receive_rest(response.content, data, most)
        if len(data) > most:
            raise too_large(len(data), most)
        headers = response.headers
        mime = response.content_type if hdrs.CONTENT_TYPE in headers else None
        _check_is_no_page(data, mime)
        return Body(
            data=data,
            mime=mime,
            etag=_usable(headers.get(hdrs.ETAG)),
            last_modified=_usable(headers.get(hdrs.LAST_MODIFIED)),
        )


async def _receive_rest(stream: aiohttp.StreamReader, start: bytes, most: int) -> bytes:
    """Read to the end, or until it is more than allowed."""
    data = bytearray(start)
    while len(data) <= most and (chunk := await stream.readany()):
        data += chunk
    return bytes(data)


def _conditions(etag: str | None, last_modified: str | None) -> dict[str, str]:
    """The headers that let the server answer 304: none for what cannot be sent."""
    conditions: dict[str, str] = {}
    if (etag := _usable(etag)) is not None:
        conditions[hdrs.IF_NONE_MATCH] = etag
    if (last_modified := _usable(last_modified)) is not None:
        conditions[hdrs.IF_MODIFIED_SINCE] = last_modified
    return conditions


def _note_trouble(response: aiohttp.ClientResponse, host: Host, *, asked_at: float) -> None:
    """Slow down if the server asks for it; any other status below 500 is the answer of a healthy server."""
    status, retry_after_s = response.status, _retry_after_s(response.headers.get("Retry-After"))
    if status in _BUSY or (status >= 500 and retry_after_s is not None):
        host.slow_down(status, asked_at=asked_at, retry_after_s=retry_after_s)
    elif status < 500:
        host.speed_up()


def _parse(location: str) -> URL:
    """Read a URL as it stands if it is encoded (signed URLs must not change), and encode it otherwise."""
    try:
        url = URL(location, encoded=_ENCODED.fullmatch(location) is not None)
        if url.host and (url.port or 0) >= 0 and url.scheme in {"http", "https"}:
            return url
    except ValueError:
        pass  # yarl's text quotes the URL, which may hold a password
    raise FetchError("bad_url", "the image location is no valid http(s) URL with a host")


def _redirected(url: URL, target: str) -> URL:
    try:
        absolute = url.join(URL(target, encoded=_ENCODED.fullmatch(target) is not None))
    except ValueError as error:
        raise FetchError("bad_redirect", "redirected to something that is no URL") from error
    if absolute.scheme not in {"http", "https"} or not absolute.host:
        raise FetchError("bad_redirect", f"redirected to {absolute.scheme}://, expected http or https")
    if absolute.user is None and url.user is not None and absolute.origin() == url.origin():
        absolute = absolute.with_user(url.user).with_password(url.password)
    return absolute.with_fragment(None)


def _retry_after_s(value: str | None) -> float | None:
    """Read seconds or an HTTP date (RFC 9110, 10.2.3); None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _check_is_no_page(data: bytes, mime: str | None) -> None:
    """Refuse what the server itself calls a page or JSON, if it is one; a wrong type alone is common and harmless."""
    if mime is None or not mime.endswith(("html", "json")):
        return
    start = data[:4096]
    thing = sniff.find_other_thing(start)
    if thing in sniff.READABLE and sniff.find_other_image(start) is None:
        words = sniff.first_words(start)
        raise FetchError("not_an_image", f"the server sent {thing} instead of an image: {words!r}")


def _usable(validator: str | None) -> str | None:
    """Drop what no database would store or no header may hold: control characters, and bytes that are no UTF-8, which
    aiohttp passes as surrogates. Other characters travel as UTF-8, which is how they came.
    """
    if validator and len(validator) <= _LONGEST_VALIDATOR and validator.isprintable():
        return validator
    return None
