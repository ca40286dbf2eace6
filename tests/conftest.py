"""The command line in this process, through the real entry point; and signals as a foreground shell leaves them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bitswitch_deploy.cli.main import main
from bitswitch_deploy.profiling.board import device_lock

# A job in the background is started with these ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True, scope="session")
def device_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that profile run side by side, on what they take for different machines."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_lock, "folder", tmp_path_factory.getbasetemp)
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bitswitch-deploy", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        code = exit_info.value.code
        return Outcome(code=code if isinstance(code, int) else 0, out=captured.out, err=captured.err)

    return call
