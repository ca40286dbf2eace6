"""Boards as folders: /proc/device-tree and /etc of real ones, and programs that answer, fail or hang."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from bitswitch_deploy.engines import device_facts as module
from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.timing_cache import (
    cache_folder,
    cache_hash,
    read_timing_cache,
    timing_cache_name,
    writable_cache_folder,
)
from bitswitch_deploy.errors import OutputError

ARCH = platform.machine()
ORIN = b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.defpath}")
    return folder


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def board(root: Path, compatible: bytes, release: str | None = "# R36 (release), REVISION: 4.3, GCID: 1") -> Path:
    (root / "proc" / "device-tree").mkdir(parents=True)
    (root / "proc" / "device-tree" / "compatible").write_bytes(compatible)
    if release is not None:
        (root / "etc").mkdir()
        (root / "etc" / "nv_tegra_release").write_text(release)
    return root


def test_an_orin_nano(programs: Path, tmp_path: Path) -> None:
    program(programs, "nvpmodel", 'echo "NV Power Mode: MAXN_SUPER"; echo 2')
    assert device_facts(board(tmp_path / "root", ORIN)) == DeviceFacts(
        arch=ARCH, module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="MAXN_SUPER"
    )


@pytest.mark.parametrize(("chip", "sm"), [("tegra194", "7.2"), ("tegra234", "8.7"), ("tegra264", "11.0")])
def test_a_board_that_tells_its_chip_only(programs: Path, tmp_path: Path, chip: str, sm: str) -> None:
    root = board(tmp_path / "root", f"nvidia,{chip}\0".encode(), release=None)
    assert device_facts(root) == DeviceFacts(arch=ARCH, sm=sm)
    assert device_facts(root).is_tegra


def test_a_desktop_gpu(programs: Path, tmp_path: Path) -> None:
    program(programs, "nvidia-smi", 'echo "NVIDIA GeForce RTX 4090, 8.9"')
    assert device_facts(tmp_path) == DeviceFacts(arch=ARCH, module="NVIDIA GeForce RTX 4090", sm="8.9")


@pytest.mark.parametrize(("visible", "asked"), [(None, "0"), ("", "0"), ("1", "1"), ("GPU-ab,0", "GPU-ab")])
def test_of_several_gpus_it_is_the_one_that_this_process_sees(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    program(programs, "nvidia-smi", f'case " $* " in *" --id={asked} "*) echo "T400, 7.5" ;; esac')
    assert device_facts(tmp_path).sm == "7.5"


def test_a_name_that_only_cuda_knows(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    program(programs, "nvidia-smi", 'case " $* " in *" --id=0 "*) echo "H100, 9.0" ;; *) exit 6 ;; esac')
    assert device_facts(tmp_path).sm == "9.0"


def test_of_another_machine_it_is_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    facts = device_facts(tmp_path, ask=lambda words: "A, 8.9" if words[-1] == "--id=0" else "")
    assert facts.sm == "8.9"


@pytest.mark.parametrize("body", ["exit 9", "echo no devices were found", "exec sleep 30", "printf '\\377, x'"])
def test_a_query_that_answers_nothing_useful(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(module, "_QUERY_SECONDS", 0.3)
    program(programs, "nvidia-smi", body)
    assert device_facts(tmp_path) == DeviceFacts(arch=ARCH)


def test_the_timing_cache_has_device_release_and_mode_in_its_name() -> None:
    device = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", power_mode="15W")
    assert timing_cache_name(device, version="10.3.0") == "tensorrt-10.3.0-p3767_0005-15W.timing"
    gpu = DeviceFacts(arch="x86_64", module="NVIDIA RTX 6000/2")
    assert timing_cache_name(gpu, version="11.4.0") == "tensorrt-11.4.0-NVIDIA_RTX_6000_2.timing"
    assert timing_cache_name(DeviceFacts(arch="aarch64"), version="10.3.0") == "tensorrt-10.3.0-aarch64.timing"


def test_the_folder_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert writable_cache_folder() == cache_folder() == tmp_path / "caches/bitswitch-deploy"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert writable_cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "not absolute")
    monkeypatch.setenv("HOME", "/dev/null")
    assert cache_folder() == Path("/dev/null/.cache/bitswitch-deploy")
    assert writable_cache_folder() is None
    # a user of a container, whom no passwd knows
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert (cache_folder(), writable_cache_folder()) == (None, None)


def test_a_cache_is_read_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    assert (read_timing_cache(path), cache_hash(path), cache_hash(None)) == (b"", None, None)
    path.write_bytes(b"abc")
    assert read_timing_cache(path) == b"abc"
    assert cache_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(OutputError, match="not readable: Is a directory"):
        read_timing_cache(tmp_path)
