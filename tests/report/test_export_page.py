from __future__ import annotations

import io
from dataclasses import replace

import pytest

from bitswitch_deploy.report.export_page import print_report
from bitswitch_deploy.report.export_report import ExportReport, LayerCounts, WidthRow
from bitswitch_deploy.report.page import Page
from bitswitch_deploy.validation.dataset import DatasetSummary


def _lines(report: ExportReport, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_report(report, Page(stream, width))
    return stream.getvalue().splitlines()


def _text(report: ExportReport, width: int = 80) -> str:
    """The report with its line breaks and indents taken out."""
    return " ".join(" ".join(_lines(report, width)).split())


def _changed(report: ExportReport, **changes: object) -> ExportReport:
    """The report with the same change to each row."""
    return replace(report, widths=tuple(replace(row, **changes) for row in report.widths))  # type: ignore[arg-type]


def test_the_header(report: ExportReport) -> None:
    assert _lines(report)[:7] == [
        "Exported for jetson-agx-orin in 7.4 s",
        "  package  /runs/deploy-orin",
        "  files    resnet20.w8.onnx, resnet20.w2.onnx",
        "  master   /runs/resnet20.safetensors (sha256 3f0a9c123f0a)",
        "  stack    JetPack 6.2, TensorRT 10.3.0",
        "  target   this host is no Jetson: the Orin family was taken",
        "  data     cifar10-sample, 1,000 samples, labelled (sha256 9b1c9b1c9b1c)",
    ]


def test_rows_at_80_columns(report: ExportReport) -> None:
    lines = _lines(report)
    start = lines.index("Widths, with top-1 in % at each hop")
    assert lines[start + 1 : start + 5] == [
        "  width      size  trained  canonical  lowered  engine  agree  graph",
        "  ───────────────────────────────────────────────────────────────────",
        "  w8     312.4 kB    92.25      92.20    92.15       -  99.99  approx",
        "  w2     312.4 kB    92.25      92.20  ! 88.89       -  99.99  exact",
    ]


def test_rows_at_120_columns_name_the_files_and_the_distance(report: ExportReport) -> None:
    lines = _lines(report, 120)
    columns = "width  file                  size  trained  canonical  lowered  engine  agree  SQNR dB  max error  graph"
    row = "w2     resnet20.w2.onnx  312.4 kB    92.25      92.20  ! 88.89       -  99.99     38.2      0.012  exact"
    assert f"  {columns}" in lines
    assert f"  {row}" in lines
    assert not any(line.startswith("  files") for line in lines)


def test_a_width_that_falls_back_to_float_says_so_in_the_table(report: ExportReport) -> None:
    counts = LayerCounts(integer=18, total=20), LayerCounts(integer=9, total=20, fell_back=("conv1", "fc"))
    rows = tuple(replace(row, layers=each) for row, each in zip(report.widths, counts, strict=True))
    lines = _lines(replace(report, widths=rows))
    start = lines.index("Widths, with top-1 in % at each hop")
    assert lines[start + 1].endswith("engine  agree  integer  graph")
    assert lines[start + 3].endswith("99.99    18/20  approx")
    assert lines[start + 4].endswith("99.99    9/20*  exact")
    assert any(line.startswith("  *  ") and "run in float" in line for line in lines)
    whole = _lines(replace(report, widths=rows[:1]))
    assert not any(line.startswith("  *  ") for line in whole)
    unseen = _lines(replace(report, widths=(rows[0], replace(rows[1], layers=None))))
    assert unseen[start + 4].endswith("99.99        -  exact")


def test_file_names_that_do_not_fit_are_listed_above(report: ExportReport) -> None:
    lines = _lines(_changed(report, file_name="a" * 40 + ".onnx"), 120)
    assert any(line.startswith("  files") for line in lines)
    assert any("SQNR dB" in line and "file" not in line for line in lines)


@pytest.mark.parametrize("width", [80, 92, 100, 101, 120])
def test_only_commands_are_wider_than_the_page(report: ExportReport, width: int) -> None:
    report = _changed(report, layers=LayerCounts(integer=100, total=102, fell_back=("conv1",)))
    lines = [line for line in _lines(report, width) if line.strip() != report.not_done[0].command]
    assert max(map(len, lines)) <= width


def test_the_worse_of_lowered_and_engine_is_shown(report: ExportReport) -> None:
    row = report.widths[0]
    engine = replace(
        row.hops[3], top1_percent=90.0, agreement_percent=97.5, sqnr_db=20.0, max_abs_error=0.5, n=1000, note=""
    )
    lines = _lines(replace(report, widths=(replace(row, hops=(*row.hops[:3], engine)),)), 120)
    assert any(line.endswith("92.15   90.00  97.50     20.0        0.5  approx") for line in lines)


def test_agreement_is_never_rounded_up(report: ExportReport) -> None:
    def shown(percent: float) -> str:
        row = report.widths[0]
        lowered = replace(row.hops[2], agreement_percent=percent)
        lines = _lines(replace(report, widths=(replace(row, hops=(lowered,), verdicts=()),)))
        return next(line for line in lines if line.startswith("  w8 ")).split()[-2]

    assert [shown(99.99999), shown(100.0), shown(99.7), shown(0.29)] == ["99.99", "100.00", "99.70", "0.29"]


def test_values_on_other_data_are_in_brackets_and_explained(report: ExportReport) -> None:
    row = report.widths[0]
    hops = (replace(row.hops[0], same_data=False), *row.hops[1:])
    lines = _lines(replace(report, widths=(replace(row, hops=hops),)))
    assert any("312.4 kB  (92.25)      92.20" in line for line in lines)
    assert "  (...)  measured on other data than the rest of the row" in lines
    assert not any("(...)" in line for line in _lines(report))


def test_the_legend_explains_only_what_is_there(report: ExportReport) -> None:
    lines = _lines(report)
    assert "  !      lost more accuracy than allowed" in lines
    assert "  -      no data: see Notes" in lines
    row = report.widths[0]
    complete = replace(row, hops=(*row.hops[:3], replace(row.hops[3], top1_percent=92.0)), verdicts=())
    quiet = _lines(replace(report, widths=(complete,)))
    assert not any(line.startswith(("  !", "  - ")) for line in quiet)


def test_verdicts_are_summed_up_failures_first(report: ExportReport) -> None:
    lines = _lines(report)
    start = lines.index("Accuracy")
    assert lines[start + 1 : start + 5] == [
        "  failed      w2 lowered: 88.89 %, 3.36 points below",
        "  ok          3 of 6 hops, nearest to the limit is w8 lowered: 92.15 %, 0.10",
        "              points below",
        "  not judged  w8 w2 engine: not run: no TensorRT here",
    ]
    assert "Accuracy" not in _lines(_changed(report, verdicts=()))


def test_notes_name_the_widths_that_they_hold_for(report: ExportReport) -> None:
    lines = _lines(report)
    start, end = lines.index("Notes"), lines.index("Not done here")
    assert lines[start + 1 : end - 1] == [
        "  w8     lowered: activations re-scaled from 0..255 to 0..127: 0.05 points of",
        "         top-1",
        "  w8 w2  lowered: residual additions read a quantized skip input, exact",
        "  w8 w2  trained: recorded by the trainer on this data set",
        "  w8 w2  engine: not built here: a Jetson builds its own",
    ]


def test_an_engine_that_did_not_run_is_explained_even_without_a_status(report: ExportReport) -> None:
    assert "w8 w2 engine: not run: no TensorRT here" in _text(_changed(report, engine="", verdicts=()))


def test_without_data_every_hop_is_said_to_be_unmeasured(report: ExportReport) -> None:
    bare = replace(_changed(report, hops=(), verdicts=()), dataset=None)
    lines = _lines(bare)
    assert "  data     none: accuracy was not measured" in lines
    assert "  w8     312.4 kB        -          -        -       -      -  approx" in lines
    assert "  w8 w2  accuracy: not measured at any hop" in lines


def test_a_report_without_notes_has_no_such_section(report: ExportReport) -> None:
    def bare(row: WidthRow) -> WidthRow:
        return replace(row, hops=row.hops[1:3], changes=(), engine="", verdicts=())

    assert "Notes" not in _lines(replace(report, widths=tuple(map(bare, report.widths))))


def test_what_is_not_done_ends_with_the_command_on_one_line(report: ExportReport) -> None:
    assert _lines(report)[-3:] == [
        "Not done here",
        "  1.  TensorRT engines: only the board can build them",
        f"      {report.not_done[0].command}",
    ]


def test_nothing_left_to_do_is_said(report: ExportReport) -> None:
    assert _lines(replace(report, not_done=()))[-2:] == ["Not done here", "  nothing"]


def test_class_names_are_shown_up_to_five(report: ExportReport) -> None:
    def data(*names: str, labelled: bool = True) -> str:
        dataset = DatasetSummary(name="set", sha256="9" * 64, n=2, labelled=labelled, class_names=names)
        return next(line for line in _lines(replace(report, dataset=dataset)) if line.startswith("  data"))

    assert data("ape", "bee") == "  data     set, 2 samples, labelled, 2 classes: ape, bee (sha256 999999999999)"
    assert ", 6 classes: a, b, c, d, e, ... (" in data("a", "b", "c", "d", "e", "f")
    assert data(labelled=False) == "  data     set, 2 samples, no labels (sha256 999999999999)"


@pytest.mark.parametrize(("seconds", "shown"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (192.7, "3 min 12 s")])
def test_duration(report: ExportReport, seconds: float, shown: str) -> None:
    assert _lines(replace(report, seconds=seconds))[0] == f"Exported for jetson-agx-orin in {shown}"


def test_a_log_in_ascii(report: ExportReport) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print_report(report, Page(stream))
    text = raw.getvalue().decode("ascii")
    assert "  w2     312.4 kB    92.25      92.20  ! 88.89       -  99.99  exact\n" in text
    assert f"\n  {'-' * 67}\n" in text
    assert "\x1b" not in text
