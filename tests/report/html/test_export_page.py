"""The text of the page: complete, equal for equal content, and no way out of it for a name."""

from __future__ import annotations

import re
from dataclasses import replace

from bitswitch_deploy.diagnosis.layer_look import LayerLook
from bitswitch_deploy.diagnosis.layer_statistics import LayerStatistics, WeightStatistics
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.report.export_report import ExportReport
from bitswitch_deploy.report.html.accuracy import accuracy_section, size_section
from bitswitch_deploy.report.html.document import Table
from bitswitch_deploy.report.html.export import ExportContent, export_html
from tests.report.html.drawings import dots, drawings

WEIGHTS = WeightStatistics(low=-128, counts=(3, *[1] * 254, 5), clipped_percent=0.0, zero_channels=0, channels=8)
LAYER = LayerStatistics(layer="layer1.conv", bits=8, weights=WEIGHTS, input=None)


def test_everything_that_an_export_has_to_say(report: ExportReport) -> None:
    entry = FileEntry(path="resnet20.w8.onnx", sha256="ab" * 32, size_bytes=312_400, role="graph")
    page = export_html(
        ExportContent(
            title="resnet20",
            report=report,
            looks=(LayerLook(label="w8", n=32, parts=(), statistics=(LAYER,)),),
            files=(entry,),
            tools=(("onnx", "1.23.2"),),
            command=("bitswitch-deploy", "export", "--master", "my file"),
        )
    )
    for text in (
        "92.15",
        "activations re-scaled from 0..255 to 0..127: 0.05 points of top-1",
        "only the board can build them",
        "trained: recorded by the trainer on this data set",
        "engine: not built here: a Jetson builds its own",
        "not judged",
        "engine: not run: no TensorRT here",
        "build_engines.sh --widths 8,2",
        "codes -128 to 127",
        "bitswitch-deploy export --master &#39;my file&#39;",
        "onnx 1.23.2",
        "ab" * 6,
    ):
        assert text in page, text
    assert 'class="bad">failed' in page
    # three hops with a top-1 at each of two widths, and both widths against their bytes
    assert dots(page)[:2] == ["w8 trained: 92.2 (90.37 to 93.71)", "w8 canonical: 92.2 (90.37 to 93.71)"]
    assert len(dots(page)) + len(dots(page, "off")) == 6 + 2
    assert len(drawings(page, "share")) == 2
    (histogram,) = drawings(page, "histogram")
    assert len(histogram.lines("bar")[0]) == 4 * 32


def test_each_number_of_a_table_stands_in_its_own_column(report: ExportReport) -> None:
    table = accuracy_section(report).blocks[-1]
    assert isinstance(table, Table)
    lowered = [[cell.text for cell in each] for each in table.rows if each[1].text == "lowered"]
    assert lowered[0] == ["w8", "lowered", "92.15", "90.37", "93.71", "1000", "99.99", "ok"]
    assert lowered[1][-2:] == ["99.99", "failed"]
    wide = replace(report, widths=(report.widths[0], replace(report.widths[1], size_bytes=78_100)))
    table = size_section(wide).blocks[0]
    assert isinstance(table, Table)
    for each, share in zip(table.rows, ("100.0", "25.0"), strict=True):
        assert f"{share} % of the largest" in str(each[-1].bar)


def test_equal_content_gives_equal_text_without_time_and_place(report: ExportReport) -> None:
    content = ExportContent(title="a", report=report)
    elsewhere = replace(report, seconds=99.0, package_path="/else/where", host="another", master_path="/other")
    assert export_html(content) == export_html(ExportContent(title="a", report=elsewhere))


def test_a_name_is_text_only(report: ExportReport) -> None:
    name = "<script>alert(1)</script>\"'&"
    row = replace(report.widths[0], label=name, file_name=name, changes=(name,))
    layer = replace(LAYER, layer=name)
    hostile = replace(report, target=name, widths=(row,))
    page = export_html(
        ExportContent(
            title=name,
            report=hostile,
            looks=(LayerLook(label=name, n=32, parts=(), statistics=(layer,)),),
            command=(name,),
        )
    )
    assert page.count("<script>") == 1
    assert "alert(1)</" not in page
    (histogram,) = drawings(page, "histogram")
    assert histogram.root.get("aria-label", "").startswith(f"Weights of {name}, codes")


def test_a_page_without_data_and_without_anything_left_to_do(report: ExportReport) -> None:
    rows = tuple(replace(row, hops=(), changes=(), verdicts=()) for row in report.widths)
    bare = replace(report, dataset=None, widths=rows, not_done=())
    page = export_html(ExportContent(title="a", report=bare))
    assert "accuracy was not measured" in page
    assert "Layers were not looked at" in page
    assert 'id="accuracy"' not in page
    looked_at = export_html(
        ExportContent(title="a", report=bare, looks=(LayerLook(label="w8", n=32, parts=(), statistics=()),))
    )
    assert "accuracy: not measured at any hop" in looked_at
    silent = replace(bare, widths=tuple(replace(row, hops=report.widths[0].hops[1:2], engine="") for row in rows))
    assert "<p>Nothing.</p>" in export_html(
        ExportContent(title="a", report=silent, looks=(LayerLook(label="w8", n=32, parts=(), statistics=()),))
    )
    assert "Layers were not looked at" not in looked_at


def test_no_address_in_the_page(report: ExportReport) -> None:
    page = export_html(ExportContent(title="a", report=report))
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "default-src 'none'" in page
