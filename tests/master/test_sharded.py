"""A master in several files: what is written is read, and every way in which its files can be wrong is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bitswitch_deploy.errors import MasterError, OutputError
from bitswitch_deploy.master import master_name, read_master, sharded, write_master
from tests.master.test_master import assert_same
from tests.master.tiny import tiny_master

INDEX = "tiny.safetensors.index.json"
SHARD_BYTES = 700


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The tiny master in several files."""
    write_master(tiny_master(), tmp_path / INDEX, shard_size_bytes=SHARD_BYTES)
    return tmp_path / INDEX


def change(index: Path, key: str, **values: Any) -> None:
    document = json.loads(index.read_text())
    document[key] |= values
    index.write_text(json.dumps(document))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    master = tiny_master()
    sha256 = write_master(master, tmp_path / INDEX, shard_size_bytes=SHARD_BYTES)
    again = read_master(tmp_path / INDEX)
    assert_same(master, again)
    assert sha256 == again.sha256 == hashlib.sha256((tmp_path / INDEX).read_bytes()).hexdigest()
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == [f"tiny-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]


def test_the_files_are_what_other_tools_expect(index: Path) -> None:
    document = json.loads(index.read_text())
    stored = [load_file(index.with_name(name)) for name in sorted(set(document["weight_map"].values()))]
    for name, file in document["weight_map"].items():
        assert name in load_file(index.with_name(file))
    assert document["metadata"]["total_size"] == sum(array.nbytes for each in stored for array in each.values())
    for each in stored:
        assert len(each) == 1 or sum(array.nbytes for array in each.values()) <= SHARD_BYTES


def test_the_digest_is_that_of_one_file(index: Path, tmp_path: Path) -> None:
    write_master(tiny_master(), tmp_path / "one.safetensors")
    header = (tmp_path / "one.safetensors").read_bytes()
    digest = json.loads(index.read_text())["metadata"]["bitswitch_sha256"]
    assert digest.encode() in header


def test_the_same_master_gives_the_same_files(index: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    write_master(read_master(index), tmp_path / "again" / INDEX, shard_size_bytes=SHARD_BYTES)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_tensors_are_views_of_the_files(index: Path) -> None:
    for tensor in read_master(index).tensors.values():
        assert not tensor.flags.owndata
        assert not tensor.flags.writeable


@pytest.mark.parametrize(
    ("name", "expected"),
    [("net.safetensors", "net"), (INDEX, "tiny"), ("a.b.safetensors", "a.b"), ("net", "net")],
)
def test_name_of_a_master(name: str, expected: str) -> None:
    assert master_name(Path("folder", name)) == expected


# --- what can be wrong


def test_a_missing_file(index: Path) -> None:
    next(iter(index.parent.glob("*-00002-of-*"))).unlink()
    with pytest.raises(MasterError, match=r"tiny-00002-of-\d+.safetensors: no such file"):
        read_master(index)


def test_a_file_cut_short(index: Path) -> None:
    shard = next(iter(index.parent.glob("*-00001-of-*")))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MasterError, match=r"tiny-00001-of-\d+.safetensors: not a valid safetensors file"):
        read_master(index)


def test_a_changed_value(index: Path) -> None:
    shard = index.with_name(json.loads(index.read_text())["weight_map"]["conv.weight"])
    tensors = {name: np.array(value) for name, value in load_file(shard).items()}
    tensors["conv.weight"][0, 0, 0, 0] ^= 1
    save_file(tensors, shard)
    with pytest.raises(MasterError, match=r"index.json: damaged: the contents have sha256"):
        read_master(index)


@pytest.mark.parametrize("name", ["bn.bias", "new"])
def test_a_tensor_that_is_elsewhere(index: Path, name: str) -> None:
    last = max(path.name for path in index.parent.glob("*.safetensors"))
    change(index, "weight_map", **{name: last})
    with pytest.raises(MasterError, match=rf"safetensors: other tensors than {INDEX} says: \['{name}'\]"):
        read_master(index)


@pytest.mark.parametrize(
    "place",
    [
        *("../tiny-00001-of-00003.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "x.bin"),
        *(".safetensors", "\0.safetensors", "", 7, None, ["x.safetensors"]),
    ],
)
def test_a_place_that_is_no_file_beside_the_index(index: Path, place: object) -> None:
    change(index, "weight_map", **{"fc.bias": place})
    with pytest.raises(MasterError, match=r"index.json: weight_map: (.|\n)*a .safetensors file beside the index"):
        read_master(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"[]", "one JSON object"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "not UTF-8 text"),
        (b"{}", r"metadata: None"),
        (b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}', r"metadata: \{\}"),
        (b'{"metadata": {"a": "b"}, "weight_map": []}', r"weight_map: \[\]"),
        (b'{"metadata": {"a": "b"}, "metadata": {"a": "b"}}', "given twice"),
        (b"{" + b" " * (16 << 20) + b"}", "an index of more than"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(MasterError, match=message):
        read_master(tmp_path / INDEX)


def test_an_index_of_something_else(index: Path) -> None:
    document = json.loads(index.read_text())
    document["metadata"] = {"total_size": 3}
    save_file({"half": np.zeros(2, np.float16)}, index.with_name("other.safetensors"))
    document["weight_map"] = {"half": "other.safetensors"}
    index.write_text(json.dumps(document))
    with pytest.raises(MasterError, match="without the metadata key bitswitch_master"):
        read_master(index)


def test_one_of_the_files_in_place_of_the_index(index: Path) -> None:
    with pytest.raises(MasterError, match=r"name the \*.safetensors.index.json"):
        read_master(next(iter(index.parent.glob("*-00001-of-*"))))


def test_an_index_is_not_replaced(index: Path) -> None:
    before = {path: path.read_bytes() for path in index.parent.iterdir()}
    with pytest.raises(OutputError, match=r"it exists(.|\n)*delete the index and its files"):
        write_master(tiny_master(), index)
    assert before == {path: path.read_bytes() for path in index.parent.iterdir()}


@pytest.mark.parametrize("name", [".hidden", "back\\slash", "tab\t"])
def test_a_name_that_an_index_may_not_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a name that its files cannot have"):
        write_master(tiny_master(), tmp_path / f"{name}.safetensors.index.json")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> None:
        raise OutputError(where=str(path), got="full", allowed="space", do="free some")

    monkeypatch.setattr(sharded, "replace_file", fail)
    with pytest.raises(OutputError, match="full"):
        write_master(tiny_master(), tmp_path / INDEX)
    assert not (tmp_path / INDEX).exists()
