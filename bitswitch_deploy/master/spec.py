"""The spec of a master: what its metadata says, as frozen values (format v1, see README.md beside this file).

The JSON form has exactly these names. `MasterSpec.from_json` refuses unknown keys, missing keys and wrong types;
whether the spec fits the tensors is the reader's work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.records import Reader, shown
from bitswitch_deploy.tensors import Granularity, Rounding

FORMAT = "bitswitch-master"
VERSION = 1
SPEC_KEY = "bitswitch_master"

MEND_WRITER = "mend the program that wrote it; bitswitch_deploy/master/README.md documents the format"
READER = Reader(error=MasterError, do=MEND_WRITER)

Operator = Literal["Conv", "ConvTranspose", "Gemm", "MatMul"]
Container = Literal["uint8", "int8"]
ActivationKind = Literal["unsigned", "signed", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One weight of the network.

    name: the module path in the trainer, `layer1.0.conv1`.
    operator: the ONNX operator that consumes the weight.
    weight: tensor name; int8 codes in the layout that `operator` reads, float32 when pinned.
    granularity: of the weight scale, which is stored as `<weight>.scale`.
    activation: `unsigned` (after ReLU) or `signed` codes on the layer's input, scales stored as
        `<name>.input.scale`, float32 [len(widths)]; `none` when the input stays float.
    pinned: True keeps the layer in floating point at every width.
    """

    name: str
    operator: Operator
    weight: str
    granularity: Granularity
    activation: ActivationKind
    pinned: bool = False

    @property
    def weight_scale(self) -> str:
        """Tensor name of the weight scale."""
        return f"{self.weight}.scale"

    @property
    def input_scale(self) -> str:
        """Tensor name of the activation scales, [len(widths)]."""
        return f"{self.name}.input.scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSpec:
    """One network input or output.

    dtype: ONNX element type in lower case: `float`, `float16`, `uint8`, `int64`, ...
    shape: sizes; a string names a dynamic dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAccuracy:
    """What the trainer measured at one width: `value` in percent over `n` samples of a named data set."""

    bits: int
    metric: Literal["top1"]
    value: float
    n: int
    dataset: str
    dataset_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSpec:
    """Everything about a master but its tensors.

    bits: width of the stored codes (h). widths: trained widths, highest first.
    activation_container: `uint8` trains unsigned 8-bit codes to 255, `int8` to 127 (exact on TensorRT).
    switchable: parameters with one copy per trained width, stored as [len(widths), ...].
    parameters: all other float parameters of the skeleton, stored under their own names.
    partners: (switchable parameter, quantized layer that it switches with) pairs; a parameter that is not named goes
        with the default width. None, as in files older than this field: each goes with its neighbour (graph/plan.py).
    provenance: free text pairs: recipe, seed, versions.
    """

    bits: int
    widths: tuple[int, ...]
    rounding: Rounding
    activation_container: Container
    layers: tuple[LayerSpec, ...]
    switchable: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    preprocessing: Preprocessing | None
    accuracy: tuple[MeasuredAccuracy, ...]
    provenance: tuple[tuple[str, str], ...]
    partners: tuple[tuple[str, str], ...] | None = None

    def to_json(self) -> str:
        """Text of the metadata; the same spec gives the same text, and `from_json` gives the spec back.

        Raises:
            MasterError: a field does not hold what its type says.
        """
        # Through `decode`, so that 255 and 255.0 in a float field are written alike.
        fields = asdict(READER.decode(MasterSpec, asdict(self), where="spec"))
        if self.partners is None:
            del fields["partners"]
        if self.preprocessing is not None and self.preprocessing.centre_share is None:
            del fields["preprocessing"]["centre_share"]  # as files have it that are older than the field
        return json.dumps({"format": FORMAT, "version": VERSION, **fields}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str = "spec") -> MasterSpec:
        """Read the spec from `text`, the metadata of the file `source`.

        Raises:
            MasterError: not JSON, another format or version, unknown or missing keys, wrong types.
        """
        document = READER.load_json(text, where=source)
        check_version(document, source=source)
        return READER.decode(
            cls, {key: document[key] for key in document if key not in ("format", "version")}, where=source
        )


def check_is_master(metadata: Mapping[str, str], *, source: str) -> None:
    """Refuse a safetensors file that holds no spec, before anything else in it is judged.

    Raises:
        MasterError: the metadata have no key `SPEC_KEY`.
    """
    if SPEC_KEY not in metadata:
        raise MasterError(
            where=source,
            got=f"a safetensors file without the metadata key {SPEC_KEY}",
            allowed="a bitswitch master (.safetensors)",
            do="name the master, not a checkpoint; of one in several files name the *.safetensors.index.json",
        )


def check_version(document: dict[str, object], *, source: str) -> None:
    """Refuse a spec of another format or version than this release reads.

    Raises:
        MasterError: `format` or `version` is not ours.
    """
    if document.get("format") != FORMAT:
        raise MasterError(
            where=f"{source}: format",
            got=shown(document.get("format")),
            allowed=FORMAT,
            do="hand in a file that a bitswitch-deploy trainer or `write_master` wrote",
        )
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise MasterError(
            where=f"{source}: version",
            got=shown(version),
            allowed=f"{VERSION} (the only version that this release reads)",
            do="install the bitswitch-deploy release that wrote the file, or export the master again",
        )
