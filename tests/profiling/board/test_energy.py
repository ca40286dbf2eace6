from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.profiling.board.energy import RaplCounters, SampledPower, find_meter
from tests.profiling.board.machines import JETSON_FILES, X86_FILES, machine
from tests.profiling.board.test_nvidia_smi import BUSY

COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


def test_rapl_counts_packages_and_not_their_parts(tmp_path: Path) -> None:
    host = machine(tmp_path, X86_FILES)
    meter = find_meter(host, total_rails=(), of_gpu=False)
    assert isinstance(meter, RaplCounters)
    meter.start()
    (tmp_path / COUNTER).write_text("3500000")
    (tmp_path / "sys/class/powercap/intel-rapl:0:0/energy_uj").write_text("3000000")
    assert meter.stop() == 2.5


def test_rapl_does_not_count_the_platform_which_holds_the_package(tmp_path: Path) -> None:
    platform = "sys/class/powercap/intel-rapl:1"
    host = machine(tmp_path, X86_FILES | {f"{platform}/name": "psys", f"{platform}/energy_uj": "1000000"})
    meter = find_meter(host, total_rails=(), of_gpu=False)
    assert meter is not None
    meter.start()
    (tmp_path / COUNTER).write_text("3000000")
    (tmp_path / platform / "energy_uj").write_text("6000000")
    assert meter.stop() == 2.0


@pytest.mark.parametrize(("text", "joules"), [("1000000", 3.0), ("", None)])
def test_rapl_counts_all_packages_or_none(tmp_path: Path, text: str, joules: float | None) -> None:
    second = "sys/class/powercap/intel-rapl:1"
    host = machine(tmp_path, X86_FILES | {f"{second}/name": "package-1", f"{second}/energy_uj": text})
    meter = find_meter(host, total_rails=(), of_gpu=False)
    assert (meter is None) == (joules is None)
    if meter is not None:
        meter.start()
        (tmp_path / COUNTER).write_text("3000000")
        (tmp_path / second / "energy_uj").write_text("2000000")
        assert meter.stop() == joules


def test_a_counter_that_wrapped_around(tmp_path: Path) -> None:
    meter = find_meter(machine(tmp_path, X86_FILES | {COUNTER: "9000000"}), total_rails=(), of_gpu=False)
    assert meter is not None
    meter.start()
    (tmp_path / COUNTER).write_text("500000")
    assert meter.stop() == 1.5


def test_a_counter_that_vanishes_is_no_number(tmp_path: Path) -> None:
    meter = find_meter(machine(tmp_path, X86_FILES), total_rails=(), of_gpu=False)
    assert meter is not None
    meter.start()
    (tmp_path / COUNTER).unlink()
    assert meter.stop() is None


def test_counters_that_only_root_may_read_are_no_meter(tmp_path: Path) -> None:
    host = machine(tmp_path, {name: text for name, text in X86_FILES.items() if not name.endswith("energy_uj")})
    assert find_meter(host, total_rails=(), of_gpu=False) is None


def test_power_is_integrated_over_time() -> None:
    """Trapezoids of 2, 4 and 4 W at 0, 1 and 3 s."""
    readings, times, taken = iter([2.0, 4.0, 4.0]), iter([0.0, 1.0, 3.0]), threading.Event()
    count = iter(range(3))

    def read() -> float | None:
        index = next(count, None)
        if index == 1:
            taken.set()
        elif index == 2:
            stopped.wait(5)
        return next(readings) if index is not None else None

    stopped = threading.Event()
    meter = SampledPower("rails", read, clock=lambda: next(times))
    meter.start()
    assert taken.wait(5)
    stopped.set()
    assert meter.stop() == pytest.approx(3.0 + 8.0)


def test_a_source_that_goes_silent_is_no_number() -> None:
    meter = SampledPower("rails", lambda: None)
    meter.start()
    assert meter.stop() is None


def test_the_rails_of_the_board_come_first_where_all_are_there(tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES | X86_FILES)
    meter = find_meter(host, total_rails=("VDD_IN",), of_gpu=True)
    assert meter is not None
    assert meter.source == "INA rails VDD_IN"
    meter.start()
    joules = meter.stop()
    assert joules is not None
    assert joules > 0
    other = find_meter(host, total_rails=("VDD_IN", "VDD_ELSE"), of_gpu=False)
    assert isinstance(other, RaplCounters)


def test_a_gpu_that_says_nothing_once_is_no_reading(tmp_path: Path) -> None:
    """nvidia-smi hangs now and then."""
    answers = iter([BUSY, BUSY, None])
    host = replace(machine(tmp_path, {}), run=lambda words: next(answers, None))
    meter = find_meter(host, total_rails=(), of_gpu=True)
    assert meter is not None
    meter.start()
    assert meter.stop() is None


def test_a_gpu_is_asked_where_the_work_runs_on_it(tmp_path: Path) -> None:
    host = machine(tmp_path, X86_FILES, {"nvidia-smi": BUSY})
    meter = find_meter(host, total_rails=(), of_gpu=True)
    assert meter is not None
    assert meter.source == "nvidia-smi, GPU 0"
    assert find_meter(machine(tmp_path, X86_FILES), total_rails=(), of_gpu=True) is None
