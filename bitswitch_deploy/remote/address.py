"""Where a device is: `ssh://user@host:port`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from bitswitch_deploy.errors import UsageError

LOCAL = "local"
_NAME = re.compile(r"[A-Za-z0-9_.:%-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A machine that `ssh` reaches; user and port None: what the user's ssh configuration says."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")

    @property
    def words(self) -> tuple[str, ...]:
        """The words for ssh on a command line: not every ssh takes every address as a URI."""
        port = () if self.port is None else ("-p", str(self.port))
        return (*port, self.host if self.user is None else f"{self.user}@{self.host}")


def parse_address(text: str) -> Address | None:
    """The address in `text`; None for `local`.

    Raises:
        UsageError: it is no such address, holds a password or a path, or a name that ssh would take for an option.
    """
    if text == LOCAL:
        return None
    try:
        parts = urlsplit(text)
        host, user, port, password = parts.hostname, parts.username, parts.port, parts.password
    except ValueError as exc:
        raise _refusal(text, f"{text!r}: {exc}") from exc
    if password is not None:
        # shown nowhere, as it would end in a log
        raise _refusal("ssh://user:...@host", "a password")
    if parts.scheme != "ssh" or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise _refusal(text, repr(text))
    # `hostname` is in lower case, and names in an ssh configuration are not
    begin = parts.netloc.lower().rindex(host.lower())
    written = parts.netloc[begin : begin + len(host)]
    for name in (written, user):
        if name is not None and (name.startswith("-") or not _NAME.fullmatch(name)):
            raise _refusal(text, repr(text))
    # a URI writes the % in front of a network interface as %25 (RFC 6874), ssh takes it as it is
    return Address(host=written.replace("%25", "%"), user=user, port=port)


def _refusal(text: str, got: str) -> UsageError:
    return UsageError(
        where=f"--device {text}",
        got=got,
        allowed=f"{LOCAL}, or ssh://user@host:port, user and port as you like",
        do="keys, jump hosts and the like belong into the ssh configuration, ~/.ssh/config",
    )
