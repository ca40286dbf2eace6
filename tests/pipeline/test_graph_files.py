from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.pipeline.graph_files import graph_stem


@pytest.mark.parametrize(
    ("master", "stem"),
    [
        ("resnet20.v1-final_2.safetensors", "resnet20.v1-final_2"),
        ("net.safetensors.index.json", "net"),
        ("ep:10.safetensors", "ep-10"),
        ("a\\b\nc.safetensors", "a-b-c"),
        ("net (2).safetensors", "net-2"),
        ("epoch=40,a+b.safetensors", "epoch-40-a-b"),
        ("up..down.safetensors", "up.down"),
        (".hidden.safetensors", "hidden"),
        ("--master.safetensors", "master"),
        ("\udcff\u7f51.safetensors", "network"),
    ],
)
def test_files_of_a_package_have_plain_names(master: str, stem: str) -> None:
    assert graph_stem(Path("folder", master)) == stem
