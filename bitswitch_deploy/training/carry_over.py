"""Begin a joint stage with what another one learned, at other widths if need be.

Weights, BatchNorm and scales go on; optimizers, teacher and schedule begin anew. From widths with highest h to widths
with highest h':

* A weight scale keeps its step at every width: step_l = s_h * 2^(h - l), hence s_h' = s_h * 2^(h - h'), exactly.
* A width that both have keeps its activation scale and its BatchNorm copy.
* Where an average of the weights is kept, it is what goes on.
* A new width takes over the BatchNorm copy of the nearest width above, or of the highest; its first batch sets its
  activation scale, as in any run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.training.checkpoint import load_state
from bitswitch_deploy.training.layers import SwitchableBatchNorm, TrainedAs
from bitswitch_deploy.training.prepare import PreparedNetwork, PrepareOptions
from bitswitch_deploy.training.quantizers import ActivationQuantizer, WeightQuantizer
from bitswitch_deploy.training.recipe import Recipe, stage_decisions
from bitswitch_deploy.training.stages import JointStage

_WIDTHS = "quantization.widths"


def carry_over(saved: Mapping[str, Any], network: PreparedNetwork, recipe: Recipe, source: str) -> None:
    """Put the weights of a state into a network that was just prepared by `recipe`, in place.

    Args:
        saved: what `trainer.stage_state` gave, with `decisions` beside it. source: its file, for messages.

    Raises:
        CheckpointError: the state is of another stage, network, data set or quantization, or does not tell.
    """
    before = trained_widths(saved, recipe, source)
    state = saved.get("average") or saved.get("model")
    load_state(_translated(state if isinstance(state, Mapping) else {}, before, network), network.model, source)


def trained_widths(saved: Mapping[str, Any], recipe: Recipe, source: str) -> tuple[int, ...]:
    """The widths of a state that a run of `recipe` can begin with.

    Raises:
        CheckpointError: it is of another stage, network, data set or quantization, or does not tell.
    """
    decisions = saved.get("decisions")
    decided = decisions if isinstance(decisions, Mapping) else {}
    try:
        widths = PrepareOptions(widths=tuple(json.loads(decided.get(_WIDTHS, "null")))).widths
    except (TypeError, ValueError, UsageError) as exc:
        raise _unfit(saved, decided, source) from exc
    if saved.get("stage") != JointStage.name:
        raise _unfit(saved, decided, source)
    wanted = stage_decisions(recipe, recipe.joint)
    same = [name for name in wanted if name.startswith(("network", "dataset", "preprocessing", "quantization."))]
    # a setting that came after the state was written is null where it is not used
    other = [name for name in same if name != _WIDTHS and decided.get(name, "null") != wanted[name]]
    if other:
        raise CheckpointError(
            where=source,
            got="a run with " + ", ".join(f"{name} {decided.get(name, 'not told')}" for name in other),
            allowed=", ".join(f"{name} {wanted[name]}" for name in other) + f", as recipe {recipe.name} says",
            do="begin with a run of the same network, data set, preprocessing and quantization; widths may differ",
        )
    return widths


def _unfit(saved: Mapping[str, Any], decided: Mapping[str, Any], source: str) -> CheckpointError:
    return CheckpointError(
        where=source,
        got=f"stage {saved.get('stage')!r}, widths {decided.get(_WIDTHS)}",
        allowed=f"the state of stage {JointStage.name} of a run, which tells its widths",
        do="name the state file that tools/train_master.py --keep-state left, of a recipe without `supernet`",
    )


def _translated(state: Mapping[str, Any], before: Sequence[int], network: PreparedNetwork) -> dict[str, Any]:
    """A state dict of `network` at widths `before`, highest first, as one at its own widths; what is wrong stays."""
    now = network.options.widths
    source_of = sources_of(now, before)
    result = dict(state)
    for path, module in network.model.named_modules(remove_duplicate=False):
        if isinstance(module, WeightQuantizer):
            scale = state.get(f"{path}.scale")
            if isinstance(scale, Tensor):
                result[f"{path}.scale"] = scale * 2.0 ** (before[0] - now[0])
        elif isinstance(module, ActivationQuantizer):
            seen = state.get(f"{path}.initialised")
            if isinstance(seen, Tensor) and seen.shape == (len(before),):
                is_kept = seen.new_tensor([bits in before for bits in now])
                result[f"{path}.initialised"] = seen[source_of] * is_kept
            _reorder(result, f"{path}.scales.", source_of)
        elif isinstance(module, TrainedAs):
            result.pop(f"{path}.decisions", None)  # widths may differ, and the rest was compared by its recipe
        elif isinstance(module, SwitchableBatchNorm):
            _reorder(result, f"{path}.copies.", source_of)
    return result


def _reorder(state: dict[str, Any], prefix: str, source_of: Sequence[int]) -> None:
    """Let entries `prefix` + i, with what follows, be those of `source_of[i]`."""
    old = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    for index, source in enumerate(source_of):
        for name, value in old.items():
            place, dot, rest = name.partition(".")
            if place == str(source):
                state[f"{prefix}{index}{dot}{rest}"] = value


def sources_of(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """For each of `now` its place in `before`, highest first: the width itself, the nearest above, or the highest."""
    return [max(index for index, width in enumerate(before) if width >= bits or index == 0) for bits in now]
