"""Lower a canonical graph to one target: the target's list of passes, by name, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from bitswitch_deploy.errors import TargetFileError
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.graph.large_tensors import LargeTensor, large_tensors
from bitswitch_deploy.graph.model_io import export_model, import_model
from bitswitch_deploy.graph.passes import run_passes
from bitswitch_deploy.lowering.clamp_activations import ClampActivations
from bitswitch_deploy.lowering.fold_batchnorm import FoldBatchNorm
from bitswitch_deploy.lowering.lowering_pass import Change, LoweringContext, LoweringPass
from bitswitch_deploy.lowering.pack_weights import PackWeights
from bitswitch_deploy.lowering.quantize_bias import QuantizeBias
from bitswitch_deploy.lowering.quantize_residual import QuantizeResidual
from bitswitch_deploy.lowering.ranges import TensorRange
from bitswitch_deploy.lowering.recentre_activations import RecentreActivations
from bitswitch_deploy.lowering.residuals import plan_residuals
from bitswitch_deploy.lowering.set_opset import SetOpset
from bitswitch_deploy.lowering.store_float_weights import StoreFloatWeights
from bitswitch_deploy.lowering.target_rules import check_target_rules
from bitswitch_deploy.target import Target

# Every pass that a target profile may name. The order is the profile's.
PASSES: dict[str, type[LoweringPass]] = {
    each.__name__: each
    for each in (
        FoldBatchNorm,
        QuantizeResidual,
        RecentreActivations,
        ClampActivations,
        QuantizeBias,
        PackWeights,
        StoreFloatWeights,
        SetOpset,
    )
}


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


def residual_tensors(canonical: CanonicalGraph, target: Target) -> tuple[str, ...]:
    """Float tensors of the canonical graph whose ranges `lower` needs to quantize residual branches."""
    if QuantizeResidual.__name__ not in target.lowering:
        return ()
    points = plan_residuals(import_model(canonical.model, canonical.large), target.quantization.residual)
    return tuple(dict.fromkeys(point.like for point in points))


def lower(canonical: CanonicalGraph, target: Target, *, ranges: Mapping[str, TensorRange]) -> LoweredGraph:
    """The graph that this target runs. The same arguments give the same bytes.

    Args:
        ranges: of `residual_tensors`, observed on this canonical graph; empty keeps residual branches in float.

    Raises:
        TargetFileError: the target names an unknown pass.
        GraphError: the network holds something that the target cannot express.
    """
    check_passes(target)
    context = LoweringContext(
        target=target,
        weight_bits={layer.layer.weight: layer.bits for layer in canonical.plan.layers},
        ranges=dict(ranges),
    )
    graph = import_model(canonical.model, canonical.large)
    passes = run_passes(graph, [PASSES[name](context) for name in target.lowering])
    model = export_model(graph, opset=graph.opset, ir_version=target.stack.ir_version)
    check_target_rules(model, target)
    return LoweredGraph(model=model, passes=passes, changes=tuple(context.changes), large=large_tensors(graph))
