"""A report of two widths for a board that is not here."""

from __future__ import annotations

import pytest

from bitswitch_deploy.report.export_report import ExportReport, NotDone, WidthRow
from bitswitch_deploy.validation.dataset import DatasetSummary
from bitswitch_deploy.validation.hops import HopResult, Verdict

COMMAND = (
    "scp -r deploy-orin board: && ssh board 'cd deploy-orin && ./build_engines.sh --widths 8,2 --with-timing-cache'"
)


def _row(bits: int, lowered: float, *, exact: bool, changes: tuple[str, ...], failed: bool) -> WidthRow:
    label = f"w{bits}"
    hops = (
        HopResult(
            label=label, hop="trained", top1_percent=92.25, n=1000, note="recorded by the trainer on this data set"
        ),
        HopResult(label=label, hop="canonical", top1_percent=92.2, n=1000),
        HopResult(
            label=label,
            hop="lowered",
            top1_percent=lowered,
            agreement_percent=99.998,
            sqnr_db=38.25,
            max_abs_error=0.01234,
            relative_error=0.001,
            n=1000,
        ),
        HopResult(label=label, hop="engine", note="not run: no TensorRT here"),
    )
    verdicts = (
        Verdict(label=label, hop="canonical", verdict="ok", drop_points=0.05, reason="92.20 %, 0.05 points below"),
        Verdict(
            label=label,
            hop="lowered",
            verdict="failed" if failed else "ok",
            drop_points=92.25 - lowered,
            reason=f"{lowered:.2f} %, {92.25 - lowered:.2f} points below",
        ),
        Verdict(label=label, hop="engine", verdict="not judged", drop_points=None, reason="not run: no TensorRT here"),
    )
    return WidthRow(
        label=label,
        bits=bits,
        file_name=f"resnet20.{label}.onnx",
        size_bytes=312_400,
        hops=hops,
        exact=exact,
        changes=changes,
        engine="not built here: a Jetson builds its own",
        verdicts=verdicts,
    )


@pytest.fixture
def report() -> ExportReport:
    rescaled = "activations re-scaled from 0..255 to 0..127: 0.05 points of top-1"
    residual = "residual additions read a quantized skip input, exact"
    return ExportReport(
        target="jetson-agx-orin",
        stack="JetPack 6.2, TensorRT 10.3.0",
        note="this host is no Jetson: the Orin family was taken",
        master_path="/runs/resnet20.safetensors",
        master_sha256="3f0a9c12" * 8,
        dataset=DatasetSummary(name="cifar10-sample", sha256="9b1c" * 16, n=1000, labelled=True),
        widths=(
            _row(8, 92.15, exact=False, changes=(rescaled, residual), failed=False),
            _row(2, 88.89, exact=True, changes=(residual,), failed=True),
        ),
        not_done=(NotDone(what="TensorRT engines", why="only the board can build them", command=COMMAND),),
        package_path="/runs/deploy-orin",
        seconds=7.43,
    )
