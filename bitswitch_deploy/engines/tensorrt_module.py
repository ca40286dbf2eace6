"""The vendor's Python modules, `tensorrt` and `tensorrt_rtx`, which are imported in this file only."""

from __future__ import annotations

import importlib
import re
from collections.abc import MutableSequence
from types import ModuleType
from typing import Any, Literal, get_args

from bitswitch_deploy.engines.tensorrt_log import LAYER_LIST, LogMessage
from bitswitch_deploy.errors import UnavailableError, UsageError

Module = Literal["tensorrt", "tensorrt_rtx"]

_WHERE = "TensorRT engine"
_INSTALL = {
    "tensorrt": "on a Jetson use the system Python (a virtual environment needs --system-site-packages)",
    "tensorrt_rtx": "pip install 'bitswitch-deploy[rtx]'",
}


def load_module(module: Module) -> ModuleType:
    """The vendor's Python module.

    Raises:
        UnavailableError: it is not installed, or its libraries do not load.
        UsageError: there is no such engine.
    """
    if module not in get_args(Module):
        known = ", ".join(get_args(Module))
        raise UsageError(where="engine", got=repr(module), allowed=known, do="choose one of these")
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        got, allowed = f"not importable: {exc}", f"the Python module {module}"
        raise UnavailableError(where=_WHERE, got=got, allowed=allowed, do=_INSTALL[module]) from exc


def release_of(version: str) -> str:
    """The release in a `__version__`, as trtexec names it: `10.16.2` of `10.16.2.10` and of `10.16.2b6`.

    What follows tells builds of one release apart: the fourth number since 10.8, and letters.
    """
    return ".".join(re.findall(r"\d+", version)[:3])


def register_plugins(trt: Any, logger: Any) -> None:
    """Make the vendor's own plugins known, as trtexec does: before 10 InstanceNormalization is one, RoiAlign later too.

    A process does it before it parses a graph with such operators, and before it loads such an engine.
    """
    if trt.__name__ == "tensorrt" and hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")


def recording_logger(trt: Any, messages: MutableSequence[LogMessage]) -> Any:
    """A logger of the vendor's kind that appends to `messages`, of the many verbose ones those that list the layers."""

    def log(_: object, severity: Any, text: str) -> None:
        if severity.name != "VERBOSE" or text.startswith(LAYER_LIST):
            messages.append(LogMessage(severity=str(severity.name), text=text))

    return type("RecordingLogger", (trt.ILogger,), {"log": log})()
