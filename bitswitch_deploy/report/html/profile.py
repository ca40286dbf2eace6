"""`profile --report`: how fast every width is, with spread and interval, why, and at what accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.profiling.result import CandidateResult, ProfileResult
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.html.accuracy import ABOUT_FRONT, accuracy_plot, interval, nearest_to_device
from bitswitch_deploy.report.html.charts import Whisker, whiskers
from bitswitch_deploy.report.html.document import (
    Block,
    Cell,
    Facts,
    Heading,
    Item,
    Paragraph,
    Section,
    Table,
    facts,
    listed,
    number,
    number_columns,
    numbers,
    render_page,
    row,
    words,
)
from bitswitch_deploy.report.profile_page import (
    board_facts,
    layer_times,
    milliseconds_beside,
    profile_facts,
    throughput,
)


def profile_html(result: ProfileResult, validated: ExportReport | None, command: tuple[str, ...] = ()) -> str:
    """The page about a profile.

    Args:
        result: what was measured. validated: what the package says about its accuracy, None where it says nothing.
        command: that makes it again.
    """
    batches = dict.fromkeys(each.batch_size for each in result.candidates)
    by_batch = [(batch, [each for each in result.candidates if each.batch_size == batch]) for batch in batches]
    sections = (
        *(
            Section(name=f"latency-{batch}", title=f"Latency, batch {batch}", blocks=_latency(result, candidates))
            for batch, candidates in by_batch
        ),
        Section(name="front", title="Accuracy against latency", blocks=_front(by_batch, validated)),
        Section(name="budget", title="Budget", blocks=_budget(result)),
        Section(name="layers", title="Layers", blocks=_layers(result, by_batch)),
        Section(name="table", title="Latency table", blocks=_residuals(result)),
        Section(name="board", title="Board", blocks=_board(result)),
        Section(name="notes", title="Notes", blocks=listed(*(Item(text=note) for note in result.notes))),
    )
    state = Cell(text="unstable: see Board", bad=True) if result.unstable else Cell(text="nothing moved that was seen")
    about = (
        ("target", Cell(text=result.target)),
        ("master", Cell(text="sha256", code=result.master_sha256)),
        *facts(profile_facts(result)),
        ("board", state),
    )
    title = f"{result.package} in {result.engine} {result.engine_version}"
    return render_page(title=title, about=about, sections=sections, command=command)


def _latency(result: ProfileResult, candidates: Sequence[CandidateResult]) -> tuple[Block, ...]:
    times = [(each.label, each.statistics) for each in candidates]
    ratios = [(each.label, each.ratio) for each in candidates if each.ratio is not None]
    reference = result.reference_label or "the reference"
    return (
        *whiskers(
            "p50 of a run in ms; the line goes from the fastest run to the 95th percentile",
            [Whisker(label=label, value=time.p50_ms, low=time.min_ms, high=time.p95_ms) for label, time in times],
        ),
        *whiskers(
            f"Time as a multiple of that of {reference} in the same turn, median with its interval. Dashed: as fast",
            [Whisker(label=label, value=ratio.value, low=ratio.low, high=ratio.high) for label, ratio in ratios],
            (1.0,),
        ),
        *listed(*(Item(strong=each.label, text=each.verdict) for each in candidates if each.verdict)),
        _times(candidates, reference),
    )


def _times(candidates: Sequence[CandidateResult], reference: str) -> Table:
    has_energy = any(each.energy for each in candidates)
    columns = (
        *words("width"),
        *numbers(f"min, p50, p90, p95, p99, max, mean, CV %, per s, runs, of {reference}, from, to"),
        *(numbers("mJ") if has_energy else ()),
    )
    rows = tuple(_time_cells(each)[: len(columns)] for each in candidates)
    return Table(
        label=f"Latencies, batch {candidates[0].batch_size}",
        caption="ms; from, to: interval of the ratio",
        columns=columns,
        rows=rows,
    )


def _time_cells(each: CandidateResult) -> tuple[Cell, ...]:
    time, ratio = each.statistics, each.ratio
    spread = (time.min_ms, time.p50_ms, time.p90_ms, time.p95_ms, time.p99_ms, time.max_ms, time.mean_ms)
    against = (ratio.value, ratio.low, ratio.high) if ratio is not None else (None,) * 3
    return row(
        each.label,
        *(number(ms, ".3f") for ms in spread),
        number(100 * time.cv, ".0f"),
        throughput(time.throughput_per_s),
        str(time.runs),
        *(number(value, ".3f") for value in against),
        number(each.energy.millijoules_per_inference if each.energy is not None else None),
    )


_ByBatch = Sequence[tuple[int, Sequence[CandidateResult]]]


def _front(by_batch: _ByBatch, validated: ExportReport | None) -> tuple[Block, ...]:
    hops = {width.label: nearest_to_device(width) for width in validated.widths} if validated is not None else {}
    known = {label: hop for label, hop in hops.items() if hop is not None}
    if not any(each.label in known for _, candidates in by_batch for each in candidates):
        return (
            Paragraph(text="Not drawn: the package holds no accuracy of these widths. Export it with --data PATH."),
        )
    blocks: list[Block] = []
    for batch, candidates in by_batch:
        points = [(each.label, each.statistics.p50_ms, known[each.label]) for each in candidates if each.label in known]
        rows = tuple(
            row(label, hop.hop, number(hop.top1_percent), *_bounds(interval(hop).low, interval(hop).high), f"{ms:.3f}")
            for label, ms, hop in points
        )
        columns = (*words("width, hop"), *numbers("top-1, from, to, p50"))
        blocks += [
            accuracy_plot(points, f"p50 in ms, batch {batch}"),
            Table(label=f"Accuracy and latency, batch {batch}", columns=columns, rows=rows),
        ]
    about = "Top-1 is that of the export, on its data; the float reference was not validated and has no dot."
    return (*blocks, Paragraph(text=f"{about} {ABOUT_FRONT}", dim=True))


def _bounds(*values: float) -> tuple[Cell, ...]:
    return tuple(map(number, values))


def _budget(result: ProfileResult) -> tuple[Block, ...]:
    if not result.budget:
        return ()
    columns = (*words("width"), *numbers("batch, p95 ms, budget ms"), *words("verdict"))
    rows = tuple(
        row(
            each.label,
            str(each.batch_size),
            milliseconds_beside(each.p95_ms, each.budget_ms),
            number(each.budget_ms, "g"),
            Cell(text=each.verdict, bad=each.verdict == "failed"),
        )
        for each in result.budget
    )
    return (Table(label="Budget table", columns=columns, rows=rows),)


def _layers(result: ProfileResult, by_batch: _ByBatch) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for batch, candidates in by_batch:
        # nodes of the reference have other names
        own_names = [each for each in candidates if each.layers and each.label != result.reference_label]
        times, timed = layer_times(own_names), [each.label for each in own_names]
        columns = (*words("layer"), *number_columns(timed)) if timed else ()
        rows = tuple(row(name, *(number(own.get(label), ".4f") for label in timed)) for name, own in times.items())
        if rows:
            blocks += [Heading(text=f"Batch {batch}")] if len(by_batch) > 1 else []
            caption = f"ms of each layer, batch {batch}; what no layer owns stands under its own name"
            blocks.append(Table(label=f"Layers, batch {batch}", caption=caption, columns=columns, rows=rows))
    return tuple(blocks)


def _residuals(result: ProfileResult) -> tuple[Block, ...]:
    if not result.residuals:
        return ()
    columns = (*words("width"), *numbers("predicted ms, measured ms, error %"))
    rows = tuple(
        row(
            each.label,
            number(each.predicted_ms, ".3f"),
            number(each.measured_ms, ".3f"),
            number(100 * each.error, "+.1f"),
        )
        for each in result.residuals
    )
    return (Table(label="Predicted and measured", columns=columns, rows=rows),)


def _board(result: ProfileResult) -> tuple[Block, ...]:
    unstable = (Item(text=reason, strong="unstable", bad=True) for reason in result.unstable)
    rows = facts(board_facts(result.board))
    return (*listed(*unstable), *((Facts(rows=rows),) if rows else ()))
