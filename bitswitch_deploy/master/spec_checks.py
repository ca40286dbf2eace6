"""Does a spec agree with itself? Types are right already (records.py); whether it fits the tensors comes later."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import onnx

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master.spec import MEND_WRITER, LayerSpec, MasterSpec, MeasuredAccuracy, ValueSpec
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.records import shown
from bitswitch_deploy.tensors import MAX_BITS, MIN_BITS

_ELEMENT_TYPES = frozenset(name.lower() for name, _ in onnx.TensorProto.DataType.items()) - {"undefined"}


def check_spec(spec: MasterSpec, source: str) -> None:
    """Check widths, names, layers, signature, preprocessing and accuracies.

    Raises:
        MasterError: the first contradiction found.
    """
    if not MIN_BITS <= spec.bits <= MAX_BITS:
        _refuse(f"{source}: bits", str(spec.bits), f"{MIN_BITS}..{MAX_BITS}")
    _check_widths(spec, source)
    _check_names(spec, source)
    _check_partners(spec, source)
    for layer in spec.layers:
        _check_layer(layer, f"{source}: layer {layer.name}")
    for value in (*spec.inputs, *spec.outputs):
        _check_value(value, f"{source}: {value.name}")
    if spec.preprocessing is not None:
        _check_preprocessing(spec.preprocessing, spec.inputs, f"{source}: preprocessing")
    for index, accuracy in enumerate(spec.accuracy):
        _check_accuracy(accuracy, spec.bits, f"{source}: accuracy[{index}]")


def _check_widths(spec: MasterSpec, source: str) -> None:
    widths = spec.widths
    is_descending = all(high > low for high, low in pairwise(widths))
    if not widths or not is_descending or widths[0] > spec.bits or widths[-1] < MIN_BITS:
        allowed = f"at least one width, highest first, each once, from {spec.bits} (bits) down to {MIN_BITS}"
        _refuse(f"{source}: widths", shown(list(widths)), allowed)


def _check_names(spec: MasterSpec, source: str) -> None:
    """Every name is there, printable, and stands for one thing; safetensors keeps __metadata__ for itself."""
    _check_unique((layer.name for layer in spec.layers), f"{source}: layers")
    _check_unique((key for key, _ in spec.provenance), f"{source}: provenance")
    _check_unique((value.name for value in spec.outputs), f"{source}: outputs")
    if not spec.inputs or not spec.outputs:
        _refuse(f"{source}: inputs, outputs", "none", "at least one input and one output")
    stored = ["skeleton", "__metadata__", *spec.switchable, *spec.parameters]
    for layer in spec.layers:
        stored.append(layer.weight)
        if not layer.pinned:
            stored.append(layer.weight_scale)
        if layer.activation != "none":
            stored.append(layer.input_scale)
    _check_unique((*stored, *(value.name for value in spec.inputs)), f"{source}: tensor names")


def _check_partners(spec: MasterSpec, source: str) -> None:
    partners = spec.partners or ()
    quantized = {layer.name for layer in spec.layers if not layer.pinned}
    _check_unique((parameter for parameter, _ in partners), f"{source}: partners")
    for parameter, layer in partners:
        if parameter not in spec.switchable:
            _refuse(f"{source}: partners", shown(parameter), "names that switchable lists")
        if layer not in quantized:
            _refuse(f"{source}: partners[{parameter}]", shown(layer), "the name of a layer that is not pinned")


def _check_unique(names: Iterable[str], where: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            _refuse(where, f"{shown(name)} {count} times", "each name once")
        if not name or not name.isprintable():
            _refuse(where, shown(name), "a name of printable characters")


def _check_layer(layer: LayerSpec, where: str) -> None:
    if layer.pinned and layer.activation != "none":
        _refuse(where, f"pinned with {layer.activation} activation", 'activation "none", as a pinned layer stays float')


def _check_value(value: ValueSpec, where: str) -> None:
    if value.dtype not in _ELEMENT_TYPES:
        _refuse(f"{where}: dtype", shown(value.dtype), "an ONNX element type in lower case, such as float or uint8")
    for dim in value.shape:
        is_good = dim.isprintable() and dim != "" if isinstance(dim, str) else dim >= 1
        if not is_good:
            _refuse(f"{where}: shape", shown(list(value.shape)), "sizes of at least 1, or names of dynamic dimensions")


def _check_preprocessing(steps: Preprocessing, inputs: tuple[ValueSpec, ...], where: str) -> None:
    for field, got, allowed in steps.faults():
        _refuse(f"{where}{field}", got, allowed)
    made = (steps.channels, *steps.size)
    for value in inputs if len(inputs) == 1 else ():
        differ = (isinstance(dim, int) and dim != size for dim, size in zip(value.shape[1:], made))
        if len(value.shape) == 4 and any(differ):
            got = f"images [{', '.join(map(str, made))}] for the input {value.name} of shape {shown(list(value.shape))}"
            _refuse(where, got, "images of the channels, height and width that the input has")


def _check_accuracy(accuracy: MeasuredAccuracy, bits: int, where: str) -> None:
    if not MIN_BITS <= accuracy.bits <= bits:
        _refuse(f"{where}: bits", str(accuracy.bits), f"{MIN_BITS}..{bits}")
    if not (math.isfinite(accuracy.value) and 0 <= accuracy.value <= 100):
        _refuse(f"{where}: value", str(accuracy.value), "percent, 0..100")
    if accuracy.n < 1:
        _refuse(f"{where}: n", str(accuracy.n), "the number of samples, at least 1")
    if re.fullmatch("[0-9a-f]{64}", accuracy.dataset_sha256) is None:
        _refuse(f"{where}: dataset_sha256", shown(accuracy.dataset_sha256), "64 hexadecimal digits in lower case")


def _refuse(where: str, got: str, allowed: str) -> None:
    raise MasterError(where=where, got=got, allowed=allowed, do=MEND_WRITER)
