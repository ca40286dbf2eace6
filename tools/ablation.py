"""Train variants of a recipe, each with several seeds: what is every part of it worth?

python tools/ablation.py --recipe digits --seeds 1,2,3 -o runs
python tools/ablation.py --recipe cifar10-resnet20-short --data DATA --seeds 1 --fast -o runs

One log and one master for each run, <folder>/<recipe>+<variant>-seed<n>.log.jsonl and .safetensors; a run that has
ended is not repeated, and one that was interrupted goes on. Copy the logs to calibration/results and run
tools/results_table.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bitswitch_deploy.atomic_file import check_writable
from bitswitch_deploy.errors import BitswitchError, CheckFailedError, UsageError
from bitswitch_deploy.master import write_master
from bitswitch_deploy.tensors import Rounding
from bitswitch_deploy.training.execution import choose_execution
from bitswitch_deploy.training.metrics_log import MetricsLog, read_log
from bitswitch_deploy.training.recipe import MAX_SEED, Recipe, load_recipe
from bitswitch_deploy.training.run_record import circumstances
from bitswitch_deploy.training.run_session import run_session
from bitswitch_deploy.training.session import Session

EXIT_INTERRUPTED = 130
CALIBRATION = Path(__file__).resolve().parent.parent / "calibration"

# name -> what it changes of the joint stage and of the quantization
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as-it-is": ({}, {}),
    "alrs-none": ({"alrs": "none"}, {}),
    "alrs-bracket": ({"alrs": "bracket"}, {}),
    "alrs-bracket-printed": ({"alrs": "bracket_printed"}, {}),
    "update-accumulated": ({"update": "accumulated"}, {}),
    "rounding-half-even": ({}, {"rounding": Rounding.HALF_EVEN}),
    "scale-per-tensor": ({}, {"granularity": "per_tensor"}),
    "container-uint8": ({}, {"activation_container": "uint8"}),
    "distillation-ps-kd": ({"distillation": "ps_kd"}, {}),
    "distillation-in-batch": ({"distillation": "in_batch"}, {}),
}

# the same for the supernet stage, of recipes that have one; `none` keeps training uniform widths for as long
SUPERNET_VARIANTS: dict[str, dict[str, Any]] = {
    "supernet-hasb": {},
    "supernet-none": {"threshold": 0.0},
    "supernet-uniform": {"draw": "uniform"},
    "supernet-transitional": {"batchnorm": "transitional"},
}


# entries of a log's "start" that a command decides, and not the machine
_OF_THE_COMMAND = (
    *("dataset", "joint_epochs", "joint", "joint_steps", "supernet", "quantization", "threads", "fast", "precision"),
    "device",
)


def varied(recipe: Recipe, variant: str, seed: int) -> Recipe:
    """The recipe with the changes of a variant and another seed."""
    joint, quantization = VARIANTS.get(variant, ({}, {}))
    supernet = recipe.supernet and replace(recipe.supernet, **SUPERNET_VARIANTS.get(variant, {}))
    return replace(
        recipe,
        name=f"{recipe.name}+{variant}",
        seed=seed,
        supernet=supernet,
        joint=replace(recipe.joint, **joint),
        quantization=replace(recipe.quantization, **quantization),
    )


def has_ended(lines: list[dict[str, Any]], master: Path) -> bool:
    """Whether the run of a log came to its end: a bad one, or one with its master written."""
    last = lines[-1]["event"] if lines else None
    return last == "failed" or (last == "end" and master.is_file())


def check_same(lines: list[dict[str, Any]], session: Session) -> None:
    """See that a run that has ended is the one that was asked for; what only one of them names is passed over.

    Raises:
        UsageError: it had other options, or another recipe of the same name.
    """
    begun = [line for line in lines if line["event"] == "start"]
    wanted = json.loads(json.dumps(circumstances(session, {})))
    other = [name for name in _OF_THE_COMMAND if begun and begun[-1].get(name, wanted.get(name)) != wanted.get(name)]
    if other:
        raise UsageError(
            where=str(session.log),
            got="a run that ended with " + ", ".join(f"{name} {begun[-1][name]}" for name in other),
            allowed=", ".join(f"{name} {wanted.get(name)}" for name in other) + ", as this command says",
            do="name another folder, or move this log and its master away",
        )


def chosen_variants(names: str | None, recipe: Recipe) -> list[str]:
    """The variants that a comma-separated list names; None is all that the recipe can have.

    Raises:
        UsageError: one is not there.
    """
    known = [*VARIANTS, *(SUPERNET_VARIANTS if recipe.supernet is not None else ())]
    chosen = known if names is None else names.split(",")
    for name in chosen:
        if name not in known:
            raise UsageError(where="--variants", got=name, allowed=", ".join(known), do="use some of these names")
    return chosen


def chosen_seeds(text: str) -> list[int]:
    """The seeds that a comma-separated list names.

    Raises:
        UsageError: one is no whole number from 0.
    """
    seeds = text.split(",")
    if not all(seed.strip().isdecimal() and int(seed) <= MAX_SEED for seed in seeds):
        raise UsageError(
            where="--seeds", got=text, allowed=f"whole numbers from 0 to {MAX_SEED}", do="write them like 1,2,3"
        )
    return [int(seed) for seed in seeds]


@click.command()
@click.option("--recipe", "recipe_name", required=True, help="Name of a bundled recipe, or the path of a .yaml file.")
@click.option("--data", type=click.Path(path_type=Path), default=CALIBRATION, help="Folder that holds the data set.")
@click.option("--seeds", default="1", show_default=True, help="Comma-separated.")
@click.option("--variants", help=f"Comma-separated, of {', '.join([*VARIANTS, *SUPERNET_VARIANTS])}. Default: all.")
@click.option("--steps", "joint_steps", type=click.IntRange(min=1), help="Length of the joint stage in mini-batches.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N, or auto.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--fast", is_flag=True, help="Compile the training steps.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the logs.")
def main(recipe_name: str, seeds: str, variants: str | None, output: Path, device: str, **choices: Any) -> None:
    """Run what has not been run yet."""
    try:
        recipe = load_recipe(recipe_name)
        execution = choose_execution(device, precision=choices.pop("precision"), fast=choices.pop("fast"))
        output.mkdir(parents=True, exist_ok=True)
        for seed in chosen_seeds(seeds):
            for variant in chosen_variants(variants, recipe):
                run(varied(recipe, variant, seed), output, execution=execution, **choices)
    except BitswitchError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from what was saved last", err=True)
        sys.exit(EXIT_INTERRUPTED)


def run(recipe: Recipe, folder: Path, **choices: Any) -> None:
    """Train one variant unless it has ended; a divergence is a result, too.

    Raises:
        UsageError: it ended with other options. OutputError: its master cannot be written.
    """
    name = f"{recipe.name}-seed{recipe.seed}"
    log, state, master = (folder / f"{name}.{suffix}" for suffix in ("log.jsonl", "state", "safetensors"))
    session = Session(recipe=recipe, state=state, log=log, resume=True, **choices)
    lines = read_log(log) if log.is_file() else []
    if has_ended(lines, master):
        check_same(lines, session)
        click.echo(f"{name}: done before", err=True)
        return
    check_writable(master)
    try:
        write_master(run_session(session).master, master)
    except CheckFailedError as exc:
        MetricsLog(log).write("failed", reason=f"{exc.where}: {exc.got}")
    state.unlink(missing_ok=True)
    click.echo(f"{name}: done", err=True)


if __name__ == "__main__":
    main()
