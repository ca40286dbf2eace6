from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.engines.cpu_features import cpu_features

X86 = "processor\t: 0\nmodel name\t: flags avx2\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n\n"
ARM = "processor\t: {}\nFeatures\t: fp asimd {}\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86 + X86, ("avx2", "avx512_vnni")),
        (ARM.format(0, "asimddp i8mm") + ARM.format(1, "i8mm asimddp"), ("asimddp", "i8mm")),
        (ARM.format(0, "asimddp i8mm") + ARM.format(1, "asimddp"), ("asimddp",)),
        ("processor\t: 0\n", ()),
    ],
)
def test_only_what_every_core_has_counts(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_features(tmp_path / "cpuinfo") == expected


def test_a_machine_without_cpuinfo_has_none(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "nothing") == ()
