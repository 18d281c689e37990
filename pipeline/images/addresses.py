"""Which addresses may be connected to, and how names become addresses.

The check sits in the connector's socket factory: it sees the very address that the next system call connects to,
be it a literal one, an answer of DNS or the target of a redirect. A name that changes its answer in between
(DNS rebinding) gains nothing, since nothing is looked up twice.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """A connection to an address that is not on the public internet was refused."""

    def __init__(self, address: str) -> None:
        super().__init__("not a public address")  # the same for all addresses: aiohappyeyeballs merges by text
        self.address = address


def is_public(address: str) -> bool:
    """Say whether an IPv4 or IPv6 address is an ordinary one of the public internet.

    Not public: private, loopback, link-local, multicast, reserved, unspecified and shared (100.64.0.0/10)
    ones, and IPv6 addresses that embed such an IPv4 address (mapped, NAT64, 6to4).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def open_public_socket(info: AddrInfoType) -> socket.socket:
    """Make the socket for an address that aiohttp is about to connect to.

    Raises:
        PrivateAddressError: the address is not public.
    """
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise PrivateAddressError(str(address[0]))
    return socket.socket(family=family, type=kind, proto=protocol)


class DaemonResolver(AbstractResolver):
    """Look names up with getaddrinfo, each in a daemon thread of its own.

    A look-up cannot be interrupted. In the pool that asyncio uses for it, a few names of a dead DNS server would
    hold up the others and then the end of the process. aiohttp's cache asks once per host at a time.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def settle(found: list[ResolveResult] | None, error: OSError | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(found or [])
            else:
                answer.set_exception(error)

        def look_up() -> None:
            found, error = None, None
            try:
                found = _look_up(host, port, family)
            except OSError as failure:
                error = failure
            except UnicodeError:  # a label of more than 63 characters, or an empty one
                error = socket.gaierror(socket.EAI_NONAME, "not a host name")
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(settle, found, error)

        threading.Thread(target=look_up, name=f"dns-{host}", daemon=True).start()
        return await answer

    async def close(self) -> None:
        """Nothing is held."""


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    infos = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=flags)
        for kind, _, protocol, _, address in infos
    ]
