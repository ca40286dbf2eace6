"""Whether a DLA core can be used: facts of the target's profile (`device.dla_cores`, `device.dla_tensorrt`).

What DLA is good for here: it runs float16 layers, so the FP16 reference. Q and DQ are not among its operators (TensorRT
up to 8.6 collapses them into implicit scales; how 11.4.1 computes is not known), so most of a quantized graph falls
back to the GPU. The build lists those layers one by one.
"""

from __future__ import annotations

from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.target import Target, version_matches


def check_dla(target: Target, *, version: str) -> None:
    """Refuse DLA where this target or TensorRT `version` does not drive it.

    Raises:
        UnavailableError: with the reason.
    """
    cores, rules = target.device.dla_cores, target.device.dla_tensorrt
    if target.engine.name != "tensorrt":
        got, allowed = f"{target.engine.name} has no DLA", "a TensorRT target"
    elif not cores:
        got, allowed = f"{target.title} has no DLA cores", "a board with DLA cores"
    elif not any(version_matches(rule, version) for rule in rules):
        got = f"TensorRT {version} does not drive the DLA cores of {target.title}"
        allowed = "TensorRT " + " or ".join(rules)
    else:
        return
    raise UnavailableError(where="--dla", got=got, allowed=allowed, do="leave out --dla: the GPU runs every layer")
