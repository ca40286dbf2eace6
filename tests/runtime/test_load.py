"""What `load` refuses, and what it does not look at."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.engines.onnxruntime_engine import OnnxRuntimeSession
from bitswitch_deploy.errors import CheckFailedError, InputFileError, PackageError, UnavailableError, UsageError
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.manifest import FileEntry
from bitswitch_deploy.runtime import LatencyBudget, RuntimeOptions, load
from bitswitch_deploy.runtime.checked_file import CheckedFile
from tests.runtime.conftest import LABELS, Packages, graph_file

LOAD = import_module("bitswitch_deploy.runtime.load")  # its package has a function of that name
TRUST = RuntimeOptions(threads=1, trust_files=True)


def damaged(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_file_that_does_not_match_its_hash_is_refused(package: Path) -> None:
    damaged(graph_file(package, "w2"))
    with pytest.raises(CheckFailedError, match=r"digits-w2.onnx(\.gz)?: its hash does not match the manifest"):
        load(package)


def test_weights_and_index_are_hashed_too(packages: Packages, package: Path) -> None:
    for name in ("digits.weights", "digits.weights.json"):
        if (package / name).exists():
            damaged(package / name)
            with pytest.raises(CheckFailedError, match=f"{name}: its hash does not match"):
                load(package)
            (package / name).write_bytes((packages.shared / name).read_bytes())


def test_hashing_can_be_left_out_but_sizes_count(package: Path) -> None:
    with (package / "manifest.json").open("r+") as file:
        document = json.load(file)
        for entry in document["files"]:
            entry["sha256"] = "0" * 64
        file.seek(0)
        json.dump(document, file)
        file.truncate()
    with pytest.raises(CheckFailedError, match="hash does not match"):
        load(package)
    load(package, options=TRUST).close()
    path = graph_file(package, "w2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckFailedError, match=r"bytes, says the manifest"):
        load(package, options=TRUST)


def test_an_application_may_change_its_folder(
    package: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(package.parent)
    with load(package.name, options=TRUST) as switcher:
        monkeypatch.chdir("/")
        switcher.switch(4)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1])[0], packages.outputs["w4"][0])


def test_memory_that_runs_out_leaves_the_width(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise MemoryError

    with load(package, options=TRUST) as switcher:
        monkeypatch.setattr(LOAD, "OnnxRuntimeSession", none)
        with pytest.raises(UnavailableError, match="width w4: not enough memory"):
            switcher.switch(4)
        assert switcher.width == "w8"


def test_a_file_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """By whoever writes in place, a part at a time."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(3 << 20))
    sha256, size = hash_file(path)
    file = CheckedFile(tmp_path, FileEntry(path="weights", sha256=sha256, size_bytes=size, role="weights"), trust=False)

    class Buffer:
        """Lets somebody write when the reader asks for the rest of it."""

        def __init__(self, data: bytearray) -> None:
            self.data = memoryview(data)

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, place: slice) -> memoryview:
            if place.start:
                with path.open("r+b") as other:
                    other.write(b"mine")
                os.utime(path, ns=(1, 1))
            return self.data[place.start : (place.start or 0) + (1 << 20)]

    file.read_into(Buffer(bytearray(1 << 20)))  # type: ignore[arg-type]
    with pytest.raises(CheckFailedError, match="replaced or written to"):
        file.read_into(Buffer(bytearray(size)))  # type: ignore[arg-type]


def test_a_file_that_was_written_to_and_dated_back_is_refused_and_one_with_other_permissions_is_not(
    package: Path, packages: Packages
) -> None:
    name = "digits.weights" if (package / "digits.weights").exists() else "digits-w4.onnx"
    with load(package, options=RuntimeOptions(threads=1, max_sessions=1)) as switcher:
        (package / name).chmod(0o600)
        switcher.switch(4)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1])[0], packages.outputs["w4"][0])
        switcher.switch(8)
        before = (package / name).stat()
        with (package / name).open("r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"\0" * 9)
        os.utime(package / name, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(CheckFailedError, match="replaced or written to since it was loaded"):
            switcher.switch(4)


def test_a_graph_that_is_replaced_while_it_is_opened_does_not_serve(
    package: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(*arguments: Any, **options: Any) -> Any:
        for name in ("digits-w4.onnx", "digits.weights"):
            if (package / name).exists():
                os.utime(package / name, ns=(1, 1))
        return OnnxRuntimeSession(*arguments, **options)

    with load(package, options=TRUST) as switcher:
        monkeypatch.setattr(LOAD, "OnnxRuntimeSession", swapped)
        with pytest.raises(CheckFailedError, match="replaced or written to since it was loaded"):
            switcher.switch(4)
        np.testing.assert_array_equal(switcher.run(packages.inputs[:1])[0], packages.outputs["w8"][0])


@pytest.mark.parametrize("warm", [4, "w4", None])
def test_one_warm_width_that_is_no_list_is_refused(warm: Any) -> None:
    with pytest.raises(UsageError, match=f"warm: {warm!r}"):
        RuntimeOptions(warm=warm)


def test_a_path_that_no_file_system_takes_is_a_package_error() -> None:
    with pytest.raises(PackageError, match="not readable"):
        load("a" * 300)


def test_files_that_are_not_run_are_not_looked_at(package: Path) -> None:
    (package / "results.json").unlink()
    (package / "notes.txt").write_text("mine")
    with load(package) as switcher:
        assert switcher.widths == LABELS


def test_a_link_in_the_place_of_a_file_is_refused(package: Path) -> None:
    path = graph_file(package, "w4")
    path.rename(package / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(CheckFailedError, match="missing, or not a plain file"):
        load(package)


@pytest.mark.parametrize("name", ["manifest.json", "."])
def test_a_folder_that_is_no_package_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match="allowed: a folder written by `bitswitch-deploy export`"):
        load(tmp_path / name)


def test_unknown_providers_are_listed(package: Path) -> None:
    with pytest.raises(UsageError, match="provider: 'cuda'\n  allowed: cpu, tensorrt"):
        load(package, provider="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "warm", "message"),
    [
        (None, (8, 4, 2), "widths w8, w4, w2: 3 sessions in a budget of 2"),
        (None, (4, 2), "widths w8, w4, w2: 3 sessions in a budget of 2"),
        (6, ("w4", 4, 2), "widths w6, w4, w2: 3 sessions in a budget of 2"),
    ],
)
def test_more_warm_widths_than_sessions_are_refused(
    package: Path, width: int | None, warm: tuple[int | str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message + "\n  allowed: room for the first width and every warm one"):
        load(package, width=width, options=RuntimeOptions(warm=warm))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": LatencyBudget}, "load: policy: <class .*LatencyBudget(.|\n)*an object with the methods choose and"),
        ({"policy": 5}, "load: policy: 5"),
        ({"options": {"threads": 2}}, "load: options: {'threads': 2}\n  allowed: RuntimeOptions or None"),
    ],
)
def test_what_is_no_policy_and_no_options_is_refused_at_once(
    package: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(package, **arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_is_not_utf8_is_refused(packages: Packages, tmp_path: Path) -> None:
    """onnxruntime takes names as text. Graphs on shared weights are handed over as bytes."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(packages.own, folder / "own")
    with pytest.raises(InputFileError, match="a path that is not UTF-8"):
        load(folder / "own")
    shutil.copytree(packages.shared, folder / "shared")
    load(folder / "shared").close()


def test_a_width_that_is_warm_twice_or_the_first_counts_once(package: Path) -> None:
    with load(package, options=RuntimeOptions(threads=1, warm=(8, "w8", 4))) as switcher:
        assert switcher.open_widths == ("w4", "w8")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("max_sessions", 0),
        ("max_sessions", None),
        ("max_sessions", 1.5),
        ("memory_budget_mb", 0),
        ("threads", "1"),
        ("threads", True),
    ],
)
def test_what_is_no_whole_number_of_one_or_more_is_refused(name: str, number: Any) -> None:
    with pytest.raises(UsageError, match=f"RuntimeOptions: {name}: {number!r}\n  allowed: a whole number, 1 or more"):
        RuntimeOptions(**{name: number})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["graphs"].pop(0), "no entry for digits-w8.onnx.gz"),
        (lambda index: index["tensors"][0].update(offset=10**6), r"tensors up to byte [\d,]+ of 'digits.weights'"),
        (lambda index: index.update(file="other.weights"), "of 'other.weights'"),
        (lambda index: index.update(bits=4), "needs a width of 0 or 2..4 for each tensor"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    packages: Packages,
    tmp_path: Path,
    rehash: Callable[[Path, str], None],
    change: Callable[[Any], object],
    message: str,
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for path in packages.shared.iterdir():
        (package / path.name).write_bytes(path.read_bytes())
    path = package / "digits.weights.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    rehash(package, path.name)
    with pytest.raises(PackageError, match=message):
        load(package)


@pytest.mark.parametrize("package", [None, 4, b"deploy"])
def test_what_is_no_path_is_refused(package: Any) -> None:
    with pytest.raises(UsageError, match=f"load: package: {package!r}\n  allowed: the path of a folder"):
        load(package)
