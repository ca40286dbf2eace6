from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitswitch_deploy.errors import PackageError
from bitswitch_deploy.package.manifest import FileEntry, Manifest, SkippedStep, is_inside

ENTRY = FileEntry(path="graphs/w8.onnx", sha256="0f" * 32, size_bytes=3, role="graph", label="w8")
OTHER = FileEntry(path="a.json", sha256="1f" * 32, size_bytes=0, role="results")


def test_json_is_stable_and_sorted(manifest_of: Callable[..., Manifest]) -> None:
    text = manifest_of((ENTRY, OTHER), results="a.json").to_json()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert values["schema"] == "bitswitch-package/1"
    assert [entry["path"] for entry in values["files"]] == ["a.json", "graphs/w8.onnx"]
    assert values["stack"] == {"opset": "21", "python": "3.10"}
    assert values["skipped"] == [{"step": "engine", "reason": "no GPU here"}]
    assert manifest_of((OTHER, ENTRY), results="a.json").to_json() == text


def test_reading_gives_what_was_written(manifest_of: Callable[..., Manifest]) -> None:
    manifest = manifest_of((OTHER, ENTRY), results="a.json", built_on_device="on_device")
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_from_before_a_key_is_read(manifest_of: Callable[..., Manifest]) -> None:
    document = json.loads(manifest_of((ENTRY,)).to_json())
    del document["preprocessing"]
    assert "strict" not in document
    assert Manifest.from_json(json.dumps(document)) == manifest_of((ENTRY,), preprocessing=None)


names = st.text(st.characters(codec="utf-8"), max_size=8)


@given(pairs=st.dictionaries(names, names), words=st.lists(names), steps=st.lists(st.tuples(names, names)))
def test_any_text_survives(pairs: dict[str, str], words: list[str], steps: list[tuple[str, str]]) -> None:
    manifest = Manifest(
        master_sha256="00" * 32,
        target="t",
        stack=tuple(sorted(pairs.items())),
        command=tuple(words),
        tools=(),
        files=(),
        skipped=tuple(SkippedStep(step=step, reason=reason) for step, reason in steps),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def _changed(manifest: Manifest, path: tuple[Any, ...], value: object) -> str:
    values = json.loads(manifest.to_json())
    place = values
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), "bitswitch-package/2", "schema: 'bitswitch-package/2'\n  allowed: bitswitch-package/1"),
        (("extra",), 1, "unknown key: 'extra'"),
        (("target",), ..., "no key target"),
        (("target",), 1, "target: 1\n  allowed: text"),
        (("master_sha256",), "AB" * 32, "master_sha256: 'ABAB"),
        (("master_sha256",), None, "master_sha256: None\n  allowed: text"),
        (("stack",), 3, r"stack: 3\n  allowed: a list"),
        (("stack", "opset"), 21, r"stack\[opset\]: 21"),
        (("command",), "export", "command: 'export'\n  allowed: a list"),
        (("command", 0), None, r"command\[0\]: None"),
        (("preprocessing", "colour"), "CMYK", r"preprocessing\.colour: 'CMYK'"),
        (("preprocessing", "std"), [0.0], r"preprocessing: divide_by 16.0, std \(0.0,\)\n  allowed: positive numbers"),
        (("files",), {}, "files: {}\n  allowed: a list"),
        (("files", 0), "x", r"files\[0\]: 'x'\n  allowed: an object"),
        (("files", 0, "mode"), 1, r"files\[0\]: unknown key: 'mode'"),
        (("files", 0, "sha256"), "0", r"files\[0\]\.sha256: '0'"),
        (("files", 0, "size_bytes"), -1, r"files\[0\]\.size_bytes: -1"),
        (("files", 0, "size_bytes"), True, r"files\[0\]\.size_bytes: True"),
        (("files", 0, "size_bytes"), 3.0, r"files\[0\]\.size_bytes: 3\.0"),
        (("files", 0, "role"), "virus", r"files\[0\]\.role: 'virus'\n  allowed: graph, reference"),
        (("files", 0, "label"), 8, r"files\[0\]\.label: 8"),
        (("files", 0, "path"), 8, r"files\[0\]\.path: 8"),
        (("files", 0, "path"), "../up", r"files\[0\]\.path: '\.\./up'"),
        (("files", 0, "path"), "a.json", "a path twice"),
        (("files", 0, "path"), "manifest.json", "or the manifest itself"),
        (("results",), "w8.json", "results: 'w8.json'\n  allowed: one of the files"),
        (("results",), 1, "results: 1"),
        (("built_on_device",), "/dev", "built_on_device: '/dev'"),
        (("skipped", 0, "reason"), 1, r"skipped\[0\]\.reason: 1"),
        (("skipped", 0, "step"), None, r"skipped\[0\]\.step: None"),
        (("skipped", 0), None, r"skipped\[0\]: None"),
    ],
)
def test_anything_else_is_refused(
    manifest_of: Callable[..., Manifest], path: tuple[Any, ...], value: object, message: str
) -> None:
    manifest = manifest_of((ENTRY, OTHER))
    # files are sorted: entry 0 is a.json, so the other one is made to clash with it
    if path == ("files", 0, "path") and value == "a.json":
        path = ("files", 1, "path")
    for where in ("manifest.json", "there/manifest.json"):
        with pytest.raises(PackageError, match=f"^{where}: .*{message}"):
            Manifest.from_json(_changed(manifest, path, value), where=where)


def test_two_graphs_of_one_label_are_refused(manifest_of: Callable[..., Manifest]) -> None:
    with pytest.raises(PackageError, match=r"files: two graphs with one label\n  allowed: one graph for each label"):
        manifest_of((ENTRY, replace(ENTRY, path="graphs/again.onnx")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one JSON object"),
        ("[1", "one JSON object"),
        ('{"a": 1, "a": 1}', "the key 'a' is given twice"),
        ("[" * 100_000, "nested too deeply|one JSON object"),
    ],
)
def test_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        Manifest.from_json(text)


@pytest.mark.parametrize("text", ["[]", "null", '"text"', "3"])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PackageError, match=r"manifest.json: .*\n  allowed: one JSON object"):
        Manifest.from_json(text)


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "größe/w8.onnx", ".hidden", "a..b/c", "a b"])
def test_paths_inside(path: str) -> None:
    assert is_inside(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "/a",
        "//a",
        "a//b",
        "a/",
        "./a",
        "a/./b",
        "a\\b",
        "c:a",
        "a\0",
        "a\n",
        "\ud800",
    ],
)
def test_paths_outside(path: str) -> None:
    assert not is_inside(path)
