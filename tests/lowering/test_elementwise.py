"""Which operators between layers compute with codes, and which of their results get codes for it."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from bitswitch_deploy.graph.model_io import import_model
from bitswitch_deploy.lowering.approximation import USUAL, Approximation
from bitswitch_deploy.lowering.elementwise import ElementwisePlan, plan_elementwise
from bitswitch_deploy.lowering.lower import calibrated_tensors
from bitswitch_deploy.lowering.lowering_pass import LoweringContext
from bitswitch_deploy.lowering.quantize_residual import QuantizeResidual
from bitswitch_deploy.lowering.residuals import CodedTensor
from tests.lowering.blocks import observed
from tests.lowering.lowered import canonical, profile
from tests.lowering.test_quantize_elementwise import BODIES, network

X86 = profile("x86-cpu")


def plan(body: str) -> ElementwisePlan:
    """Give the plan behind the codes that QuantizeResidual makes."""
    canonical_graph = canonical(network(body), 4)
    names = calibrated_tensors(canonical_graph, X86, USUAL - {Approximation.ELEMENTWISE_CODES})
    graph: gs.Graph = import_model(canonical_graph.model)
    ranges = observed(canonical_graph.model, names)
    QuantizeResidual(LoweringContext(target=X86, weight_bits={}, ranges=ranges)).apply(graph)
    return plan_elementwise(graph)


def own(tensor: str) -> CodedTensor:
    return CodedTensor(tensor=tensor, like=tensor, reader=None, unsigned=False)


def bounded(tensor: str) -> CodedTensor:
    return CodedTensor(tensor=tensor, like=tensor, reader=None, unsigned=True)


def moved(tensor: str, like: str) -> CodedTensor:
    return CodedTensor(tensor=tensor, like=like, reader=None, unsigned=False)


@pytest.mark.parametrize(
    ("body", "rewritten", "tensors"),
    [
        (BODIES["silu"], 0, [bounded("s")]),
        (BODIES["hard-swish"], 1, []),
        (BODIES["gate"], 1, [own("p"), bounded("g")]),
        (BODIES["another-gate"], 0, [own("p"), bounded("g")]),
        # inputs first: Split takes the codes of what it splits
        (BODIES["split"], 0, [bounded("s"), own("q"), moved("u", "q"), moved("v", "q"), own("w")]),
        (BODIES["pools"], 0, [moved("u", "r.residual.dequantized"), moved("v", "u"), own("w")]),
        (BODIES["upsampled"], 1, [own("q"), moved("u", "q"), own("p")]),
        # of what is clipped the clipped tensor gets them
        (
            "s = Sigmoid (a) t = Mul (a, s) c = Clip (t, zero, six) k = Sigmoid (c) m = Mul (c, k)",
            0,
            [bounded("s"), own("c"), bounded("k")],
        ),
    ],
)
def test_plan(body: str, rewritten: int, tensors: list[CodedTensor]) -> None:
    found = plan(body)
    assert len(found.rewritten) == rewritten
    assert list(found.tensors) == tensors
    assert found.calibrated == tuple(each.tensor for each in tensors if each == own(each.tensor))
    assert not found.is_empty


@pytest.mark.parametrize(
    "body",
    [
        "m = Tanh (a)",
        # no way from these to codes
        "s = Sigmoid (a) e = Mul (a, s) m = Exp (e)",
        # another input is a float
        "f = Tanh (a) m = Add (a, f)",
        "f = Tanh (a) b = MaxPool <kernel_shape = [1, 1]> (a) m = Mul (b, f)",
        "s = Sigmoid (a) q = Mul (a, s) t = Sigmoid (q) e = Exp (t) m = Mul (e, q)",
        # not the mean over a plane
        "p = ReduceMean <keepdims = 1> (a, channels) m = Concat <axis = 1> (p, p, p, p)",
        # between samples of the image it computes
        'm = Resize <mode = "linear"> (a, , twice)',
    ],
)
def test_nothing_to_plan(body: str) -> None:
    assert plan(body).is_empty
