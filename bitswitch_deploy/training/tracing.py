"""The order in which a network calls its modules, seen by hooks during one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Which modules one run called.

    order: module paths by first call. producers: for a module whose input is the very output of another watched
    module, that module's path.
    """

    order: tuple[str, ...]
    producers: dict[str, str]


def trace_calls(model: nn.Module, example_input: tuple[Tensor, ...], watched: tuple[type[nn.Module], ...]) -> Trace:
    """Run `model` once in evaluation mode and record the calls of modules whose class is exactly one of `watched`.

    Raises:
        UsageError: the network does not run on the example.
    """
    order: dict[str, None] = {}
    producers: dict[str, str] = {}
    made: dict[int, tuple[str, Any]] = {}  # id of an output -> its maker; the output is kept so that ids stay unique

    def recorder(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            order.setdefault(path)
            if args and id(args[0]) in made:
                producers.setdefault(path, made[id(args[0])][0])
            made[id(output)] = (path, output)

        return record

    modes = {module: module.training for module in model.modules()}
    handles = [
        module.register_forward_hook(recorder(path))
        for path, module in model.named_modules()
        if type(module) in watched
    ]
    try:
        model.eval()
        with torch.no_grad():
            model(*example_input)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise _refused(model, example_input, exc) from exc
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return Trace(order=tuple(order), producers=producers)


def _refused(model: nn.Module, example_input: tuple[Tensor, ...], reason: Exception) -> UsageError:
    return UsageError(
        where=f"example input of {type(model).__name__}",
        got=f"shapes {', '.join(str(tuple(x.shape)) for x in example_input)}: {reason}",
        allowed="inputs that the network accepts",
        do="pass one tensor for each argument of forward, with a batch axis",
    )
