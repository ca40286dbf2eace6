from __future__ import annotations

import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.dla import check_dla
from bitswitch_deploy.errors import UnavailableError


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("jetson-agx-orin", "8.5.2"),
        ("jetson-agx-orin", "10.7.0"),
        ("jetson-agx-orin", "11.4.1"),
        ("jetson-orin-nx", "10.3.0"),
        ("jetson-xavier-nx", "8.5.2"),
        ("jetson-agx-xavier", "8.5.2"),
    ],
)
def test_where_it_works(target: str, version: str) -> None:
    check_dla(load_target(target).target, version=version)


@pytest.mark.parametrize(
    ("target", "version", "message"),
    [
        ("jetson-agx-orin", "10.16.2", r"TensorRT 10\.16\.2 does not drive (.|\n)*TensorRT <10\.8 or >=11\.4\.1"),
        ("jetson-agx-orin", "11.3.0", r"TensorRT 11\.3\.0 does not drive"),
        ("jetson-orin-nx", "11.4.1", r"TensorRT 11\.4\.1 does not drive"),
        ("jetson-orin-nano", "10.3.0", "Orin Nano 8GB has no DLA cores"),
        ("jetson-thor", "10.13.3", "has no DLA cores"),
        ("rtx", "1.7.1", "tensorrt_rtx has no DLA"),
    ],
)
def test_where_it_does_not(target: str, version: str, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        check_dla(load_target(target).target, version=version)
