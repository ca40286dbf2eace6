"""An export report for people: what was made, how accurate it is at every hop, what is left to do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.filesize import decimal

from bitswitch_deploy.report.export_report import (
    ExportReport,
    LayerCounts,
    NotDone,
    Note,
    WidthRow,
    not_judged,
    notes_of,
)
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import HOPS, Hop, Verdict, percent_rounded_down

# From here on there is room for the distance of the outputs; with what is left, for file names.
WIDE = 101
COLUMNS = ("width", "file", "size", *HOPS, "agree", "SQNR dB", "max error", "integer", "graph")
TEXT_COLUMNS = ("width", "file", "graph")
NO_DATA = "-"
_FELL_BACK = "*"
SHOWN_CLASSES = 5

Cell = tuple[str, str]


def print_report(report: ExportReport, page: Page) -> None:
    """Print `report`."""
    hidden = _hidden_columns(page, report.widths)
    _print_header(page, report, files="file" in hidden)
    _print_widths(page, report.widths, hidden)
    _print_verdicts(page, [verdict for row in report.widths for verdict in row.verdicts])
    notes = notes_of(report.widths)
    if notes:
        page.section("Notes")
        page.pairs(notes)
    _print_not_done(page, report.not_done)


def _print_header(page: Page, report: ExportReport, *, files: bool) -> None:
    page.title(f"Exported for {report.target} in {_duration(report.seconds)}")
    rows = [
        ("package", report.package_path),
        ("files", ", ".join(row.file_name for row in report.widths) if files else ""),
        ("weights", _weights(report)),
        ("master", f"{report.master_path} (sha256 {report.master_sha256[:12]})"),
        ("stack", report.stack),
        ("target", report.note),
        ("data", _data(report.dataset)),
    ]
    page.pairs(row for row in rows if row[1])


def _weights(report: ExportReport) -> str:
    if not report.shared_weights:
        return ""
    return f"{report.shared_weights}, {decimal(report.shared_bytes)}, once for all widths"


def _data(dataset: DatasetSummary | None) -> str:
    if dataset is None:
        return "none: accuracy was not measured"
    names = dataset.class_names
    shown = ", ".join(names[:SHOWN_CLASSES]) + (", ..." if len(names) > SHOWN_CLASSES else "")
    labels = ("labelled" if dataset.labelled else "no labels") + (f", {len(names)} classes: {shown}" if names else "")
    return f"{dataset.name}, {dataset.n:,} samples, {labels} (sha256 {dataset.sha256[:12]})"


def _hidden_columns(page: Page, rows: Sequence[WidthRow]) -> set[str]:
    """Which columns there is no room for, or nothing to say in."""
    unseen = set() if any(row.layers is not None for row in rows) else {"integer"}
    if page.width < WIDE:
        return {"file", "SQNR dB", "max error", *unseen}
    longest = max((len(row.file_name) for row in rows), default=0)
    return unseen if page.width >= WIDE + longest else {"file", *unseen}


def _print_widths(page: Page, rows: Sequence[WidthRow], hidden: set[str]) -> None:
    shown = [column for column in COLUMNS if column not in hidden]
    cells = [_cells(row) for row in rows]
    page.section("Widths, with top-1 in % at each hop")
    page.table(
        [(column, column not in TEXT_COLUMNS) for column in shown],
        [[row[column] for column in shown] for row in cells],
    )
    page.gap()
    page.pairs(_legend(shown, cells), style="dim")


def _legend(shown: Sequence[str], cells: Sequence[dict[str, Cell]]) -> list[Note]:
    """Explain what is in the table, and nothing that is not."""
    accuracies = [row[hop][0] for row in cells for hop in HOPS]
    rows = [("agree", "% with the same class as the canonical graph; worse of lowered, engine")]
    if "SQNR dB" in shown:
        rows.append(("SQNR, error", "of the outputs against the canonical graph; worse of lowered, engine"))
    if "integer" in shown:
        rows.append(("integer", "convolutions and matrix products that the engine computes in integers, of all"))
    if any(row["integer"][0].endswith(_FELL_BACK) for row in cells):
        rows.append((_FELL_BACK, "layers that have a width run in float: see Notes"))
    rows.append(("graph", "exact: same integers as the canonical graph; approx: see Notes"))
    if any(text.startswith("(") for text in accuracies):
        rows.append(("(...)", "measured on other data than the rest of the row"))
    if any(text.startswith("!") for text in accuracies):
        rows.append(("!", "lost more accuracy than allowed"))
    if NO_DATA in accuracies:
        rows.append((NO_DATA, "no data: see Notes"))
    return rows


def _cells(row: WidthRow) -> dict[str, Cell]:
    compared = [hop for hop in row.hops if hop.hop in ("lowered", "engine")]
    agreement = [hop.agreement_percent for hop in compared if hop.agreement_percent is not None]
    sqnr = [hop.sqnr_db for hop in compared if hop.sqnr_db is not None]
    error = [hop.max_abs_error for hop in compared if hop.max_abs_error is not None]
    return {
        "width": (row.label, "bold"),
        "file": (row.file_name, ""),
        "size": (decimal(row.size_bytes), ""),
        **{hop: _top1(row, hop) for hop in HOPS},
        "agree": _number(percent_rounded_down(min(agreement)) if agreement else None),
        "SQNR dB": _number(f"{min(sqnr):.1f}" if sqnr else None),
        "max error": _number(f"{max(error):.2g}" if error else None),
        "integer": _integer(row.layers),
        "graph": ("exact", "") if row.exact else ("approx", "yellow"),
    }


def _top1(row: WidthRow, name: Hop) -> Cell:
    hop = next((hop for hop in row.hops if hop.hop == name), None)
    if hop is None or hop.top1_percent is None:
        return _number(None)
    shown = f"{hop.top1_percent:.2f}"
    if any(verdict.hop == name and verdict.verdict == "failed" for verdict in row.verdicts):
        return f"! {shown}", "bold red"
    return (shown, "") if hop.same_data else (f"({shown})", "dim")


def _integer(layers: LayerCounts | None) -> Cell:
    if layers is None:
        return _number(None)
    counts = f"{layers.integer}/{layers.total}"
    return (f"{counts}{_FELL_BACK}", "bold yellow") if layers.fell_back else (counts, "")


def _number(text: str | None) -> Cell:
    return (NO_DATA, "dim") if text is None else (text, "")


def _print_verdicts(page: Page, verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        return
    page.section("Accuracy")
    passed = [verdict for verdict in verdicts if verdict.verdict == "ok"]
    rows = [("failed", f"{v.label} {v.hop}: {v.reason}") for v in verdicts if v.verdict == "failed"]
    if passed:
        worst = max(passed, key=lambda verdict: verdict.drop_points or 0.0)
        number = f"{len(passed)} of {len(verdicts)} hops"
        rows.append(("ok", f"{number}, nearest to the limit is {worst.label} {worst.hop}: {worst.reason}"))
    rows += [("not judged", f"{labels} {text}") for labels, text in not_judged(verdicts)]
    page.pairs(rows)


def _print_not_done(page: Page, steps: Sequence[NotDone]) -> None:
    page.section("Not done here")
    if not steps:
        page.paragraph("nothing")
    for number, step in enumerate(steps, start=1):
        page.pairs([(f"{number}.", f"{step.what}: {step.why}")])
        if step.command:
            page.command(step.command)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
