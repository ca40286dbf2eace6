"""The compiled form: built or refused by the wheel's build hook, believed only when it computes what NumPy computes.

What it computes is tested in test_rounding.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from bitswitch_deploy.quantization import rounding_shift
from bitswitch_deploy.quantization.rounding_shift import CompiledShift, Formula, compiled_shift
from bitswitch_deploy.tensors import Rounding
from tests.quantization.wheels import LIBRARY, PROJECT, build_wheel

FORMULA = Formula.of(from_bits=8, to_bits=5, rounding=Rounding.HALF_EVEN)
SOURCE = PROJECT / "bitswitch_deploy/quantization/rounding_shift.c"


def test_the_library_of_a_wheel_is_used(compiled_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding_shift, "LIBRARY", compiled_library)
    assert isinstance(compiled_shift(FORMULA), CompiledShift)


@pytest.mark.parametrize(
    ("original", "mutant"),
    [
        ("code < limit ? code : limit", "code"),
        # right for masters of 8 bits only
        ("const int8_t addend", "limit = 127 - (1 << (distance - 1)); const int8_t addend"),
        ("& 1 : 0", "& 1 : 1"),
        ("- is_half_even)", ")"),
        ("LOOP(6, IS_HALF_EVEN)", "LOOP(5, IS_HALF_EVEN)"),
        ("RULE(1)", "RULE(0)"),
    ],
)
def test_a_library_that_computes_otherwise_is_left_aside(
    original: str, mutant: str, compiled_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = SOURCE.read_text()
    assert code.count(original) == 1
    (tmp_path / "mutant.c").write_text(code.replace(original, mutant))
    library = tmp_path / "mutant.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "mutant.c", "-o", library], check=True)
    monkeypatch.setattr(rounding_shift, "LIBRARY", library)
    assert compiled_shift(FORMULA) is None


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF of another machine"])
def test_a_library_that_does_not_load_is_left_aside(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "librounding_shift.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setattr(rounding_shift, "LIBRARY", library)
    assert compiled_shift(FORMULA) is None


def test_a_library_without_the_function_is_left_aside(
    compiled_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.c").write_text("int other;\n")
    library = tmp_path / "other.so"
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "other.c", "-o", library], check=True)
    monkeypatch.setattr(rounding_shift, "LIBRARY", library)
    assert compiled_shift(FORMULA) is None


@pytest.mark.parametrize(
    ("compiler", "reason"), [("no-such-compiler", "no-such-compiler: No such file"), ("false", "false: exit code 1")]
)
def test_a_wheel_is_built_without_a_compiler_and_says_so(compiler: str, reason: str, tmp_path: Path) -> None:
    wheel, output = build_wheel(tmp_path, compiler)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert f"derived by NumPy, at less than half the speed: {reason}" in output
    with ZipFile(wheel) as archive:
        assert LIBRARY not in archive.namelist()


def test_a_wheel_with_the_library_is_for_one_platform_every_python_and_uses_it(
    compiled_library: Path, tmp_path: Path
) -> None:
    (wheel,) = compiled_library.parents[2].glob("*.whl")
    assert "-py3-none-" in wheel.name
    assert "any" not in wheel.name
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "from bitswitch_deploy.quantization import rounding_shift as r; from bitswitch_deploy.tensors import Rounding;"
        "print(r.__file__, r.compiled_shift(r.Formula.of(from_bits=8, to_bits=2, rounding=Rounding.HALF_UP)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path))
    assert "CompiledShift" in done.stdout
