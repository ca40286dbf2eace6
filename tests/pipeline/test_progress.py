"""Progress across a connection."""

from __future__ import annotations

from bitswitch_deploy.pipeline.progress import ProgressLines, followed, without_progress


class Noted:
    def __init__(self) -> None:
        self.steps: list[list[object]] = []

    def start(self, description: str, total: int) -> None:
        self.steps.append([description, total, 0])

    def advance(self, n: int = 1) -> None:
        self.steps[-1][2] += n  # type: ignore[operator]


def test_a_bar_at_the_other_end() -> None:
    now = 0.0
    lines: list[str] = []
    here = ProgressLines(lines.append, clock=lambda: now)
    here.start("timing, batch 1", 40)
    for _ in range(40):
        now += 0.05
        here.advance()
    here.start("layers", 1)
    here.advance()
    # one in a second, and the last
    assert lines == [
        *("progress 0/40 timing, batch 1", "progress 20/40 timing, batch 1", "progress 40/40 timing, batch 1"),
        *("progress 0/1 layers", "progress 1/1 layers"),
    ]
    noted = Noted()
    said: list[str] = []
    hear = followed(noted, said.append, where="nano")
    for line in [*lines[:2], "a warning", *lines[2:]]:
        hear(line)
    assert noted.steps == [["nano: timing, batch 1", 40, 40], ["nano: layers", 1, 1]]
    assert said == ["a warning"]


def test_a_step_that_begins_again_is_another_step() -> None:
    noted = Noted()
    hear = followed(noted, print, where="nano")
    for done in (0, 7, 0, 3):
        hear(f"progress {done}/9 timing")
    assert noted.steps == [["nano: timing", 9, 7], ["nano: timing", 9, 3]]


def test_messages_hold_no_progress() -> None:
    assert without_progress("progress 1/2 a\nerror: x\nprogress is slow") == "error: x\nprogress is slow"
