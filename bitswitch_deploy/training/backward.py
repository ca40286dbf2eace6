"""Cross entropy and its gradients, and the search for the layer at fault when numbers stop being finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.replicas import averaged, smallest
from bitswitch_deploy.training.tracing import tensors_in

_INPUT = "network input"


@dataclass(frozen=True, slots=True)
class Suspect:
    """What is searched when numbers stop being finite: the network, at one width, on one input."""

    model: nn.Module
    execution: Execution
    inputs: Tensor
    width: str

    def diverged(self, layer: str, got: str) -> CheckFailedError:
        """The error that names the layer and the width."""
        return CheckFailedError(
            where=f"training of {layer} at {self.width}",
            got=got,
            allowed="finite numbers",
            do="correct the images or their preprocessing"
            if layer == _INPUT
            else "resume from the last checkpoint with a lower learning rate",
        )

    def first_bad_layer(self) -> str:
        """Path of the first innermost module whose output is not finite, seen in one more run."""
        # all replicas must agree: of the forward pass below none can go through a BatchNorm without the others
        if not bool(smallest(self.inputs.isfinite().all().int())):
            return _INPUT
        bad: list[str] = []

        def record(path: str, output: Any) -> None:
            if any(not tensor.isfinite().all() for tensor in tensors_in(output)):
                bad.append(path)

        handles = [
            module.register_forward_hook(lambda _m, _i, output, path=path: record(path, output))
            for path, module in self.model.named_modules()
        ]
        try:
            with torch.no_grad():
                self.execution.in_precision(self.model)(self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return next((path for path in bad if path), "loss")


def backward(logits: Tensor, target: Tensor, suspect: Suspect, penalty: Tensor | None = None) -> float:
    """Add the gradients of the cross entropy of `logits` and of `penalty`; return their sum, the mean over replicas.

    Raises:
        CheckFailedError: the loss or a gradient is not finite; all replicas raise together.
    """
    loss = F.cross_entropy(logits, target)
    if penalty is not None:
        loss = loss + penalty
    value = float(averaged(loss.detach()))
    if not math.isfinite(value):
        raise suspect.diverged(suspect.first_bad_layer(), f"loss {value}")
    loss.backward()  # type: ignore[no-untyped-call]
    model = suspect.model
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not torch.isfinite(nn.utils.get_total_norm(gradients)):
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        raise suspect.diverged(bad[-1] if bad else "all layers together", "a gradient that is not finite")
    return value
