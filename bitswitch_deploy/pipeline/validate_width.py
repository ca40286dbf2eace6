"""Every hop of one width that can run on this host."""

from __future__ import annotations

from pathlib import Path

from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import CanonicalGraph
from bitswitch_deploy.master import Master
from bitswitch_deploy.pipeline.progress import Progress
from bitswitch_deploy.target import Target
from bitswitch_deploy.validation.dataset import Dataset
from bitswitch_deploy.validation.hops import Hop, Runner, WidthResult, WidthUnderTest, validate_hops


def validate_width(
    master: Master, canonical: CanonicalGraph, lowered: bytes | Path, target: Target, test: Dataset, progress: Progress
) -> WidthResult:
    """Run the canonical and the lowered graph, and the engine where onnxruntime is the engine, on every sample.

    Raises:
        CheckFailedError: an output is not finite.
        GraphError: onnxruntime refuses a graph.
        DataError: an image cannot be decoded, or a label is no class.
    """
    options = dict(target.engine.session)
    runners: dict[Hop, Runner] = {
        "canonical": ReferenceSession(canonical.model.SerializeToString(), threads=usable_cores()),
        "lowered": OnnxRuntimeSession(lowered, optimisation="off", threads=usable_cores(), session_options=options),
    }
    not_run: dict[Hop, str] = {"trained": "not recorded in the master"}
    if target.engine.name == "onnxruntime":
        runners["engine"] = OnnxRuntimeSession(
            lowered, optimisation="all", threads=usable_cores(), session_options=options
        )
    else:
        not_run["engine"] = f"a {target.engine.name} engine runs on its GPU only"
    assignment = canonical.plan.assignment
    bits = None if assignment.overrides else assignment.default
    recorded = next((accuracy for accuracy in master.spec.accuracy if accuracy.bits == bits), None)
    width = WidthUnderTest(label=assignment.label, bits=bits, recorded=recorded)
    return validate_hops(runners, test, width=width, not_run=not_run, progress=progress.advance)
