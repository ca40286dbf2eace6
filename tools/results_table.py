"""Write the results page from the logs of training runs, so that no figure on it is typed by hand.

python tools/results_table.py        # calibration/results/*.log.jsonl -> calibration/RESULTS.md

Needs the extra `train`, for the recipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import click

from bitswitch_deploy.catalogue import bundled_master, sample_set
from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.training.metrics_log import read_log
from bitswitch_deploy.training.recipe import load_recipe
from tools.ablation import SUPERNET_VARIANTS, VARIANTS

CALIBRATION = Path(__file__).resolve().parent.parent / "calibration"
VARIANT_MARK = "+"  # tools/ablation.py calls a changed recipe <recipe>+<variant>
UNCHANGED = {name for name, (joint, quantization) in VARIANTS.items() if not (joint or quantization)}
UNCHANGED |= {name for name, changes in SUPERNET_VARIANTS.items() if not changes}
HEAD = """# Results of training

Written by `tools/results_table.py` from the logs in `results/`, one for each run; put new logs there and run it again.
Top-1 in percent of the test split, behind it the difference in points to the run's own float network.
[The README](../README.md#train-and-capture) says what the folder `DATA` of the commands holds.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one log tells.

    log: name of its file. start: its first line. changed: where it went on with other options, on another host or with
    other versions after an interruption.
    float_top1, top1: None and empty where training failed. master_sha256: of the master that came out, if any did.
    """

    log: str
    start: dict[str, Any]
    changed: list[dict[str, Any]]
    float_top1: float | None
    top1: dict[str, float]
    failure: str | None
    images_per_s: float
    master_sha256: str | None

    @property
    def recipe(self) -> str:
        """Name of the recipe, without its variant."""
        return str(self.start["recipe"]).partition(VARIANT_MARK)[0]

    @property
    def variant(self) -> str:
        """What was changed; empty for the recipe itself."""
        return str(self.start["recipe"]).partition(VARIANT_MARK)[2]

    @property
    def length(self) -> str:
        """Length of the joint stage, and of that which trains mixtures where there is one."""
        steps, supernet = self.start["joint_steps"], self.start.get("supernet")
        joint = f"{self.start['joint_epochs']} epochs" if steps is None else f"{steps} mini-batches"
        return f"{joint}, then {supernet['epochs']} of mixtures" if supernet else joint

    @property
    def label(self) -> str:
        """Variant, if it is one, and seed."""
        return f"{self.variant} (seed {self.start['seed']})".strip()

    @property
    def inherited(self) -> int:
        """Mini-batches of a stage that were done when the log begins: those of the state file that the run found."""
        return int(self.start["step"])

    @property
    def options(self) -> list[str]:
        """How the command was called, where that is not as usual."""
        return called_with(self.start)

    @property
    def data(self) -> list[str]:
        """Where the command finds the data set: nothing to say where it is a bundled one."""
        dataset = self.start.get("dataset")  # older logs lack it
        try:
            bundled = sample_set(dataset or load_recipe(self.recipe).dataset)
        except UsageError:  # a recipe that is no bundled one
            bundled = None
        return ["--data", "DATA"] if bundled is None else []

    @property
    def machine(self) -> str:
        """Processor, or the device that trained."""
        device = self.start.get("device", "cpu")
        replicas = self.start.get("replicas", 1)
        named = f"{self.start['host']}, {self.start['threads']} threads" if device == "cpu" else device
        return named if replicas == 1 else f"{replicas} x {named}"


def called_with(start: dict[str, Any]) -> list[str]:
    """The options of a command that a log, or a state file, tells of."""
    words = []
    for option, usual in (("threads", 1), ("precision", "float32"), ("joint_steps", None)):
        if start.get(option, usual) != usual:
            words += [f"--{option.removeprefix('joint_')}", str(start[option])]
    if start.get("device", "cpu") != "cpu":
        words += ["--device", "cuda"]
    return [*words, *(["--fast"] if start.get("fast") else [])]


def circumstances(start: dict[str, Any]) -> tuple[Any, ...]:
    """What may change where a run goes on after an interruption: options, host, versions."""
    return called_with(start), start["host"], start["versions"]


def last_run(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the last run that has ended: a log is kept beside its master, and another run adds to it.

    A start that nothing follows is a command that failed before its first mini-batch.
    """
    while lines and lines[-1]["event"] == "start":
        lines = lines[:-1]
    runs: list[list[dict[str, Any]]] = []
    for line in lines:
        if not runs or (line["event"] == "start" and not line["step"] and "parent" not in line):
            runs.append([])
        runs[-1].append(line)
    return next((run for run in reversed(runs) if run[-1]["event"] in ("end", "failed")), [])


def read_run(path: Path) -> Run | None:
    """The last run of a log that has ended; None where none has."""
    lines = last_run(read_log(path))
    if not lines or lines[0]["event"] != "start":
        return None
    rates = [line["images_per_s"] for line in lines if line["event"] == "epoch" and line["stage"] == "joint"]
    starts = [line for line in lines if line["event"] == "start"]
    return Run(
        log=path.name,
        start=lines[0],
        changed=[line for line in starts if circumstances(line) != circumstances(lines[0])],
        float_top1=lines[-1].get("float_top1"),
        top1=lines[-1].get("top1", {}),
        failure=lines[-1].get("reason"),
        images_per_s=median(rates) if rates else 0.0,
        master_sha256=lines[-1].get("master_sha256"),
    )


def page(runs: list[Run]) -> str:
    """The Markdown page."""
    lines = [HEAD]
    for recipe in sorted({run.recipe for run in runs}):
        of_recipe = [run for run in runs if run.recipe == recipe]
        lines.append(f"## {recipe}\n")
        lines += [*table([run for run in of_recipe if not run.variant]), ""]
        lines += [*ablation([run for run in of_recipe if run.variant]), ""]
    return "\n".join(lines).rstrip() + "\n"


def table(runs: list[Run]) -> Iterator[str]:
    """One row for each run of a recipe, and the commands."""
    if not runs:
        return
    widths = list(next((run.top1 for run in runs if run.top1), {}))
    yield f"| length | seed | float | {' | '.join(widths)} | images/s | machine | versions |"
    yield f"|{'---|' * (len(widths) + 6)}"
    for run in runs:
        if run.failure:
            yield f"| {run.length} | {run.start['seed']} | failed: {run.failure} |{' |' * (len(widths) + 3)}"
            continue
        figures = [figure([run], width) for width in widths]
        cells = [run.length, str(run.start["seed"]), figure([run], None), *figures, f"{run.images_per_s:.0f}"]
        yield f"| {' | '.join([*cells, run.machine, versions_text(run.start)])} |"
    yield from beginnings(runs)
    yield ""
    for run in runs:
        yield f"    {train_command(run)}"


def train_command(run: Run) -> str:
    """What makes a run of a recipe again."""
    replicas, seed = run.start.get("replicas", 1), str(run.start["seed"])
    start = "python" if replicas == 1 else f"torchrun --nproc-per-node {replicas}"
    words = [start, "tools/train_master.py --recipe", run.recipe, *run.data, "--seed", seed, *run.options]
    output = f"{run.recipe}-seed{seed}.safetensors"
    if "started_from" in run.start:
        began_with = origin_file(run.start["started_from"])
        words += ["--start-from", began_with]
        output = output if began_with not in (output, f"{output}.state") else f"again-{output}"
    return " ".join([*words, "-o", output])


def beginnings(runs: list[Run]) -> Iterator[str]:
    """Paragraphs on what the commands do not show: the state files that runs come from, and options that changed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.inherited:
            found.setdefault(beginning(run), []).append(run)
    for text, of_these in found.items():
        named = "All of them" if len(of_these) == len(runs) > 1 else ", ".join(run.label for run in of_these)
        rest = "Without the file the command trains everything with its options"
        how = "[how to go on from one](../bitswitch_deploy/training/README.md)"
        yield f"\n{named} went on from {text}. The options below are those of what came after. {rest}: {how}."
    for run in runs:
        if "started_from" in run.start:
            yield f"\n{run.label} began with weights of {carried(run.start['started_from'])}."
        for each in run.changed:
            yield f"\n{run.label} was interrupted and went on from mini-batch {each['step']:,} {change(run, each)}."


def change(run: Run, later: dict[str, Any]) -> str:
    """With which options a run went on, and where and with what, as far as that is not as it began."""
    words = f"with {' '.join(called_with(later)) or 'no options'}"
    if later["host"] != run.start["host"]:
        words += f", on {later['host']}"
    if later["versions"] != run.start["versions"]:
        words += f", with {versions_text(later)}"
    return words


def versions_text(start: dict[str, Any]) -> str:
    """The versions that a line of a log names."""
    return ", ".join(f"{name} {version}" for name, version in start["versions"].items())


def beginning(run: Run) -> str:
    """The state file that a run went on from, as far as its log tells."""
    parent = run.start.get("parent", {"stage": None, "runs": [{}]})
    stage = f" of stage {parent['stage']}" if parent["stage"] else ""
    place = f"the state file of another run, behind mini-batch {run.inherited:,}{stage}"
    if not any(parent["runs"]):
        return f"{place}. The logs do not tell which run that was, nor its precision and threads"
    return f"{place}: {', then '.join(origin(each) for each in parent['runs'])}"


def carried(began: dict[str, Any]) -> str:
    """The file whose weights a run began with."""
    if "master" in began:
        before = began["runs"][-1].get("recipe", "a run that is not known")
        return f"the master `{began['master']}` (sha256 {began['master_sha256'][:12]}), which {before} had made"
    origins = ", then ".join(origin(run) for run in began["runs"])
    place = f"another run, behind its mini-batch {began['step']:,}: {origins}"
    return f"{place}. `--keep-state` leaves that file, `{state_name(began['runs'][-1])}`"


def origin_file(began: dict[str, Any]) -> str:
    """The state file or master whose weights a run began with."""
    return began["master"] if "master" in began else state_name(began["runs"][-1])


def state_name(run: dict[str, Any]) -> str:
    """The state file of a run that was made by its command on the page."""
    return f"{run['recipe']}-seed{run['seed']}.safetensors.state" if run else "STATE"


def origin(run: dict[str, Any]) -> str:
    """One of the runs that a state file comes from."""
    if not run:
        return "a run that is not known"
    others = " ".join(called_with({**run, "precision": "float32"})) or "no other options"
    return f"`{run['recipe']}`, seed {run['seed']}, in {run['precision']} with {others}"


def ablation(runs: list[Run]) -> Iterator[str]:
    """One row for each variant: means over its seeds."""
    if not runs:
        return
    widths = list(next((run.top1 for run in runs if run.top1), {}))
    lengths = ", ".join(sorted({run.length for run in runs}))
    yield f"Variants, {lengths}, means over seeds (lowest to highest where there are several):\n"
    yield f"{chance(runs)}\n"
    yield f"| variant | seeds | float | {' | '.join(widths)} |"
    yield f"|{'---|' * (len(widths) + 3)}"
    for variant in dict.fromkeys(run.variant for run in runs):
        of_variant = [run for run in runs if run.variant == variant]
        seeds = ", ".join(str(run.start["seed"]) for run in of_variant)
        good = [run for run in of_variant if run.failure is None]
        cells = [figure(good, None), *(figure(good, width) for width in widths)] if good else []
        failed = [f"seed {run.start['seed']}: {run.failure}" for run in of_variant if run.failure is not None]
        yield f"| {' | '.join([variant, seeds, *cells, *failed])} |"
    yield from beginnings(runs)
    yield ""
    yield from ablation_commands(runs)


def chance(runs: list[Run]) -> str:
    """How far figures differ where nothing was changed."""
    unchanged = [run for run in runs if run.variant in UNCHANGED and run.failure is None]
    known = []
    for variant in dict.fromkeys(run.variant for run in unchanged):
        tops = [run.top1 for run in unchanged if run.variant == variant]
        if len(tops) > 1:
            spread = {width: max(top[width] for top in tops) - min(top[width] for top in tops) for width in tops[0]}
            known.append(f"Between its seeds {variant}, the recipe unchanged, differs by {listed(spread)} points.")
    for run in unchanged:
        if bundled := bundled_figures(run):
            gaps = {width: abs(run.top1[width] - value) for width, value in bundled.items()}
            twin = f"The bundled master, of the same recipe and seed as {run.label} but trained another time,"
            known.append(f"{twin} differs from it by {listed(gaps)} points.")
    if not known:
        return "How far figures differ where nothing is changed these runs do not tell: small differences say nothing."
    if len({run.start["seed"] for run in runs}) == 1:
        return " ".join([*known, "With one seed, differences of that size between variants say nothing."])
    return " ".join([*known, "Weigh differences between variants against that."])


def bundled_figures(run: Run) -> dict[str, float]:
    """Top-1 of the bundled master where it is of the recipe, seed and length of a run; else nothing."""
    spec = read_master(bundled_master()).spec
    made = dict(spec.provenance)
    steps = run.start["joint_steps"]
    wanted = (run.recipe, str(run.start["seed"]), None if steps is None else str(steps))
    same = (made.get("recipe"), made.get("seed"), made.get("joint_steps")) == wanted
    return {f"w{entry.bits}": entry.value for entry in spec.accuracy} if same else {}


def listed(values: dict[str, float]) -> str:
    """Points by width, in words."""
    return ", ".join(f"{value:.2f} ({width.replace(',', '')})" for width, value in values.items())


def ablation_commands(runs: list[Run]) -> Iterator[str]:
    """What makes runs of one recipe again: a command for all variants that had the same seeds and options."""
    seeds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        seeds.setdefault((run.variant, " ".join(run.options)), []).append(run)
    alike: dict[tuple[str, str], list[Run]] = {}
    for (_, options), of_variant in seeds.items():
        all_seeds = ",".join(str(run.start["seed"]) for run in of_variant)
        alike.setdefault((all_seeds, options), []).extend(of_variant)
    for of_these in alike.values():
        yield f"    {ablation_command(of_these)}"


def ablation_command(runs: list[Run]) -> str:
    """What makes runs of one recipe again that have the same seeds and options."""
    variants = ",".join(dict.fromkeys(run.variant for run in runs))
    seeds = ",".join(dict.fromkeys(str(run.start["seed"]) for run in runs))
    words = ["python tools/ablation.py --recipe", runs[0].recipe, *runs[0].data, "--variants", variants]
    return " ".join([*words, "--seeds", seeds, *runs[0].options, "-o runs"])


def figure(runs: list[Run], width: str | None) -> str:
    """Mean top-1 and mean difference to float; None is the float network."""
    values = [run.float_top1 if width is None else run.top1[width] for run in runs]
    present = [value for value in values if value is not None]
    text = f"{mean(present):.2f}"
    if width is not None:
        drops = [value - run.float_top1 for value, run in zip(present, runs) if run.float_top1 is not None]
        text += f" ({mean(drops):+.2f})"
    return text if len(present) == 1 else f"{text} [{min(present):.2f}..{max(present):.2f}]"


@click.command()
@click.option("--logs", type=click.Path(path_type=Path), default=CALIBRATION / "results", help="Folder of the logs.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=CALIBRATION / "RESULTS.md")
def main(logs: Path, output: Path) -> None:
    """Write the results page."""
    found = {path.name: read_run(path) for path in sorted(logs.glob("*.log.jsonl"))}
    for name in [name for name, run in found.items() if run is None]:
        click.echo(f"{name}: left out, as no run in it has ended", err=True)
    output.write_text(page([run for run in found.values() if run is not None]), encoding="utf-8")


if __name__ == "__main__":
    main()
