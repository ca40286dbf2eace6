"""How a long step tells its caller how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about steps as they start and advance; the command line draws a bar from it."""

    def start(self, description: str, total: int) -> None:
        """A step of `total` units begins; the one before it has ended."""

    def advance(self, n: int = 1) -> None:
        """`n` more units of the current step are done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, description: str, total: int) -> None:
        """Ignore it."""

    def advance(self, n: int = 1) -> None:
        """Ignore it."""
