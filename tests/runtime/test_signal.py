"""A signal handler that closes a switcher runs in a thread that may be in the middle of a switch."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.runtime import Switcher
from bitswitch_deploy.runtime.session_cache import SessionCache
from bitswitch_deploy.runtime.switcher import Session


class Nothing:
    inputs: tuple[InputSignature, ...] = ()
    output_names = ("y",)

    def run_all(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        return {}


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    threading.Event().wait(0.01)  # where the handler runs


class Costs(dict[str, int]):
    """Interrupts whoever makes room for w4, which the cache does under its lock."""

    def __getitem__(self, label: str) -> int:
        if label == "w4" and any(frame.function == "_drop_for" for frame in inspect.stack()):
            interrupt()
        return super().__getitem__(label)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="a signal of one's own")
@pytest.mark.parametrize("moment", ["opening", "making room"])
def test_a_handler_closes_while_its_own_thread_switches(moment: str) -> None:
    def opened(label: str) -> Session:
        if label == "w4" and moment == "opening":
            interrupt()
        return Nothing()

    costs = {"w8": 1, "w4": 1}
    cache: SessionCache[Session] = SessionCache(opened, Costs(costs) if moment == "making room" else costs, 2)
    switcher = Switcher(("w8", "w4"), cache, width="w8", policy=None)
    before = signal.signal(signal.SIGUSR1, lambda *_: switcher.close())
    try:
        with pytest.raises(UsageError, match="a call after close"):
            switcher.switch(4)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert switcher.open_widths == ()
    with pytest.raises(UsageError, match="a call after close"):
        switcher.run_all({})
