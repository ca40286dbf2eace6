"""The layers of a built engine, as TensorRT describes them: in the inspector's JSON, or in the log of the RTX builder.

Each layer of an engine is a fusion of nodes of the ONNX graph. Newer releases name those nodes in `Metadata`; 8.5 has
the fused names only, joined with ` + ` or ` || `. No vendor import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitswitch_deploy.engines.tensorrt_log import LAYER_LIST
from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.records import Reader

Precision = Literal["int8", "int4", "fp8", "fp16", "bf16", "fp32", "other"]

_READER = Reader(error=GraphError, do="build the engine again; please report it if it stays", plain_text=False)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FUSED = re.compile(r" \+ | \|\| ")
# Of names such as "Half", "Row major linear FP16 format", "Thirty-two wide channel vectorized row major Int8 format";
# the first that matches.
_PRECISIONS: tuple[tuple[str, Precision], ...] = (
    (r"int8", "int8"),
    (r"int4", "int4"),
    (r"fp8|float8", "fp8"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|half|float16", "fp16"),
    (r"fp32|float", "fp32"),
)
# One line of the log: name, type, then lists in brackets that hold brackets themselves.
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<weights>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], \w+: .*?Metadata: (?P<metadata>.*)"
)
_TYPE_IN_LINE = re.compile(r"(?:Format/)?Datatype: ([^,}]*)")
_SHAPES = re.compile(r"\[[-\d,: ]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer of an engine. nodes: names in the ONNX graph. inputs, outputs, weights: types of what it reads, writes
    and holds.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[Precision, ...]
    outputs: tuple[Precision, ...]
    weights: tuple[Precision, ...] = ()


def layers_of_json(text: str, *, where: str) -> tuple[EngineLayer, ...]:
    """The layers in what the engine inspector says, which is also what `trtexec --exportLayerInfo` writes.

    Raises:
        GraphError: it is not JSON, or not of that form.
    """
    document = _READER.load_json(text, where=where)
    layers = document.get("Layers")
    if not isinstance(layers, list):
        raise _READER.refusal(where, "no list Layers", "what the engine inspector writes", is_text=True)
    found = tuple(_of_mapping(layer) for layer in layers if isinstance(layer, Mapping))
    if len(found) != len(layers):
        allowed = "layers with their details (profiling verbosity: detailed)"
        raise _READER.refusal(where, "layers without details", allowed, is_text=True)
    return found


def layers_of_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The layers in the last list that a builder logged; none where it logged none, or not in this form."""
    lists = [text for text in messages if text.startswith(LAYER_LIST)]
    if not lists:
        return ()
    lines = (_LINE.match(_SHAPES.sub("()", line)) for line in lists[-1].splitlines())
    return tuple(_of_match(match) for match in lines if match)


def _of_mapping(layer: Mapping[str, Any]) -> EngineLayer:
    weights = [layer["Weights"].get("Type")] if isinstance(layer.get("Weights"), Mapping) else []
    name = str(layer.get("Name", ""))
    return EngineLayer(
        name=name,
        kind=str(layer.get("LayerType", "")),
        nodes=_nodes(name, str(layer.get("Metadata", ""))),
        inputs=_types(layer.get("Inputs")),
        outputs=_types(layer.get("Outputs")),
        weights=(*map(_precision, filter(None, weights)), *_types(layer.get("Constants"))),
    )


def _of_match(match: re.Match[str]) -> EngineLayer:
    types = {
        key: tuple(map(_precision, _TYPE_IN_LINE.findall(match[key] or ""))) for key in ("inputs", "outputs", "weights")
    }
    return EngineLayer(name=match["name"], kind=match["kind"], nodes=_nodes(match["name"], match["metadata"]), **types)


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    named = _ONNX_LAYER.findall(metadata)
    return tuple(dict.fromkeys(named or (part.strip() for part in _FUSED.split(name))))


def _types(tensors: Any) -> tuple[Precision, ...]:
    entries = [each for each in tensors if isinstance(each, Mapping)] if isinstance(tensors, list) else []
    return tuple(_precision(str(each.get("Datatype", each.get("Format/Datatype", "")))) for each in entries)


def _precision(text: str) -> Precision:
    return next((name for pattern, name in _PRECISIONS if re.search(pattern, text, re.IGNORECASE)), "other")
