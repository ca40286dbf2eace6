"""What a lowering may do other than the network was trained, each by name. Without any it is exact."""

from __future__ import annotations

from enum import Enum


class Approximation(str, Enum):
    """A speed-up that can change integer codes.

    ROUNDED_BIAS: onnxruntime's int32 biases are rounded where no exact one is found; without it such a layer runs in
    float. RESIDUAL_CODES: float tensors that a convolution writes or an Add reads beside it get calibrated 8-bit codes.
    ELEMENTWISE_CODES: so do results of what lies between layers and is no such Add: SiLU, HardSwish, Concat, gates.
    PINNED_LAYERS: layers that training kept in float get 8-bit weights and inputs after training.
    HALF_LAYERS: layers that training kept in float compute in float16 where a TensorRT network is strongly typed.
    FULL_RESOLUTION: activations keep their trained range but use all 256 codes in it, so that saturation clips, or the
    codes of the residual branch that they come from; those that are never negative, which low widths hardly mind, and
    any that fill them already, where residual branches then have the same codes. FULL_RESOLUTION_SIGNED: the others,
    which may mind.
    INT8_INPUTS: layers with quantized weights and float inputs round these to 8 bits as they come, block by block.
    """

    ROUNDED_BIAS = "rounded-bias"
    RESIDUAL_CODES = "residual-codes"
    ELEMENTWISE_CODES = "elementwise-codes"
    HALF_LAYERS = "half-layers"
    PINNED_LAYERS = "pinned-layers"
    FULL_RESOLUTION = "full-resolution"
    FULL_RESOLUTION_SIGNED = "full-resolution-signed"
    INT8_INPUTS = "int8-inputs"


# What concerns codes and is tried by default.
USUAL = frozenset({Approximation.ROUNDED_BIAS, Approximation.RESIDUAL_CODES, Approximation.ELEMENTWISE_CODES})
# What every export tries; the others are the user's choice.
EXPORTED = USUAL | {Approximation.HALF_LAYERS}
EXACT: frozenset[Approximation] = frozenset()
