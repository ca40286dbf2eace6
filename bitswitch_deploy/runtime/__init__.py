"""What an application imports on the device: one package in memory, any of its widths a moment later.

    import bitswitch_deploy.runtime

    with bitswitch_deploy.runtime.load("package/") as switcher:
        x = switcher.preprocessing.apply(images)     # uint8 [n, H, W, C] -> float32 [n, C, H, W]
        switcher.switch(4)
        y = switcher.run(x)              # computed at 4 bits
        switcher.switch(8)               # requests that other threads have in flight finish at 4

Needs onnxruntime and NumPy only; neither torch nor onnx is imported. See `Switcher` for what may be called from which
thread, `RuntimeOptions` for memory, and `LatencyBudget` for letting a policy choose the width of each request.
"""

from bitswitch_deploy.runtime.latency_budget import LatencyBudget
from bitswitch_deploy.runtime.load import Provider, RuntimeOptions, load
from bitswitch_deploy.runtime.switcher import Policy, Switcher

__all__ = ["LatencyBudget", "Policy", "Provider", "RuntimeOptions", "Switcher", "load"]
