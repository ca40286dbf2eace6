"""What is known about an engine from when it was built, in files beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import onnx

from bitswitch_deploy.atomic_file import replace_file
from bitswitch_deploy.engines.engine_layers import layers_of_json
from bitswitch_deploy.engines.read_back import ReadBack, read_back
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild
from bitswitch_deploy.errors import GraphError, PackageError
from bitswitch_deploy.package.files import hash_bytes, hash_file
from bitswitch_deploy.records import Reader

SCHEMA: Literal["bitswitch-engine-facts/1"] = "bitswitch-engine-facts/1"
# the vendor's words are kept as they are
_READER = Reader(
    error=PackageError, do="build the engine again: bitswitch-deploy build PACKAGE --force", plain_text=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What is known about an engine. engine_sha256: of the file that it is known of.

    layers: None where they could not be read back; notes say why then. gpu_fallback, warnings: see EngineBuild.
    """

    engine_sha256: str
    layers: ReadBack | None
    gpu_fallback: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    schema: Literal["bitswitch-engine-facts/1"] = SCHEMA

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=2) + "\n"


def facts_of(build: EngineBuild, model: onnx.ModelProto) -> EngineFacts:
    """What a build found out about the engine of a graph."""
    return EngineFacts(
        engine_sha256=hash_bytes(build.plan),
        layers=read_back(model, build.layers) if build.layers else None,
        gpu_fallback=build.gpu_fallback,
        warnings=build.warnings,
        notes=build.notes,
    )


def keep_facts(engine: Path, facts: EngineFacts) -> None:
    """Write them beside the engine, in the place of those of the engine before.

    Raises:
        OutputError: the folder cannot be written.
    """
    _vendors_path(engine).unlink(missing_ok=True)
    replace_file(facts_path(engine), facts.to_json().encode())


def facts_path(engine: Path) -> Path:
    """Where `build` keeps them."""
    return engine.with_name(f"{engine.name}.layers.json")


def kept_facts(engine: Path, model: onnx.ModelProto) -> EngineFacts:
    """What we kept about this very engine, else what trtexec wrote about its layers in the vendor's form.

    Whatever is not there, not readable or of another engine is not known: `layers` is None then, and a note says so.
    """
    sha256, _ = hash_file(engine)
    try:
        path = facts_path(engine)
        if path.is_file():
            kept = _READER.decode(
                EngineFacts, _READER.load_json(path.read_text(encoding="utf-8"), where=str(path)), where=str(path)
            )
            if kept.engine_sha256 == sha256:
                return kept
        path = _vendors_path(engine)
        if path.is_file():
            layers = layers_of_json(path.read_text(encoding="utf-8"), where=str(path))
            return EngineFacts(
                engine_sha256=sha256, layers=read_back(model, layers), gpu_fallback=_told_fallback(engine)
            )
    except (PackageError, GraphError, OSError, UnicodeDecodeError):
        pass
    return EngineFacts(engine_sha256=sha256, layers=None, notes=("layers not known: build it again with --force",))


def kept_layers(engine: Path, model: onnx.ModelProto) -> ReadBack | None:
    """The layers of `kept_facts`."""
    return kept_facts(engine, model).layers


def _told_fallback(engine: Path) -> tuple[str, ...]:
    """What trtexec said of layers that DLA leaves to the GPU, as build_on_device.sh keeps it."""
    path = engine.with_suffix(".gpu-fallback.txt")
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.is_file() else ()


def _vendors_path(engine: Path) -> Path:
    """Where build_on_device.sh puts what trtexec wrote."""
    return engine.with_suffix(".layers.json")
