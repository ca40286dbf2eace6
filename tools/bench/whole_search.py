"""How long a search takes from an empty cache: one budget, and a front of twelve levels. With the final test.

python tools/bench/whole_search.py --master resnet20.safetensors --cifar10 DATA/cifar10

On a machine that does nothing else: these are seconds, no ratios.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import click

from bitswitch_deploy.cli.options import progress_bar
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.pipeline.searching.search import SearchRequest, search
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.evaluate import Workers
from tools.search_results import cifar10_files

PATH = click.Path(path_type=Path)
_VERSIONS = ("numpy", "scipy", "onnxruntime")


@click.command()
@click.option("--master", type=PATH, required=True)
@click.option("--data", type=PATH, help="Samples to search on, and to test on where the search leaves some, .npz.")
@click.option("--cifar10", type=PATH, help="The folder of CIFAR-10 instead: its test images.")
@click.option("--budget", default="avg_bits<=4", show_default=True)
@click.option("--samples", type=int, default=2048, show_default=True)
@click.option("--jobs", type=int, default=usable_cores(), show_default="all cores")
@click.option("--reestimate", is_flag=True, help="BatchNorm statistics fitted to each assignment.")
def main(
    master: Path, data: Path | None, cifar10: Path | None, budget: str, samples: int, jobs: int, reestimate: bool
) -> None:
    """Time both."""
    if (data is None) == (cifar10 is None):
        raise click.UsageError("name --data or --cifar10")
    with tempfile.TemporaryDirectory() as folder:
        if cifar10 is not None:
            _, data = cifar10_files(cifar10, Path(folder), None)
        for pareto in (False, True):
            request = SearchRequest(
                master=master,
                data=data,
                output=Path(folder) / "widths.json",
                cache=Path(folder) / f"cache-{pareto}",
                budgets=() if pareto else (parse_budget(budget),),
                pareto=pareto,
                samples=samples,
                reestimate=reestimate,
                workers=Workers(jobs=jobs),
            )
            with progress_bar() as progress:
                report = search(request, progress)
            what = "front of average bits" if pareto else budget
            n = report.samples.n_search  # half of the data at most
            click.echo(f"{what}: {report.seconds:.0f} s, {report.n_candidates} assignments on all {n:,} samples")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS)
    click.echo(f"{jobs} jobs, {platform.machine()}, {versions}, Python {sys.version.split()[0]}, seed 0")


if __name__ == "__main__":
    main()
