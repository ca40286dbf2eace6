"""Output of nvidia-smi in the form that --format=csv,noheader,nounits has; the numbers are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.nvidia_smi import GpuState, parse_gpus, query_gpus
from tests.profiling.board.machines import machine

BUSY = "0, NVIDIA GeForce RTX 4090, 560.35.03, 2520, 3105, 61, 301.52, 0x0000000000000004\n"
IDLE = "0, NVIDIA A100-SXM4-40GB, 535.104.05, 210, 1410, 31, 54.10, 0x0000000000000001\n"
# A GPU that shares its memory tells less: integrated ones print [N/A].
SILENT = "0, NVIDIA Thor, 580.00, [N/A], [N/A], [Not Supported], [N/A], [N/A]\n"


def test_a_busy_gpu_that_its_power_limit_slows_down() -> None:
    (state,) = parse_gpus(BUSY)
    assert state == GpuState(
        index=0,
        name="NVIDIA GeForce RTX 4090",
        driver="560.35.03",
        sm_mhz=2520.0,
        max_sm_mhz=3105.0,
        temperature_c=61.0,
        power_w=301.52,
        throttling=("software power cap",),
        is_idle=False,
    )


def test_idle_is_no_throttling_and_several_reasons_are_all_named() -> None:
    hot = BUSY.replace("0x0000000000000004", "0x0000000000000068")
    idle, slowed = parse_gpus(IDLE + hot.replace("0, NV", "1, NV"))
    assert (idle.throttling, idle.is_idle, slowed.is_idle, slowed.index) == ((), True, False, 1)
    assert slowed.throttling == ("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown")


def test_what_a_gpu_does_not_tell_is_none() -> None:
    (state,) = parse_gpus(SILENT)
    assert (state.sm_mhz, state.temperature_c, state.power_w, state.throttling) == (None, None, None, ())


def test_older_drivers_are_asked_by_the_older_name(tmp_path: Path) -> None:
    fields = (
        "index,name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    )
    host = machine(tmp_path, {}, {f"nvidia-smi --id=0 --query-gpu={fields} --format=csv,noheader,nounits": IDLE})
    assert [state.name for state in query_gpus(host)] == ["NVIDIA A100-SXM4-40GB"]


@pytest.mark.parametrize(("visible", "asked"), [(None, "0"), ("", "0"), ("2,0", "2"), (" GPU-1f3a ", "GPU-1f3a")])
def test_the_gpu_that_the_process_sees_is_asked(
    visible: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others of the machine may do what they like."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    host = Host(run=lambda words: BUSY if f"--id={asked}" in words else None)
    assert len(query_gpus(host)) == 1


def test_no_gpu(tmp_path: Path) -> None:
    assert query_gpus(machine(tmp_path, {})) == ()
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == ()
