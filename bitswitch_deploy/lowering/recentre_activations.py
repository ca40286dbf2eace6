"""RecentreActivations: all activation codes ride in the one container that the target's kernels want."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from bitswitch_deploy.errors import TargetFileError
from bitswitch_deploy.graph.qdq import ActivationPattern, activation_patterns
from bitswitch_deploy.lowering.lowering_pass import LoweringPass


class RecentreActivations(LoweringPass):
    """Move codes between uint8 and int8 by adding 128 to code and zero-point. Exact.

    Cases: target uint8 (CPUs): signed codes become uint8 around 128; target int8 with zero-point -128: unsigned codes
    become int8 from -128. A Clip on the codes moves along. Left alone: codes already in the container, and shifted ones
    (BitShift is for unsigned types only). Refused: unsigned codes for a target of int8 with zero-point 0, which is the
    work of ClampActivations.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """Move every pattern that is in the other container; see the class for the cases.

        Raises:
            TargetFileError: the target wants int8 with zero-point 0 and there are unsigned codes.
        """
        target = self.context.target
        activation = target.quantization.activation
        container = np.uint8 if activation.dtype == "uint8" else np.int8
        moved = [
            pattern
            for pattern in activation_patterns(graph)
            if pattern.codes.container is not container and not pattern.shift
        ]
        if moved and container is np.int8 and activation.zero_point == 0:
            raise TargetFileError(
                where=f"target {target.name}: lowering",
                got="RecentreActivations with activations in int8 and zero-point 0",
                allowed="zero-point -128, or ClampActivations",
                do="correct the list or quantization.activation in the target's YAML",
            )
        for pattern in moved:
            _move(pattern, container)
        return bool(moved)


def _move(pattern: ActivationPattern, container: type[np.uint8] | type[np.int8]) -> None:
    shift = 128 if container is np.uint8 else -128
    zero_point = pattern.quantize.inputs[2].values
    constants = [pattern.quantize.inputs[2]]
    if pattern.clip is not None:
        constants += pattern.clip.inputs[1:3]
        pattern.clip.outputs[0].dtype = container
    for constant in constants:
        constant.values = np.asarray(constant.values.astype(np.int16) + shift, container)
    pattern.quantize.outputs[0].dtype = container
    if pattern.dequantize.inputs[2] is not pattern.quantize.inputs[2]:
        pattern.dequantize.inputs[2].values = np.asarray(zero_point.astype(np.int16) + shift, container)
