"""Mutated files: whatever is done to a master, reading gives a master or a MasterError, in little memory."""

from __future__ import annotations

import json
import random
import resource
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.errors import MasterError
from bitswitch_deploy.master import describe_master, read_master
from tests.master.files import digest, tiny_document
from tests.master.tiny import tiny_skeleton, tiny_tensors

CASES = 3_000
WATCH_EVERY = 30  # tracemalloc makes a case ten times slower
MEMORY_LIMIT_BYTES = 4 * 2**20

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 9, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308, "", "x",
    "n", "conv", "conv.weight", "fc.bias", "skeleton", "float", "int8", "Conv", "MatMul", "\ud800", "\x00", "\x1b[2J",
    "é", "x" * 3000, [], [[]], [0], [8, 4], ["n", 3, 8, 8], ["a", "b"], {}, {"a": 1}, {"kind": "per_tensor"},
    {"kind": "per_block", "axis": 2**40, "block_size": 2**62},
]  # fmt: skip

SKELETON = tiny_skeleton().SerializeToString()
TENSORS = tiny_tensors()
SPEC_TEXT = json.dumps(tiny_document())


def stored_tensors(skeleton: bytes = SKELETON) -> dict[str, np.ndarray]:
    return {**TENSORS, "skeleton": np.frombuffer(skeleton, np.uint8)}


def file_bytes(text: str, tensors: dict[str, np.ndarray], header: dict[str, Any] | None = None) -> bytes:
    """Lay out a file by hand, as a stranger would: any header can be given."""
    entries: dict[str, Any] = {}
    data = b""
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name]
        start, data = len(data), data + tensor.tobytes()
        dtype = {"float32": "F32", "int8": "I8", "uint8": "U8"}[tensor.dtype.name]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    entries["__metadata__"] = {"bitswitch_master": text, "bitswitch_sha256": digest(text, tensors)}
    serialized = json.dumps(entries if header is None else header).encode()
    return len(serialized).to_bytes(8, "little") + serialized + data


def header_of(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


VALID = file_bytes(SPEC_TEXT, stored_tensors())


def mutated_bytes(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(source.choice([1, 1, 1, 2, 3, 8])):
        position = source.randrange(len(changed)) if changed else 0
        match source.randrange(6):
            case 0:
                changed[position : position + 1] = bytes([source.randrange(256)])
            case 1 if changed:
                changed[position] ^= 1 << source.randrange(8)
            case 2:
                del changed[position : position + source.randrange(1, 9)]
            case 3:
                changed[position:position] = source.randbytes(source.randrange(1, 9))
            case 4:
                changed[position:position] = changed[position : position + source.randrange(1, 65)]
            case _ if source.random() < 0.1:
                del changed[position:]
    return bytes(changed)


def mutated_json(document: Any, source: random.Random) -> Any:
    """Change a document in place at a few random places: values, keys, list entries."""
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        places = [place for place in walk(document) if place[0]]
        if not places:
            return document
        parent, key = source.choice(places)
        match source.randrange(5):
            case 0 | 1:
                parent[key] = source.choice(ODD_VALUES)
            case 2:
                del parent[key]
            case 3 if isinstance(parent, dict):
                parent[source.choice(["a", "bits", "kind", "\ud800"])] = parent.pop(key)
            case 3:
                parent.append(parent[key])
            case _:
                other_parent, other_key = source.choice(places)
                if parent is not other_parent:
                    parent[key] = json.loads(json.dumps(other_parent[other_key]))
    return document


def walk(document: Any) -> list[tuple[Any, Any]]:
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else []
    places = [(document, key) for key in keys]
    for key in keys:
        places += walk(document[key])
    return places


@contextmanager
def memory_watched(*, active: bool) -> Iterator[None]:
    if not active:
        yield
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT_BYTES
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", autouse=True)
def native_memory_watched() -> Iterator[None]:
    """Watch what tracemalloc does not see: protobuf, the checker and the safetensors library."""
    unit = 1 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 200 * 2**20


def fuzz_bytes(source: random.Random) -> bytes:
    return mutated_bytes(VALID, source)


def fuzz_start(source: random.Random) -> bytes:
    """Only the length and the first bytes of the header, where most of the reader's decisions fall."""
    return mutated_bytes(VALID[:24], source) + VALID[24:]


def fuzz_header(source: random.Random) -> bytes:
    header = mutated_json(header_of(VALID), source)
    serialized = json.dumps(header).encode()
    return len(serialized).to_bytes(8, "little") + serialized + VALID[8 + int.from_bytes(VALID[:8], "little") :]


def fuzz_spec(source: random.Random) -> bytes:
    """A changed spec with a right digest, so that the checks behind it are reached."""
    text = json.dumps(mutated_json(json.loads(SPEC_TEXT), source))
    if source.random() < 0.1:
        text = mutated_bytes(text.encode(), source).decode("utf-8", "replace")
    return file_bytes(text, stored_tensors())


def fuzz_tensors(source: random.Random) -> bytes:
    tensors = stored_tensors()
    for _ in range(source.choice([1, 2])):
        name = source.choice(list(tensors))
        tensor = tensors[name].copy()
        match source.randrange(6):
            case 0:
                tensors.pop(name)
                break
            case 1:
                raw = bytearray(tensor.tobytes())
                raw[source.randrange(len(raw))] ^= 1 << source.randrange(8)
                tensors[name] = np.frombuffer(bytes(raw), tensor.dtype).reshape(tensor.shape)
            case 2:
                tensors[name] = tensor.reshape(-1)[: source.randrange(1, tensor.size + 1)]
            case 3:
                tensors[source.choice([*tensors, "new", "\x1b"])] = tensor
            case 4:
                tensors[name] = np.full_like(tensor, source.choice([0, 1, 127]))
            case _:
                dtype = source.choice([np.int8, np.uint8, np.float32])
                tensors[name] = np.abs(tensor).clip(0, 100).astype(dtype)
    return file_bytes(SPEC_TEXT, tensors)


def fuzz_skeleton(source: random.Random) -> bytes:
    return file_bytes(SPEC_TEXT, stored_tensors(mutated_bytes(SKELETON, source) or b"\0"))


@pytest.mark.parametrize(
    ("mutate", "must_be_seen"),
    [
        (fuzz_bytes, ["not a valid safetensors", "damaged"]),
        (fuzz_start, ["cut short", "header is not JSON"]),
        (fuzz_header, ["not a valid safetensors", "damaged", "without the metadata key"]),
        (fuzz_spec, ["unknown key", "no key", "widths", "tensor names", "skeleton: ", "success"]),
        (fuzz_tensors, ["none named", "unknown: ", "scales", "of shape", "success"]),
        (fuzz_skeleton, ["not a serialized ONNX model", "ONNX checker says", "skeleton: ", "success"]),
    ],
)
def test_only_success_or_master_error(
    mutate: Callable[[random.Random], bytes], must_be_seen: list[str], tmp_path: Path
) -> None:
    source = random.Random(f"20250101 {mutate.__name__}")
    outcomes: Counter[str] = Counter()
    path = tmp_path / "mutated.safetensors"
    for index in range(CASES):
        path.write_bytes(mutate(source))
        with memory_watched(active=index % WATCH_EVERY == 0):
            try:
                describe_master(read_master(path))
                outcomes["success"] += 1
            except MasterError as exc:
                outcomes[f"{exc.where.removeprefix(str(path))}: {exc.got}"] += 1
    assert outcomes.total() == CASES
    assert max(map(len, outcomes)) < 5_000
    for outcome in must_be_seen:
        assert any(outcome in seen for seen in outcomes), outcome
