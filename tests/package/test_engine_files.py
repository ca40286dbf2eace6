"""Which engine of a package is loaded: what was built later, else what was exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import EngineRecord, Recipe, record_path
from bitswitch_deploy.errors import CheckFailedError, UnavailableError
from bitswitch_deploy.package.engine_files import EngineFile, Loader, engine_file, graph_files
from bitswitch_deploy.package.manifest import FileEntry, Manifest

HERE = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="15W")
LOADER = Loader(device=HERE, module="tensorrt", version="10.3.0", trust=False)
GRAPH = FileEntry(path="graphs/net-w4.onnx", sha256="0" * 64, size_bytes=5, role="graph", label="w4")
EXPORTED = FileEntry(path="engines/net-w4.engine", sha256="1" * 64, size_bytes=6, role="engine", label="w4")


@pytest.fixture
def manifest(manifest_of: Callable[..., Manifest]) -> Manifest:
    other = replace(EXPORTED, path="engines/net-w8.engine", label="w8")
    return manifest_of((GRAPH, other, EXPORTED), built_on_device="later")


def put(engine: Path, **changes: object) -> EngineRecord:
    """An engine with its record."""
    recipe = Recipe(
        graph_sha256=(GRAPH.sha256,), module="tensorrt", version="10.3.0", flags=(), shapes=(), workspace_mb=None,
        dla_core=None, device=HERE,
    )  # fmt: skip
    recipe = replace(recipe, **changes)  # type: ignore[arg-type]
    record = EngineRecord(label="w4", sha256="2" * 64, size_bytes=6, tool="trtexec", recipe=recipe)
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(b"engine")
    record_path(engine).write_text(record.to_json())
    return record


def test_what_was_built_later_stands_for_what_was_exported(manifest: Manifest, tmp_path: Path) -> None:
    exported = put(tmp_path / EXPORTED.path)
    found = engine_file(tmp_path, manifest, GRAPH, LOADER)
    assert found == EngineFile(path=EXPORTED.path, entry=EXPORTED, record=exported)
    built = put(tmp_path / "later" / "net-w4.engine", flags=("INT8",))
    found = engine_file(tmp_path, manifest, GRAPH, LOADER)
    assert found == EngineFile(path="later/net-w4.engine", entry=None, record=built)


def test_the_manifest_vouches_for_an_engine_without_a_record(manifest: Manifest, tmp_path: Path) -> None:
    assert engine_file(tmp_path, manifest, GRAPH, LOADER).record is None
    built = tmp_path / "later" / "net-w4.engine"
    put(built)
    record_path(built).unlink()
    with pytest.raises(CheckFailedError, match=r"later/net-w4\.engine: an engine without net-w4\.engine\.json"):
        engine_file(tmp_path, manifest, GRAPH, LOADER)
    trusted = engine_file(tmp_path, manifest, GRAPH, replace(LOADER, trust=True))
    assert trusted == EngineFile(path="later/net-w4.engine", entry=None, record=None)


@pytest.mark.parametrize("folder", ["engines", "later"])
def test_an_engine_of_another_tensorrt_is_refused(manifest: Manifest, tmp_path: Path, folder: str) -> None:
    put(tmp_path / folder / "net-w4.engine", version="8.6.2")
    with pytest.raises(UnavailableError, match=rf"{folder}/net-w4\.engine: built for another device: tensorrt 8\.6\.2"):
        engine_file(tmp_path, manifest, GRAPH, replace(LOADER, trust=True))


@pytest.mark.parametrize("trust", [True, False])
def test_an_engine_of_another_graph_is_refused(manifest: Manifest, tmp_path: Path, trust: bool) -> None:
    """As a newer package leaves it that is copied over an older one, or a build that failed."""
    put(tmp_path / "later" / "net-w4.engine", graph_sha256=("f" * 64,))
    with pytest.raises(UnavailableError, match=r"later/net-w4\.engine: an engine of another graph than (.|\n)*build"):
        engine_file(tmp_path, manifest, GRAPH, replace(LOADER, trust=trust))


def test_the_file_of_its_weights_belongs_to_a_graph(manifest_of: Callable[..., Manifest], tmp_path: Path) -> None:
    data = FileEntry(path=f"{GRAPH.path}.data", sha256="d" * 64, size_bytes=9, role="weights", label="w4")
    manifest = manifest_of((data, GRAPH, EXPORTED), built_on_device="later")
    assert graph_files(manifest, GRAPH) == (GRAPH, data)
    put(tmp_path / "later" / "net-w4.engine", graph_sha256=(GRAPH.sha256, data.sha256))
    assert engine_file(tmp_path, manifest, GRAPH, LOADER).entry is None
    put(tmp_path / "later" / "net-w4.engine")
    with pytest.raises(UnavailableError, match="another graph"):
        engine_file(tmp_path, manifest, GRAPH, LOADER)


def test_an_engine_that_is_nowhere_is_built_with_this_command(
    manifest_of: Callable[..., Manifest], tmp_path: Path
) -> None:
    graph = replace(GRAPH, label=None)
    message = (
        r"on_device/net-w4\.engine: the engine of graphs/net-w4\.onnx is not built\n(.|\n)*"
        rf"or with --device: bitswitch-deploy build '{tmp_path} 2'"
    )
    with pytest.raises(UnavailableError, match=message):
        engine_file(Path(f"{tmp_path} 2"), manifest_of((graph,)), graph, LOADER)
