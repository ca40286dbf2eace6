"""What a network does with its modules, seen during one run: the order of the calls, and who reads parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from bitswitch_deploy.errors import UsageError

# what torch and the code of networks raise on inputs that do not fit
RAISED_BY_NETWORKS = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Which modules one run called.

    order: module paths by first call. read_elsewhere: modules whose parameters or buffers were used outside of their
    own call. norms: those among them that are BatchNorm.
    strays: names of parameters that the run read and the network does not list.
    calls: how often the run called each module, watched or not, by first call.
    sources: for a module, the watched one that is no BatchNorm and last worked on its input; of several inputs, as of a
    sum, the first one counts, which is the main branch where the code is written `main + shortcut`.
    producers: its source, where that is the only one, whatever pools or reorders the numbers on the way.
    """

    order: tuple[str, ...]
    producers: dict[str, str]
    sources: dict[str, str]
    norms: frozenset[str]
    calls: dict[str, int]
    read_elsewhere: frozenset[str]
    strays: tuple[str, ...]


def trace_calls(model: nn.Module, example_input: tuple[Tensor, ...], is_watched: Callable[[nn.Module], bool]) -> Trace:
    """Run `model` once in evaluation mode and record the calls of modules that are watched.

    Raises:
        UsageError: the network does not run on the example, or that is no tuple of tensors.
    """
    check_example(example_input)
    modules = {path: module for path, module in model.named_modules() if is_watched(module)}
    norms = {path for path, module in modules.items() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    reads, origins = _ReadsElsewhere(model, modules), _Origins()
    sources: dict[str, str] = {}
    order: dict[str, None] = {}
    calls: Counter[str] = Counter()
    producers: dict[str, str] = {}

    def recorder(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            order.setdefault(path)
            found = origins.of(args)
            if found:
                sources.setdefault(path, found[0])
            if len(found) == 1:
                producers.setdefault(path, found[0])
            if path not in norms:
                origins.set(output, (path,))
            reads.running.pop()

        return record

    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(recorder(path)) for path, module in modules.items()]
    handles += [
        module.register_forward_hook(lambda _m, _args, _output, path=path: calls.update((path,)))
        for path, module in model.named_modules()
    ]
    handles += [
        module.register_forward_pre_hook(lambda _m, _args, path=path: reads.running.append(path))
        for path, module in modules.items()
    ]
    try:
        model.eval()
        with torch.no_grad(), reads, origins:
            model(*example_input)
    except RAISED_BY_NETWORKS as exc:
        raise refused_inputs(f"example input of {type(model).__name__}", example_input, exc) from exc
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return Trace(
        order=tuple(order),
        producers=producers,
        sources=sources,
        norms=frozenset(norms),
        calls=dict(calls),
        read_elsewhere=frozenset(reads.found),
        strays=_names_of(tuple(reads.strays.values()), model),
    )


class _Origins(TorchFunctionMode):
    """Which modules a tensor comes from: what a torch function gives has the origins of all its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._origins = WeakIdKeyDictionary()

    def of(self, value: Any) -> tuple[str, ...]:
        """The origins of the tensors in `value`, each once."""
        found = (self._origins[tensor] for tensor in tensors_in(value) if tensor in self._origins)
        return tuple(dict.fromkeys(path for paths in found for path in paths))

    def set(self, value: Any, paths: tuple[str, ...]) -> None:
        """All tensors in `value` come from the modules at `paths`."""
        for tensor in tensors_in(value):
            self._origins[tensor] = paths

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        origins = self.of((args, kwargs or {}))
        if origins:
            self.set(result, origins)
        return result


class _ReadsElsewhere(TorchFunctionMode):
    """Finds modules of which a torch function, not called by the module itself, takes a parameter or buffer.

    strays: parameters that a torch function takes and `model` does not list, by their id.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: set[str] = set()
        self.strays: dict[int, nn.Parameter] = {}
        self._listed = {id(parameter) for parameter in model.parameters()}
        self._owner = {
            id(tensor): path
            for path, module in modules.items()
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # what gives no tensor, such as `.shape` or `.dtype`, does not read the values
        if any(True for _ in tensors_in(result)):
            read = list(tensors_in((args, kwargs)))
            owners = {self._owner.get(id(tensor)) for tensor in read}
            self.found |= {path for path in owners if path is not None and path not in self.running[-1:]}
            parameters = [tensor for tensor in read if isinstance(tensor, nn.Parameter)]
            self.strays |= {id(each): each for each in parameters if id(each) not in self._listed}
        return result


def _names_of(strays: Sequence[nn.Parameter], model: nn.Module) -> tuple[str, ...]:
    """Where modules keep parameters that they do not list, such as `layers[0].weight`; of others their shape."""
    if not strays:
        return ()
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            for name, parameter in _parameters_in(value, f"{path}.{attribute}" if path else attribute):
                names.setdefault(id(parameter), name)
    return tuple(names.get(id(each), f"one of shape {list(each.shape)}") for each in strays)


def _parameters_in(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", parameter) for inner, parameter in value.named_parameters())
    elif isinstance(value, (list, tuple, dict)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _parameters_in(entry, f"{name}[{key!r}]")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors_in(entry)
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))


def check_example(example_input: object) -> None:
    """See that an example is a tuple of tensors [batch, ...]: a tensor alone would be taken apart along its batch axis.

    Raises:
        UsageError: it is something else, or their batches differ.
    """
    if not isinstance(example_input, (tuple, list)) or not all(isinstance(each, Tensor) for each in example_input):
        raise UsageError(
            where="example_input",
            got=f"a {type(example_input).__name__}",
            allowed="a tuple of tensors, [batch, ...] each",
            do="write (x,) for a network with one input x",
        )
    shapes = [tuple(each.shape) for each in example_input]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or shapes[0][:1] in ((), (0,)):
        raise UsageError(
            where="example_input",
            got=f"shapes {', '.join(map(str, shapes)) or 'of no input'}",
            allowed="[batch, ...] each, with the same batch",
            do="give every input one row for each sample: expand what is the same for all of them",
        )


def refused_inputs(where: str, inputs: tuple[Tensor, ...], reason: Exception) -> UsageError:
    """The error for inputs of a call on which a network raised one of `RAISED_BY_NETWORKS`."""
    return UsageError(
        where=where,
        got=f"shapes {', '.join(str(tuple(x.shape)) for x in inputs)}: {str(reason) or type(reason).__name__}",
        allowed="inputs that the network accepts",
        do="pass one tensor for each argument of forward, with a batch axis",
    )
