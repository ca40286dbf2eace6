"""What TensorRT says while it parses and builds, and what that means for the user. No vendor import."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bitswitch_deploy.errors import BitswitchError, GraphError, UnavailableError

# How the verbose message begins in which a builder lists the layers of the engine that it has built.
LAYER_LIST = ("Layers:", "Engine Layer Information:")
ERROR_SEVERITIES = ("INTERNAL_ERROR", "ERROR")

# Both wordings of the ONNX parser (8.5 to 10.3; 10.11 and newer). Half of the code range is destroyed without an error.
_UINT8_AS_INT8 = re.compile(r"UINT8 zero_point|TensorRT will use INT8 instead|Defaulting to INT8")
_NO_GPU = re.compile(r"cuda", re.IGNORECASE)
# cudaErrorMemoryAllocation in words and by number, the builder's own allocators, std::bad_alloc
_NO_MEMORY = re.compile(r"out ?of ?memory|cudaError 2:|requested amount of (GPU )?memory|bad_alloc", re.IGNORECASE)
_NO_TACTIC = "Could not find any implementation"
# TensorRT's tactics; Myelin's, all there is in TensorRT for RTX
_SMALL_WORKSPACE = re.compile(r"insufficient workspace|increase (the )?workspace|within workspace limit", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMessage:
    """One line of the vendor's log; severity is the vendor's name: VERBOSE, INFO, WARNING, ERROR or INTERNAL_ERROR."""

    severity: str
    text: str


def warnings_of(messages: Iterable[LogMessage]) -> tuple[str, ...]:
    """Texts of the warnings, each once, in order."""
    return tuple(dict.fromkeys(message.text for message in messages if message.severity == "WARNING"))


def errors_of(messages: Iterable[LogMessage]) -> tuple[str, ...]:
    """Texts of the errors, each once, in order."""
    return tuple(dict.fromkeys(message.text for message in messages if message.severity in ERROR_SEVERITIES))


def check_unsigned_codes(messages: Iterable[LogMessage], *, where: str) -> None:
    """Refuse a graph whose unsigned codes TensorRT reads as signed ones.

    Raises:
        GraphError: the parser has warned that it does so.
    """
    for text in warnings_of(messages):
        if _UINT8_AS_INT8.search(text):
            raise GraphError(
                where=where,
                got=f"UINT8 codes, which TensorRT reads as INT8 (codes above 127 saturate): {text}",
                allowed="QuantizeLinear and DequantizeLinear with an INT8 zero-point of 0",
                do="lower the graph for a TensorRT target",
            )


def build_failure(messages: Iterable[LogMessage], *, where: str) -> BitswitchError:
    """The error for a build that returned nothing: the first logged error is the cause, unless memory ran out."""
    logged = list(messages)
    errors = errors_of(logged) or ("the builder returned nothing and logged no error",)
    got = "no engine: " + "; ".join(errors)
    # tactics that do not fit are skipped with a warning; only where none is left were they the cause
    causes = errors + (warnings_of(logged) if any(_NO_TACTIC in text for text in errors) else ())
    if any(_NO_MEMORY.search(text) for text in causes):
        do = "end other programs, the desktop first, or build with less: bitswitch-deploy build PACKAGE --workspace MB"
        return UnavailableError(where=where, got=f"out of memory; {got}", allowed="free memory for the build", do=do)
    if any(_SMALL_WORKSPACE.search(text) for text in causes):
        do = "build with more: bitswitch-deploy build PACKAGE --workspace MB"
        return UnavailableError(where=where, got=got, allowed="workspace for each layer of the network", do=do)
    if _NO_GPU.search(errors[0]):
        do = "build on the machine that runs the engine and check its driver"
        return UnavailableError(where=where, got=got, allowed="a GPU and driver that this build can use", do=do)
    allowed = "a Q/DQ graph of layers and types that this TensorRT can build"
    return GraphError(where=where, got=got, allowed=allowed, do="check the layer that the message names")
