"""`NAME.engine.json` beside each engine: what it was built from, with and on (schema bitswitch-engine/1).

Both builders write it, `bitswitch-deploy build` and build_on_device.sh. It says whether an engine is up to date, so a
killed build goes on where it was, and whether it fits the machine that is about to load it. It guards against mistakes,
not against attackers: whoever can replace an engine can write a record for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.tensorrt_module import release_of
from bitswitch_deploy.errors import CheckFailedError, PackageError, UnavailableError
from bitswitch_deploy.records import Reader

SCHEMA: Literal["bitswitch-engine/1"] = "bitswitch-engine/1"
# Folder of a package in which a board puts its engines and their records.
BUILD_FOLDER = "on_device"
_READER = Reader(error=PackageError, do="build the engine again: bitswitch-deploy build PACKAGE --force")
_MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what an engine is; two engines with equal recipes can stand for each other.

    graph_sha256: of the ONNX file, and of its data file where it has one. module, version: of TensorRT, the version as
    `release_of` cuts it, so that both builders name the same.
    flags: builder flags, sorted; STRONGLY_TYPED among them where the network is. shapes: minimum, optimum and maximum,
    as `x:1x3x8x8`; empty where nothing is open. dla_core: None on the GPU. device: None for engines built without one,
    which have compute_capabilities instead, `SM89`.
    """

    graph_sha256: tuple[str, ...]
    module: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    flags: tuple[str, ...]
    shapes: tuple[str, ...]
    workspace_mb: int | None
    dla_core: int | None
    device: DeviceFacts | None
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """One engine. tool: what built it. timing_cache_sha256: of the cache as this build left it."""

    label: str
    sha256: str
    size_bytes: int
    tool: str
    recipe: Recipe
    timing_cache_sha256: str | None = None
    schema: Literal["bitswitch-engine/1"] = SCHEMA

    def to_json(self) -> str:
        """The text of the file; the same record gives the same text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def record_path(engine: Path) -> Path:
    """Where the record of an engine is."""
    return engine.with_name(f"{engine.name}.json")


def read_record(engine: Path) -> EngineRecord | None:
    """The record of an engine; None where there is none.

    Raises:
        PackageError: it is not readable, or not a record.
    """
    path = record_path(engine)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_RECORD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise _READER.refusal(str(path), f"not readable: {exc}", "UTF-8 text", is_text=True) from exc
    return _READER.decode(EngineRecord, _READER.load_json(text, where=str(path)), where=str(path))


def trusted_record(
    engine: Path, device: DeviceFacts, *, module: str, version: str, trust: bool = False
) -> EngineRecord | None:
    """The record of an engine that may be loaded here; None for one without a record, with `trust` only.

    Whether the engine file is the one of the record is the caller's to check while it reads it: `sha256`.

    Raises:
        CheckFailedError: there is no record, and no `trust`.
        UnavailableError: the engine is for another device or TensorRT; the message lists the differences.
        PackageError: the record is not readable.
    """
    record = read_record(engine)
    if record is None:
        if trust:
            return None
        raise CheckFailedError(
            where=str(engine),
            got=f"an engine without {record_path(engine).name}: bitswitch-deploy did not build it",
            allowed="engines that `bitswitch-deploy build` or build_on_device.sh built on this machine",
            do="build it here; or trust it (--trust, in an application RuntimeOptions(trust_engines=True)): "
            "an engine is code that runs on the GPU",
        )
    found = tuple(differences(record.recipe, device, module=module, version=version))
    if found:
        raise UnavailableError(
            where=str(engine),
            got="built for another device: " + "; ".join(found),
            allowed="an engine of this device and its TensorRT",
            do="build it here: bitswitch-deploy build PACKAGE, or with trtexec: sh PACKAGE/build_on_device.sh",
        )
    return record


def differences(recipe: Recipe, device: DeviceFacts, *, module: str, version: str) -> Iterator[str]:
    """In words, each fact in which an engine's recipe and a machine differ. Facts that one side lacks are not compared.

    The power mode is no such fact: an engine runs in any, if not with the tactics that are best there.
    """
    if recipe.module != module or not _same_version(recipe.version, version):
        yield f"{recipe.module} {recipe.version}, here {module} {version}"
    if recipe.compute_capabilities and device.sm is not None:
        here = f"SM{device.sm.replace('.', '')}"
        if here not in recipe.compute_capabilities:
            yield f"GPUs {', '.join(recipe.compute_capabilities)}, here {here}"
    built_on = recipe.device
    if built_on is None:
        return
    for name, title in (("arch", "processor"), ("sm", "SM"), ("module", "module"), ("l4t", "L4T")):
        theirs, ours = getattr(built_on, name), getattr(device, name)
        if theirs is not None and ours is not None and theirs != ours:
            yield f"{title} {theirs}, here {ours}"


def _same_version(one: str, other: str) -> bool:
    """10.3.0 is 10.3.0.30: trtexec names three numbers, dpkg and newer Python packages four."""
    return release_of(one) == release_of(other)
