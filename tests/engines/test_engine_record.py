from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import (
    EngineRecord,
    Recipe,
    differences,
    read_record,
    record_path,
    trusted_record,
)
from bitswitch_deploy.errors import CheckFailedError, PackageError, UnavailableError

ORIN = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="15W")
RECIPE = Recipe(
    graph_sha256=("ab" * 32,),
    module="tensorrt",
    version="10.3.0",
    flags=("FP16", "INT8"),
    shapes=("x:1x3", "x:1x3", "x:32x3"),
    workspace_mb=1024,
    dla_core=None,
    device=ORIN,
)
RECORD = EngineRecord(label="w8", sha256="cd" * 32, size_bytes=7, tool="bitswitch-deploy", recipe=RECIPE)
RTX = replace(RECIPE, module="tensorrt_rtx", version="1.7.1.116", device=None, compute_capabilities=("SM86", "SM89"))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "net.engine"
    path.write_bytes(b"engine!")
    record_path(path).write_text(RECORD.to_json())
    return path


def test_a_record_is_read_as_it_was_written(engine: Path) -> None:
    assert record_path(engine).name == "net.engine.json"
    assert read_record(engine) == RECORD
    rtx = replace(RECORD, recipe=RTX, timing_cache_sha256="ef" * 32)
    record_path(engine).write_text(rtx.to_json())
    assert read_record(engine) == rtx


def test_an_engine_of_this_device_is_accepted(engine: Path) -> None:
    assert trusted_record(engine, ORIN, module="tensorrt", version="10.3.0") == RECORD


@pytest.mark.parametrize(
    ("here", "version", "expected"),
    [
        (replace(ORIN, sm="7.2"), "10.3.0", ["SM 8.7, here 7.2"]),
        (replace(ORIN, module="p3701-0005"), "10.3.0", ["module p3767-0005, here p3701-0005"]),
        (replace(ORIN, l4t="36.5.0"), "10.3.0", ["L4T 36.4.3, here 36.5.0"]),
        (replace(ORIN, arch="x86_64"), "10.3.0", ["processor aarch64, here x86_64"]),
        (ORIN, "10.16.2", ["tensorrt 10.3.0, here tensorrt 10.16.2"]),
        (replace(ORIN, sm="7.2", l4t="35.4.1"), "8.5.2", [
            "tensorrt 10.3.0, here tensorrt 8.5.2", "SM 8.7, here 7.2", "L4T 36.4.3, here 35.4.1",
        ]),
        # the same release with its build number; other clocks; facts that nobody knows here
        (ORIN, "10.3.0.30", []),
        (ORIN, "10.3.0b6", []),
        (replace(ORIN, power_mode="MAXN"), "10.3.0", []),
        (DeviceFacts(arch="aarch64"), "10.3.0", []),
    ],
)  # fmt: skip
def test_differences_are_exact(here: DeviceFacts, version: str, expected: list[str]) -> None:
    assert list(differences(RECIPE, here, module="tensorrt", version=version)) == expected


@pytest.mark.parametrize(
    ("sm", "module", "expected"),
    [
        ("8.9", "tensorrt_rtx", []),
        (None, "tensorrt_rtx", []),
        ("12.0", "tensorrt_rtx", ["GPUs SM86, SM89, here SM120"]),
        ("8.9", "tensorrt", ["tensorrt_rtx 1.7.1.116, here tensorrt 1.7.1.116"]),
    ],
)
def test_an_engine_without_a_device_names_its_gpus(sm: str | None, module: str, expected: list[str]) -> None:
    here = DeviceFacts(arch="x86_64", sm=sm)
    assert list(differences(RTX, here, module=module, version="1.7.1.116")) == expected


def test_another_device_is_refused_with_every_difference(engine: Path) -> None:
    message = r"net\.engine: built for another device: SM 8\.7, here 7\.2; L4T 36\.4\.3, here 35\.4\.1\n"
    with pytest.raises(UnavailableError, match=message):
        trusted_record(engine, replace(ORIN, sm="7.2", l4t="35.4.1"), module="tensorrt", version="10.3.0", trust=True)


def test_an_engine_without_a_record_takes_trust(engine: Path) -> None:
    record_path(engine).unlink()
    with pytest.raises(CheckFailedError, match=r"an engine without net\.engine\.json(.|\n)*--trust"):
        trusted_record(engine, ORIN, module="tensorrt", version="10.3.0")
    assert trusted_record(engine, ORIN, module="tensorrt", version="10.3.0", trust=True) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"label"', '"name"', "unknown key: 'name'"),
        ('"bitswitch-engine/1"', '"bitswitch-engine/2"', "schema: 'bitswitch-engine/2'"),
        ('"tensorrt"', '"other"', "recipe.module: 'other'"),
        ("{", "", "Extra data"),
    ],
)
def test_a_damaged_record_is_refused(engine: Path, old: str, new: str, message: str) -> None:
    record_path(engine).write_text(RECORD.to_json().replace(old, new, 1))
    with pytest.raises(PackageError, match=message):
        read_record(engine)


def test_a_record_that_is_no_text_is_refused(engine: Path) -> None:
    record_path(engine).write_bytes(b"\xff\xfe")
    with pytest.raises(PackageError, match="not readable"):
        read_record(engine)
