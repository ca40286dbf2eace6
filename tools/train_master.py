"""Train a master from a recipe.

python tools/train_master.py --recipe digits --force -o calibration/digits/digits.safetensors
python tools/train_master.py --recipe cifar10-resnet20 --data DATA --steps 200 -o resnet20.safetensors
torchrun --nproc-per-node 4 tools/train_master.py --recipe imagenet-resnet18 --data DATA --device cuda -o r.safetensors

A log is kept beside the output, <output>.log.jsonl and .csv (see bitswitch_deploy/training/metrics_log.py).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bitswitch_deploy.atomic_file import check_writable, remove_unfinished
from bitswitch_deploy.errors import BitswitchError, CheckFailedError, UsageError
from bitswitch_deploy.master import write_master
from bitswitch_deploy.training.execution import choose_execution
from bitswitch_deploy.training.metrics_log import MetricsLog
from bitswitch_deploy.training.recipe import MAX_SEED, load_recipe
from bitswitch_deploy.training.replicas import is_first_process
from bitswitch_deploy.training.run_session import TrainedNetwork, run_session
from bitswitch_deploy.training.session import Session

EXIT_INTERRUPTED = 130
CALIBRATION = Path(__file__).resolve().parent.parent / "calibration"


@click.command()
@click.option("--recipe", required=True, help="Name of a bundled recipe, or the path of a .yaml file.")
@click.option(
    "--data", type=click.Path(path_type=Path), default=CALIBRATION, help="Folder that holds the data set's folder."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained float weights to start from.")
@click.option(
    "--start-from",
    type=click.Path(path_type=Path),
    help="State file or master of another run, at these or other widths, whose weights to begin with.",
)
@click.option("--resume", is_flag=True, help="Go on from the state file beside the output (<output>.state).")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Replaces the seed of the recipe.")
@click.option("--steps", "joint_steps", type=click.IntRange(min=1), help="Length of the joint stage in mini-batches.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Decode image files.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N, or auto: CUDA where there is one.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--fast",
    is_flag=True,
    help="Compile the training steps, on CUDA record them as well: minutes at first, then faster.",
)
@click.option(
    "--save-every", type=click.IntRange(min=1), default=1, show_default=True, help="Epochs from saving to saving."
)
@click.option("--keep-state", is_flag=True, help="Leave the state file, for a run of another recipe to go on from.")
@click.option("--force", is_flag=True, help="Replace a file that is at the output.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The master to write.")
def main(recipe: str, output: Path, seed: int | None, device: str, keep_state: bool, **choices: Any) -> None:
    """Train a network at several widths at once and write its master."""
    log = output.with_name(f"{output.name}.log.jsonl")
    try:
        check_output(output, force=choices.pop("force"))
        loaded = load_recipe(recipe)
        execution = choose_execution(device, precision=choices.pop("precision"), fast=choices.pop("fast"))
        session = Session(
            recipe=loaded if seed is None else replace(loaded, seed=seed),
            state=output.with_name(f"{output.name}.state"),
            log=log,
            execution=execution,
            **choices,
        )
        if is_first_process():
            for words in check_given(session, output):
                click.echo(f"note: {words}", err=True)
        trained = run_session(session)
        if is_first_process():
            remove_unfinished(output)
            write_master(trained.master, output)
    except BitswitchError as exc:
        if isinstance(exc, CheckFailedError) and is_first_process():
            MetricsLog(log).write("failed", reason=f"{exc.where}: {exc.got}")
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command with --resume goes on from what was saved last", err=True)
        sys.exit(EXIT_INTERRUPTED)
    if is_first_process():
        if not keep_state:
            session.state.unlink(missing_ok=True)
        Console().print(summary(trained))


def check_output(output: Path, *, force: bool) -> None:
    """See that the master can be written, before hours of training.

    Raises:
        UsageError: a file is there, and nobody said that it may be replaced. OutputError: it cannot be written.
    """
    check_writable(output)
    if output.exists() and not force:
        raise UsageError(
            where="--output",
            got=f"{output} exists",
            allowed="a new file",
            do="name another one, or say --force",
        )


def check_given(session: Session, output: Path) -> list[str]:
    """What of the options has no effect, in words.

    Raises:
        UsageError: the master would take the place of a file that the run begins with.
    """
    given = {"--checkpoint": session.checkpoint, "--start-from": session.start_from}
    begins_with = {option: path for option, path in given.items() if path is not None}
    for option, path in begins_with.items():
        if path.resolve() == output.resolve():
            raise UsageError(where="--output", got=f"{output}, as {option}", allowed="another file", do="name one")
    if not session.resume:
        return []
    if not session.state.exists():
        return [f"--resume: no state in {session.state}, so the run begins anew"]
    return [f"{option} is not read: the weights in {session.state} go on" for option in begins_with]


def summary(trained: TrainedNetwork) -> Table:
    """Top-1 of the float network and of each width."""
    table = Table("network", "top-1 %", "against float")
    table.add_row("float", f"{trained.float_top1:.2f}", "")
    for entry in trained.master.spec.accuracy:
        table.add_row(f"{entry.bits} bits", f"{entry.value:.2f}", f"{entry.value - trained.float_top1:+.2f}")
    if trained.mixed is not None:
        for name, value in (("as trained", trained.mixed.as_trained), ("re-estimated", trained.mixed.reestimated)):
            row = f"{trained.mixed.n_subnets} mixtures, {name}"
            table.add_row(row, f"{value:.2f}", f"{value - trained.float_top1:+.2f}")
    return table


if __name__ == "__main__":
    main()
