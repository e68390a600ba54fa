"""Addresses to which the gateway itself must not connect, in every spelling."""

from __future__ import annotations

import pytest

from gateway.addresses import fault_of_address, fault_of_url
from gateway.config.schema import AlertConfig

NEVER = [
    "169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "fd00:ec2::254",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
]
PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "10.1.2.3",
    "172.31.0.1",
    "192.168.1.1",
    "fc00::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
]
PUBLIC = ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "172.32.0.1", "100.128.0.1", "64:ff9b::5db8:d822"]


@pytest.mark.parametrize("address", NEVER)
def test_metadata_link_local_and_unspecified_addresses_are_always_refused(address: str) -> None:
    assert fault_of_address(address, private_allowed=False)
    assert fault_of_address(address, private_allowed=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_accepted_only_with_private_allowed(address: str) -> None:
    assert fault_of_address(address, private_allowed=False)
    assert fault_of_address(address, private_allowed=True) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_accepted(address: str) -> None:
    assert fault_of_address(address, private_allowed=False) is None


@pytest.mark.parametrize(
    "host",
    ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "①②⑦.⓪.⓪.①", "[::ffff:127.0.0.1]", "localhost", "a.localhost"],
)
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    assert fault_of_url(f"https://{host}/hook", private_allowed=False)


@pytest.mark.parametrize("url", ["ftp://example.com", "https://", "example.com", "http://[::1", "https://a:notaport/"])
def test_malformed_url_is_refused(url: str) -> None:
    assert fault_of_url(url, private_allowed=True)


def test_private_webhook_is_a_config_error_that_names_private_networks() -> None:
    with pytest.raises(ValueError, match=r"private_networks: true"):
        AlertConfig(webhook="http://10.0.0.5/hook")
    assert AlertConfig(webhook="http://10.0.0.5/hook", private_networks=True).webhook
    with pytest.raises(ValueError, match="metadata"):
        AlertConfig(webhook="http://169.254.169.254/latest", private_networks=True)
    assert AlertConfig(webhook="https://hooks.example.com/T0/B0").webhook
