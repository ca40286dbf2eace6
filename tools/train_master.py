"""Train a master from a recipe.

python tools/train_master.py --recipe digits -o calibration/digits/digits.safetensors
python tools/train_master.py --recipe cifar10-resnet20 --data DATA --steps 200 -o resnet20.safetensors

A log is kept beside the output, <output>.log.jsonl (see bitswitch_deploy/training/metrics_log.py).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bitswitch_deploy.errors import BitswitchError
from bitswitch_deploy.master import write_master
from bitswitch_deploy.training.recipe import load_recipe
from bitswitch_deploy.training.session import Session, TrainedNetwork, run_session

CALIBRATION = Path(__file__).resolve().parent.parent / "calibration"


@click.command()
@click.option("--recipe", required=True, help="Name of a bundled recipe, or the path of a .yaml file.")
@click.option(
    "--data", type=click.Path(path_type=Path), default=CALIBRATION, help="Folder that holds the data set's folder."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Trained float weights to start from.")
@click.option("--resume", is_flag=True, help="Go on from the state file beside the output (<output>.state).")
@click.option("--seed", type=int, help="Replaces the seed of the recipe.")
@click.option("--steps", "joint_steps", type=click.IntRange(min=1), help="Length of the joint stage in mini-batches.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option("--fast", is_flag=True, help="Compile the training steps (torch.compile): minutes at first, then faster.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The master to write.")
def main(recipe: str, output: Path, seed: int | None, **choices: Any) -> None:
    """Train a network at several widths at once and write its master."""
    try:
        loaded = load_recipe(recipe)
        session = Session(
            recipe=loaded if seed is None else replace(loaded, seed=seed),
            state=output.with_name(f"{output.name}.state"),
            log=output.with_name(f"{output.name}.log.jsonl"),
            **choices,
        )
        trained = run_session(session)
        write_master(trained.master, output)
    except BitswitchError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)
    session.state.unlink(missing_ok=True)
    Console().print(summary(trained))


def summary(trained: TrainedNetwork) -> Table:
    """Top-1 of the float network and of each width."""
    table = Table("network", "top-1 %", "against float")
    table.add_row("float", f"{trained.float_top1:.2f}", "")
    for entry in trained.master.spec.accuracy:
        table.add_row(f"{entry.bits} bits", f"{entry.value:.2f}", f"{entry.value - trained.float_top1:+.2f}")
    return table


if __name__ == "__main__":
    main()
