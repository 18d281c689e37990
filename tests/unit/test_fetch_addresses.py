"""Which addresses count as public, whatever they are dressed up as."""

from __future__ import annotations

import asyncio
import socket

import pytest

from pipeline.images.addresses import DaemonResolver, is_public


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",  # shared by carriers
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",  # the metadata of cloud machines
        "172.16.0.1",
        "192.168.1.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # an old way to write 127.0.0.1
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",  # 10.0.0.1 through NAT64
        "64:ff9b:1::1",
        "2002:a00:1::",  # 10.0.0.1 through 6to4
        "2001:0:a00:1::",  # Teredo
        "2001:db8::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::",
    ],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_a_name_that_is_no_name_is_an_error_of_dns() -> None:
    async def look_up() -> None:
        await DaemonResolver().resolve("a" * 64 + ".example", 80)

    with pytest.raises(socket.gaierror):
        asyncio.run(look_up())


def test_names_resolve_to_addresses() -> None:
    found = asyncio.run(DaemonResolver().resolve("localhost", 80))
    assert {each["host"] for each in found} <= {"127.0.0.1", "::1"}
    assert found[0]["port"] == 80
