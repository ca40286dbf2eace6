"""BatchNorm statistics that fit a mixed assignment, in a master of their own.

A mixed assignment runs layers with BatchNorm statistics that were collected while all layers had one width. What the
mixture changes is measured on samples, and the trained statistics are moved by that:

    mean = trained mean + (mean in the mixture - mean at the uniform width)
    var  = trained var * (var in the mixture + epsilon) / (var at the uniform width + epsilon)

The uniform width is the one that the row of statistics was trained at, so uniform widths keep what they have, exactly.
Where all widths share a row, it is the mean of them all, and a uniform width is moved like any other assignment.
Taking the statistics of the samples themselves would lose what training saw and plain samples do not show, such as the
black borders of shifted images. What both have by chance cancels in the difference, so few samples do.

Each is measured in one pass in which every BatchNormalization normalises with the mean and variance of its batch, so
all layers see inputs that fit already. Samples that are too large for one batch pass in parts of equal size, each
normalised by itself, and of the parts

    mean = mean of their means                var = mean of their variances + variance of their means

which is what the whole has where nothing was normalised before, and near it behind: mixture and uniform width are
measured alike. Nodes that share their statistics are parts of one whole in the same way. The master handed in is not
touched: the statistics go into a copy, in the rows that the assignment reads. Other assignments of the copy read some
of these rows too, so it serves this one only, and its provenance says where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.graph.canonical import CanonicalGraph, canonical_graph
from bitswitch_deploy.graph.external_data import runnable
from bitswitch_deploy.master import Master, assemble_master
from bitswitch_deploy.search.samples import Inputs, at_a_time
from bitswitch_deploy.tensors import WidthAssignment

_DEFAULT_EPSILON = 1e-5
# Input of one part: ResNet-50 takes 60 times as much for its activations.
_PART_BYTES = 2**23
# In the provenance of a copy.
_ADAPTED = "BatchNorm statistics"
# A batch of fewer samples has no statistics worth the name behind a layer that pools.
_FEWEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """What BatchNormalizations with one set of statistics are fed.

    mean, var: float32 [channels]. mean_name, var_name: the parameters they fit.
    """

    mean_name: str
    var_name: str
    mean: npt.NDArray[np.float32]
    var: npt.NDArray[np.float32]
    epsilon: float


class BatchNormAdapter:
    """Adapts the BatchNorm statistics of a master to one assignment after the other.

    Args:
        master: the trained one. x: samples [n, ...], the same for all assignments.
        threads: of the passes.

    Raises:
        DataError: the network is fixed to a batch that is too small, or larger than the samples.
        GraphError: the network cannot be run.
    """

    def __init__(self, master: Master, x: Inputs, *, threads: int = 1) -> None:
        self._master, self._parts, self._threads = master, _parts(master, x), threads
        self._uniform = {
            bits: self._moments(canonical_graph(master, WidthAssignment(default=bits))) for bits in master.spec.widths
        }

    def adapted(self, assignment: WidthAssignment) -> Master:
        """A copy of the master with the statistics of `assignment`.

        The accuracies that the trainer recorded are left out: they are those of other statistics.
        """
        canonical = canonical_graph(self._master, assignment)
        switches = {switch.parameter: switch for switch in canonical.plan.switches}
        tensors = dict(self._master.tensors)
        for index, mixed in enumerate(self._moments(canonical)):
            switch = switches.get(mixed.mean_name)
            # without copies there is one set for all widths
            widths: Sequence[int] = self._master.spec.widths if switch is None else (switch.width,)
            uniform = [self._uniform[bits][index] for bits in widths]
            shift = mixed.mean - np.mean([each.mean for each in uniform], axis=0)
            factor = (mixed.var + mixed.epsilon) / (np.mean([each.var for each in uniform], axis=0) + mixed.epsilon)
            row = ... if switch is None else switch.index
            mean, var = (np.array(self._master.tensors[name]) for name in (mixed.mean_name, mixed.var_name))
            mean[row] += shift
            var[row] *= factor
            tensors |= {mixed.mean_name: mean, mixed.var_name: var}
        kept = tuple(pair for pair in self._master.spec.provenance if pair[0] != _ADAPTED)
        made = (_ADAPTED, f"fitted by a search to one assignment of the master with sha256 {self._master.sha256}")
        spec = replace(self._master.spec, accuracy=(), provenance=(*kept, made))
        return assemble_master(spec=spec, tensors=tensors, skeleton=self._master.skeleton)

    def _moments(self, canonical: CanonicalGraph) -> list[_Moments]:
        """Of each set of statistics, in the order of the graph; nodes that share one are fed its parts."""
        model = onnx.ModelProto()
        model.CopyFrom(canonical.model)
        replaced = _replace_batchnorms(model)
        with runnable(model, canonical.large) as runs:
            session = ReferenceSession(runs, threads=self._threads)
        found: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in session.output_names}
        for part in self._parts:
            for name, value in session.run_all({session.inputs[0].name: part}).items():
                found[name].append(value.reshape(-1))
        sharing: dict[str, list[tuple[onnx.NodeProto, str]]] = {}
        for node, name in replaced:
            sharing.setdefault(node.input[3], []).append((node, name))
        return [
            _joined(
                nodes[0][0],
                [mean for _, name in nodes for mean in found[f"{name}_mean"]],
                [var for _, name in nodes for var in found[f"{name}_var"]],
            )
            for nodes in sharing.values()
        ]


def is_adapted(master: Master) -> bool:
    """Whether a master is a copy that `BatchNormAdapter` made."""
    return any(key == _ADAPTED for key, _ in master.spec.provenance)


def _parts(master: Master, x: Inputs) -> list[Inputs]:
    """The samples in batches of one size, or nearly so; what is left over of a fixed batch size stays out."""
    shape = master.spec.inputs[0].shape
    fixed = shape[0] if shape and isinstance(shape[0], int) else None
    if fixed is None:
        size = max(_FEWEST, at_a_time(x, most=len(x), most_bytes=_PART_BYTES))
        return np.array_split(x, max(1, len(x) // size))
    if not _FEWEST <= fixed <= len(x):
        raise DataError(
            where="BatchNorm statistics",
            got=f"a network that is fixed to batches of {fixed}, and {len(x)} samples",
            allowed=f"batches of {_FEWEST} samples or more, or of any size",
            do="search without --reestimate, or export the network with a batch size that is not fixed",
        )
    return np.split(x[: len(x) // fixed * fixed], len(x) // fixed)


def _joined(
    node: onnx.NodeProto, means: Sequence[npt.NDArray[np.float32]], variances: Sequence[npt.NDArray[np.float32]]
) -> _Moments:
    """Of all parts together, which are of one size."""
    stacked, within = np.array(means, np.float64), np.array(variances, np.float64)
    return _Moments(
        mean_name=node.input[3],
        var_name=node.input[4],
        mean=np.asarray(stacked.mean(axis=0), np.float32),
        var=np.asarray(within.mean(axis=0) + stacked.var(axis=0), np.float32),
        epsilon=_epsilon(node),
    )


def _replace_batchnorms(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
    """Let each BatchNormalization normalise with its batch; the nodes that were, and the prefix of their statistics."""
    nodes, replaced = [], []
    for index, node in enumerate(model.graph.node):
        if node.op_type == "BatchNormalization":
            name = f"batchnorm_{index}"
            nodes += _with_batch_statistics(node, name)
            replaced.append((node, name))
            outputs = (f"{name}_{part}" for part in ("mean", "var"))
            model.graph.output.extend(map(helper.make_empty_tensor_value_info, outputs))
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    replaced = [(onnx.NodeProto.FromString(node.SerializeToString()), name) for node, name in replaced]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    constants = {"flat": [0, 0, -1], "column": [1, -1, 1], "axes": [0, 2]}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"batchnorm_{name}") for name, value in constants.items()
    )
    return replaced


def _with_batch_statistics(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """The nodes of (x - mean) / sqrt(var + epsilon) * scale + bias with x as [n, channels, positions]."""
    steps = (
        ("Shape", (node.input[0],), f"{name}_shape"),
        ("Reshape", (node.input[0], "batchnorm_flat"), f"{name}_x"),
        ("ReduceMean", (f"{name}_x", "batchnorm_axes"), f"{name}_mean"),
        ("Sub", (f"{name}_x", f"{name}_mean"), f"{name}_centred"),
        ("Mul", (f"{name}_centred", f"{name}_centred"), f"{name}_square"),
        ("ReduceMean", (f"{name}_square", "batchnorm_axes"), f"{name}_var"),
        ("Add", (f"{name}_var", f"{name}_epsilon"), f"{name}_safe"),
        ("Sqrt", (f"{name}_safe",), f"{name}_deviation"),
        ("Div", (f"{name}_centred", f"{name}_deviation"), f"{name}_normal"),
        ("Reshape", (node.input[1], "batchnorm_column"), f"{name}_scale"),
        ("Reshape", (node.input[2], "batchnorm_column"), f"{name}_bias"),
        ("Mul", (f"{name}_normal", f"{name}_scale"), f"{name}_scaled"),
        ("Add", (f"{name}_scaled", f"{name}_bias"), f"{name}_y"),
        ("Reshape", (f"{name}_y", f"{name}_shape"), node.output[0]),
    )
    constant = helper.make_node("Constant", [], [f"{name}_epsilon"], value_float=_epsilon(node))
    return [constant, *(helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps)]


def _epsilon(node: onnx.NodeProto) -> float:
    return next((each.f for each in node.attribute if each.name == "epsilon"), _DEFAULT_EPSILON)
