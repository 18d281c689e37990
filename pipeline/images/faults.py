"""What aiohttp raises and servers answer → FetchError, with a code that reports can group by.

aiohttp's own texts are not passed on: some quote the URL, which may hold a password or a signature.
"""

from __future__ import annotations

import os
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from pipeline.errors import FetchError
from pipeline.images.addresses import PrivateAddressError

if TYPE_CHECKING:
    from yarl import URL

_PHRASES: Final = {status.value: f" ({status.phrase})" for status in HTTPStatus}
# 304 comes out of a cache that mixes up whom it answers, and goes when its entry does
_RETRYABLE: Final = frozenset({304, 408, 425, 429})


def of_status(status: int) -> FetchError:
    """Name an answer that is neither good nor a redirect."""
    message = f"the server answered {status}{_PHRASES.get(status, '')}"
    if status == 304:
        message += " to a request without conditions, expected the image"
    return FetchError(f"http_{status}", message, is_retryable=status in _RETRYABLE or status >= 500)


def of(error: Exception, url: URL, *, silence_s: float) -> FetchError:
    """Name what asking for `url` raised."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError):
        return _of_connecting(error, url)
    if isinstance(error, TimeoutError):
        return FetchError("timeout", f"{url.host!r} was silent for {silence_s:g} s", is_retryable=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return _of_payload(error)
    if isinstance(error, aiohttp.ClientResponseError):
        message = f"the answer of {url.host!r} is no valid HTTP"
        return FetchError("bad_response", message, is_retryable=True)
    if isinstance(error, ValueError):  # InvalidURL among them
        return FetchError("bad_url", f"{show(url)!r} is no URL that can be asked for")
    return FetchError("connection", f"{url.host!r} hung up before an answer", is_retryable=True)


def show(url: URL) -> str:
    """Write a URL without what may be secret in it: user, password, query and fragment."""
    port = "" if url.is_default_port() else f":{url.port}"
    path = url.path if len(url.path) <= 100 else url.path[:99] + "…"
    return f"{url.scheme}://{url.host}{port}{path}" + ("?…" if url.raw_query_string else "")


def _of_connecting(
    error: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError, url: URL
) -> FetchError:
    host = url.host
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "not valid"
        return FetchError("tls", f"the certificate of {host!r} is refused: {reason.lower()}")
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", f"no encrypted connection to {host!r}", is_retryable=True)
    cause = error.os_error
    if isinstance(cause, PrivateAddressError):
        message = (
            f"{host!r} leads to the private address {cause.address}, expected a public one (--allow-private-hosts)"
        )
        return FetchError("private_host", message)
    if isinstance(cause, socket.gaierror):
        reason = (cause.strerror or "it has none").lower()
        return FetchError("dns", f"no address for {host!r}: {reason}", is_retryable=cause.errno == socket.EAI_AGAIN)
    # asyncio's text repeats the address
    reason = os.strerror(cause.errno).lower() if cause.errno else "none of its addresses answers"
    return FetchError("connection", f"no connection to {host!r}: {reason}", is_retryable=True)


def _of_payload(error: aiohttp.ClientPayloadError) -> FetchError:
    if isinstance(error.__cause__, ContentEncodingError):
        return FetchError("bad_encoding", "the server's compression of the image cannot be undone")
    message = "the connection ended before the whole image was sent"
    return FetchError("truncated_download", message, is_retryable=True)
