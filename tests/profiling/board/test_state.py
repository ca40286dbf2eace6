"""What makes a measurement unstable, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bitswitch_deploy.profiling.board.state import BoardRecord, BoardWatch
from tests.profiling.board.machines import JETSON_FILES, X86_FILES, machine
from tests.profiling.board.test_nvidia_smi import BUSY, IDLE
from tests.profiling.board.test_tegrastats import JETPACK_6_ORIN_NANO, JETPACK_7_THOR_IDLE

MODE = {"nvpmodel -q": "NV Power Mode: 15W\n0\n"}
GPU = "sys/class/devfreq/17000000.gpu"
ZONE = "sys/class/thermal/thermal_zone10/temp"


def watch_jetson(root: Path, change: Callable[[Path], object]) -> BoardRecord:
    """Look three times, with a change behind the first."""
    watch = BoardWatch(machine(root, JETSON_FILES, MODE), on_gpu=False, clock=count().__next__)
    watch.look(warming_up=False)
    change(root)
    watch.look(warming_up=False)
    watch.look(warming_up=False)
    return watch.end()


def test_a_board_that_stands_still_is_stable(tmp_path: Path) -> None:
    record = watch_jetson(tmp_path, lambda root: None)
    assert not record.unstable
    assert record.unstable == record.unknown == ()
    assert record.looks == 3
    assert record.before == record.after
    assert (record.after.power_mode, record.after.clocks_locked) == ("15W", True)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        (ZONE, "54313", "temperature tj-thermal moved from 49.3 to 54.3 C, more than 5 C"),
        (f"{GPU}/cur_freq", "850000000", "clock 17000000.gpu moved between 850 and 918 MHz, more than 5%"),
        (f"{GPU}/max_freq", "999000000", "the limits of clock 17000000.gpu changed"),
        ("sys/class/hwmon/hwmon1/oc3_event_cnt", "5", "over-current oc3: 3 events while measuring"),
    ],
)
def test_what_moves_makes_it_unstable(tmp_path: Path, file: str, text: str, reason: str) -> None:
    record = watch_jetson(tmp_path, lambda root: (root / file).write_text(text))
    assert record.unstable == (reason,)
    assert record.unstable


def test_a_counter_that_could_not_be_read_before_tells_no_events(tmp_path: Path) -> None:
    counter = "sys/class/hwmon/hwmon1/oc3_event_cnt"
    host = machine(tmp_path, JETSON_FILES | {counter: ""}, MODE)
    watch = BoardWatch(host, on_gpu=False)
    (tmp_path / counter).write_text("7")
    assert not watch.end().unstable


@pytest.mark.parametrize(("file", "text"), [(ZONE, "54300"), (f"{GPU}/cur_freq", "880000000")])
def test_small_moves_do_not(tmp_path: Path, file: str, text: str) -> None:
    assert not watch_jetson(tmp_path, lambda root: (root / file).write_text(text)).unstable


def test_another_power_mode_does(tmp_path: Path) -> None:
    modes = iter(["NV Power Mode: 15W\n0\n", "NV Power Mode: 25W\n1\n"])
    host = replace(machine(tmp_path, JETSON_FILES), run=lambda words: next(modes) if words[0] == "nvpmodel" else None)
    assert BoardWatch(host, on_gpu=False).end().unstable == ("the power mode went from 15W to 25W",)


def test_warm_up_may_warm_up(tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES, MODE)
    watch = BoardWatch(host, on_gpu=False, clock=count().__next__)
    watch.look(warming_up=True)
    (tmp_path / ZONE).write_text("70000")
    watch.look(warming_up=False)
    record = watch.end()
    assert (record.looks, record.unstable) == (1, ())
    assert dict(record.before.temperatures_c)["tj-thermal"] == 49.312


def test_it_looks_twice_in_a_second_at_most(tmp_path: Path) -> None:
    times = iter([0.0, 0.0, 0.4, 0.6, 0.6, 1.0])
    watch = BoardWatch(machine(tmp_path, X86_FILES), on_gpu=False, clock=lambda: next(times))
    for _ in range(4):
        watch.look(warming_up=False)
    assert watch.end().looks == 2


def test_idle_cores_may_clock_down(tmp_path: Path) -> None:
    """Only the fastest core counts: it is the busy one."""
    watch = BoardWatch(machine(tmp_path, X86_FILES), on_gpu=False, clock=count().__next__)
    watch.look(warming_up=False)
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq").write_text("2400000")
    watch.look(warming_up=False)
    record = watch.end()
    assert not record.unstable
    assert [(span.name, span.lowest, span.highest) for span in record.clocks_mhz] == [("fastest cpu", 4500.0, 4500.0)]
    assert record.after.clocks_locked is False


def test_a_gpu_that_is_slowed_down(tmp_path: Path) -> None:
    host = machine(tmp_path, X86_FILES, {"nvidia-smi": BUSY})
    watch = BoardWatch(host, on_gpu=True, clock=count().__next__)
    watch.look(warming_up=False)
    assert watch.end().unstable == ("GPU 0: software power cap",)


def test_a_gpu_whose_clock_and_temperature_move(tmp_path: Path) -> None:
    slower = BUSY.replace("2520", "2310").replace("61,", "69,")
    answers = iter([IDLE, BUSY, IDLE, slower, IDLE])
    host = replace(machine(tmp_path, {}), run=lambda words: next(answers) if words[0] == "nvidia-smi" else None)
    watch = BoardWatch(host, on_gpu=True, clock=count().__next__)
    for _ in range(3):
        watch.look(warming_up=False)
    assert watch.end().unstable == (
        "temperature GPU 0 moved from 31.0 to 69.0 C, more than 5 C",
        "clock GPU 0 moved between 2310 and 2520 MHz, more than 5%",
        "GPU 0: software power cap",
    )


def test_a_gpu_that_idles_between_turns_may_clock_down(tmp_path: Path) -> None:
    """As nvidia-smi, the kernel and tegrastats see it, the last on a board that tells no load."""
    unlocked = {f"{GPU}/cur_freq": "306000000", f"{GPU}/min_freq": "306000000"}
    host = machine(tmp_path, JETSON_FILES | unlocked, {"nvidia-smi": IDLE})
    recorded = Recorded(*(JETPACK_7_THOR_IDLE.replace("[314,314,314]", f"[{mhz}]") for mhz in (1574, 314, 1574)))
    watch = BoardWatch(replace(host, start=lambda words: recorded), on_gpu=True, clock=count().__next__)
    watch.look(warming_up=False)
    machine(tmp_path, {f"{GPU}/cur_freq": "918000000"})
    watch.look(warming_up=False)
    record = watch.end()
    assert [span.name for span in record.clocks_mhz] == ["fastest cpu"]
    assert record.unstable == ()
    assert record.unknown == ("clock of the busy GPU",)


class Recorded:
    def __init__(self, *lines: str) -> None:
        self.text = "\n".join(lines)
        self.stops = 0

    def stop(self) -> str:
        self.stops += 1
        return self.text


def test_tegrastats_runs_beside_the_measured_turns_only(tmp_path: Path) -> None:
    slower = JETPACK_6_ORIN_NANO.replace("@[612]", "@[408]")
    idle = JETPACK_6_ORIN_NANO.replace("99%@[612]", "0%@[305]")
    started = []

    def start(words: object) -> Recorded:
        started.append(words)
        return Recorded(JETPACK_6_ORIN_NANO, idle, slower)

    watch = BoardWatch(replace(machine(tmp_path, {}), start=start), on_gpu=True, clock=count().__next__)
    watch.look(warming_up=True)
    assert not started
    watch.look(warming_up=False)
    watch.look(warming_up=False)
    assert started == [("tegrastats", "--interval", "500")]
    assert watch.end().unstable == ("clock tegrastats GR3D moved between 408 and 612 MHz, more than 5%",)


def test_tegrastats_does_not_see_the_warm_up_of_the_next_batch(tmp_path: Path) -> None:
    recordings: list[Recorded] = []

    def start(words: object) -> Recorded:
        recordings.append(Recorded(JETPACK_6_ORIN_NANO))
        return recordings[-1]

    watch = BoardWatch(replace(machine(tmp_path, {}), start=start), on_gpu=True, clock=count().__next__)
    stopped = []
    for warming_up in (True, False, False, True, True, False):
        watch.look(warming_up=warming_up)
        stopped.append([each.stops for each in recordings])
    assert stopped == [[], [0], [0], [1], [1], [1, 0]]
    watch.end()
    assert [each.stops for each in recordings] == [1, 1]


def test_an_error_while_measuring_ends_tegrastats(tmp_path: Path) -> None:
    recorded = Recorded(JETPACK_6_ORIN_NANO)
    host = replace(machine(tmp_path, {}), start=lambda words: recorded)

    def measure() -> None:
        with BoardWatch(host, on_gpu=True, clock=count().__next__) as watch:
            watch.look(warming_up=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    assert recorded.stops == 1


def test_what_a_machine_does_not_tell_is_said(tmp_path: Path) -> None:
    watch = BoardWatch(machine(tmp_path, {}), on_gpu=False)
    watch.look(warming_up=False)
    record = watch.end()
    assert record.unknown == ("clocks", "temperatures", "throttling", "power")
    assert (record.unstable, record.after.clocks_locked) == ((), None)
