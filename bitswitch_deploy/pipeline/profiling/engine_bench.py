"""What both benches of TensorRT have in common: the engines of a package and the graphs that they were built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from bitswitch_deploy.engines.engine_layers import layers_of_json
from bitswitch_deploy.engines.onnxruntime_profile import NodeTime
from bitswitch_deploy.engines.optimized_operators import graph_nodes
from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.errors import CheckFailedError, GraphError
from bitswitch_deploy.package.engine_files import Loader, engine_file
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import FileEntry, Manifest
from bitswitch_deploy.pipeline.building.kept_layers import kept_layers
from bitswitch_deploy.pipeline.profiling.bench import Width
from bitswitch_deploy.profiling.fused_layers import fused_owners
from bitswitch_deploy.profiling.layers import LayerName, Ownership, ProfiledRuns

_OPERATOR = "TensorRT layer"


class EngineBench:
    """The engines of a package, by label.

    Raises:
        UnavailableError: an engine is not built, or not for this device.
        CheckFailedError: an engine was not built by us, without `trust`; or it is not the engine of its record.
    """

    threads: int | None = None
    reference: str | None

    def __init__(self, package: Path, manifest: Manifest, widths: Sequence[Width], loader: Loader) -> None:
        entries = {width.label: width.entry for width in widths}
        self.reference = None
        for entry in manifest.references:
            self.reference = entry.name
            entries[self.reference] = entry
        self.version = loader.version
        self.device = tuple(
            (name, value) for name in ("module", "sm", "l4t") if (value := getattr(loader.device, name)) is not None
        )
        self._models = {
            label: onnx.load(str(package / entry.path), load_external_data=False) for label, entry in entries.items()
        }
        self._engines = {label: _whole_engine(package, manifest, entry, loader) for label, entry in entries.items()}
        # by label, what the engine inspector says now, as JSON; empty where it says nothing
        self._inspected: dict[str, str] = {}

    def read_back(self, label: str) -> ReadBack | None:
        """What was found out when it was built."""
        return kept_layers(self._engines[label], self._models[label])

    def ownership(self, label: str, layers: Sequence[LayerName], profile: ProfiledRuns) -> Ownership:
        """Whose time each layer of an engine is, by what the engine inspector says, else by its name."""
        names = dict.fromkeys(node.name for run in profile.runs for node in run)
        try:
            inspected = layers_of_json(self._inspected[label], where=str(self._engines[label]))
        except GraphError:
            inspected = ()  # names only: built by somebody else, without details
        # how TensorRT's parser calls a node that has no name
        nodes = [
            node if node.name or not node.outputs else replace(node, name=f"node_of_{node.outputs[0]}")
            for node in graph_nodes(self._models[label].graph)
        ]
        return fused_owners(names, inspected, nodes, layers)


def layer_run(layers: Sequence[tuple[str, float]]) -> tuple[NodeTime, ...]:
    """One run, one layer after the other.

    layers: (name, ms), in the order in which they run.
    """
    run, start_us = [], 0.0
    for name, ms in layers:
        run.append(NodeTime(name=name, operator=_OPERATOR, start_us=start_us, duration_us=1e3 * ms))
        start_us += run[-1].duration_us
    return tuple(run)


def _whole_engine(package: Path, manifest: Manifest, graph: FileEntry, loader: Loader) -> Path:
    engine = engine_file(package, manifest, graph, loader)
    path, record = package / engine.path, engine.record
    if record is not None and hash_file(path) != (record.sha256, record.size_bytes):
        raise CheckFailedError(
            where=str(path),
            got="it is not the engine that its record describes",
            allowed="the engine as it was built",
            do="build it again: bitswitch-deploy build PACKAGE --force",
        )
    return path
