"""Do the tensors of a master agree with its spec and skeleton, and are their values usable?

Values are checked with reductions (min, max), never with a mask as large as the tensor. min and max propagate NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.container import Array
from bitswitch_deploy.master.spec import MEND_WRITER, LayerSpec, MasterSpec
from bitswitch_deploy.records import shown
from bitswitch_deploy.tensors import code_range

_FLOAT32 = np.finfo(np.float32)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What the spec says about one tensor."""

    kind: Literal["codes", "scale", "float"]
    shape: Shape


def check_tensors(tensors: Mapping[str, Array], spec: MasterSpec, shapes: Mapping[str, Shape], source: str) -> None:
    """Check names, dtypes, shapes and values. `shapes` are those of the parameters in the skeleton.

    Raises:
        MasterError: a tensor is missing, unknown, of another dtype or shape, or holds an unusable value.
    """
    expected = _expected_tensors(spec, shapes, source)
    _check_names(tensors, expected, source)
    for name, entry in expected.items():
        tensor = tensors[name]
        where = f"{source}: tensor {name}"
        dtype = np.int8 if entry.kind == "codes" else np.float32
        if tensor.dtype != dtype or tensor.shape != entry.shape:
            got = f"{tensor.dtype} of shape {list(tensor.shape)}"
            _refuse(where, got, f"{np.dtype(dtype).name} of shape {list(entry.shape)}")
        if entry.kind == "codes":
            _check_codes(tensor, spec.bits, where)
        elif entry.kind == "scale":
            _check_scale(tensor, where)
        else:
            _check_finite(tensor, where)


def _expected_tensors(spec: MasterSpec, shapes: Mapping[str, Shape], source: str) -> dict[str, _Expected]:
    widths = len(spec.widths)
    expected: dict[str, _Expected] = {}
    for layer in spec.layers:
        shape = shapes[layer.weight]
        expected[layer.weight] = _Expected(kind="float" if layer.pinned else "codes", shape=shape)
        if not layer.pinned:
            expected[layer.weight_scale] = _Expected(kind="scale", shape=_scale_shape(layer, shape, source))
        if layer.activation != "none":
            expected[layer.input_scale] = _Expected(kind="scale", shape=(widths,))
    for name in spec.switchable:
        expected[name] = _Expected(kind="float", shape=(widths, *shapes[name]))
    for name in spec.parameters:
        expected[name] = _Expected(kind="float", shape=shapes[name])
    return expected


def _scale_shape(layer: LayerSpec, shape: Shape, source: str) -> Shape:
    try:
        return layer.granularity.scale_shape(shape)
    except ValueError as exc:
        raise MasterError(
            where=f"{source}: layer {layer.name}: granularity",
            got=str(exc),
            allowed=f"an axis of the weight {layer.weight} of shape {list(shape)}",
            do=MEND_WRITER,
        ) from exc


def _check_names(tensors: Mapping[str, Array], expected: Mapping[str, _Expected], source: str) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        _refuse(f"{source}: tensors", f"none named {_listed(missing)}", "every tensor that the spec asks for")
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        _refuse(f"{source}: tensors", f"unknown: {_listed(unknown)}", "only tensors that the spec asks for")


def _check_codes(codes: Array, bits: int, where: str) -> None:
    allowed = code_range(bits, signed=True)
    low, high = int(codes.min()), int(codes.max())
    if low < allowed.low or high > allowed.high:
        _refuse(where, f"codes {low}..{high}", f"{allowed.low}..{allowed.high} ({bits} bits)")


def _check_scale(scale: Array, where: str) -> None:
    """Usable scales are positive normal numbers whose product with every code, at every width, is finite.

    Subnormal ones are refused: their reciprocal overflows and many runtimes flush them to zero.
    """
    low, high = float(scale.min()), float(scale.max())
    smallest, largest = float(_FLOAT32.smallest_normal), float(_FLOAT32.max) / 256
    if not (smallest <= low and high <= largest):
        _refuse(where, f"scales {low:g}..{high:g}", f"positive numbers from {smallest:g} to {largest:g}")


def _check_finite(values: Array, where: str) -> None:
    if not np.isfinite([values.min(), values.max()]).all():
        _refuse(where, "a value that is NaN or infinite", "finite numbers")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + more


def _refuse(where: str, got: str, allowed: str) -> None:
    raise MasterError(where=where, got=got, allowed=allowed, do=MEND_WRITER)
