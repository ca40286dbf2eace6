"""The bundle that builds engines on the board: a Jetson engine cannot be built anywhere else (platform notes 0.1)."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.shape_range import ShapeRange, check_profile
from bitswitch_deploy.errors import GraphError, UsageError
from bitswitch_deploy.target import Target

SCRIPT = "build_on_device.sh"
# Where the script puts what it builds, beside itself.
BUILD_FOLDER = "on_device"

_SETTINGS = "#@SETTINGS@"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
# trtexec separates inputs with commas, name and shape with the last colon, and takes quotes away
_SAFE_INPUT = re.compile(r"[A-Za-z0-9_./:-]+")


def write_bundle(
    folder: Path, graphs: tuple[tuple[str, str], ...], target: Target, profile: tuple[ShapeRange, ...]
) -> tuple[str, ...]:
    """Write the script that builds one engine for each (label, file name) of `graphs`; files are relative to `folder`.

    Returns:
        The names written in `folder`. The same arguments give the same bytes.

    Raises:
        UsageError: the target's engines are not built on the device, or `profile` does not fit a graph.
        GraphError: a graph cannot be read, or an input has a name that trtexec cannot take.
        OutputError: the folder cannot be written.
    """
    if target.engine.name != "tensorrt" or target.engine.build != "on_device":
        raise UsageError(
            where=f"target {target.name}",
            got=f"{target.engine.name} engines, built: {target.engine.build}",
            allowed="a target whose TensorRT engines are built on the device",
            do="export without a bundle",
        )
    lines = [_graph_line(folder, label, file, profile) for label, file in graphs]
    text = resources.files("bitswitch_deploy.engines").joinpath(SCRIPT).read_text(encoding="utf-8")
    settings = _settings(target, profile, lines)
    replace_file(folder / SCRIPT, text.replace(_SETTINGS, settings).encode(), executable=True)
    return (SCRIPT,)


def _settings(target: Target, profile: tuple[ShapeRange, ...], lines: list[str]) -> str:
    workspace = target.limits.max_workspace_mb
    values = {
        "target": target.name,
        "made_for": f"{target.engine.name} {target.stack.engine_version}",
        "arch": target.arch,
        "boards": " ".join(target.detect.compatible),
        "workspace_mb": "" if workspace is None else str(workspace),
        "legacy_flags": " ".join(f"--{flag.lower()}" for flag in target.engine.builder_flags_legacy),
        "min_shapes": _shapes((entry.input, entry.minimum) for entry in profile),
        "opt_shapes": _shapes((entry.input, entry.optimum) for entry in profile),
        "max_shapes": _shapes((entry.input, entry.maximum) for entry in profile),
        "graphs": "\n".join(lines),
    }
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def _graph_line(folder: Path, label: str, file: str, profile: tuple[ShapeRange, ...]) -> str:
    for name in (label, file):
        # the names are words of a shell script
        if not _SAFE_NAME.fullmatch(name) or ".." in name:
            allowed = "letters, digits and . _ / -"
            raise UsageError(where="bundle", got=f"name {name!r}", allowed=allowed, do="rename the graph")
    try:
        data = (folder / file).read_bytes()
        graph = onnx.load_model_from_string(data).graph
    except (OSError, DecodeError) as exc:
        do = "write the graphs before the bundle"
        raise GraphError(where=str(folder / file), got=f"not readable: {exc}", allowed="an ONNX file", do=do) from exc
    shapes = _input_shapes(graph)
    for name in shapes:
        if not _SAFE_INPUT.fullmatch(name):
            allowed = "letters, digits and . _ / : -"
            raise GraphError(where=file, got=f"input name {name!r}", allowed=allowed, do="rename the network input")
    check_profile(shapes, profile, where=file)
    return f"{label} {file} {hashlib.sha256(data).hexdigest()}"


def _input_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    # below IR 4 initializers are listed among the inputs
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    return {value.name: tuple(map(_size, value.type.tensor_type.shape.dim)) for value in inputs}


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else None


def _shapes(entries: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in entries)
