"""One measurement at a time on a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitswitch_deploy.errors import OutputError, UnavailableError
from bitswitch_deploy.profiling.board import device_lock
from bitswitch_deploy.profiling.board.device_lock import LOCK_NAME, alone_on_this_machine


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device_lock, "folder", lambda: tmp_path)
    return tmp_path


def test_the_second_is_refused_and_the_third_is_not() -> None:
    with alone_on_this_machine():
        with pytest.raises(
            UnavailableError, match=r"this machine: another profile is running there\n  allowed: one at"
        ):
            alone_on_this_machine().__enter__()
        # a refusal takes nothing from the one that measures
        with pytest.raises(UnavailableError, match="another profile is running"):
            alone_on_this_machine().__enter__()
    with alone_on_this_machine():
        pass


def test_another_process_has_it_until_it_dies(folder: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from bitswitch_deploy.profiling.board import device_lock as it; "
        "it.folder = lambda: Path(sys.argv[1]); held = it.alone_on_this_machine(); held.__enter__(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, folder], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UnavailableError, match="another profile is running"):
            alone_on_this_machine().__enter__()
        other.kill()
    with alone_on_this_machine():
        pass


def test_a_file_of_another_user_will_do(folder: Path) -> None:
    (folder / LOCK_NAME).touch(0o444)
    with alone_on_this_machine():
        pass


def test_other_users_can_open_it(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with alone_on_this_machine():
            assert (folder / LOCK_NAME).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / LOCK_NAME)
    with pytest.raises(OutputError, match="cannot be locked: not a plain file"):
        alone_on_this_machine().__enter__()


def test_a_link_is_not_followed(folder: Path) -> None:
    (folder / LOCK_NAME).symlink_to(folder / "elsewhere")
    with pytest.raises(OutputError, match=r"(?s)cannot be locked.*TMPDIR"):
        alone_on_this_machine().__enter__()
    assert os.listdir(folder) == [LOCK_NAME]
