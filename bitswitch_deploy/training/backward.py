"""Cross entropy and its gradients, and the search for the layer at fault when numbers stop being finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.replicas import averaged, smallest
from bitswitch_deploy.training.tracing import tensors_in

_INPUT = "network input"
LOWER_RATE = "lower the learning rate, and resume from the state that was saved last, where one was, or begin anew"


@dataclass(frozen=True, slots=True)
class Suspect:
    """What is searched when numbers stop being finite: the network, at one width, on one input.

    To be made before the pass, which is made again with the same draws, those of dropout for example.
    """

    model: nn.Module
    execution: Execution
    inputs: Tensor
    width: str
    _draws: tuple[Tensor, Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        device = self.execution.device
        # while a step is recorded nothing can be read; whoever diagnoses it takes it again, one by one
        is_read = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        on_device = torch.cuda.get_rng_state(device) if is_read else None
        object.__setattr__(self, "_draws", (torch.get_rng_state(), on_device))

    def diverged(self, layer: str, got: str) -> CheckFailedError:
        """The error that names the layer and the width."""
        return CheckFailedError(
            where=f"training of {layer} at {self.width}",
            got=got,
            allowed="finite numbers",
            do="correct the images or their preprocessing" if layer == _INPUT else LOWER_RATE,
        )

    def first_bad_layer(self) -> str:
        """Path of the first innermost module whose output is not finite, seen in one more run."""
        # all replicas must agree: of the forward pass below none can go through a BatchNorm without the others
        if not bool(smallest(self.inputs.isfinite().all().int())):
            return _INPUT
        _, bad = self._replayed()
        return next((path for path in bad if path), "loss")

    def last_bad_parameter(self) -> str:
        """Of the parameters whose gradient is not finite that of the module called last: there it began."""
        named = self.model.named_parameters()
        bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
        called, _ = self._replayed()
        order = {path: place for place, path in enumerate(called)}

        def place(name: str) -> int:
            while name and name not in order:
                name = name.rpartition(".")[0]
            return order[name]

        return max(reversed(bad), key=place, default="all layers together")

    def _replayed(self) -> tuple[list[str], list[str]]:
        """Paths of modules in the order of their calls, and of those whose output is not finite, inner ones first."""
        called: list[str] = []
        bad: list[str] = []

        def record(path: str, output: Any) -> None:
            if any(not tensor.isfinite().all() for tensor in tensors_in(output)):
                bad.append(path)

        handles = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda _m, _i, path=path: called.append(path)))
            handles.append(module.register_forward_hook(lambda _m, _i, output, path=path: record(path, output)))
        on_cpu, on_device = self._draws
        torch.set_rng_state(on_cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self.execution.device)
        try:
            with torch.no_grad():
                self.execution.in_precision(self.model)(self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        return called, bad


class Guard(Protocol):
    """What becomes of a loss, and of gradients, that are not finite."""

    def passed(self, loss: Tensor, is_finite: Tensor, suspect: Suspect) -> Tensor:
        """The loss to report, a scalar; nobody but an optimizer reads the gradients that came with it."""
        ...


class RaisingGuard:
    """Reads both at once, so that the message names the layer."""

    def passed(self, loss: Tensor, is_finite: Tensor, suspect: Suspect) -> Tensor:
        """The loss itself.

        Raises:
            CheckFailedError: the loss or a gradient is not finite; all replicas raise together.
        """
        if not bool(is_finite):
            if not math.isfinite(value := float(loss)):
                raise suspect.diverged(suspect.first_bad_layer(), f"loss {value}")
            raise suspect.diverged(suspect.last_bad_parameter(), "a gradient that is not finite")
        return loss


class SkippingGuard:
    """Reads nothing, for steps that are recorded: from the first bad one on no optimizer moves and losses are NaN.

    Parameters stay as they were, so whoever reads the losses later can take the same step with a `RaisingGuard`.

    Args:
        optimizers: fused ones, which skip an update while their `found_inf` is not 0.
        device: of their parameters.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
        self._failed = torch.zeros((), device=device)
        for optimizer in optimizers:
            optimizer.found_inf = self._failed  # type: ignore[attr-defined]

    def passed(self, loss: Tensor, is_finite: Tensor, suspect: Suspect) -> Tensor:
        """The loss, or NaN."""
        self._failed.logical_or_(~is_finite)
        return loss.masked_fill(self._failed > 0, math.nan)

    def forget(self) -> None:
        """Let the optimizers move again."""
        self._failed.zero_()


def backward(
    logits: Tensor, target: Tensor, suspect: Suspect, guard: Guard, *, penalty: Tensor | None = None
) -> Tensor:
    """Add the gradients of the cross entropy of `logits` and of `penalty`; return their sum, the mean over replicas.

    Raises:
        CheckFailedError: what `guard` raises.
    """
    loss = F.cross_entropy(logits, target)
    if penalty is not None:
        loss = loss + penalty
    loss.backward()  # type: ignore[no-untyped-call]
    value = averaged(loss.detach())
    norm = nn.utils.get_total_norm([p.grad for p in suspect.model.parameters() if p.grad is not None])
    return guard.passed(value, value.isfinite() & norm.isfinite(), suspect)
