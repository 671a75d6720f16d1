"""Promises about the address to listen on."""

import socket

import pytest

from app.supervisor.address import AddressRefused, base_url, is_loopback, take_port


def test_take_port_when_busy_names_the_option_and_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressRefused, match=rf"Port {port} on 127.0.0.1 is in use .*--port \d+") as caught:
            take_port("127.0.0.1", port, wait_s=0)
    assert "\n" not in str(caught.value)


def test_take_port_when_zero_finds_a_free_one() -> None:
    port = take_port("127.0.0.1", 0)
    assert take_port("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_take_port_when_the_host_is_not_ours_names_the_option(host: str) -> None:
    with pytest.raises(AddressRefused, match="--host"):
        take_port(host, 0, wait_s=0)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8"), ("0.0.0.0", "http://127.0.0.1:8"), ("::1", "http://[::1]:8")],
)
def test_base_url_for_a_host_can_be_opened_from_here(host: str, url: str) -> None:
    assert base_url(host, 8) == url


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_is_loopback_for_a_host_says_who_can_reach_it(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
