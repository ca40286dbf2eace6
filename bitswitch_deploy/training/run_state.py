"""The state files that a run finds: its own, to go on from, and that of another run whose weights it begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitswitch_deploy.errors import CheckpointError, UsageError
from bitswitch_deploy.training.carry_over import trained_widths
from bitswitch_deploy.training.checkpoint import load_checkpoint
from bitswitch_deploy.training.session import Session
from bitswitch_deploy.training.stages import FloatStage, JointStage
from bitswitch_deploy.training.supernet import SupernetStage

TRAINED_STAGES = (JointStage.name, SupernetStage.name)  # a state of these has the float network's weights in it


def saved_state(session: Session) -> dict[str, Any]:
    """The state to go on from, of a stage that the recipe has; empty where there is none.

    Raises:
        UsageError: there is one, and the run is not to resume.
        CheckpointError: it is no state of a run, or of one that this session cannot go on from.
    """
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

    Raises:
        UsageError: it is to begin from two things.
        CheckpointError: the state cannot be read, or fits no run of the recipe.
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
    origin = load_checkpoint(session.start_from)
    trained_widths(origin, session.recipe, str(session.start_from))
    return origin


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
