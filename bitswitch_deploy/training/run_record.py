"""What log, state and master of a run tell of it: options, versions, and the runs that its weights come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from bitswitch_deploy.training.metrics_log import VERSIONS, host_text
from bitswitch_deploy.training.replicas import replica_count
from bitswitch_deploy.training.run_state import TRAINED_STAGES
from bitswitch_deploy.training.session import Session

# what a state file keeps of each run that it comes from; `decisions` beside it tells what its steps depended on
_OF_A_RUN = (
    *("recipe", "seed", "float_checkpoint", "float_checkpoint_sha256", "joint_steps", "threads", "fast"),
    *("precision", "replicas", "device", "host", "versions"),
)
_USUAL = {"device": "cpu", "precision": "float32", "replicas": "1"}  # what a master does not tell of
_VERSIONS = ("python", "torch", "numpy")  # what it tells of
_NEXT = ", then "


def circumstances(session: Session, saved: dict[str, Any]) -> dict[str, Any]:
    """What the figures of a log depend on, besides the state that the session goes on from."""
    recipe = session.recipe
    execution = session.execution
    checkpoint = None if saved.get("stage") in TRAINED_STAGES else session.float_checkpoint
    return {
        "recipe": recipe.name,
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "float_checkpoint": None if checkpoint is None else checkpoint.name,
        "float_checkpoint_sha256": None if checkpoint is None else _sha256(checkpoint),
        "joint_epochs": recipe.joint.epochs,
        "joint": asdict(recipe.joint),
        "joint_steps": session.joint_steps,
        **({} if recipe.supernet is None else {"supernet": asdict(recipe.supernet)}),
        "quantization": asdict(recipe.quantization),
        "threads": session.threads,
        "fast": execution.fast,
        "precision": execution.precision,
        "replicas": replica_count(),
        "device": _device_text(execution.device),
        "host": host_text(),
        "versions": VERSIONS,
    }


def runs_behind(saved: dict[str, Any], origin: dict[str, Any], started: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that states of this one come from, the earliest first and this one last; {} is one that is not known.

    saved: the state that it goes on from. origin: the one whose weights it begins with. Each may be empty.
    """
    own = {name: started[name] for name in _OF_A_RUN if started[name] is not None}
    before: list[dict[str, Any]] = _runs(saved or origin) if saved or origin else []
    was_interrupted = bool(saved) and {**before[-1], **own} == before[-1]
    return before if was_interrupted else [*before, own]


def parent_entry(saved: dict[str, Any]) -> dict[str, Any]:
    """For the log: the stage of the state that is gone on from, and the runs that it comes from."""
    return {"parent": {"stage": saved.get("stage"), "runs": _runs(saved)}} if saved else {}


def origin_entry(origin: dict[str, Any]) -> dict[str, Any]:
    """For the log: the state or master whose weights a run begins with, and the runs that it comes from."""
    told = {name: origin[name] for name in ("stage", "step", "master", "master_sha256") if name in origin}
    return {"started_from": {**told, "runs": _runs(origin)}} if origin else {}


def _runs(state: dict[str, Any]) -> list[dict[str, Any]]:
    if "provenance" in state:
        return [_run_of(state["provenance"])]
    found: list[dict[str, Any]] = state.get("runs", [{}])
    return found


def _run_of(provenance: dict[str, str]) -> dict[str, Any]:
    """What `provenance_of` made a text of; where it tells of several runs, each entry does."""
    entries = {name: provenance[name] for name in ("recipe", "seed", "joint_steps") if name in provenance}
    usual = {name: provenance.get(name, value) for name, value in _USUAL.items()} if entries else {}
    versions = {name: provenance[name] for name in _VERSIONS if name in provenance}
    return entries | usual | ({"versions": versions} if versions else {})


def provenance_of(session: Session, runs: list[dict[str, Any]], float_top1: float) -> tuple[tuple[str, str], ...]:
    """What a master says of its training; where `runs` differ in an entry, that of each in their order."""
    known = [run for run in runs if run]
    counts = [run.get("joint_steps", "as the recipe says") for run in known]
    steps = [("joint_steps", _in_order(counts))] if any("joint_steps" in run for run in known) else []
    settings = session.recipe.supernet
    supernet = () if settings is None else (("supernet", f"{settings.draw}, {settings.batchnorm}"),)
    told = {key: _in_order(run.get(key) for run in runs) for key in ("recipe", *_USUAL)}
    versions = [run.get("versions", {}) for run in runs]
    return (
        ("recipe", told["recipe"]),
        ("seed", _in_order(run.get("seed") for run in known)),
        *steps,
        *supernet,
        *((key, told[key]) for key, usual in _USUAL.items() if told[key] != usual),
        ("float_top1", f"{float_top1:.2f}"),
        *((name, _in_order(each.get(name) for each in versions)) for name in _VERSIONS),
    )


def _sha256(path: Path) -> str | None:
    """Of a file; None where it cannot be read, as whoever imports it says why."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _device_text(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _in_order(values: Iterable[Any]) -> str:
    """Values of runs, each once where it stays the same; None is one that is not known."""
    texts = ["unknown" if value is None else str(value) for value in values]
    each = (entry for text in texts for entry in text.split(_NEXT))
    return _NEXT.join(entry for entry, _ in groupby(each))
