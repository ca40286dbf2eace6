from __future__ import annotations

import pytest

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.remote.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("local", None),
        ("ssh://nano", Address(host="nano")),
        ("ssh://me@nano.lan:2222", Address(host="nano.lan", user="me", port=2222)),
        ("ssh://[fe80::1%25eth0]:22", Address(host="fe80::1%eth0", port=22)),
        ("ssh://10.0.0.7/", Address(host="10.0.0.7")),
        ("ssh://nano@Nano:22", Address(host="Nano", user="nano", port=22)),
        ("ssh://[FE80::1%25wlP1]", Address(host="FE80::1%wlP1")),
    ],
)
def test_addresses(text: str, address: Address | None) -> None:
    assert parse_address(text) == address
    if address is not None:
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "nano",
        "me@nano",
        "",
        "ssh://",
        "http://nano",
        "ssh://nano/folder",
        "ssh://nano:port",
        "ssh://nano:99999",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@nano",
        "ssh://me;reboot@nano",
        "ssh://nano?x=1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="allowed: local, or ssh://user@host:port"):
        parse_address(text)


def test_the_name_that_is_checked_is_the_one_that_ssh_gets() -> None:
    with pytest.raises(UsageError, match="--device"):
        parse_address("ssh://\u212aost")  # the sign for Kelvin, k in lower case


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://nano", ("nano",)),
        ("ssh://me@nano:2222", ("-p", "2222", "me@nano")),
        ("ssh://me@[fe80::1%25eth0]", ("me@fe80::1%eth0",)),
    ],
)
def test_words_for_a_command_line(text: str, words: tuple[str, ...]) -> None:
    address = parse_address(text)
    assert address is not None
    assert address.words == words


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="a password") as refused:
        parse_address("ssh://me:secret@nano")
    assert "secret" not in str(refused.value)
