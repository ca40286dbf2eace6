"""The real seam: files and processes of this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bitswitch_deploy.profiling.board.host import Host, run_command, start_command


def test_a_command_gives_its_output() -> None:
    assert run_command((sys.executable, "-c", "print('mode 15W')")) == "mode 15W\n"


def test_a_command_that_is_missing_or_fails_gives_nothing() -> None:
    assert run_command(("no-such-command-here",)) is None
    assert run_command((sys.executable, "-c", "print('x'); raise SystemExit(3)")) is None


def test_a_command_that_goes_on_is_ended_and_its_output_is_there(tmp_path: Path) -> None:
    recording = start_command(("sh", "-c", f"echo 1; echo 2; touch {tmp_path}/printed; exec sleep 60"))
    assert recording is not None
    while not (tmp_path / "printed").exists():
        time.sleep(0.01)
    assert recording.stop() == "1\n2\n"


def test_a_command_that_cannot_start_is_no_recording() -> None:
    assert start_command(("no-such-command-here",)) is None


def test_unreadable_files_have_no_text(tmp_path: Path) -> None:
    host = Host(root=tmp_path)
    (tmp_path / "number").write_text(" 42\n\0")
    (tmp_path / "folder").mkdir()
    assert (host.number("number"), host.number("folder"), host.text("missing")) == (42, None, None)


def test_paths_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        (tmp_path / f"zone{index}").mkdir()
    assert [path.name for path in Host(root=tmp_path).find("zone*")] == ["zone1", "zone2", "zone10"]
