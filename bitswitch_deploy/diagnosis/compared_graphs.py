"""The graphs of one width beside each other on the same samples: canonical, lowered cut by cut, lowered as it runs.

Cut by cut, every part of the lowered graph is given what the canonical graph computes before it, so that an error stays
where it is made. That graph runs node for node, without optimisations: looking at a tensor changes nothing then. As it
runs, with the optimisations of its runtime, it is looked at in codes only, behind the integer operators that write
them: the runtime fuses the same operators as without (tests/diagnosis compare them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from bitswitch_deploy.diagnosis.cuts import CutGraph
from bitswitch_deploy.diagnosis.edit_model import add_input, add_outputs, copy_of, give_from_outside
from bitswitch_deploy.diagnosis.model_view import ModelView
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession, Optimisation
from bitswitch_deploy.engines.reference import PATIENT, ReferenceSession

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

_OWN = ".own"
_FLOAT = onnx.TensorProto.FLOAT


class TappedReference:
    """The canonical graph with all tensors in `names` visible; the network's output is among them."""

    def __init__(self, canonical: onnx.ModelProto, names: tuple[str, ...]) -> None:
        model = copy_of(canonical)
        add_outputs(model, dict.fromkeys(names, _FLOAT))
        self._session = ReferenceSession(model.SerializeToString(), threads=usable_cores())

    def run(self, x: Array) -> Tensors:
        """All visible tensors for inputs `x` [n, ...]."""
        return self._session.run_all({self._session.inputs[0].name: x})


class ForcedGraph:
    """The lowered graph cut by cut: each part computes from the reference's tensors."""

    def __init__(self, lowered: onnx.ModelProto, cut: CutGraph) -> None:
        model, view = copy_of(lowered), ModelView(lowered)
        self._input = model.graph.input[0].name
        read = {name for node in model.graph.node for name in node.input}
        # what is given in the place of each tensor; codes on residual branches are left out
        self._given = {name: name for name in cut.common if name in read}
        self._given |= {each.result: each.residual_of for each in cut.added if each.residual_of is not None}
        self._sources = {each.result: each.source for each in cut.added if each.residual_of is None}
        give_from_outside(model, {name: view.rank(name) for name in self._given}, suffix=_OWN)
        self._names = (*cut.common, *(each.result for each in cut.added))
        sources = [name for name in self._sources.values() if name not in self._given and name != self._input]
        add_outputs(model, {self._own_name(name): _FLOAT for name in self._names})
        add_outputs(model, dict.fromkeys(sources, _FLOAT))
        self._session = ReferenceSession(model.SerializeToString(), threads=usable_cores())

    def run(self, x: Array, reference: Mapping[str, Array]) -> tuple[Tensors, Tensors]:
        """What each cut computes, and what it should: the reference, or for some added codes what goes into them."""
        known = {**reference, self._input: x}
        feeds = {name: known[tensor] for name, tensor in self._given.items()}
        results = self._session.run_all({self._input: x, **feeds})
        own = {name: results[self._own_name(name)] for name in self._names}
        wanted = {name: known[self._given.get(name, name)] for name in self._names if name not in self._sources}
        for name, source in self._sources.items():
            wanted[name] = feeds.get(source, x if source == self._input else results.get(source, x))
        return own, wanted

    def _own_name(self, name: str) -> str:
        return f"{name}{_OWN}" if name in self._given else name


class TappedCodes:
    """The lowered graph as its runtime runs it, with the codes in front of some DequantizeLinear visible.

    Args:
        lowered: the graph, with all its weights.
        dequantized: names of the dequantized tensors.
        optimisation, session_options: of the runtime.
    """

    def __init__(
        self,
        lowered: onnx.ModelProto,
        dequantized: tuple[str, ...],
        *,
        optimisation: Optimisation,
        session_options: Mapping[str, str],
    ) -> None:
        model = copy_of(lowered)
        view = ModelView(model)
        self._readers = {name: view.producers[name] for name in dequantized if name in view.producers}
        self._constants = {entry.name: entry for entry in model.graph.initializer}
        codes = {node.input[0]: view.element_type(node.input[0]) for node in self._readers.values()}
        add_outputs(model, codes)
        self.model = model
        self._output = model.graph.output[0].name
        self._session = OnnxRuntimeSession(
            model.SerializeToString(),
            optimisation=optimisation,
            threads=usable_cores(),
            session_options={**PATIENT, **session_options},
        )

    def run(self, x: Array) -> tuple[Array, Tensors]:
        """The output of the network, and the values of the codes by the name of the dequantized tensor."""
        results = self._session.run_all({self._session.inputs[0].name: x})
        values = {name: self._value(node, results[node.input[0]]) for name, node in self._readers.items()}
        return results[self._output], values

    def _value(self, node: onnx.NodeProto, codes: Array) -> Array:
        scale, zero_point = (numpy_helper.to_array(self._constants[name]) for name in node.input[1:3])
        return np.asarray((codes.astype(np.int32) - zero_point.astype(np.int32)) * scale, np.float32)


class OverriddenReference:
    """The canonical graph in which any of some tensors can be replaced by given values, one session for all."""

    def __init__(self, canonical: onnx.ModelProto, names: tuple[str, ...]) -> None:
        model, view = copy_of(canonical), ModelView(canonical)
        self._output = model.graph.output[0].name
        self._ranks = {name: view.rank(name) for name in names if name != self._output}
        nodes = []
        for node in model.graph.node:
            nodes.append(node)
            for index, name in enumerate(node.output):
                if name in self._ranks:
                    node.output[index] = f"{name}{_OWN}"
                    nodes.append(_choice(name))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        for name, rank in self._ranks.items():
            add_input(model, f"{name}.given", _FLOAT, rank)
            add_input(model, f"{name}.is_given", onnx.TensorProto.BOOL, 0)
        self._session = ReferenceSession(model.SerializeToString(), threads=usable_cores())
        self._input = model.graph.input[0].name

    def run(self, x: Array, given: Mapping[str, Array]) -> Array:
        """The output of the network with the tensors `given` in place of its own."""
        if self._output in given:
            return given[self._output]
        feeds: Tensors = {self._input: x}
        for name, rank in self._ranks.items():
            feeds[f"{name}.given"] = given[name] if name in given else np.zeros([1] * rank, np.float32)
            feeds[f"{name}.is_given"] = np.asarray(name in given)
        return self._session.run_all(feeds)[self._output]


def _choice(name: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Where", [f"{name}.is_given", f"{name}.given", f"{name}{_OWN}"], [name])
