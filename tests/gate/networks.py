"""Data and a graph for evaluations: the network hands its input on, so that a sample says what its scores are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.parser import parse_model

from bitswitch_deploy.gate.evaluation import DataRef, Evaluation, GraphRef
from bitswitch_deploy.master.spec import ValueSpec
from bitswitch_deploy.validation.dataset import load_dataset

CLASSES = 3
_SPEC = ValueSpec(name="x", dtype="float32", shape=("n", CLASSES))
_GRAPH = """<ir_version: 10, opset_import: ["" : 17]>
g (float[n, 3] x) => (float[n, 3] y) { factor = Constant <value_float = FACTOR> () y = Mul (x, factor) }"""


def graph_ref(factor: float = 1.0) -> GraphRef:
    """Scores = factor * input."""
    model = parse_model(_GRAPH.replace("FACTOR", str(float(factor))))
    onnx.checker.check_model(model)
    source = model.SerializeToString()
    return GraphRef(source=source, sha256=hashlib.sha256(source).hexdigest(), optimisation="off", session_options=())


def data_ref(path: Path, x: Any, y: Any) -> DataRef:
    """A new .npz file of ready inputs."""
    np.savez(path, x=np.asarray(x, np.float32), y=y)
    sha256 = load_dataset(path, preprocessing=None, input_spec=_SPEC, classes=CLASSES).sha256
    return DataRef(path=path, sha256=sha256, preprocessing=None, input_spec=_SPEC, classes=CLASSES)


def evaluation(folder: Path, n: int, *, metric: str = "top-1", **changes: Any) -> Evaluation:
    """`n` random samples, of which about a third is right."""
    rng = np.random.default_rng(0)
    data = data_ref(folder / "data.npz", rng.normal(size=(n, CLASSES)), rng.integers(CLASSES, size=n))
    values = {"label": "net w4", "graph": graph_ref(), "data": data, "metric": metric, "metric_folder": folder}
    return Evaluation(**{**values, **changes})
