"""Lower a canonical graph to one target: the target's list of passes, by name, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from bitswitch_deploy.errors import TargetFileError
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.graph.float_reference import FloatGraph
from bitswitch_deploy.graph.half_precision import half_precision
from bitswitch_deploy.graph.large_tensors import LargeTensor, large_tensors
from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.passes import run_passes
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.calibrated_codes import halves_unsigned
from bitswitch_deploy.lowering.channels_last import ChannelsLast
from bitswitch_deploy.lowering.clamp_activations import ClampActivations
from bitswitch_deploy.lowering.deepen_input import DeepenInput
from bitswitch_deploy.lowering.elementwise import ElementwisePlan, plan_elementwise
from bitswitch_deploy.lowering.fill_container import FillContainer
from bitswitch_deploy.lowering.fold_batchnorm import FoldBatchNorm
from bitswitch_deploy.lowering.fold_clips import FoldClips
from bitswitch_deploy.lowering.halve_float_layers import HalveFloatLayers
from bitswitch_deploy.lowering.hard_sigmoid_codes import HardSigmoidCodes
from bitswitch_deploy.lowering.lowering_pass import Change, LoweringContext, LoweringPass
from bitswitch_deploy.lowering.pack_weights import PackWeights
from bitswitch_deploy.lowering.pool_codes import PoolCodes
from bitswitch_deploy.lowering.quantize_bias import QuantizeBias
from bitswitch_deploy.lowering.quantize_elementwise import QuantizeElementwise
from bitswitch_deploy.lowering.quantize_pinned import QuantizePinned, pinned_layers
from bitswitch_deploy.lowering.quantize_residual import QuantizeResidual
from bitswitch_deploy.lowering.ranges import TensorRange
from bitswitch_deploy.lowering.recentre_activations import RecentreActivations
from bitswitch_deploy.lowering.requantize import Requantize
from bitswitch_deploy.lowering.residuals import plan_residuals
from bitswitch_deploy.lowering.rewrite_weight_only import RewriteWeightOnly
from bitswitch_deploy.lowering.set_opset import SetOpset
from bitswitch_deploy.lowering.shortcut_convolution import ShortcutConvolution
from bitswitch_deploy.lowering.store_float_weights import StoreFloatWeights
from bitswitch_deploy.lowering.target_rules import check_target_rules
from bitswitch_deploy.target import Target

# Every pass that a target profile may name. The order is the profile's.
PASSES: dict[str, type[LoweringPass]] = {
    each.__name__: each
    for each in (
        QuantizePinned,
        FoldBatchNorm,
        QuantizeResidual,
        QuantizeElementwise,
        FoldClips,
        FillContainer,
        PoolCodes,
        RecentreActivations,
        ClampActivations,
        QuantizeBias,
        ShortcutConvolution,
        ChannelsLast,
        Requantize,
        HardSigmoidCodes,
        DeepenInput,
        RewriteWeightOnly,
        PackWeights,
        StoreFloatWeights,
        HalveFloatLayers,
        SetOpset,
    )
}

# The pass that makes use of each approximation; a target without it has no use for that.
MADE_BY: dict[Approximation, str] = {
    Approximation.ROUNDED_BIAS: QuantizeBias.__name__,
    Approximation.RESIDUAL_CODES: QuantizeResidual.__name__,
    Approximation.ELEMENTWISE_CODES: QuantizeElementwise.__name__,
    Approximation.HALF_LAYERS: HalveFloatLayers.__name__,
    Approximation.PINNED_LAYERS: QuantizePinned.__name__,
    Approximation.FULL_RESOLUTION: FillContainer.__name__,
    Approximation.FULL_RESOLUTION_SIGNED: FillContainer.__name__,
    Approximation.INT8_INPUTS: RewriteWeightOnly.__name__,
}
# Approximations that need ranges of `calibrated_tensors`.
CALIBRATED = frozenset({Approximation.RESIDUAL_CODES, Approximation.ELEMENTWISE_CODES, Approximation.PINNED_LAYERS})
_ANY_RANGE = TensorRange(minimum=0.0, maximum=1.0, values=np.ones(1, np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredGraph:
    """A model for one target, the names of the passes that changed it and what they have to say.

    large: tensors that the model only marks, by name.
    """

    model: onnx.ModelProto
    passes: tuple[str, ...]
    changes: tuple[Change, ...]
    large: Mapping[str, LargeTensor] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether the integer codes are those of the canonical graph."""
        return all(change.exact for change in self.changes)

    @property
    def approximations(self) -> frozenset[Approximation]:
        """Those that the graph makes use of: without another one it would be the same."""
        return frozenset(change.approximation for change in self.changes if change.approximation is not None)


def check_passes(target: Target) -> None:
    """Refuse a target that names a pass that does not exist.

    Raises:
        TargetFileError: with the names that do.
    """
    unknown = [name for name in target.lowering if name not in PASSES]
    if unknown:
        raise TargetFileError(
            where=f"target {target.name}: lowering",
            got=f"no pass is named {', '.join(unknown)}",
            allowed=", ".join(PASSES),
            do="correct the list in the target's YAML",
        )


def calibrated_tensors(
    canonical: CanonicalGraph, target: Target, approximations: frozenset[Approximation] = USUAL
) -> tuple[str, ...]:
    """Float tensors of the canonical graph whose ranges `lower` needs for these approximations."""
    needed, elementwise = _planned(canonical, target, approximations)
    return tuple(dict.fromkeys((*needed, *elementwise.calibrated)))


def has_elementwise(canonical: CanonicalGraph, target: Target, approximations: frozenset[Approximation]) -> bool:
    """Whether ELEMENTWISE_CODES, among these approximations, make a difference to the graph."""
    _, elementwise = _planned(canonical, target, approximations)
    return not elementwise.is_empty


def _planned(
    canonical: CanonicalGraph, target: Target, approximations: frozenset[Approximation]
) -> tuple[tuple[str, ...], ElementwisePlan]:
    """What the passes that come first need ranges of, and the plan for what lies between layers.

    That plan, and the one for residual branches, depend on where the pass before put codes, and not on which.
    """
    graph = import_model(canonical.model, canonical.large)
    used = {each for each in approximations if MADE_BY[each] in target.lowering}
    ranges: dict[str, TensorRange] = {}
    context = LoweringContext(target=target, weight_bits={}, ranges=ranges, approximations=approximations)
    if Approximation.PINNED_LAYERS in used:
        ranges |= {node.inputs[0].name: _ANY_RANGE for node in pinned_layers(graph)}
        QuantizePinned(context).apply(graph)
    if Approximation.RESIDUAL_CODES in used:
        points = plan_residuals(graph, target.quantization.residual)
        ranges |= {point.like: _ANY_RANGE for point in points}
        QuantizeResidual(context).apply(graph)
    if Approximation.ELEMENTWISE_CODES in used and not halves_unsigned(target):
        return tuple(ranges), plan_elementwise(graph)
    return tuple(ranges), ElementwisePlan()


def lower(
    canonical: CanonicalGraph,
    target: Target,
    *,
    ranges: Mapping[str, TensorRange],
    approximations: frozenset[Approximation] = USUAL,
) -> LoweredGraph:
    """The graph that this target runs. The same arguments give the same bytes.

    Args:
        ranges: of `calibrated_tensors`, observed on this canonical graph; empty keeps residual branches in float.
        approximations: what may differ from the trained network.

    Raises:
        TargetFileError: the target names an unknown pass.
        GraphError: the network holds something that the target cannot express.
    """
    check_passes(target)
    context = LoweringContext(
        target=target,
        weight_bits={layer.layer.weight: layer.bits for layer in canonical.plan.layers},
        ranges=dict(ranges),
        approximations=approximations,
    )
    graph = import_model(canonical.model, canonical.large)
    passes = run_passes(graph, [PASSES[name](context) for name in target.lowering])
    model = export_model(graph, opset=graph.opset, ir_version=target.stack.ir_version)
    check_target_rules(model, target)
    return LoweredGraph(model=model, passes=passes, changes=tuple(context.changes), large=large_tensors(graph))


def lower_reference(reference: FloatGraph, target: Target) -> FloatGraph:
    """The float network in float16, at the opset of the target's stack: what TensorRT builds the FP16 engine from.

    Raises:
        GraphError: the opset lacks an operator.
    """
    context = LoweringContext(target=target, weight_bits={}, ranges={})
    graph = import_model(reference.model, reference.large)
    run_passes(graph, [SetOpset(context)])
    model = export_model(graph, opset=graph.opset, ir_version=target.stack.ir_version)
    return half_precision(FloatGraph(model=model, large=large_tensors(graph)))
