"""The files that a run finds: its own state, to go on from, and a state or master whose weights it begins with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bitswitch_deploy.atomic_file import check_writable, remove_unfinished
from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.training.carry_over import trained_widths
from bitswitch_deploy.training.checkpoint import load_checkpoint
from bitswitch_deploy.training.master_import import is_master
from bitswitch_deploy.training.recipe import Recipe
from bitswitch_deploy.training.session import Session
from bitswitch_deploy.training.stages import FloatStage, JointStage
from bitswitch_deploy.training.supernet import SupernetStage

MASTER = "master"  # in place of a stage: the weights of a finished run
TRAINED_STAGES = (JointStage.name, SupernetStage.name)  # a state of these has the float network's weights in it


def saved_state(session: Session) -> dict[str, Any]:
    """The state to go on from, of a stage that the recipe has; empty where there is none.

    Raises:
        OutputError: none can be written there.
        UsageError: there is one, and the run is not to resume.
        CheckpointError: it is no state of a run, or of one that this session cannot go on from.
    """
    check_writable(session.state)
    remove_unfinished(session.state)
    if not session.state.exists():
        return {}
    if not session.resume:
        raise UsageError(
            where=str(session.state),
            got="an earlier run left its state here",
            allowed="no state file, or a run that resumes",
            do="go on with --resume, or delete the file to start again",
        )
    saved = load_checkpoint(session.state)
    _check_state(saved, session)
    return saved


def _check_state(saved: dict[str, Any], session: Session) -> None:
    """See that a session can go on from a state, so that no other file is taken for one and overwritten."""
    recipe = session.recipe
    stages = (FloatStage.name, *(TRAINED_STAGES if recipe.supernet is not None else (JointStage.name,)))
    stage, step, total = (saved.get(name) for name in ("stage", "step", "total"))
    if stage == SupernetStage.name and stage not in stages:
        raise CheckpointError(
            where=str(session.state),
            got=f"the state of stage {stage}",
            allowed=f"{', '.join(stages)}: recipe {recipe.name} has no section `supernet`",
            do="resume with the recipe that the run was started with",
        )
    if stage not in stages or not isinstance(step, int) or not isinstance(total, int):
        raise CheckpointError(
            where=str(session.state),
            got=f"no state of a run: stage {stage!r}, step {step!r} of {total!r}",
            allowed=f"a state file of this tool, of stage {', '.join(stages)}",
            do="name another output, or move the file away to start from the beginning",
        )
    trained = session.start_from or session.float_checkpoint
    if stage == FloatStage.name and trained is not None:
        raise CheckpointError(
            where=str(session.state),
            got=f"a float network in training, beside the trained one in {trained}",
            allowed="one of them to go on from",
            do="move that file away, or leave out --checkpoint and --start-from, to train on; delete the state to "
            "start from it",
        )


def origin_state(session: Session, saved: dict[str, Any]) -> dict[str, Any]:
    """The state whose weights a run takes that begins; empty where it goes on, or begins from a float network.

    Of a master it is what the file tells of its run, with stage MASTER; the weights stay in the file.

    Raises:
        UsageError: it is to begin from two things.
        CheckpointError: the state cannot be read, or fits no run of the recipe. MasterError: nor can the master.
    """
    if session.start_from is None:
        return {}
    if session.checkpoint is not None:
        raise UsageError(
            where="--start-from",
            got=f"{session.start_from}, and --checkpoint {session.checkpoint}",
            allowed="one of them",
            do="begin with the weights of another run or with a float network",
        )
    if session.start_from.resolve() == session.state.resolve():
        raise UsageError(
            where="--start-from",
            got=f"{session.start_from}, the state of this run itself",
            allowed="that of another run",
            do="name another output; to go on with an interrupted run, leave it out and say --resume",
        )
    if saved:
        return {}
    if is_master(session.start_from):
        return _told_by_master(session.start_from, session.recipe)
    origin = load_checkpoint(session.start_from)
    trained_widths(origin, session.recipe, str(session.start_from))
    return origin


def _told_by_master(path: Path, recipe: Recipe) -> dict[str, Any]:
    """The entries of a state that a master has, too: top-1 of its float network, and the runs that it comes from."""
    master = read_master(path)
    if master.spec.preprocessing != recipe.preprocessing:
        raise CheckpointError(
            where=str(path),
            got=f"{master.spec.preprocessing}",
            allowed=f"{recipe.preprocessing}, as recipe {recipe.name} says",
            do="begin with a master that was trained on inputs of the same preprocessing",
        )
    told = dict(master.spec.provenance)
    return {
        "stage": MASTER,
        "master": path.name,
        "master_sha256": master.sha256,
        "float_top1": _told_top1(told, path),
        "provenance": told,
    }


def _told_top1(provenance: dict[str, str], path: Path) -> float:
    text = provenance.get("float_top1", "not told")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise CheckpointError(
            where=str(path),
            got=f"float_top1 {text} in its provenance",
            allowed="top-1 of its float network in percent, which the widths are compared with",
            do="write it with provenance=(('float_top1', '91.73'),) in save_master, or go on with train_jointly",
        )
    return value


def saved_top1(saved: dict[str, Any], source: Path) -> float:
    """Top-1 of the float network that a state comes from, in percent. source: its file.

    Raises:
        CheckpointError: the state does not tell.
    """
    value = saved.get("float_top1")
    if not isinstance(value, float):
        raise CheckpointError(
            where=str(source),
            got=f"float_top1 = {value!r}",
            allowed="a state file of this tool",
            do="start again without this file",
        )
    return value
