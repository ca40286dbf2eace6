"""What is known about the layers of an engine from when it was built, in files beside it."""

from __future__ import annotations

from pathlib import Path

import onnx

from bitswitch_deploy.engines.engine_layers import layers_of_json
from bitswitch_deploy.engines.read_back import ReadBack, read_back
from bitswitch_deploy.errors import GraphError, PackageError


def layers_path(engine: Path) -> Path:
    """Where `build` writes it."""
    return engine.with_name(f"{engine.name}.layers.json")


def forget_layers(engine: Path) -> None:
    """Remove what is known: another engine takes its place."""
    for path in (layers_path(engine), _vendors_path(engine)):
        path.unlink(missing_ok=True)


def kept_layers(engine: Path, model: onnx.ModelProto) -> ReadBack | None:
    """What was read back, by us or by trtexec in the vendor's form; None where that is not there or not readable."""
    ours, vendors = layers_path(engine), _vendors_path(engine)
    try:
        if ours.is_file():
            return ReadBack.from_json(ours.read_text(encoding="utf-8"), where=str(ours))
        if vendors.is_file():
            return read_back(model, layers_of_json(vendors.read_text(encoding="utf-8"), where=str(vendors)))
    except (PackageError, GraphError, OSError, UnicodeDecodeError):
        return None
    return None


def _vendors_path(engine: Path) -> Path:
    """Where build_on_device.sh lets trtexec write it."""
    return engine.with_suffix(".layers.json")
