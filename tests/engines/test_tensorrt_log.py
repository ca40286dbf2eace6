from __future__ import annotations

import pytest

from bitswitch_deploy.engines.tensorrt_log import (
    LogMessage,
    build_failure,
    check_unsigned_codes,
    errors_of,
    warnings_of,
)
from bitswitch_deploy.errors import GraphError, UnavailableError

OLD = "TensorRT doesn't support QuantizeLinear/DequantizeLinear with UINT8 zero_point. TensorRT will use INT8 instead."
NEW = "TensorRT supports QuantizeLinear/DequantizeLinear with UINT8 zero_point only on DLA. Defaulting to INT8 instead."
OTHER = "For zero_point with type FP32 TensorRT will use INT8 instead."


def _log(*lines: tuple[str, str]) -> list[LogMessage]:
    return [LogMessage(severity=severity, text=text) for severity, text in lines]


def test_warnings_and_errors_are_told_apart_and_kept_once() -> None:
    log = _log(("WARNING", "w"), ("INFO", "i"), ("ERROR", "e"), ("WARNING", "w"), ("INTERNAL_ERROR", "x"))
    assert warnings_of(log) == ("w",)
    assert errors_of(log) == ("e", "x")


@pytest.mark.parametrize("text", [OLD, NEW, OTHER])
def test_unsigned_codes_are_refused(text: str) -> None:
    with pytest.raises(GraphError, match=r"trt 10\.3: UINT8 codes, which TensorRT reads as INT8"):
        check_unsigned_codes(_log(("WARNING", "other"), ("WARNING", text)), where="trt 10.3")


def test_other_warnings_pass() -> None:
    check_unsigned_codes(_log(("WARNING", "UINT8 weights cannot be refitted"), ("INFO", OLD)), where="trt")


def test_the_first_error_decides_the_kind() -> None:
    unusable = build_failure(_log(("ERROR", "conv: unsupported"), ("ERROR", "Cuda Runtime (35)")), where="trt")
    assert isinstance(unusable, GraphError)
    assert "conv: unsupported; Cuda Runtime" in str(unusable)
    no_gpu = build_failure(_log(("ERROR", "Cuda Runtime (35)"), ("ERROR", "conv: unsupported")), where="trt")
    assert isinstance(no_gpu, UnavailableError)


def test_a_workspace_that_is_too_small_for_rtx_is_not_a_fault_of_the_graph() -> None:
    """As TensorRT for RTX 1.7.1 says it with --workspace 1."""
    said = "Myelin (Tactic Selection: no tactics to implement the operation within workspace limit.)"
    refused = build_failure(_log(("ERROR", said)), where="trt")
    assert isinstance(refused, UnavailableError)
    assert refused.do == "build with more: bitswitch-deploy build PACKAGE --workspace MB"


def test_a_silent_failure_is_said() -> None:
    assert "logged no error" in str(build_failure((), where="trt"))
