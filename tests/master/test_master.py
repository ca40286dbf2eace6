"""A master from its parts to its file and back."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from bitswitch_deploy.errors import MasterError, OutputError
from bitswitch_deploy.master import Master, assemble_master, read_master, write_master
from tests.master.files import digest, tiny_document, write_file
from tests.master.tiny import tiny_master, tiny_skeleton, tiny_spec, tiny_tensors


def assert_same(one: Master, other: Master) -> None:
    assert one.spec == other.spec
    assert one.skeleton == other.skeleton
    assert sorted(one.tensors) == sorted(other.tensors)
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        np.testing.assert_array_equal(tensor, other.tensors[name])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    master = tiny_master()
    path = tmp_path / "tiny.safetensors"
    sha256 = write_master(master, path)
    again = read_master(path)
    assert_same(master, again)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256 == master.sha256 == again.sha256
    assert_same(read_master(str(path)), master)


def test_the_same_master_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = "import sys; from tests.master.tiny import *; from bitswitch_deploy.master import *; "
    code += "write_master(tiny_master(), sys.argv[1])"
    root = Path(__file__).resolve().parents[2]
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / seed], cwd=root, env=environment, check=True, timeout=120
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_written_master_is_written_the_same_again(tmp_path: Path) -> None:
    write_master(tiny_master(), tmp_path / "one")
    write_master(read_master(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write_master(read_master(tmp_path / "one"), tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_order_and_layout_of_the_parts_do_not_matter() -> None:
    parts = {name: np.asfortranarray(tensor) for name, tensor in reversed(tiny_tensors().items())}
    other = assemble_master(spec=tiny_spec(), tensors=parts, skeleton=tiny_skeleton())
    assert other.sha256 == tiny_master().sha256


def test_the_digest_is_the_documented_one(tmp_path: Path) -> None:
    write_master(tiny_master(), tmp_path / "ours")
    write_file(tmp_path / "independent", document=tiny_spec().to_json())
    assert_same(read_master(tmp_path / "ours"), read_master(tmp_path / "independent"))
    header_size = int.from_bytes((tmp_path / "ours").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "ours").read_bytes()[8 : 8 + header_size])
    text = header["__metadata__"]["bitswitch_master"]
    assert header["__metadata__"]["bitswitch_sha256"] == digest(text, load_file(tmp_path / "ours"))


def test_a_master_cannot_be_changed() -> None:
    master = tiny_master()
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'sha256'"):
        master.sha256 = "0"  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        master.tensors["fc.bias"] = np.zeros(10)  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        master.tensors["fc.bias"][0] = 1


def test_assembling_leaves_the_callers_arrays_writable() -> None:
    parts = tiny_tensors()
    assemble_master(spec=tiny_spec(), tensors=parts, skeleton=tiny_skeleton())
    parts["fc.bias"][0] = 1


def test_scalar_parameters_keep_their_shape(tmp_path: Path) -> None:
    skeleton = tiny_skeleton()
    skeleton.graph.input.append(onnx.helper.make_tensor_value_info("slope", onnx.TensorProto.FLOAT, []))
    spec = replace(tiny_spec(), parameters=("conv.bias", "fc.bias", "slope"))
    tensors = {**tiny_tensors(), "slope": np.array(0.25, np.float32)}
    write_master(assemble_master(spec=spec, tensors=tensors, skeleton=skeleton), tmp_path / "file")
    assert read_master(tmp_path / "file").tensors["slope"].shape == ()


def test_every_flipped_bit_of_data_and_digest_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_master(tiny_master(), path)
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    digest_start = content.index(b'"bitswitch_sha256":"') + 20
    for position in [*range(digest_start, digest_start + 64), *range(data_start, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 7
        (tmp_path / "flipped").write_bytes(flipped)
        with pytest.raises(MasterError, match=r"flipped: (damaged|not a valid safetensors|header: )"):
            read_master(tmp_path / "flipped")


def test_a_changed_spec_is_seen(tmp_path: Path) -> None:
    content = write_file(tmp_path / "file").read_bytes()
    (tmp_path / "changed").write_bytes(content.replace(b"half_up", b"half_ip").replace(b"96.0", b"98.0"))
    with pytest.raises(
        MasterError, match=r"changed: damaged: the contents have sha256 [0-9a-f]{64}, the metadata says"
    ):
        read_master(tmp_path / "changed")


def test_tensors_that_swap_names_are_seen(tmp_path: Path) -> None:
    tensors = load_file(write_file(tmp_path / "file"))
    tensors["bn.mean"], tensors["bn.bias"] = tensors["bn.bias"], tensors["bn.mean"]
    text = json.dumps(tiny_document())
    entries = {"bitswitch_master": text, "bitswitch_sha256": digest(text, load_file(tmp_path / "file"))}
    save_file(tensors, tmp_path / "swapped", metadata=entries)
    with pytest.raises(MasterError, match="swapped: damaged"):
        read_master(tmp_path / "swapped")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_a_checkpoint_is_no_master(dtype: type, tmp_path: Path) -> None:
    save_file(
        {name: tensor.astype(dtype) for name, tensor in tiny_tensors().items()}, tmp_path / "checkpoint.safetensors"
    )
    with pytest.raises(MasterError, match=r"without the metadata key bitswitch_master\n.*\n  do: name the master"):
        read_master(tmp_path / "checkpoint.safetensors")


def test_a_master_without_a_digest_is_refused(tmp_path: Path) -> None:
    save_file(tiny_tensors(), tmp_path / "file", metadata={"bitswitch_master": json.dumps(tiny_document())})
    with pytest.raises(MasterError, match=r"file: metadata: no key bitswitch_sha256"):
        read_master(tmp_path / "file")


def test_a_newer_version_is_named_before_its_digest_is_judged(tmp_path: Path) -> None:
    document = {**tiny_document(), "version": 2, "news": True}
    path = write_file(tmp_path / "file", document=document, metadata={"bitswitch_sha256": "of another kind"})
    with pytest.raises(
        MasterError, match=r"file: version: 2\n  allowed: 1 \(the only version that this release reads\)"
    ):
        read_master(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 9999, "null"])
def test_a_spec_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(MasterError, match=r"one JSON object"):
        read_master(write_file(tmp_path / "file", document=text))


def test_other_metadata_is_ignored(tmp_path: Path) -> None:
    assert_same(read_master(write_file(tmp_path / "file", metadata={"format": "pt"})), tiny_master())


def test_parts_that_contradict_each_other_are_neither_assembled_nor_written(tmp_path: Path) -> None:
    tensors = tiny_tensors()
    tensors["fc.bias"][3] = np.nan
    with pytest.raises(MasterError, match=r"new master: tensor fc\.bias: a value that is NaN"):
        assemble_master(spec=tiny_spec(), tensors=tensors, skeleton=tiny_skeleton())
    with pytest.raises(MasterError, match=r"new master: bits: 9"):
        assemble_master(spec=replace(tiny_spec(), bits=9), tensors=tiny_tensors(), skeleton=tiny_skeleton())
    bad = Master(spec=tiny_spec(), tensors=tensors, skeleton=tiny_skeleton(), sha256="")
    with pytest.raises(MasterError, match=r"master to write: tensor fc\.bias: a value that is NaN"):
        write_master(bad, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_master(tiny_master(), tmp_path / "none" / "file")


def test_a_large_master_is_neither_read_nor_written_as_a_copy(tmp_path: Path) -> None:
    skeleton = tiny_skeleton()
    for value in skeleton.graph.input:
        if value.name == "fc.weight":
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [10, 2**20]))
    skeleton.graph.node[6].CopyFrom(onnx.helper.make_node("Reshape", ["pooled", "target"], ["flat"]))
    skeleton.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 2**20]), "target"))
    tensors = {**tiny_tensors(), "fc.weight": np.zeros((10, 2**20), np.float32)}
    size_bytes = tensors["fc.weight"].nbytes
    tracemalloc.start()
    try:
        master = assemble_master(spec=tiny_spec(), tensors=tensors, skeleton=skeleton)
        write_master(master, tmp_path / "large")
        read_master(tmp_path / "large")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size_bytes > 40_000_000
    assert peak < 2**20
