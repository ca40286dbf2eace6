"""A master summary as text."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.master import describe_master, read_master
from bitswitch_deploy.report.master_page import print_master
from bitswitch_deploy.report.page import Page


def test_every_accuracy_of_a_width_is_shown() -> None:
    summary = describe_master(read_master(bundled_master()))
    first, second, *_ = summary.widths
    other = replace(first.accuracy[0], value=12.34, n=77, dataset="elsewhere")
    widths = (replace(first, accuracy=(*first.accuracy, other)), replace(second, accuracy=()))
    stream = StringIO()
    print_master(replace(summary, widths=widths), Page(stream))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    size = f"{first.weight_size_bytes:,}"
    recorded = first.accuracy[0]
    assert [line for line in lines if line[1:3] == [size, "bytes"]] == [
        ["8", size, "bytes", f"{recorded.value:.2f}", "%", str(recorded.n), recorded.dataset],
        ["8", size, "bytes", "12.34", "%", "77", "elsewhere"],
    ]
    assert any(line[-2:] == ["not", "recorded"] for line in lines)
