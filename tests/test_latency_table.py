"""A latency table reads back as it was written, and refuses what does not add up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.latency_table import LatencyTable, LayerLatency, read_latency_table

TABLE = LatencyTable(
    master_sha256="0" * 64,
    target="x86-cpu",
    engine="onnxruntime",
    engine_version="1.32.0",
    device=(("processor", "any"),),
    batch_size=1,
    threads=1,
    overhead_ms=0.25,
    end_to_end_ms=((8, 1.5), (4, 1.25)),
    layers=(
        LayerLatency(name="a", latency_ms=((8, 0.5), (4, 0.25))),
        LayerLatency(name="b", latency_ms=((8, 0.75), (4, 0.75))),
    ),
)


def _layer(*widths: int) -> LayerLatency:
    return LayerLatency(name="a", latency_ms=tuple((width, 1.0) for width in widths))


def test_what_made_it_unstable_is_kept_and_older_tables_do_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    replace(TABLE, unstable=("it was hot",)).write(path)
    assert read_latency_table(path).unstable == ("it was hot",)
    document = json.loads(path.read_text())
    del document["unstable"]
    path.write_text(json.dumps(document))
    assert read_latency_table(path) == TABLE


def test_written_and_read_again(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "table.json")
    assert read_latency_table(tmp_path / "table.json") == TABLE
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["layers"][0] == {"name": "a", "latency_ms": {"8": 0.5, "4": 0.25}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ()}, "layers must be given"),
        ({"layers": TABLE.layers[:1] * 2}, "each once"),
        ({"end_to_end_ms": ((8, 1.0),)}, "a has the widths"),
        ({"end_to_end_ms": ((8, 1.0), (4, float("nan")))}, "not finite"),
        ({"overhead_ms": -1.0}, "overhead_ms must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"end_to_end_ms": (), "layers": (LayerLatency(name="a", latency_ms=()),)}, "widths must be given"),
        ({"end_to_end_ms": ((8, 1.0),) * 2, "layers": (_layer(8, 8),)}, "each once"),
        ({"end_to_end_ms": ((9, 1.0),), "layers": (_layer(9),)}, r"widths are \[9\], and can be from 2 to 8"),
    ],
)
def test_contradictions(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TABLE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "Expecting"),
        ('{"schema": "bitswitch-latency-table/2"}', "no key"),
        ("eight", "a whole number"),
        ("08", "a whole number"),
        ("layers", "a list"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.json"
    TABLE.write(path)
    if not text.startswith(("[", "{")):
        document = json.loads(path.read_text())
        document |= {"layers": 3} if text == "layers" else {"end_to_end_ms": {text: 1.0}}
        text = json.dumps(document)
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        read_latency_table(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be read"):
        read_latency_table(tmp_path / "none.json")
