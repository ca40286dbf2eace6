"""What a run of training is given; `run_session` carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What to run.

    data: folder that holds the data set, as a folder of its name or itself, and `recipe.float_checkpoint`.
    state: file that the run is saved to on the way. resume: go on from there if it exists.
    checkpoint: trained float weights to start from instead of those of the recipe.
    start_from: state file or master of another run, at these or other widths, whose weights the joint stage begins
        with (`carry_over`, `master_import`), in place of a float network.
    joint_steps: length of the joint stage in mini-batches, instead of the recipe's epochs.
    threads: of torch; two runs are equal only with the same number.
    save_every: epochs between two lines of the log, before each of which the run is saved and measured.
    execution: device, precision, compiled or not. workers: processes that decode an image folder.
    log: file of what the run reached (`metrics_log`).
    """

    recipe: Recipe
    data: Path
    state: Path
    resume: bool = False
    checkpoint: Path | None = None
    start_from: Path | None = None
    joint_steps: int | None = None
    save_every: int = 1
    threads: int = 1
    execution: Execution = field(default_factory=Execution)
    workers: int = 0
    log: Path | None = None

    @property
    def float_checkpoint(self) -> Path | None:
        """The trained float weights that are there to start from; None: they are to be trained."""
        if self.start_from is not None:
            return None
        if self.checkpoint is not None or self.recipe.float_checkpoint is None:
            return self.checkpoint
        path = self.data / self.recipe.float_checkpoint
        return path if path.is_file() else None
