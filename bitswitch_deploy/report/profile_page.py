"""A profile for people: latencies, what they mean, where the time goes, and what the board did meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from bitswitch_deploy.profiling.board.state import BoardRecord, Span
from bitswitch_deploy.profiling.result import CandidateResult, ProfileResult
from bitswitch_deploy.report.page import Page

_COLUMNS = ("p50", "p90", "p95", "p99", "mean")
_SHOWN_LAYERS = 5


def print_profile(result: ProfileResult, page: Page) -> None:
    """Print a profile."""
    page.title(f"{result.package} in {result.engine} {result.engine_version}")
    page.pairs(profile_facts(result))
    for batch in dict.fromkeys(each.batch_size for each in result.candidates):
        _print_batch(page, result, batch)
    _print_budget(page, result)
    if result.residuals:
        page.section("Latency table: predicted against measured, p50")
        page.pairs(
            (each.label, f"{each.predicted_ms:.3f} of {each.measured_ms:.3f} ms, {100 * each.error:+.1f} %")
            for each in result.residuals
        )
    _print_board(page, result)
    if result.notes:
        page.section("Notes")
        for note in result.notes:
            page.paragraph(f"- {note}")


def profile_facts(result: ProfileResult) -> list[tuple[str, str]]:
    """How it was measured."""
    return [
        ("timed", _threads(result) + result.timed),
        ("turns", f"{result.turns} of about {result.turn_ms:.3g} ms for each, {result.warmup_turns} before as warm-up"),
        ("reference", result.reference),
    ]


def _threads(result: ProfileResult) -> str:
    if result.threads is None:
        return ""
    return f"{result.threads} thread{'s' if result.threads > 1 else ''}, "


def _print_batch(page: Page, result: ProfileResult, batch: int) -> None:
    candidates = [each for each in result.candidates if each.batch_size == batch]
    page.section(f"Latency in ms, batch {batch}")
    names = ("width", *_COLUMNS, "CV %", "per s", f"of {result.reference_label or 'float'}", "mJ")
    shown = [name for name in names if name != "mJ" or any(each.energy for each in candidates)]
    page.table(
        [(name, name != "width") for name in shown],
        [[(cell, "") for cell in _cells(each)[: len(shown)]] for each in candidates],
    )
    verdicts = [(each.label, each.verdict) for each in candidates if each.verdict]
    if verdicts:
        page.gap()
        page.pairs(verdicts)
    _print_layers(page, [each for each in candidates if each.layers and each.label != result.reference_label])


def _cells(candidate: CandidateResult) -> list[str]:
    statistics, ratio = candidate.statistics, candidate.ratio
    times = (statistics.p50_ms, statistics.p90_ms, statistics.p95_ms, statistics.p99_ms, statistics.mean_ms)
    return [
        candidate.label,
        *(f"{ms:.3f}" for ms in times),
        f"{100 * statistics.cv:.0f}",
        throughput(statistics.throughput_per_s),
        f"{ratio.value:.2f}" if ratio is not None else "-",
        f"{candidate.energy.millijoules_per_inference:.2f}" if candidate.energy is not None else "-",
    ]


def throughput(per_s: float) -> str:
    """Samples per second, in whole numbers from 100 on, with three digits below."""
    return f"{per_s:.0f}" if per_s >= 100 else f"{per_s:.3g}"


def milliseconds_beside(value_ms: float, limit_ms: float) -> str:
    """A time with three places, or as many as show on which side of the limit it is, to a picosecond."""
    texts = [f"{value_ms:.{places}f}" for places in range(3, 10)]
    return next((text for text in texts if (float(text) > limit_ms) == (value_ms > limit_ms)), texts[0])


def layer_times(candidates: Sequence[CandidateResult]) -> dict[str, dict[str, float]]:
    """Times in ms by layer and label, the longest layer first; a node that no layer owns stands under its own name."""
    times: dict[str, dict[str, float]] = {}
    for each in candidates:
        for node in each.layers:
            row = times.setdefault(node.layer or node.name, {})
            row[each.label] = row.get(each.label, 0.0) + node.ms
    return {name: times[name] for name in sorted(times, key=lambda name: (-max(times[name].values()), name))}


def _print_layers(page: Page, candidates: Sequence[CandidateResult]) -> None:
    """The layers that take the most, side by side."""
    times = layer_times(candidates)
    longest = list(times)[:_SHOWN_LAYERS]
    if longest:
        page.gap()
        page.paragraph(f"Layers that take longest, ms, the first {len(longest)} of {len(times)}")
        labels = [each.label for each in candidates]
        page.table(
            [("layer", False), *((label, True) for label in labels)],
            [
                [(name, ""), *((f"{times[name][each]:.3f}" if each in times[name] else "", "") for each in labels)]
                for name in longest
            ],
        )


def _print_budget(page: Page, result: ProfileResult) -> None:
    if not result.budget:
        return
    page.section("Budget")
    page.pairs(
        [
            (
                verdict.verdict,
                f"{verdict.label}, batch {verdict.batch_size}: "
                f"p95 {milliseconds_beside(verdict.p95_ms, verdict.budget_ms)} ms of {verdict.budget_ms:g} ms",
            )
            for verdict in result.budget
        ]
    )


def _print_board(page: Page, result: ProfileResult) -> None:
    board = result.board
    page.section("Board")
    rows = [("stable", "nothing moved that could be seen")] if not result.unstable else []
    rows += [("UNSTABLE", reason) for reason in result.unstable]
    rows += board_facts(board)
    page.pairs(rows)


def board_facts(board: BoardRecord) -> list[tuple[str, str]]:
    """What the board told about itself, and what it did not."""
    locked = {True: "locked", False: "not locked", None: ""}[board.after.clocks_locked]
    rows = [
        ("power mode", board.after.power_mode or ""),
        ("clocks", ", ".join([locked, *map(_span, board.clocks_mhz)]) if board.clocks_mhz else locked),
        ("governor", ", ".join(board.after.governors)),
        ("temperatures", ", ".join(map(_span, board.temperatures_c))),
        ("rails", ", ".join(f"{name} {watts:.2f} W" for name, watts in board.after.rails_w)),
        ("GPU", ", ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in board.after.gpus)),
        ("not told", ", ".join(board.unknown)),
    ]
    return [(name, text) for name, text in rows if text]


def _span(span: Span) -> str:
    return f"{span.name} {span.lowest:.0f} to {span.highest:.0f}"
