"""Does the search hold what it promises? Three experiments; `tools/search_page.py` writes the page about them.

python tools/search_results.py exhaustive --tie "blocks.1.conv1,blocks.1.shortcut.conv" --hessian costs.json \
    -o calibration/results/search-exhaustive-digits.json
python tools/search_results.py against-uniform --master resnet20.safetensors --cifar10 DATA/cifar10 --reestimate \
    --bits 8,7,6,5,4,3,2 --averages 4,3,5 -o calibration/results/search-resnet20-all-widths.json
python tools/search_results.py statistics --master resnet20.safetensors --cifar10 DATA/cifar10 --test-samples 4000 \
    -o calibration/results/search-statistics-resnet20.json

The page names each command in full, and the log of the training that made each master. `costs.json` and, beside it,
`costs.traces.json` are written by tools/hessian_costs.py --samples 512 --vectors 128 -o costs.json.

--cifar10 is any of the layouts that `load_cifar10` of bitswitch_deploy/training/datasets.py reads. Its images are kept
as .npz files in --cache, .bitswitch-search here; for other commands they are written by

python tools/search_results.py cifar10-files DATA/cifar10 -o .bitswitch-search
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.cli.options import progress_bar
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.errors import BitswitchError
from bitswitch_deploy.master import Master, read_master
from bitswitch_deploy.pipeline.searching.data import Sampling, load_search_data
from bitswitch_deploy.pipeline.searching.final_test import run_final_test
from bitswitch_deploy.pipeline.searching.problem import layer_groups
from bitswitch_deploy.pipeline.searching.search import SearchRequest, search
from bitswitch_deploy.report.search_report import Assigned
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.candidates import near_optimal, usual_distance
from bitswitch_deploy.search.choose import CANDIDATES, CANDIDATES_IN_RUNS
from bitswitch_deploy.search.costs import GroupCosts, assignment_of, measured_costs, read_costs
from bitswitch_deploy.search.dominance import remove_dominated
from bitswitch_deploy.search.evaluate import Evaluator, Workers
from bitswitch_deploy.search.problem import Group, Problem, Row, Selection
from bitswitch_deploy.search.runs import in_runs
from bitswitch_deploy.search.samples import MIN_SAMPLES, SearchSamples, store_samples
from bitswitch_deploy.search.score import CRITERIA, Scores
from bitswitch_deploy.search.statistics import compare, rank_correlation
from bitswitch_deploy.search.store import ScoreStore
from bitswitch_deploy.tensors import WidthAssignment

PATH = click.Path(path_type=Path)
LOSS, DIVERGENCE = "loss", "divergence"
BUDGETS = {"weight": "avg_weight_bits", "layer": "avg_bits"}
MOST_DRAWS = 5_000_000  # one in thousands has a low average
_SLACK_BITS = 0.1  # random assignments use up the budget to this much
_VERSIONS = ("numpy", "scipy", "onnx", "onnxruntime")


class _Reporting(click.Group):
    """Prints an error of the product as its commands do."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BitswitchError as exc:
            click.echo(f"error: {exc}", err=True)
            sys.exit(exc.exit_code)


@click.group(cls=_Reporting)
def main() -> None:
    """Experiments with the search."""


@main.command()
@click.option("--master", type=PATH, help="[default: the bundled digits network]")
@click.option("--data", type=PATH, help="Samples for the costs.  [default: the bundled ones]")
@click.option("--test", type=PATH, help="Samples for the truth.  [default: the bundled ones]")
@click.option("--tie", "ties", multiple=True, help="As of `search`: fewer groups, fewer assignments.")
@click.option("--bits", default="8,6,4,2", show_default=True)
@click.option("--averages", default="3,4,5,6", show_default=True)
@click.option("--samples", type=int, default=2048, show_default=True, help="For the costs.")
@click.option("--truth", type=int, default=1024, show_default=True, help="For the loss of every assignment.")
@click.option("--hessian", type=PATH, help="Costs by tools/hessian_costs.py: also the objective that the paper prints.")
@click.option("--cache", type=PATH, default=Path(".bitswitch-search"), show_default=True)
@click.option("-o", "--output", type=PATH, required=True)
def exhaustive(master: Path | None, bits: str, averages: str, hessian: Path | None, **options: Any) -> None:
    """Measure every assignment, and see where the search's optimum stands among them."""
    experiment = Exhaustive.prepare(
        master or bundled_master(), widths=tuple(map(int, bits.split(","))), hessian=hessian, **options
    )
    write(options["output"], experiment.result([float(word) for word in averages.split(",")]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exhaustive:
    """Every assignment of some groups, measured four ways.

    truths: by name, mean loss float64 [assignments] in the order of `selections`. tables: costs by method.
    """

    master: Master
    groups: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    selections: list[Selection]
    truths: dict[str, npt.NDArray[np.float64]]
    tables: dict[str, list[tuple[float, ...]]]
    n_samples: dict[str, int]

    @classmethod
    def prepare(
        cls, path: Path, *, widths: tuple[int, ...], hessian: Path | None, cache: Path, truth: int, **options: Any
    ) -> Exhaustive:
        """Measure costs and all assignments; what the cache has is not measured again."""
        master = read_master(path)
        groups = layer_groups(master, options["ties"])
        sets = _sample_sets(master, cache, truth, options)
        selections = list(itertools.product(range(len(widths)), repeat=len(groups)))
        every = [assignment_of(_layer_widths(groups, widths, each)) for each in selections]
        truths, tables = {}, {}
        with progress_bar() as progress:
            for name, samples in sets.items():
                evaluator = Evaluator(
                    path,
                    samples,
                    ScoreStore(folder=cache),
                    workers=Workers(jobs=usable_cores()),
                    criterion="cross_entropy" if samples.labelled else "divergence",
                    computed=progress.advance,
                )
                progress.start(name, evaluator.missing(every, samples.n))
                truths[name] = np.array([each.mean_loss for each in evaluator.measure(every)])
                if name in (LOSS, DIVERGENCE):
                    tables[name] = _costs(groups, widths, evaluator)
        if hessian is not None:
            layers = [layer for group in groups for layer in group]
            table = read_costs(hessian, master_sha256=master.sha256, layers=layers)
            tables["Hessian trace x squared error"] = [table.of(g, widths, where=str(hessian)) for g in groups]
            tables["least sum of trace x bits, as printed"] = _printed(hessian, groups, widths, sign=1)
            tables["most sum of trace x bits, as released"] = _printed(hessian, groups, widths, sign=-1)
        return cls(
            master=master,
            groups=groups,
            widths=widths,
            selections=selections,
            truths=truths,
            tables=tables,
            n_samples={name: samples.n for name, samples in sets.items()},
        )

    def result(self, averages: Sequence[float]) -> dict[str, Any]:
        """Correlations, and where the optimum of each method stands under each average width."""
        return {
            "experiment": "exhaustive",
            "master_sha256": self.master.sha256,
            "groups": [list(group) for group in self.groups],
            "widths": list(self.widths),
            "n_assignments": len(self.selections),
            "n_samples": self.n_samples,
            "range": {name: [float(each.min()), float(each.max())] for name, each in self.truths.items()},
            "correlations": {name: self._correlations(costs) for name, costs in self.tables.items()},
            "optima": {
                name: [self._standing(costs, average, count=1) for average in averages]
                for name, costs in self.tables.items()
            },
            "measured": {
                name: [self._standing(self.tables[name], average, count=CANDIDATES, by=name) for average in averages]
                for name in (LOSS, DIVERGENCE)
            },
            **circumstances(),
        }

    def _correlations(self, costs: list[tuple[float, ...]]) -> dict[str, float]:
        predicted = np.array([sum(cost[k] for cost, k in zip(costs, each)) for each in self.selections])
        return {name: rank_correlation(predicted, truth) for name, truth in self.truths.items()}

    def _standing(
        self, costs: list[tuple[float, ...]], average: float, *, count: int, by: str = LOSS
    ) -> dict[str, Any]:
        """How many assignments are better than the best of `count` candidates, measured `by` this in the search."""
        problem = self._problem(costs, average)
        found = [each.selection for each in near_optimal(problem, count=count, distance=usual_distance(problem))]
        if count > 1:
            found += in_runs(problem, remove_dominated(problem)[1], count=CANDIDATES_IN_RUNS)
            found += [each for _, each in problem.uniform() if problem.is_feasible(each)]
        best = min(found, key=lambda each: float(self.truths[by][self.selections.index(each)]))
        place = self.selections.index(best)
        feasible = np.array([problem.is_feasible(each) for each in self.selections])
        better = {name: int((truth[feasible] < truth[place]).sum()) for name, truth in self.truths.items()}
        bits = [group.widths[k] for group, k in zip(problem.groups, best)]
        return {"average": average, "bits": bits, "better": better, "feasible": int(feasible.sum())}

    def _problem(self, costs: list[tuple[float, ...]], average: float) -> Problem:
        groups = tuple(Group(layers=g, widths=self.widths, costs=cost) for g, cost in zip(self.groups, costs))
        n_layers = sum(map(len, self.groups))
        use = tuple(tuple(width * len(group) for width in self.widths) for group in self.groups)
        row = Row(name=f"avg_bits<={average:g}", use=use, cap=math.floor(average * n_layers), per_unit=n_layers)
        return Problem(groups=groups, rows=(row,))


def _sample_sets(master: Master, cache: Path, truth: int, options: dict[str, Any]) -> dict[str, SearchSamples]:
    sampling = Sampling(count=options["samples"])
    data = load_search_data(master, data=options["data"], test=options["test"], sampling=sampling, folder=cache)
    blocks = list(data.test_blocks())
    x = np.concatenate([block[0] for block in blocks])[:truth]
    y = np.concatenate([block[1] for block in blocks if block[1] is not None])[:truth]
    return {
        LOSS: data.search,
        DIVERGENCE: store_samples(cache, np.load(data.search.folder / "x.npy"), None),
        f"{LOSS}, held out": store_samples(cache, x, y),
        f"{DIVERGENCE}, held out": store_samples(cache, x, None),
    }


def _layer_widths(groups: Sequence[tuple[str, ...]], widths: Sequence[int], selection: Sequence[int]) -> dict[str, int]:
    return {layer: widths[k] for group, k in zip(groups, selection) for layer in group}


def _costs(
    groups: tuple[tuple[str, ...], ...], widths: tuple[int, ...], evaluator: Evaluator
) -> list[tuple[float, ...]]:
    reference = {layer: widths[0] for group in groups for layer in group}
    table: tuple[GroupCosts, ...] = measured_costs(groups, widths, reference, evaluator.measure)
    return [tuple(cost.value for cost in group.costs) for group in table]


def _printed(
    path: Path, groups: Sequence[tuple[str, ...]], widths: Sequence[int], *, sign: int
) -> list[tuple[float, ...]]:
    """Algorithm 2 of arXiv 2502.01199 minimises the sum of mean trace times bits; the released code maximises."""
    traces = json.loads(path.with_suffix(".traces.json").read_text())
    return [tuple(sign * sum(traces[layer] for layer in group) * width for width in widths) for group in groups]


@main.command("against-uniform")
@click.option("--master", type=PATH, required=True)
@click.option("--data", type=PATH, help="Samples to search on, .npz.")
@click.option("--test", type=PATH, help="Samples of the final test, .npz.  [default: the rest of --data]")
@click.option("--cifar10", type=PATH, help="The folder of CIFAR-10 instead: its test images, for both.")
@click.option("--averages", default="3,4,5", show_default=True)
@click.option(
    "--per", type=click.Choice(list(BUDGETS)), default="weight", show_default=True, help="What averages count."
)
@click.option("--randoms", type=int, default=30, show_default=True, help="Random assignments of each average.")
@click.option("--samples", type=int, default=2048, show_default=True)
@click.option("--test-samples", type=int, help="Only the first so many.  [default: all]")
@click.option("--criterion", type=click.Choice(CRITERIA), default=CRITERIA[0], show_default=True)
@click.option("--bits", help="Widths to choose from.  [default: the trained ones]")
@click.option("--reestimate", is_flag=True, help="BatchNorm statistics fitted to each assignment.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--cache", type=PATH, default=Path(".bitswitch-search"), show_default=True)
@click.option("-o", "--output", type=PATH, required=True)
def against_uniform(
    master: Path, data: Path | None, test: Path | None, cifar10: Path | None, averages: str, **options: Any
) -> None:
    """Searched, uniform and random assignments of the same average on the same test samples."""
    cache: Path = options["cache"]
    if cifar10 is not None:
        # on images that it was trained on a network is right at every width that it was trained at
        data, test = cifar10_files(cifar10, cache, options["test_samples"])[1], None
    elif options["test_samples"] is not None:
        raise click.UsageError("--test-samples goes with --cifar10")
    if data is None:
        raise click.UsageError("name --cifar10 or --data")
    runs: list[dict[str, Any]] = []
    result: dict[str, Any] = {"experiment": "against-uniform", "master_sha256": read_master(master).sha256}
    result |= {key: options[key] for key in ("per", "samples", "randoms", "reestimate", "seed", "criterion")}
    for word in averages.split(","):
        runs.append(_run_average(master, data, test, float(word), options))
        write(options["output"], {**result, "runs": runs, **circumstances()})  # each takes minutes: none gets lost


def _run_average(
    master: Path, data: Path, test: Path | None, average: float, options: dict[str, Any]
) -> dict[str, Any]:
    cache: Path = options["cache"]
    request = SearchRequest(
        master=master,
        data=data,
        test=test,
        budgets=(parse_budget(f"{BUDGETS[options['per']]}<={average:g}"),),
        output=cache / f"average-{average:g}.json",
        cache=cache,
        criterion=options["criterion"],
        widths=tuple(map(int, options["bits"].split(","))) if options["bits"] else None,
        samples=options["samples"],
        seed=options["seed"],
        reestimate=options["reestimate"],
        workers=Workers(jobs=usable_cores()),
    )
    with progress_bar() as progress:
        report = search(request, progress)
        loaded = read_master(master)
        sampling = Sampling(count=request.samples, seed=request.seed, reestimate=request.reestimate)
        samples = load_search_data(loaded, data=data, test=test, sampling=sampling, folder=cache)
        layers = [name for name, _ in report.chosen.widths]
        counts = {each.name: loaded.tensors[each.weight].size for each in loaded.spec.layers}
        sizes = {name: counts[name] if options["per"] == "weight" else 1 for name in layers}
        others = _random_assignments(sizes, request.widths or loaded.spec.widths, average, options)
        chosen = assignment_of(dict(report.chosen.widths))
        uniform = {
            bits: assignment_of(dict.fromkeys(layers, bits)) for bits in (*loaded.spec.widths, math.floor(average))
        }
        wanted = [chosen, *uniform.values(), *others]
        scores = run_final_test(loaded, samples, wanted, progress, criterion=request.criterion).scores
    own = scores[chosen]
    return {
        "average": average,
        "seconds": report.seconds,
        "widths": dict(report.chosen.widths),
        "rank_correlation": report.rank_correlation,
        "n_candidates": report.n_candidates,
        "on_search_samples": {
            "mixed": _predicted(report.chosen),
            **{each.label: _predicted(each) for each in report.uniform},
        },
        "n_test": len(own.loss),
        "searched": _row(own),
        "uniform": {f"w{bits}": _row(scores[each], own) for bits, each in uniform.items()},
        "random": [_row(scores[each], own) for each in others],
    }


@main.command()
@click.option("--master", type=PATH, required=True)
@click.option("--data", type=PATH, help="Samples to fit to, .npz.")
@click.option("--test", type=PATH, help="Samples to measure on, .npz.")
@click.option("--cifar10", type=PATH, help="The folder of CIFAR-10 instead of --data and --test.")
@click.option("--randoms", type=int, default=16, show_default=True, help="Mixtures, each width equally likely.")
@click.option("--test-samples", type=int, help="Only the first so many.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--cache", type=PATH, default=Path(".bitswitch-search"), show_default=True)
@click.option("-o", "--output", type=PATH, required=True)
def statistics(
    master: Path, data: Path | None, test: Path | None, cifar10: Path | None, cache: Path, **options: Any
) -> None:
    """What fitted BatchNorm statistics are worth: random mixtures with those of training and with their own."""
    if cifar10 is not None:
        data, test = cifar10_files(cifar10, cache, options["test_samples"])
    if data is None or test is None:
        raise click.UsageError("name --cifar10, or --data and --test")
    loaded = read_master(master)
    sampling = Sampling(count=MIN_SAMPLES, seed=options["seed"], reestimate=True)
    samples = load_search_data(loaded, data=data, test=test, sampling=sampling, folder=cache)
    random = np.random.default_rng(options["seed"])
    layers = [each.name for each in loaded.spec.layers if not each.pinned]
    mixed = [
        assignment_of({layer: int(random.choice(loaded.spec.widths)) for layer in layers})
        for _ in range(options["randoms"])
    ]
    with progress_bar() as progress:
        fitted = run_final_test(loaded, samples, mixed, progress).scores
        trained = run_final_test(loaded, replace(samples, statistics=None), mixed, progress).scores
    rows = [
        {"trained": _row(trained[each]), "fitted": _row(fitted[each]), **_gain(fitted[each], trained[each])}
        for each in mixed
    ]
    result = {"experiment": "statistics", "master_sha256": loaded.sha256, "mixtures": rows, "seed": options["seed"]}
    result |= {"n_test": len(trained[mixed[0]].loss), "n_fitted_on": samples.statistics.n if samples.statistics else 0}
    write(options["output"], {**result, **circumstances()})


def _gain(fitted: Scores, trained: Scores) -> dict[str, Any]:
    points = compare(fitted, trained).points
    return {"gain": [points.value, points.low, points.high]}


def _predicted(each: Assigned) -> dict[str, float]:
    """Loss on the samples of the search, and what costs of single layers add up to."""
    return {"sum_of_costs": each.predicted_cost, "loss": each.search.loss}


def _random_assignments(
    sizes: dict[str, int], widths: tuple[int, ...], average: float, options: dict[str, Any]
) -> list[WidthAssignment]:
    """Different assignments by chance that use up the budget, drawn evenly from all of these; fewer where few do."""
    random = np.random.default_rng(options["seed"])
    shares = np.array(list(sizes.values())) / sum(sizes.values())
    found: dict[WidthAssignment, None] = {}
    for _ in range(MOST_DRAWS):
        if len(found) == options["randoms"]:
            break
        drawn = random.choice(widths, len(sizes))
        if average - _SLACK_BITS < float(shares @ drawn) <= average + 1e-9:
            found[assignment_of({layer: int(bits) for layer, bits in zip(sizes, drawn)})] = None
    return list(found)


def _row(scores: Scores, than: Scores | None = None) -> dict[str, Any]:
    """Loss and top-1; what the searched assignment `than` has more, in points, with its interval."""
    row: dict[str, Any] = {"loss": scores.mean_loss, "top1": scores.right_percent}
    if than is not None:
        comparison = compare(than, scores)
        points = comparison.points
        row |= {"searched_more": [points.value, points.low, points.high], "p": comparison.p_value}
        row |= {"searched_loss": [comparison.loss.value, comparison.loss.low, comparison.loss.high]}
    return row


@main.command("cifar10-files")
@click.argument("folder", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the two files.")
def store_cifar10(folder: Path, output: Path) -> None:
    """The images and labels of CIFAR-10 as .npz files that every command takes as --data.

    Files that are there already are left as they are.
    """
    for path in cifar10_files(folder, output, None):
        click.echo(path)


def cifar10_files(folder: Path, cache: Path, test_samples: int | None) -> tuple[Path, Path]:
    from bitswitch_deploy.training.datasets import load_cifar10

    cache.mkdir(parents=True, exist_ok=True)
    paths = (cache / "cifar10-train.npz", cache / f"cifar10-test-{test_samples or 'all'}.npz")
    dataset = load_cifar10(folder)
    for path, split, count in zip(paths, (dataset.train, dataset.test), (None, test_samples)):
        if not path.is_file():
            with atomic_writer(path) as file:  # as a file that is there is never written anew
                np.savez(file, x=np.asarray(split.images)[:count], y=np.asarray(split.labels)[:count])
    return paths


def circumstances() -> dict[str, Any]:
    """The command that does it again, and the versions."""
    versions = {name: metadata.version(name) for name in _VERSIONS} | {"python": sys.version.split()[0]}
    return {"command": " ".join(["python tools/search_results.py", *sys.argv[1:]]), "versions": versions}


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
