"""`bitswitch-deploy search`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.cli.option_types import OUTPUT_FILE, PATH, FiniteRange
from bitswitch_deploy.cli.options import Outlet, command_line, data_option, outlet_options, progress_bar
from bitswitch_deploy.engines.cpu_features import usable_cores
from bitswitch_deploy.pipeline.inputs import parse_bits
from bitswitch_deploy.pipeline.searching.search import DEFAULT_SAMPLES, SearchRequest, search
from bitswitch_deploy.report.html.search import search_html
from bitswitch_deploy.report.json import to_json
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.report.search_page import print_search
from bitswitch_deploy.search.budget import parse_budget
from bitswitch_deploy.search.evaluate import BACKENDS, Workers
from bitswitch_deploy.search.score import CRITERIA

_CACHE = ".bitswitch-search"


@click.command("search")
@click.argument("master", type=PATH, required=False)
@data_option
@click.option(
    "--test",
    type=PATH,
    metavar="PATH",
    help="Samples of the final test.  [default: the rest of --data, or without --data the bundled ones]",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="TEXT",
    help='"avg_bits<=4", "avg_weight_bits<=4", "bytes<=200k[@TARGET]", "bops<=5G" or "latency_p50_ms<=0.9@TARGET"; can '
    "be given more than once.",
)
@click.option("--latency-table", "tables", multiple=True, type=PATH, metavar="FILE", help="Written by `profile`.")
@click.option(
    "--max-drop",
    type=FiniteRange(min=0),
    metavar="POINTS",
    help="Find the cheapest assignment that loses no more points than this.  [default: 1.0 without --budget]",
)
@click.option("--pareto", is_flag=True, help="The whole front over the first budget's resource, or average bits.")
@click.option(
    "--reestimate",
    is_flag=True,
    help="Fit BatchNorm statistics to each assignment; a master with the chosen one's is written beside it.",
)
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default=CRITERIA[0],
    show_default=True,
    help="What is kept small: divergence from the outputs at the highest width, or the loss with labels.",
)
@click.option("--bits", metavar="LIST", help="Widths to choose from, each in 2..8.  [default: the trained ones]")
@click.option("--tie", "ties", multiple=True, metavar="NAMES", help="Layers, with * for any text, that take one width.")
@click.option("--costs", type=PATH, metavar="FILE", help="Costs of layers from a file, instead of measuring them.")
@click.option(
    "--samples", type=click.IntRange(min=1), default=DEFAULT_SAMPLES, show_default=True, help="Samples to search on."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draw of the samples.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Assignments at a time.  [default: one per core]")
@click.option(
    "--backend", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True, help="What joblib runs them on."
)
@click.option(
    "--cache",
    type=PATH,
    metavar="DIR",
    help=f"What was measured; a search goes on from it.  [default: {_CACHE} beside --output]",
)
@click.option(
    "-o",
    "--output",
    type=OUTPUT_FILE,
    default=Path("assignment.json"),
    show_default=True,
    help="The assignment to write.",
)
@outlet_options
def command(
    master: Path | None,
    budgets: tuple[str, ...],
    bits: str | None,
    jobs: int | None,
    backend: str,
    cache: Path | None,
    output: Path,
    outlet: Outlet,
    **options: object,
) -> int:
    """Choose which layer gets which width, by inference only, and write it for `export --mixed`.

    MASTER is the bundled digits network if left out. Exits with 1 when the final test shows a larger drop than
    --max-drop. An interrupted search goes on where it was when started again.
    """
    request = SearchRequest(
        master=master if master is not None else bundled_master(),
        output=output,
        cache=cache if cache is not None else output.parent / _CACHE,
        budgets=tuple(map(parse_budget, budgets)),
        widths=tuple(width.default for width in parse_bits(bits)) if bits is not None else None,
        workers=Workers(jobs=jobs if jobs is not None else usable_cores(), backend=backend),
        **options,  # type: ignore[arg-type]
    )
    with progress_bar() as progress:
        result = search(request, progress)
    outlet.write(
        html=lambda: search_html(result, command_line()),
        json=lambda: to_json("bitswitch-search/1", result),
        text=lambda: print_search(result, Page(sys.stdout)),
    )
    return int(result.drop_exceeded)
