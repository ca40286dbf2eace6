"""The canonical graph: quantize, clip, dequantize in float, precisely as trained.

Run with graph optimisations off it is the reference that everything else is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from bitswitch_deploy.errors import GraphError
from bitswitch_deploy.graph.bind_parameters import BindParameters
from bitswitch_deploy.graph.large_tensors import LargeTensor, large_tensors
from bitswitch_deploy.graph.model_io import MEND_NETWORK, export_model, import_model
from bitswitch_deploy.graph.passes import run_passes
from bitswitch_deploy.graph.plan import QuantizationPlan, plan_canonical
from bitswitch_deploy.graph.quantize_activations import QuantizeActivations
from bitswitch_deploy.graph.quantize_weights import QuantizeWeights
from bitswitch_deploy.master import Master
from bitswitch_deploy.tensors import WidthAssignment

CANONICAL_OPSET = 21
CANONICAL_IR_VERSION = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalGraph:
    """The model and the plan that it carries out. large: tensors that the model only marks, by name."""

    model: onnx.ModelProto
    plan: QuantizationPlan
    large: Mapping[str, LargeTensor] = field(default_factory=dict)


def canonical_graph(master: Master, assignment: WidthAssignment) -> CanonicalGraph:
    """The one canonical graph of a master at these widths. The same arguments give the same bytes.

    Raises:
        UsageError: a width is above the master's, or `assignment` names a layer that cannot take a width.
        GraphError: the skeleton is of another opset, a layer stands in a branch or loop of the network, or the result
            is not valid ONNX, which the reader of the master should have refused.
    """
    check_opset(master.skeleton)
    plan = plan_canonical(master, assignment)
    graph = import_model(master.skeleton)
    run_passes(graph, [BindParameters(master, plan), QuantizeWeights(master, plan), QuantizeActivations(plan)])
    model = export_model(graph, opset=CANONICAL_OPSET, ir_version=CANONICAL_IR_VERSION, do=MEND_NETWORK)
    return CanonicalGraph(model=model, plan=plan, large=large_tensors(graph))


def check_opset(skeleton: onnx.ModelProto) -> None:
    """Refuse a skeleton of another opset: operators such as Softmax and GroupNormalization mean something else there.

    Raises:
        GraphError: it is of another opset.
    """
    opset = skeleton.opset_import[0].version
    if opset != CANONICAL_OPSET:
        raise GraphError(
            where="skeleton of the master",
            got=f"opset {opset}",
            allowed=f"opset {CANONICAL_OPSET}",
            do="export the network at this opset, or convert it (onnx.version_converter), and write the master again",
        )
