from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.profiling.board import sensors
from bitswitch_deploy.profiling.board.sensors import Clock
from tests.profiling.board.machines import JETSON_FILES, X86_FILES, machine


def test_the_power_mode_is_a_name(tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES, {"nvpmodel -q": "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n"})
    assert sensors.power_mode(host) == "MODE_15W_6CORE"


def test_where_nvpmodel_is_refused_its_files_tell(tmp_path: Path) -> None:
    assert sensors.power_mode(machine(tmp_path, JETSON_FILES)) == "25W"
    (tmp_path / "var/lib/nvpmodel/status").write_text("pmode:0007 fmode:quiet")
    assert sensors.power_mode(machine(tmp_path, {})) is None


def test_clocks_of_processor_and_gpu(tmp_path: Path) -> None:
    cpu, gpu = sensors.clocks(machine(tmp_path, JETSON_FILES))
    assert cpu == Clock(name="cpu0", mhz=1344.0, min_mhz=1344.0, max_mhz=1344.0)
    assert gpu == Clock(name="17000000.gpu", mhz=918.0, min_mhz=918.0, max_mhz=918.0)
    assert cpu.is_locked
    assert gpu.is_locked


def test_clocks_that_may_move_are_not_locked(tmp_path: Path) -> None:
    host = machine(tmp_path, X86_FILES)
    assert [clock.is_locked for clock in sensors.clocks(host)] == [False, False]
    assert sensors.governors(host) == ("powersave",)


def test_temperatures_in_the_order_of_their_zones_without_those_that_are_off(tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES)
    assert sensors.temperatures_c(host) == (("cpu-thermal", 48.562), ("tj-thermal", 49.312))


def test_a_processor_thermometer_counts_where_there_are_no_zones(tmp_path: Path) -> None:
    assert sensors.temperatures_c(machine(tmp_path, X86_FILES)) == (("coretemp Package id 0", 61.0),)


def test_sensors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two zones of one type on many a PC, and the cores of two sockets."""
    files = {"sys/class/hwmon/hwmon2/oc1_event_cnt": "50", "sys/class/hwmon/hwmon5/oc1_event_cnt": "0"}
    for index, celsius in enumerate((16800, 27800)):
        files[f"sys/class/thermal/thermal_zone{index}/type"] = "acpitz"
        files[f"sys/class/thermal/thermal_zone{index}/temp"] = str(celsius)
        files[f"sys/class/hwmon/hwmon{index}/name"] = "coretemp"
        files[f"sys/class/hwmon/hwmon{index}/temp2_label"] = "Core 0"
        files[f"sys/class/hwmon/hwmon{index}/temp2_input"] = str(celsius)
    host = machine(tmp_path, files)
    expected = (
        *(("acpitz (thermal_zone0)", 16.8), ("acpitz (thermal_zone1)", 27.8)),
        *(("coretemp Core 0 (hwmon0)", 16.8), ("coretemp Core 0 (hwmon1)", 27.8)),
    )
    assert sensors.temperatures_c(host) == expected
    assert sensors.throttle_events(host) == (("over-current oc1 (hwmon2)", 50), ("over-current oc1 (hwmon5)", 0))
    # the name does not change when the other one is not readable
    (tmp_path / "sys/class/thermal/thermal_zone1/temp").unlink()
    assert sensors.temperatures_c(host) == (expected[0], *expected[2:])


@pytest.mark.parametrize(("kind", "events"), [("core", 1 + 2 + 4), ("package", 5 + 7)])
def test_an_event_is_counted_once_and_not_for_each_logical_processor(tmp_path: Path, kind: str, events: int) -> None:
    """Two packages, the first with two cores, all with two threads."""
    files = {}
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 0)]):
        folder = f"sys/devices/system/cpu/cpu{cpu}"
        files[f"{folder}/topology/physical_package_id"] = str(package)
        files[f"{folder}/topology/core_id"] = str(core)
        files[f"{folder}/thermal_throttle/core_throttle_count"] = str({(0, 0): 1, (0, 1): 2, (1, 0): 4}[package, core])
        files[f"{folder}/thermal_throttle/package_throttle_count"] = str((5, 7)[package])
    assert dict(sensors.throttle_events(machine(tmp_path, files)))[f"thermal throttling, {kind}"] == events


def test_throttling_is_counted(tmp_path: Path) -> None:
    assert sensors.throttle_events(machine(tmp_path / "a", JETSON_FILES)) == (
        ("over-current oc1", 0),
        ("over-current oc3", 2),
    )
    assert sensors.throttle_events(machine(tmp_path / "b", X86_FILES)) == (
        ("thermal throttling, core", 7),
        ("thermal throttling, package", 9),
    )


def test_rails_are_voltage_times_current_or_what_the_chip_reports(tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES)
    assert sensors.rail_watts(host) == (("VDD_IN", 6.0), ("VDD_CPU_GPU_CV", 1.248))
    # the hwmon ABI of ina238; which label Thor gives it is not confirmed
    machine(tmp_path, {"sys/class/hwmon/hwmon5/name": "ina238", "sys/class/hwmon/hwmon5/power1_input": "28906000"})
    assert sensors.rail_watts(host)[-1] == ("ina238", 28.906)


def test_the_device_has_a_name(tmp_path: Path) -> None:
    assert sensors.device_name(machine(tmp_path / "a", JETSON_FILES)) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert sensors.device_name(machine(tmp_path / "b", X86_FILES)) == "Some Processor 7"


@pytest.mark.parametrize("text", ["", "abc", "12 34"])
def test_files_without_a_number_are_passed_over(tmp_path: Path, text: str) -> None:
    host = machine(tmp_path, {"sys/class/thermal/thermal_zone0/temp": text})
    assert sensors.temperatures_c(host) == ()


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    host = machine(tmp_path, {})
    for read in (sensors.clocks, sensors.temperatures_c, sensors.rail_watts, sensors.throttle_events):
        assert read(host) == ()
    assert sensors.power_mode(host) is sensors.device_name(host) is None
