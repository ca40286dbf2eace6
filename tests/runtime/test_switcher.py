"""Switching on real packages: what each width answers, what stays when something fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_file
from bitswitch_deploy.errors import CheckFailedError, DataError, GraphError, PackageError, UsageError
from bitswitch_deploy.model_file import compressed, is_compressed
from bitswitch_deploy.runtime import RuntimeOptions, Switcher, load
from tests.runtime.conftest import LABELS, Packages, graph_file

ONE = RuntimeOptions(threads=1)


def answers(switcher: Switcher, packages: Packages) -> np.ndarray:
    return np.stack([switcher.run(x[None])[0] for x in packages.inputs])


def weights_file(package: Path) -> Path:
    """Give the file that a cold switch to w4 reads."""
    shared = package / "digits.weights"
    return shared if shared.exists() else package / "digits-w4.onnx"


def test_every_width_answers_as_its_own_file_does(package: Path, packages: Packages) -> None:
    with load(package, options=ONE) as switcher:
        assert switcher.widths == LABELS
        assert switcher.width == "w8"
        for width in (8, 4, "w4", 2, 6, "mixed", 8):
            switcher.switch(width)
            label = width if isinstance(width, str) else f"w{width}"
            assert switcher.width == label
            assert np.array_equal(answers(switcher, packages), packages.outputs[label])


def test_widths_answer_differently(packages: Packages) -> None:
    """Else the tests of this folder would not see a mixed-up width."""
    outputs = list(packages.outputs.values())
    for place in range(len(packages.inputs)):
        assert len({output[place].tobytes() for output in outputs}) == len(LABELS)


def test_the_first_width_can_be_chosen(package: Path, packages: Packages) -> None:
    with load(package, width=2, options=ONE) as switcher:
        assert switcher.width == "w2"
        assert np.array_equal(answers(switcher, packages), packages.outputs["w2"])


def test_raw_images_become_what_the_network_was_trained_on(package: Path) -> None:
    with np.load(bundled_file("calibration/digits/test.npz")) as samples, load(package, options=ONE) as switcher:
        assert switcher.preprocessing is not None
        images, labels = samples["x"].reshape(-1, 8, 8, 1), samples["y"]
        scores = switcher.run(switcher.preprocessing.apply(images))
    assert np.mean(scores.argmax(1) == labels) > 0.97


def test_no_more_sessions_are_kept_than_asked_for(package: Path) -> None:
    with load(package, options=RuntimeOptions(threads=1, max_sessions=2)) as switcher:
        for width in (6, 8, 4):
            switcher.switch(width)
        assert switcher.open_widths == ("w8", "w4")


def test_warm_widths_are_open_before_the_first_request(package: Path) -> None:
    options = RuntimeOptions(threads=1, max_sessions=3, warm=(4, "w2"))
    with load(package, options=options) as switcher:
        assert switcher.open_widths == ("w4", "w2", "w8")


def test_all_outputs_come_by_name(package: Path, packages: Packages) -> None:
    with load(package, options=ONE) as switcher:
        (name,) = (value.name for value in switcher.inputs)
        outputs = switcher.run_all({name: packages.inputs[:1]})
    (output,) = outputs.values()
    assert np.array_equal(output, packages.outputs["w8"][:1])


def test_a_width_that_the_package_lacks_names_those_it_has(package: Path, packages: Packages) -> None:
    with load(package, width=4, options=ONE) as switcher:
        for width in (5, "w9", "mixed.onnx"):
            with pytest.raises(UsageError, match="allowed: w8, w6, w4, w2, mixed"):
                switcher.switch(width)
        assert np.array_equal(answers(switcher, packages), packages.outputs["w4"])
    with pytest.raises(UsageError, match="width: w3\n  allowed: w8, w6, w4, w2, mixed"):
        load(package, width=3)


def test_wrong_inputs_are_refused_and_the_next_one_is_answered(package: Path, packages: Packages) -> None:
    x = packages.inputs[:1]
    hole = x.copy()
    hole[0, 0, 3, 5] = np.nan
    with load(package, width=6, options=ONE) as switcher:
        for bad, message in (
            (x[:, :, :7], r"shape \[1, 1, 7, 8\]"),
            (x.astype(np.float64), r"float64\n  allowed: float32\n  do: convert with .astype"),
            (hole, r"1 NaN, the first at \[0, 0, 3, 5\]"),
            (np.ma.masked_invalid(hole), r"1 NaN, the first at \[0, 0, 3, 5\]"),
            (x.tolist(), "list\n  allowed: a NumPy array"),
        ):
            with pytest.raises(DataError, match=message):
                switcher.run(bad)
        with pytest.raises(UsageError, match="values for 'pixels'\n  allowed: exactly 'input'"):
            switcher.run_all({"pixels": x})
        assert np.array_equal(answers(switcher, packages), packages.outputs["w6"])


@pytest.mark.parametrize("damage", ["cut", "written", "removed", "replaced"])
def test_a_file_that_changes_while_it_is_loaded_is_refused(package: Path, packages: Packages, damage: str) -> None:
    with load(package, options=RuntimeOptions(threads=1, max_sessions=3)) as switcher:
        switcher.switch(2)
        path = weights_file(package)
        data = path.read_bytes()
        if damage == "cut":
            with path.open("r+b") as file:
                file.truncate(len(data) // 2)
        elif damage == "written":
            path.write_bytes(data[:-1] + b"\0")
        elif damage == "removed":
            path.unlink()
        else:
            (package / "other").write_bytes(data)
            (package / "other").replace(path)
        words = {
            "cut": f"cut short to {len(data) // 2:,} bytes since it was loaded",
            "removed": "not readable any more: No such file",
        }
        with pytest.raises(CheckFailedError, match=words.get(damage, "replaced or written to since it was loaded")):
            switcher.switch(4)
        assert switcher.width == "w2"
        assert np.array_equal(answers(switcher, packages), packages.outputs["w2"])
        switcher.switch(8)
        assert np.array_equal(answers(switcher, packages), packages.outputs["w8"])


def test_a_graph_that_onnxruntime_refuses_leaves_the_width(
    package: Path, packages: Packages, rehash: Callable[[Path, str], None]
) -> None:
    graph = graph_file(package, "w4")
    content = b"\x08\x07 no graph" * 700
    graph.write_bytes(compressed(content) if is_compressed(graph) else content)
    rehash(package, graph.name)
    with load(package, options=ONE) as switcher:
        # with shared weights, what the graph reads as it is in their file is looked up first
        with pytest.raises(
            (GraphError, PackageError), match=r"refuses it|digits-w4.onnx.gz: its protobuf does not parse"
        ):
            switcher.switch(4)
        assert np.array_equal(answers(switcher, packages), packages.outputs["w8"])


def test_a_switch_that_fails_leaves_the_width_where_others_made_room_for_it(package: Path, packages: Packages) -> None:
    with load(package, options=RuntimeOptions(threads=1, max_sessions=2)) as switcher:
        switcher.switch(2)
        weights_file(package).unlink()
        for _ in range(2):
            with pytest.raises(CheckFailedError, match="not readable any more"):
                switcher.switch(4)
            assert switcher.open_widths == ("w2",)
            assert np.array_equal(answers(switcher, packages), packages.outputs["w2"])


def test_after_close_every_call_is_refused(package: Path, packages: Packages) -> None:
    switcher = load(package, options=ONE)
    switcher.close()
    switcher.close()
    for call in (lambda: switcher.run(packages.inputs[:1]), lambda: switcher.switch(4), lambda: switcher.width):
        with pytest.raises(UsageError, match="a call after close"):
            call()


def test_only_onnxruntime_and_numpy_are_imported(package: Path) -> None:
    code = f"""
import sys
import bitswitch_deploy.runtime
with bitswitch_deploy.runtime.load({str(package)!r}) as switcher:
    switcher.switch(4)
heavy = ("torch", "onnx", "onnx_graphsurgeon", "google.protobuf", "rich", "click", "yaml", "safetensors")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
