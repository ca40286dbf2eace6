from __future__ import annotations

import io

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.read_back import NodePrecision, ReadBack, UnfusedQuantizer
from bitswitch_deploy.report.build_page import device_text, print_build
from bitswitch_deploy.report.build_report import BuildReport, EngineRow
from bitswitch_deploy.report.page import Page

NODES = tuple(NodePrecision(node=f"conv{i}", operator="Conv", precision="int8") for i in range(4))
FELL_BACK = tuple(NodePrecision(node=name, operator="Conv", precision="fp16") for name in ("back1", "back2", "back3"))
IN_FLOAT = (NodePrecision(node="first", operator="Conv", precision="fp32"),)
APART = (
    UnfusedQuantizer(node="q", operator="QuantizeLinear", layer="k", alone=True),
    UnfusedQuantizer(node="dq", operator="DequantizeLinear", layer="l", alone=False),
)
FOUND = ReadBack(engine_layers=9, int8=NODES, fell_back=FELL_BACK, in_float=IN_FLOAT, unfused=APART, unseen=("lost",))


def page(**changes: object) -> str:
    values: dict[str, object] = {"is_reference": False, "path": "w8.engine", "size_bytes": 2000, "state": "built"}
    report = BuildReport(
        package="p",
        target="jetson",
        builder="tensorrt 10.3.0",
        device=DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7"),
        timing_cache=None,
        notes=(),
        engines=(EngineRow(label="w8", **values | changes),),  # type: ignore[arg-type]
    )
    stream = io.StringIO()
    print_build(report, Page(stream, 140))
    return stream.getvalue()


def test_layers_are_counted_in_their_columns_and_named_below() -> None:
    lines = [" ".join(line.split()) for line in page(layers=FOUND).splitlines()]
    assert "engine state size int8 fell back in float Q/DQ apart" in lines
    assert "w8 built 2.0 kB 4 3 1 2" in lines
    assert "w8 fell back: back1 (Conv, fp16), back2 (Conv, fp16), back3 (Conv, fp16)" in lines
    assert "w8 in float: first (Conv, fp32)" in lines
    assert "w8 Q/DQ in kernels of their own: q" in lines
    assert "w8 Q/DQ together with elementwise operators: dq" in lines
    assert "w8 no layer of the engine names lost" in lines


def test_what_is_not_known_is_explained() -> None:
    text = page(notes=("layers not known",), gpu_fallback=("a", "b"), warnings=("slow",))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "w8 built 2.0 kB - - - -" in lines
    assert {"w8 layers not known", "w8 DLA leaves 2 layers to the GPU: a, b", "w8 builder: slow"} <= set(lines)


def test_a_device_in_words() -> None:
    assert device_text(DeviceFacts(arch="x86_64")) == "x86_64, no GPU found"
    # a board that tells its chip only
    assert device_text(DeviceFacts(arch="aarch64", sm="8.7", l4t="36.4.3")) == "aarch64, SM 8.7, L4T 36.4.3"
