"""Switching between TensorRT engines, against a stand-in. No board has run these paths."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import EngineRecord, Recipe, record_path
from bitswitch_deploy.errors import CheckFailedError, DataError, UnavailableError, UsageError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import Manifest
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.package.writer import PackageWriter
from bitswitch_deploy.runtime import RuntimeOptions, load
from tests.engines.tensorrt_device import Device, install, plan
from tests.runtime.conftest import Packages

X = np.arange(6, dtype=np.float32).reshape(2, 3)
MIB = 1 << 20


def engine(bits: int) -> bytes:
    """Give an engine that multiplies by its width, of one MiB for two bits."""
    data = plan(float(bits), scratch=100 * bits)
    return data + b" " * (bits * MIB // 2 - len(data))


@pytest.fixture(params=["8.6.2", "10.3.0", "11.4.1"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    return install(monkeypatch, request.param)


def write(folder: Path, *, engine_name: str = "tensorrt", in_package: bool = True) -> Path:
    """Make a package of three widths, its engines inside or built on the device."""
    with PackageWriter(folder) as writer:
        for bits in (8, 4, 2):
            writer.write(f"net-w{bits}.onnx", b"graph", role="graph", label=f"w{bits}")
            if in_package:
                writer.write(f"engines/net-w{bits}.engine", engine(bits), role="engine", label=f"w{bits}")
        manifest = Manifest(
            master_sha256="0" * 64,
            target="jetson-test",
            stack=(("engine", engine_name),),
            command=(),
            tools=(),
            files=writer.files,
            built_on_device="on_device",
        )
        writer.commit(manifest)
    return folder


HERE = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="15W")


@pytest.fixture(autouse=True)
def _board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch_deploy.runtime.tensorrt_sessions.device_facts", lambda: HERE)


def build_on_device(package: Path, version: str, built_on: DeviceFacts = HERE) -> None:
    """Write engines and records as `build` does."""
    (package / "on_device").mkdir()
    graphs = {entry.label: entry.sha256 for entry in read_manifest(package).files if entry.role == "graph"}
    for bits in (8, 4, 2):
        path = package / "on_device" / f"net-w{bits}.engine"
        path.write_bytes(engine(bits))
        recipe = Recipe(
            graph_sha256=(graphs[f"w{bits}"],), module="tensorrt", version=version, flags=("INT8",), shapes=(),
            workspace_mb=None, dla_core=None, device=built_on,
        )  # fmt: skip
        sha256, size_bytes = hash_file(path)
        record = EngineRecord(label=f"w{bits}", sha256=sha256, size_bytes=size_bytes, tool="trtexec", recipe=recipe)
        record_path(path).write_text(record.to_json())


@pytest.mark.parametrize("in_package", [True, False])
def test_each_width_is_its_engine(device: Device, tmp_path: Path, in_package: bool) -> None:
    package = write(tmp_path / "p", in_package=in_package)
    if not in_package:
        build_on_device(package, device.release)
    with load(package, provider="tensorrt") as switcher:
        for bits in (8, 2, 4, 8):
            switcher.switch(bits)
            np.testing.assert_array_equal(switcher.run(X), X * bits)
    # each was loaded once, and activation memory is that of the largest
    assert [call[0] for call in device.calls].count("load") == 3
    assert 800 in device.allocated
    assert 400 not in device.allocated


def test_what_was_built_later_stands_for_what_was_exported(device: Device, tmp_path: Path) -> None:
    """An exported engine of another release can be replaced by `build`, as its refusal says."""
    package = write(tmp_path / "p")
    build_on_device(package, "7.0.0")
    for path in (package / "on_device").iterdir():
        path.rename(package / "engines" / path.name)
    with pytest.raises(UnavailableError, match="build it here: bitswitch-deploy build PACKAGE"):
        load(package, provider="tensorrt")
    (package / "on_device").rmdir()
    build_on_device(package, device.release)
    with load(package, provider="tensorrt", width=4) as switcher:
        np.testing.assert_array_equal(switcher.run(X), X * 4)


def test_engines_are_loaded_beforehand_where_asked_for(device: Device, tmp_path: Path) -> None:
    options = RuntimeOptions(warm=(8, 4, 2))
    with load(write(tmp_path / "p"), provider="tensorrt", options=options) as switcher:
        assert [call[0] for call in device.calls].count("load") == 3
        assert list(switcher.open_widths) == ["w4", "w2", "w8"]
        # and each has run once: the kernels of its first request are compiled and its memory is there
        assert [call[1] for call in device.calls if call[0] == "execute"] == [8.0, 4.0, 2.0]


def test_engines_that_do_not_fit_the_budget_together_are_refused_beforehand(device: Device, tmp_path: Path) -> None:
    options = RuntimeOptions(warm=(4, 2), memory_budget_mb=6)
    with pytest.raises(UsageError, match="widths w8, w4, w2: 7,340,032 bytes of engines in a budget of 6,291,456"):
        load(write(tmp_path / "p"), provider="tensorrt", options=options)
    assert "load" not in [call[0] for call in device.calls]


def test_the_budget_drops_the_engine_that_was_used_longest_ago(device: Device, tmp_path: Path) -> None:
    options = RuntimeOptions(memory_budget_mb=5)
    with load(write(tmp_path / "p"), provider="tensorrt", options=options) as switcher:
        assert list(switcher.open_widths) == ["w8"]
        switcher.switch(2)
        assert list(switcher.open_widths) == ["w8", "w2"]
        switcher.switch(4)
        assert list(switcher.open_widths) == ["w2", "w4"]
        np.testing.assert_array_equal(switcher.run(X), X * 4)


def test_an_engine_that_the_budget_drops_gives_its_memory_back(device: Device, tmp_path: Path) -> None:
    options = RuntimeOptions(memory_budget_mb=5)
    with load(write(tmp_path / "p"), provider="tensorrt", options=options) as switcher:
        for bits in (8, 2, 4):
            switcher.switch(bits)
            np.testing.assert_array_equal(switcher.run(X), X * bits)
        gc.collect()
        # input and output of w2 and w4; the scratch memory that w8 needed stays for when it comes back
        assert device.allocated == [24, 24, 24, 24, 800]
        switcher.switch(8)
        assert [call[0] for call in device.calls].count("load") == 4


def test_wrong_inputs_are_refused_and_the_next_one_is_answered(device: Device, tmp_path: Path) -> None:
    hole = X.copy()
    hole[1, 2] = np.nan
    with load(write(tmp_path / "p"), provider="tensorrt", width=4) as switcher:
        for bad, message in (
            (hole, r"1 NaN, the first at \[1, 2\]"),
            (X[:, :2], r"shape \[2, 2\]"),
            (X.astype(np.float64), "float64"),
            (np.ones((9, 3), np.float32), "shapes that the engine was built for"),
        ):
            with pytest.raises(DataError, match=message):
                switcher.run(bad)
        with pytest.raises(UsageError, match="allowed: exactly 'x'"):
            switcher.run_all({"pixels": X})
        with pytest.raises(UsageError, match="allowed: w8, w4, w2"):
            switcher.switch(6)
        np.testing.assert_array_equal(switcher.run(X), X * 4)


def test_an_engine_that_is_cut_short_leaves_the_width(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p")
    with load(package, provider="tensorrt", width=2) as switcher:
        for bits in (2, 4):
            (package / "engines" / f"net-w{bits}.engine").write_bytes(b"short")
        with pytest.raises(CheckFailedError, match=r"net-w4\.engine: cut short to 5 bytes since it was loaded"):
            switcher.switch(4)
        np.testing.assert_array_equal(switcher.run(X), X * 2)


def test_a_policy_goes_on_without_a_width_beyond_the_budget(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Highest:
        def choose(self, widths: tuple[str, ...], active: str) -> str:
            return widths[0]

        def observe(self, width: str, latency_ms: float) -> None:
            pass

    options = RuntimeOptions(memory_budget_mb=2)
    package = write(tmp_path / "p")
    switcher = load(package, provider="tensorrt", width=2, policy=Highest(), options=options)
    with caplog.at_level(logging.WARNING), switcher:
        answers = [switcher.run(X) for _ in range(150)]
    # the width of the last good request answers the one that asked for too much, which nobody tries again
    for answer, factor in zip(answers, (2, *[4] * 149), strict=True):
        np.testing.assert_array_equal(answer, X * factor)
    (record,) = caplog.records
    assert "w8 cannot be used, going on at w2: width w8: 4,194,304 bytes of engines" in record.getMessage()


def test_a_width_beyond_the_budget_is_refused_and_the_last_one_serves(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p")
    with load(package, provider="tensorrt", width=2, options=RuntimeOptions(memory_budget_mb=2)) as switcher:
        switcher.switch(4)
        with pytest.raises(UsageError, match=r"width w8: 4,194,304 bytes of engines in a budget of 2,097,152"):
            switcher.switch(8)
        np.testing.assert_array_equal(switcher.run(X), X * 4)


def test_a_budget_that_no_width_meets_is_refused(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p")
    (package / "net-w2.onnx").unlink()
    files = tuple(entry for entry in _manifest(package).files if entry.label != "w2")
    _rewrite(package, files)
    with pytest.raises(UsageError, match="allowed: no width fits: even the smallest takes more"):
        load(package, provider="tensorrt", options=RuntimeOptions(memory_budget_mb=1))


def test_an_engine_that_was_not_built_names_the_command(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p", in_package=False)
    with pytest.raises(UnavailableError, match=r"the engine of w2 is not built(.|\n)*bitswitch-deploy build"):
        load(package, provider="tensorrt")


def test_an_engine_of_another_release_leaves_the_width(device: Device, tmp_path: Path) -> None:
    with load(write(tmp_path / "p"), provider="tensorrt") as switcher:
        device.failing.add("load")
        with pytest.raises(UnavailableError, match="cannot be loaded"):
            switcher.switch(4)
        assert switcher.width == "w8"
        np.testing.assert_array_equal(switcher.run(X), X * 8)


def test_engines_are_hashed(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p")
    path = package / "engines" / "net-w4.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    with pytest.raises(CheckFailedError, match=r"net-w4.engine: its hash does not match"):
        load(package, provider="tensorrt")


def test_an_engine_of_another_board_is_refused_with_the_difference(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p", in_package=False)
    build_on_device(package, device.release, replace(HERE, module="p3701-0005", l4t="36.4.4", power_mode="MAXN"))
    message = r"net-w2\.engine: built for another device: module p3701-0005, here p3767-0005; L4T 36.4.4, here 36.4.3\n"
    with pytest.raises(UnavailableError, match=message):
        load(package, provider="tensorrt", options=RuntimeOptions(trust_engines=True))


def test_an_engine_of_another_tensorrt_is_refused(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p", in_package=False)
    build_on_device(package, "10.7.0")
    with pytest.raises(UnavailableError, match=rf"tensorrt 10\.7\.0, here tensorrt {device.release}"):
        load(package, provider="tensorrt")


def test_a_foreign_engine_needs_trust(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p", in_package=False)
    build_on_device(package, device.release)
    (package / "on_device" / "net-w4.engine.json").unlink()
    with pytest.raises(CheckFailedError, match=r"w4.engine: an engine without net-w4.engine.json(.|\n)*--trust"):
        load(package, provider="tensorrt")
    with load(package, provider="tensorrt", width=4, options=RuntimeOptions(trust_engines=True)) as switcher:
        np.testing.assert_array_equal(switcher.run(X), X * 4)


def test_a_corrupt_engine_is_refused(device: Device, tmp_path: Path) -> None:
    package = write(tmp_path / "p", in_package=False)
    build_on_device(package, device.release)
    path = package / "on_device" / "net-w4.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"\n")
    with pytest.raises(CheckFailedError, match=r"net-w4.engine: its hash does not match"):
        load(package, provider="tensorrt", options=RuntimeOptions(trust_engines=True))


def test_a_package_for_onnxruntime_has_no_engines(packages: Packages) -> None:
    with pytest.raises(UsageError, match="a package for x86-cpu, which has no engines"):
        load(packages.own, provider="tensorrt")


def _manifest(package: Path) -> Manifest:
    return Manifest.from_json((package / "manifest.json").read_text())


def _rewrite(package: Path, files: tuple[object, ...]) -> None:
    manifest = replace(_manifest(package), files=files)  # type: ignore[arg-type]
    (package / "manifest.json").write_text(manifest.to_json())
