"""Checkpoints: files of tensors and plain numbers, read with `torch.load(weights_only=True)` only."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.errors import CheckpointError
from bitswitch_deploy.training.layers import TrainedAs
from bitswitch_deploy.training.quantizers import ActivationQuantizer

# old checkpoints lack them: the counter of BatchNorm, which a fixed momentum does not read, and `TrainedAs`
_MAY_LACK = ("num_batches_tracked", "trained_as.decisions")
_PARALLEL_PREFIX = "module."  # of DataParallel
_COMPILED_INFIX = "_orig_mod."  # of torch.compile

# what torch's readers raise on bytes that are no archive, or a cut or edited one; found by flipping bytes at random
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile),
)


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values atomically: a killed run leaves the old file or the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_writer(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as exc:
            # torch's writer of archives ends in an error of its own where the file takes no more
            if isinstance(exc.__context__, OSError):
                raise exc.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The mapping that a checkpoint holds, on the CPU; code in the file is refused, not run.

    Raises:
        CheckpointError: missing, damaged, holding anything but tensors and plain values, or not a mapping.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols, and then reads or refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as exc:
        raise _bad(path, f"cannot be read: {exc.strerror}", "a readable file") from exc
    except pickle.UnpicklingError as exc:
        first = str(exc).splitlines()[0]
        raise _bad(path, f"holds more than tensors or is damaged: {first}", "tensors and plain values") from exc
    except _DAMAGED as exc:
        raise _bad(path, f"not a torch checkpoint: {exc}", "a file written by torch.save") from exc
    if not isinstance(content, dict):
        raise _bad(path, f"a {type(content).__name__}", "a mapping of names to tensors")
    return cast("dict[str, Any]", content)


def import_checkpoint(path: Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint into a network: a float one, or one that `prepare` made.

    The file is a state dict, or a mapping that holds one under `state_dict` or `model`; `module.` before every key and
    `_orig_mod.` in any are dropped. Every tensor must be there with its shape and finite, and of a prepared network
    widths, tie rule and container must be the same; nothing is loaded unless all are.

    Raises:
        CheckpointError: the file is bad or belongs to another network.
    """
    content = load_checkpoint(path)
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = dict(content[key])
    load_state(content, model, str(path))


def load_state(state: Mapping[str, Any], model: nn.Module, source: str) -> None:
    """Load a state dict strictly; `source` names it in messages.

    Raises:
        CheckpointError: keys, shapes, types or values that do not fit `model`.
    """
    if not isinstance(state, Mapping):
        raise _bad(Path(source), type(state).__name__, "a state dict")
    wanted = model.state_dict()
    state = _unwrapped_keys(state, wanted)
    missing = [key for key in wanted if key not in state and not key.endswith(_MAY_LACK)]
    unknown = [str(key) for key in state if key not in wanted]
    if missing or unknown:
        got = f"missing {first_names(missing)}; unknown {first_names(unknown)}"
        raise _bad(Path(source), got, f"the {len(wanted)} entries of this {type(model).__name__}")
    for key, value in state.items():
        _check_tensor(key, value, wanted[key], source)
    for name, module in model.named_modules():
        if isinstance(module, ActivationQuantizer) and int(state[f"{name}.signed"]) not in (-1, 0, 1):
            raise _bad(Path(source), f"{name}.signed = {int(state[f'{name}.signed'])}", "-1, 0 or 1")
        if isinstance(module, TrainedAs):
            saved = state.get(f"{name}.decisions", module.decisions)
            if not torch.equal(saved.cpu(), module.decisions.cpu()):
                got = f"{name.rpartition('.')[0]}: trained at {TrainedAs.text(saved)}"
                raise _bad(Path(source), got, f"{TrainedAs.text(module.decisions)}, as prepare was told")
    model.load_state_dict(dict(state), strict=False)


def _unwrapped_keys(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state without what wrappers put into its names, unless `wanted` has it there, too."""
    if not any(_COMPILED_INFIX in name for name in wanted):
        state = {str(key).replace(_COMPILED_INFIX, ""): value for key, value in state.items()}
    is_wrapped = all(str(key).startswith(_PARALLEL_PREFIX) for key in state)
    if is_wrapped and not all(name.startswith(_PARALLEL_PREFIX) for name in wanted):
        state = {str(key).removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}
    return state


def _check_tensor(key: str, value: object, wanted: Tensor, source: str) -> None:
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta):
        raise _bad(Path(source), f"{key}: a tensor without plain values", "dense tensors with their values")
    if not isinstance(value, Tensor) or value.shape != wanted.shape or value.dtype != wanted.dtype:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise _bad(Path(source), f"{key}: {got}", f"{wanted.dtype} {tuple(wanted.shape)}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise _bad(Path(source), f"{key}: NaN or infinity", "finite numbers")


def first_names(names: list[str]) -> str:
    """Up to five names, for a message, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _bad(path: Path, got: str, allowed: str) -> CheckpointError:
    return CheckpointError(
        where=str(path), got=got, allowed=allowed, do="use a checkpoint of this network, saved as a state dict"
    )
